//! nginx's mail proxy in front of real mail servers, with usher as its `auth_http` server.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kit::client::base64;
use crate::kit::nginx::Nginx;
use crate::kit::slapd::Slapd;
use crate::kit::users::METACHARACTERS;
use crate::kit::{Config, Imap, Usher, dovecot, password_of, relay, slapd, wait_limit};

/// server3 with its plaintext ports for nginx; server4 has none.
fn with_directory(directory: &Slapd) -> Config {
    relay();
    let mail = dovecot();
    let mut config = Config::with_directory(directory)
        .backend("server3", mail.imaps, &["server3"])
        .backend("server4", mail.imaps, &["server4", "server4.example.com"])
        .set("/directory/login_attribute", "uid")
        .set("/auth_http", json!({"address": "127.0.0.1:0", "allow": ["127.0.0.1"]}));
    let endpoint = |tls: u16, clear: u16| {
        json!({"address": format!("127.0.0.1:{tls}"), "tls": "implicit", "server_name": "server3.example.com",
            "auth_http": {"port": clear}})
    };
    config.change("/routing/backends/0/imap", endpoint(mail.imaps, mail.imap));
    config.change("/routing/backends/0/pop3", endpoint(mail.pop3s, mail.pop3));
    config.change("/routing/backends/0/submission", endpoint(mail.submissions, mail.submission));
    config
}

fn config() -> Config {
    with_directory(slapd())
}

pub(crate) fn port(usher: &Usher) -> u16 {
    let line = usher.wait_log("auth_http listening", |_| true);
    line["address"].as_str().unwrap().parse::<std::net::SocketAddr>().unwrap().port()
}

/// Sends these bytes from this loopback address and returns the whole reply.
pub(crate) fn raw(from: [u8; 4], port: u16, bytes: impl AsRef<[u8]>) -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait_limit(Duration::from_secs(20)))).unwrap();
    // A connection from elsewhere is closed while this is written.
    let _ = stream.write_all(bytes.as_ref());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// A request as nginx sends it.
pub(crate) fn question(user: &str, password: &str, protocol: &str, attempt: u32, more: &str) -> String {
    format!(
        "GET / HTTP/1.0\r\nHost: 127.0.0.1\r\nAuth-Method: plain\r\nAuth-User: {user}\r\nAuth-Pass: {password}\r\n\
         Auth-Protocol: {protocol}\r\nAuth-Login-Attempt: {attempt}\r\nClient-IP: 192.0.2.7\r\n{more}\r\n"
    )
}

pub(crate) fn ask(port: u16, question: &str) -> String {
    raw([127, 0, 0, 1], port, question)
}

pub(crate) fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn smtp(port: u16) -> Imap {
    let mut smtp = Imap::tls(port);
    smtp.send("EHLO here\r\n");
    while smtp.line().as_bytes().get(3) == Some(&b'-') {}
    smtp
}

fn said(peer: &mut Imap, line: &str) -> String {
    peer.send(format!("{line}\r\n"));
    peer.line()
}

fn plain(user: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", base64(format!("\0{user}\0{password}").as_bytes()))
}

#[test]
fn nginx_logs_users_in_at_the_returned_backend() {
    let usher = Usher::start(config());
    let nginx = Nginx::start(port(&usher), "");
    let password = password_of("alice");
    // The entry has another name than the typed one.
    let mut imap = Imap::tls(nginx.imaps);
    imap.login("alice@example.com", &password).ok();
    imap.command("SELECT INBOX").ok();
    let event = usher.login("alice@example.com");
    let expected = json!(["ok", "imap", "127.0.0.1", "127.0.0.1", "alice", "server3"]);
    let reported = ["result", "protocol", "client", "via", "login_backend", "backend"].map(|key| event[key].clone());
    assert_eq!(Value::from(reported.to_vec()), expected, "{event}");

    let mut pop3 = Imap::tls(nginx.pop3s);
    assert!(said(&mut pop3, "USER alice").starts_with("+OK"));
    assert!(said(&mut pop3, &format!("PASS {password}")).starts_with("+OK"), "{}", usher.log_text());
    assert!(said(&mut pop3, "STAT").starts_with("+OK"));
    let mut smtp = smtp(nginx.submissions);
    assert!(said(&mut smtp, &plain("alice", &password)).starts_with("235 "));
    assert!(said(&mut smtp, "MAIL FROM:<alice@example.com>").starts_with("250 "));
    assert_eq!(usher.nth_login(2, "alice")["by"], "cache");
    assert_eq!(usher.metric("usher_logins_total", &[("result", "ok")]), 3.0);
    assert_eq!(usher.metric("usher_auth_http_requests_total", &[("result", "ok")]), 3.0);
}

#[test]
fn wrong_passwords_have_their_reply_and_leave_the_connection_usable() {
    let usher = Usher::start(config());
    let nginx = Nginx::start(port(&usher), "");
    let mut imap = Imap::tls(nginx.imaps);
    let wrong = "NO [AUTHENTICATIONFAILED] Name or password is wrong";
    assert_eq!(imap.login("alice", "wrong").tagged, wrong);
    assert_eq!(imap.login("unknown", "wrong").tagged, wrong);
    imap.login("alice", &password_of("alice")).ok();
    let mut pop3 = Imap::tls(nginx.pop3s);
    said(&mut pop3, "USER alice");
    assert_eq!(said(&mut pop3, "PASS wrong"), "-ERR [AUTH] Name or password is wrong");
    said(&mut pop3, "USER alice");
    assert!(said(&mut pop3, &format!("PASS {}", password_of("alice"))).starts_with("+OK"));
    let mut smtp = smtp(nginx.submissions);
    assert_eq!(said(&mut smtp, &plain("alice", "wrong")), "535 5.7.8 Name or password is wrong");
    assert!(said(&mut smtp, &plain("alice", &password_of("alice"))).starts_with("235 "));

    // The last attempt that limits.failed_logins allows ends the connection.
    let mut imap = Imap::tls(nginx.imaps);
    for _ in 0..3 {
        imap.login("anna", "wrong").is("NO [AUTHENTICATIONFAILED]");
    }
    imap.rest();
    // A user whose server nginx cannot reach gets a reply that says so.
    Imap::tls(nginx.imaps).login("bob", &password_of("bob")).is("NO [CONTACTADMIN]");
    assert_eq!(usher.login("bob")["result"], "protocol_not_served");
    // Digests cannot be verified by a bind.
    let mut pop3 = Imap::tls(nginx.pop3s);
    assert_eq!(said(&mut pop3, "APOP alice 0123456789abcdef0123456789abcdef"), "-ERR Use PLAIN or LOGIN under TLS");
    let mut smtp = self::smtp(nginx.submissions);
    assert!(said(&mut smtp, "AUTH CRAM-MD5").starts_with("334 "));
    let digest = base64(b"alice 0123456789abcdef0123456789abcdef");
    assert_eq!(said(&mut smtp, &digest), "504 5.5.4 Use PLAIN or LOGIN under TLS");
    assert_eq!(usher.metric("usher_auth_http_requests_total", &[("result", "method")]), 2.0);
}

#[test]
fn special_characters_arrive_unchanged() {
    let usher = Usher::start(config());
    let nginx = Nginx::start(port(&usher), "");
    for uid in ["gruen", "long", "quote", "space", METACHARACTERS] {
        Imap::tls(nginx.imaps).authenticate("", uid, password_of(uid).as_bytes()).ok();
        Imap::tls(nginx.imaps)
            .authenticate("", uid, (password_of(uid) + "+").as_bytes())
            .is("NO [AUTHENTICATIONFAILED]");
    }
    // Line ends, NUL, Latin-1 and text that looks like nginx' own escapes.
    for (name, password) in [
        ("alice\r\nAuth-Status: OK", &b"x"[..]),
        ("alice", b"x\r\nClient-IP: 127.0.0.9"),
        ("alice", b"\xe4"),
        ("alice%20", b"x"),
        ("alice", b""),
    ] {
        let answer = Imap::tls(nginx.imaps).authenticate("", name, password);
        assert_eq!(answer.tagged, "NO [AUTHENTICATIONFAILED] Name or password is wrong", "{name:?}");
    }
    let forged = usher.wait_log("login", |line| line["login"] == "alice\r\nAuth-Status: OK");
    assert_eq!(forged["result"], "invalid_username");
    assert_eq!(usher.login("alice%20")["result"], "unknown_user");
    let results = ["unusable_password", "wrong_password", "empty_password"];
    for (nth, result) in results.into_iter().enumerate() {
        assert_eq!(usher.nth_login(nth + 1, "alice")["result"], result);
    }
}

/// nginx would send what the client typed to the backend, where it is another user.
#[test]
fn nginx_gets_the_name_without_white_space_at_its_ends() {
    let usher = Usher::start(config().without("/directory/login_attribute"));
    let port = port(&usher);
    for (typed, sent) in [("alice", None), ("alice%20", Some("alice")), ("%20alice", Some("alice"))] {
        let answer = ask(port, &question(typed, &password_of("alice"), "imap", 1, ""));
        assert_eq!((header(&answer, "Auth-Status"), header(&answer, "Auth-User")), (Some("OK"), sent), "{answer}");
    }
    Imap::tls(Nginx::start(port, "").imaps).login("alice ", &password_of("alice")).ok();
}

#[test]
fn outage_is_not_reported_as_a_wrong_password() {
    let slapd = Slapd::private();
    let mail = dovecot();
    let config = with_directory(&slapd).set("/limits/failed_logins", 1).set("/routing/backends/0/failures", 1);
    // anna's server is down from the beginning; her password does not matter then.
    let mut config = config.set("/routing/backends/1/hosts", json!(["server4.example.com"]));
    let dead = crate::kit::process::free_port();
    config.change("/routing/backends/1/imap/address", format!("127.0.0.1:{dead}"));
    config.change("/routing/backends/1/imap/auth_http", json!({"port": mail.imap}));
    config.change("/routing/backends/1/probe", "tcp");
    config.change("/routing/backends/1/failures", 1);
    let usher = Usher::start(config);
    let nginx = Nginx::start(port(&usher), "");
    usher.wait_log("backend address marked down", |_| true);
    let mut imap = Imap::tls(nginx.imaps);
    imap.login("bob", &password_of("bob"))
        .is("NO [UNAVAILABLE] The mail service is not available, try again later (session ");
    assert_eq!(usher.login("bob")["result"], "backend_unreachable");
    imap.login("alice", &password_of("alice")).ok();
    drop(slapd);
    // Cached users log in; others get a temporary failure, on a connection that stays open.
    Imap::tls(nginx.imaps).login("alice", &password_of("alice")).ok();
    let mut imap = Imap::tls(nginx.imaps);
    for _ in 0..2 {
        imap.login("anna", &password_of("anna")).is("NO [UNAVAILABLE] ");
    }
    let mut pop3 = Imap::tls(nginx.pop3s);
    said(&mut pop3, "USER anna");
    assert!(said(&mut pop3, &format!("PASS {}", password_of("anna"))).starts_with("-ERR [SYS/TEMP] "));
    let mut smtp = smtp(nginx.submissions);
    assert!(said(&mut smtp, &plain("anna", &password_of("anna"))).starts_with("454 4.7.0 "));
    // Without usher nginx sends its own error, which never mentions the password.
    usher.terminate();
    usher.exit_code();
    let mut imap = Imap::tls(nginx.imaps);
    imap.send(format!("a LOGIN anna {}\r\n", password_of("anna")));
    assert_eq!(imap.line(), "* BAD internal server error");
    let mut pop3 = Imap::tls(nginx.pop3s);
    said(&mut pop3, "USER anna");
    assert_eq!(said(&mut pop3, "PASS x"), "-ERR internal server error");
    let mut smtp = self::smtp(nginx.submissions);
    assert_eq!(said(&mut smtp, &plain("anna", "x")), "451 4.3.2 Internal server error");
}

#[test]
fn untrusted_clients_and_malformed_requests_learn_nothing_about_users() {
    let config = config();
    let key = config.file("nginx.key", "s e:cret\n");
    let usher = Usher::start(config.set("/auth_http/key_file", key.display().to_string()));
    let (port, password) = (port(&usher), password_of("alice"));
    let good = question("alice", &password, "imap", 1, "X-Auth-Key: s e:cret\r\nAuth-SSL: on\r\n");
    let answer = ask(port, &good);
    let clear = dovecot().imap.to_string();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    let reported = ["Auth-Status", "Auth-Server", "Auth-Port", "Auth-User"].map(|name| header(&answer, name));
    assert_eq!(reported, [Some("OK"), Some("127.0.0.1"), Some(&*clear), None]);
    let event = usher.login("alice");
    assert_eq!((&event["client"], &event["via"]), (&json!("192.0.2.7"), &json!("127.0.0.1")));

    assert_eq!(raw([127, 0, 0, 2], port, &good), "");
    let without = |words: &str| good.replacen(words, "X-Other", 1);
    for (question, status, result) in [
        (without("X-Auth-Key"), "403", "key"),
        (good.replace("s e:cret", "s e:cre"), "403", "key"),
        (without("Auth-User"), "400", "malformed"),
        (without("Auth-Pass"), "400", "malformed"),
        (without("Client-IP"), "400", "malformed"),
        (without("Auth-Protocol"), "400", "malformed"),
        (good.replace(": imap", ": sieve"), "400", "malformed"),
        (good.replace("GET ", "POST "), "400", "malformed"),
        (good.replace("alice", &"a".repeat(40_000)), "400", "malformed"),
        (format!("{}\0{good}", "\u{16}\u{3}"), "400", "malformed"),
    ] {
        let before = usher.metric("usher_auth_http_requests_total", &[("result", result)]);
        let answer = ask(port, &question);
        // nginx, which ignores the status, finds no Auth-Status either: its client gets an error.
        assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.0 {status} ")), "{answer}");
        assert_eq!(header(&answer, "Auth-Status"), None);
        assert_eq!(usher.metric("usher_auth_http_requests_total", &[("result", result)]), before + 1.0);
    }
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
    usher.wait_metric("usher_auth_http_requests_total", &[("result", "closed")], 1.0);
    usher.wait_metric("usher_auth_http_requests_total", &[("result", "untrusted")], 1.0);
    // A silent connection is closed.
    assert!(raw([127, 0, 0, 1], port, "GET / HTTP/1.0\r\n").starts_with("HTTP/1.0 408 "));

    let nginx = Nginx::start(port, "auth_http_header X-Auth-Key \"s e:cret\";");
    Imap::tls(nginx.imaps).login("alice", &password).ok();
    assert!(!usher.log_text().contains(&password) && !usher.log_text().contains("s e:cret"));
}

#[test]
fn refusal_states_whether_the_client_may_retry() {
    let usher = Usher::start(config());
    let port = port(&usher);
    let wait = |attempt| {
        let answer = ask(port, &question("anna", "wrong", "smtp", attempt, ""));
        let reported =
            ["Auth-Status", "Auth-Error-Code"].map(|name| header(&answer, name).unwrap_or_default().to_owned());
        assert_eq!(reported, ["Name or password is wrong", "535 5.7.8"]);
        header(&answer, "Auth-Wait").map(str::to_owned)
    };
    assert_eq!([1, 2, 3, 4].map(wait), [Some("1".to_owned()), Some("1".to_owned()), None, None]);
    let answer = ask(port, &question("carol", &password_of("carol"), "smtp", 1, ""));
    assert_eq!(header(&answer, "Auth-Error-Code"), Some("554 5.3.5"));
    assert!(header(&answer, "Auth-Status").unwrap().contains("(session "), "{answer}");
}

#[test]
fn reload_opens_and_closes_the_listener() {
    let mut usher = Usher::start(config().without("/auth_http"));
    let one = crate::kit::process::free_port();
    let other = crate::kit::process::free_port();
    let question = question("alice", &password_of("alice"), "imap", 1, "");
    let listens = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
    for (port, before) in [(one, other), (other, one)] {
        let settings = json!({"address": format!("127.0.0.1:{port}"), "allow": ["127.0.0.0/8"]});
        usher.config.change("/auth_http", settings);
        usher.config.write();
        assert_eq!(usher.hup()["message"], "reloaded");
        assert_eq!(header(&ask(port, &question), "Auth-Status"), Some("OK"));
        assert!(!listens(before));
    }
    // The allowed networks change with the file.
    usher.config.change("/auth_http/allow", json!(["192.0.2.1"]));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    assert_eq!(ask(other, &question), "");
    // A new process inherits the listener.
    usher.config.change("/auth_http/allow", json!(["127.0.0.1"]));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    usher.config.change("/auth_http", Value::Null);
    let without = usher.config.clone().without("/auth_http");
    std::fs::copy(without.write(), usher.config.path("usher.yaml")).unwrap();
    assert_eq!(usher.hup()["message"], "reloaded");
    assert!(!listens(other));
}
