//! The client's address from end to end: from a proxy or a webmail server, in logs and
//! limits, to a backend that records it in its own log.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::client::base64;
use crate::kit::dovecot::Dovecot;
use crate::kit::process::free_port;
use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Sieve, Usher, password_of, shared, slapd};

/// The client addresses of these tests, all on loopback.
const CLIENT: [u8; 4] = [127, 0, 0, 77];
const PROXY: [u8; 4] = [127, 0, 0, 20];
const WEBMAIL: [u8; 4] = [127, 0, 0, 30];

/// A Dovecot that trusts all of loopback, with listeners that require a PROXY header.
struct Trusting {
    dovecot: Dovecot,
    haproxy_imaps: u16,
    haproxy_imap: u16,
}

fn trusting() -> &'static Trusting {
    static TRUSTING: OnceLock<Trusting> = OnceLock::new();
    TRUSTING.get_or_init(|| {
        let (haproxy_imaps, haproxy_imap) = (free_port(), free_port());
        let more = format!(
            "login_trusted_networks = 127.0.0.0/8\nhaproxy_trusted_networks = 127.0.0.0/8\n\
             login_log_format_elements = user=<%u> rip=<%r> rport=<%b> lip=<%l> lport=<%a> session=<%{{session}}>\n\
             service imap-login {{\n  inet_listener imaps_haproxy {{\n    port = {haproxy_imaps}\n    ssl = yes\n    \
             haproxy = yes\n  }}\n  inet_listener imap_haproxy {{\n    port = {haproxy_imap}\n    haproxy = yes\n  }}\n}}\n"
        );
        let dovecot = Dovecot::start_with(&shared().certificates, &shared().server3, false, &more);
        Trusting { dovecot, haproxy_imaps, haproxy_imap }
    })
}

/// server3 at that Dovecot, with this way of forwarding the client address.
fn forwarding(port: u16, tls: &str, forward: &str) -> Config {
    let config = Config::with_directory(slapd()).backend("server3", port, &["server3"]);
    config.set("/routing/backends/0/imap/tls", tls).set("/routing/backends/0/imap/forward", forward)
}

/// A listener that requires headers from [`PROXY`].
fn behind_proxy(config: Config) -> Config {
    config.set("/listeners/0/proxy_header", "required").set("/listeners/0/trusted", "127.0.0.20")
}

fn log_in(mut imap: Imap, uid: &str) -> Imap {
    imap.login(uid, &password_of(uid)).ok();
    imap
}

fn v1(client: &str, client_port: u16) -> Vec<u8> {
    let (family, local) = if client.contains(':') { ("TCP6", "2001:db8::1") } else { ("TCP4", "192.0.2.1") };
    format!("PROXY {family} {client} {local} {client_port} 993\r\n").into_bytes()
}

/// A version 2 header with this command, family and rest.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, rest].concat()
}

/// 203.0.113.9 port 4711 to 192.0.2.1 port 993.
const ADDRESSES: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 1, 0x12, 0x67, 0x03, 0xe1];

/// The results of the connections to listeners with headers.
fn headers(usher: &Usher, result: &str) -> f64 {
    usher.metric("usher_proxy_headers_total", &[("protocol", "imap"), ("result", result)])
}

/// The nth `login` event of alice.
fn client_of(usher: &Usher, nth: usize) -> Value {
    usher.nth_login(nth, "alice")["client"].clone()
}

#[test]
fn dovecot_sees_the_client_in_every_mode() {
    let Trusting { dovecot, haproxy_imaps, haproxy_imap } = trusting();
    for (forward, port, tls) in [
        ("id", dovecot.imaps, "implicit"),
        ("id", dovecot.imap, "starttls"),
        ("proxy_v1", *haproxy_imaps, "implicit"),
        ("proxy_v2", *haproxy_imaps, "implicit"),
        ("proxy_v2", *haproxy_imap, "starttls"),
    ] {
        let usher = Usher::start(forwarding(port, tls, forward));
        let mut imap = log_in(Imap::tls_from(CLIENT, usher.imaps_port()), "alice");
        let session = usher.login("alice")["session"].as_str().unwrap().to_owned();
        let rport = format!("rport=<{}>", imap.local_address().port());
        let line = dovecot.wait_logged(&["Login: user=<alice>, rip=<127.0.0.77>", &rport]);
        assert!(line.contains(&format!("lip=<127.0.0.1>, lport=<{}>", usher.imaps_port())), "{forward}: {line}");
        // Its log lines are found by usher's session id.
        assert_eq!(line.contains(&format!("session=<{session}>")), forward == "id", "{forward}: {line}");
        imap.command("NOOP").ok();
    }
    let usher = Usher::start(forwarding(dovecot.imaps, "implicit", "none"));
    log_in(Imap::tls_from(CLIENT, usher.imaps_port()), "anna");
    dovecot.wait_logged(&["Login: user=<anna>, rip=<127.0.0.1>"]);
}

#[test]
fn ipv6_client_is_reported_as_ipv6() {
    let Trusting { dovecot, haproxy_imaps, .. } = trusting();
    for (forward, port) in [("id", dovecot.imaps), ("proxy_v1", *haproxy_imaps), ("proxy_v2", *haproxy_imaps)] {
        let usher = Usher::start(forwarding(port, "implicit", forward).set("/listeners/0/address", "[::1]:0"));
        let mut imap = Imap::silent_at(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], usher.imaps_port())));
        imap.start_tls();
        imap.line();
        let imap = log_in(imap, "alice");
        assert_eq!(client_of(&usher, 1), "::1");
        let rport = format!("rport=<{}>", imap.local_address().port());
        dovecot.wait_logged(&["Login: user=<alice>, rip=<::1>", &rport, "lip=<::1>"]);
    }
}

/// A POP3 session through a listener of usher that requires a PROXY header.
fn pop3(usher: &Usher, client: &str, client_port: u16) -> (Imap, String) {
    let mut pop3 = Imap::with_header(PROXY, usher.imaps_port(), &v1(client, client_port));
    pop3.send("USER alice\r\n");
    pop3.line();
    pop3.send(format!("PASS {}\r\n", password_of("alice")));
    let answer = pop3.line();
    (pop3, answer)
}

#[test]
fn dovecot_sees_a_pop3_client_by_xclient_if_it_trusts_the_proxy() {
    let speaking = |dovecot: &Dovecot| {
        let config = forwarding(dovecot.imaps, "implicit", "none").speaking("pop3", &[dovecot.pop3s]);
        Usher::start(behind_proxy(config.set("/routing/backends/0/pop3/forward", "xclient")))
    };
    let Trusting { dovecot, .. } = trusting();
    let usher = speaking(dovecot);
    for (client, port) in [("203.0.113.7", 71), ("2001:db8::7", 72)] {
        let (_pop3, answer) = pop3(&usher, client, port);
        assert!(answer.starts_with("+OK"), "{answer}");
        let line =
            dovecot.wait_logged(&[&format!("pop3-login: Info: Login: user=<alice>, rip=<{client}>, rport=<{port}>")]);
        let session = usher.wait_log("login", |line| line["client"] == client)["session"].clone();
        assert!(line.contains(&format!("session=<{}>", session.as_str().unwrap())), "{line}");
    }
    // This server trusts no client and does not offer XCLIENT.
    let usher = speaking(crate::kit::dovecot());
    let (_pop3, answer) = pop3(&usher, "203.0.113.7", 73);
    let event = usher.login("alice");
    assert!(answer.starts_with("-ERR [SYS/TEMP] "), "{answer}");
    assert!(answer.ends_with(&format!("(session {})", event["session"].as_str().unwrap())), "{answer}");
    assert_eq!(event["result"], "backend_fault");
    assert!(event["backend_reply"].as_str().unwrap().contains("is usher in its trusted networks?"), "{event}");
}

#[test]
fn dovecot_sees_a_submission_client_by_xclient() {
    let Trusting { dovecot, .. } = trusting();
    let config = forwarding(dovecot.imaps, "implicit", "none").speaking("submission", &[dovecot.submissions]);
    let usher = Usher::start(behind_proxy(config.set("/routing/backends/0/submission/forward", "xclient")));
    for (client, port) in [("203.0.113.8", 81), ("2001:db8::8", 82)] {
        let mut smtp = Imap::with_header(PROXY, usher.imaps_port(), &v1(client, port));
        smtp.send("EHLO here\r\n");
        while !smtp.line().starts_with("250 ") {}
        smtp.send(format!("AUTH PLAIN {}\r\n", base64(format!("\0alice\0{}", password_of("alice")).as_bytes())));
        let answer = smtp.line();
        assert!(answer.starts_with("235 "), "{answer}");
        let login = format!("submission-login: Info: Login: user=<alice>, rip=<{client}>, rport=<{port}>");
        let line = dovecot.wait_logged(&[&login]);
        let session = usher.wait_log("login", |line| line["client"] == client)["session"].clone();
        assert!(line.contains(&format!("session=<{}>", session.as_str().unwrap())), "{line}");
    }
}

/// The first line of the message that Dovecot passes on has the name by which the client has introduced itself.
#[test]
fn messages_have_the_name_of_the_client() {
    let Trusting { dovecot, .. } = trusting();
    let relay = dovecot.relay();
    let long = "a".repeat(300);
    for (number, keys, greeting, name) in [
        (1, json!({"forward": "xclient"}), "EHLO laptop.example.net", "laptop.example.net ([127.0.0.77])"),
        (2, json!({"forward": "xclient"}), "HELO [192.0.2.7]", "[192.0.2.7] ([127.0.0.77])"),
        (3, json!({"forward": "xclient"}), &format!("EHLO {long}"), "usher.example.com ([127.0.0.77])"),
        (4, json!({"forward": "xclient"}), "EHLO caf\u{e9}.example.net", "usher.example.com ([127.0.0.77])"),
        (5, json!({"forward": "xclient", "ehlo": "own"}), "EHLO laptop", "usher.example.com ([127.0.0.77])"),
        (6, json!({"ehlo": "client"}), "EHLO laptop.example.net", "laptop.example.net ([127.0.0.1])"),
        (7, json!({"forward": "none"}), "EHLO laptop.example.net", "usher.example.com ([127.0.0.1])"),
    ] {
        let config = forwarding(dovecot.imaps, "implicit", "none").speaking("submission", &[dovecot.submissions]);
        let keys = keys.as_object().unwrap().iter();
        let with = |config: Config, (key, value): (&String, &Value)| {
            config.set(&format!("/routing/backends/0/submission/{key}"), value.clone())
        };
        let usher = Usher::start(keys.fold(config, with));
        let mut smtp = Imap::tls_from(CLIENT, usher.imaps_port());
        let mut ask = |command: &str, code: &str| {
            smtp.send(format!("{command}\r\n"));
            let mut line = smtp.line();
            while line.get(3..4) == Some("-") {
                line = smtp.line();
            }
            assert!(line.starts_with(code), "{command}: {line}");
        };
        ask(greeting, "250 ");
        ask(&format!("AUTH PLAIN {}", base64(format!("\0alice\0{}", password_of("alice")).as_bytes())), "235 ");
        ask("MAIL FROM:<alice@example.com>", "250 ");
        ask("RCPT TO:<carol@example.com>", "250 ");
        ask("DATA", "354 ");
        ask(&format!("Subject: name {number}\r\n\r\nHello\r\n."), "250 ");
        ask("QUIT", "221 ");
        let message = relay.message(&format!("Subject: name {number}")).expect("it has arrived");
        assert!(message.contains(&format!("Received: from {name}\n")), "{greeting}: {message}");
    }
}

#[test]
fn dovecot_sees_a_managesieve_client_by_xclient_if_it_trusts_the_proxy() {
    let speaking = |dovecot: &Dovecot| {
        let config = forwarding(dovecot.imaps, "implicit", "none").speaking("managesieve", &[dovecot.sieve]);
        let config = config.set("/routing/backends/0/managesieve/tls", "starttls");
        Usher::start(behind_proxy(config.set("/routing/backends/0/managesieve/forward", "xclient")))
    };
    let Trusting { dovecot, .. } = trusting();
    let usher = speaking(dovecot);
    for (client, port) in [("203.0.113.9", 91), ("2001:db8::9", 92)] {
        let mut sieve = Sieve::with_header(PROXY, usher.imaps_port(), &v1(client, port));
        let answer = sieve.authenticate("alice", &password_of("alice"));
        assert!(answer.starts_with("OK"), "{answer}");
        let login = format!("managesieve-login: Info: Login: user=<alice>, rip=<{client}>, rport=<{port}>");
        let line = dovecot.wait_logged(&[&login]);
        let session = usher.wait_log("login", |line| line["client"] == client)["session"].clone();
        assert!(line.contains(&format!("session=<{}>", session.as_str().unwrap())), "{line}");
    }
    // A server that trusts no client does not list XCLIENT, and gets no password.
    let usher = speaking(crate::kit::dovecot());
    let mut sieve = Sieve::with_header(PROXY, usher.imaps_port(), &v1("203.0.113.9", 93));
    let answer = sieve.authenticate("alice", &password_of("alice"));
    assert!(answer.starts_with("NO (TRYLATER) "), "{answer}");
    let event = usher.login("alice");
    assert_eq!(event["result"], "backend_fault");
    assert!(event["backend_reply"].as_str().unwrap().contains("is usher in its trusted networks?"), "{event}");
}

#[test]
fn proxy_header_names_the_client_in_the_log_and_to_the_backend() {
    let Trusting { dovecot, haproxy_imaps, .. } = trusting();
    let usher = Usher::start(behind_proxy(forwarding(*haproxy_imaps, "implicit", "proxy_v2")));
    let four = |port: u8| [&ADDRESSES[..8], &[0, port, 0x03, 0xe1]].concat();
    let six = [[0x20, 1, 0xd, 0xb8], [0; 4], [0; 4], [0, 0, 0, 9]].concat();
    let six = [six.as_slice(), &[0; 15], &[1], &[0, 5, 0x03, 0xe1]].concat();
    let extended = [four(4).as_slice(), b"\x01\0\x04imap\x05\0\x02id\x20\0\x05\x01\0\0\0\0"].concat();
    let clients = [
        (v1("203.0.113.7", 1), "203.0.113.7"),
        (v1("2001:db8::7", 2), "2001:db8::7"),
        (v2(0x21, 0x11, &four(3)), "203.0.113.9"),
        (v2(0x21, 0x11, &extended), "203.0.113.9"),
        (v2(0x21, 0x21, &six), "2001:db8::9"),
    ];
    for ((header, client), nth) in clients.iter().zip(1..) {
        let mut imap = log_in(Imap::with_header(PROXY, usher.imaps_port(), header), "alice");
        assert_eq!(client_of(&usher, nth), *client);
        let listed = usher.command(&["sessions", "--json"]).succeeded().stdout;
        assert!(listed.contains(&format!("\"{client}\"")), "{listed}");
        dovecot.wait_logged(&[&format!("Login: user=<alice>, rip=<{client}>, rport=<{nth}>")]);
        imap.command("LOGOUT").ok();
    }
    assert_eq!(headers(&usher, "client"), 5.0);
    // A health check comes from the proxy itself and gets a greeting.
    let locals = [b"PROXY UNKNOWN\r\n".to_vec(), v2(0x20, 0, b""), v2(0x21, 0x31, &[b'/'; 216])];
    for (local, nth) in locals.iter().zip(6..) {
        let imap = Imap::with_header(PROXY, usher.imaps_port(), local);
        assert!(imap.greeting.starts_with("* OK "), "{}", imap.greeting);
        log_in(imap, "alice");
        assert_eq!(client_of(&usher, nth), "127.0.0.20");
    }
    assert_eq!(headers(&usher, "local"), 3.0);
}

#[test]
fn fragmented_proxy_header_is_accepted_and_no_byte_after_it_is_lost() {
    let peer = Scripted::accepting();
    let usher = Usher::start(behind_proxy(Config::with_directory(slapd()).scripted(&peer)));
    for header in [v1("203.0.113.7", 1), v2(0x21, 0x11, &ADDRESSES)] {
        let mut imap = Imap::silent_from(PROXY, usher.imaps_port());
        imap.drip(&header);
        imap.start_tls();
        imap.line();
        log_in(imap, "alice");
    }
    assert_eq!((client_of(&usher, 1), client_of(&usher, 2)), (json!("203.0.113.7"), json!("203.0.113.9")));
    // On a STARTTLS listener, the header and a command in one packet.
    let config = usher.config.clone().set("/listeners/1/proxy_header", "required");
    let usher = Usher::start(config.set("/listeners/1/trusted", json!(["127.0.0.0/8"])));
    let mut imap = Imap::silent_from(PROXY, usher.imap_port());
    imap.send([v1("203.0.113.8", 2), b"a STARTTLS\r\n".to_vec()].concat());
    imap.line();
    imap.reply("a").ok();
    imap.start_tls();
    log_in(imap, "alice");
    assert_eq!(client_of(&usher, 1), "203.0.113.8");
}

#[test]
fn invalid_or_untrusted_proxy_header_is_closed_and_counted() {
    let peer = Scripted::accepting();
    let config = behind_proxy(Config::with_directory(slapd()).scripted(&peer));
    let usher = Usher::start(config.set("/limits/proxy_header_timeout", "300ms"));
    let port = usher.imaps_port();
    let closed = |from, bytes: &[u8]| {
        let mut imap = Imap::silent_from(from, port);
        // The connection may be closed while the client writes.
        let _ = imap.try_send(bytes);
        assert_eq!(imap.rest(), b"", "nothing is said");
    };
    closed(CLIENT, &v1("203.0.113.7", 1));
    closed(PROXY, b"PROXY TCP4 203.0.113.7 192.0.2.1 1\r\n");
    closed(PROXY, &v2(0x21, 0x11, &ADDRESSES[..4]));
    closed(PROXY, format!("PROXY UNKNOWN {}", "x".repeat(200)).as_bytes());
    closed(PROXY, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff");
    // TLS without a header, as from a client that bypasses the load balancer.
    assert!(Imap::try_tls_from(PROXY, port).is_err());
    let began = Instant::now();
    closed(PROXY, b"PROXY TCP4 203.0.113.7 192.0.");
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    // Single bytes do not extend the deadline.
    let mut imap = Imap::silent_from(PROXY, port);
    let began = Instant::now();
    while imap.try_send(b"PROXY UNKNOWN ".get(..1).unwrap()).is_ok() && began.elapsed() < Duration::from_secs(10) {
        // The client waits for the close, which it can only notice by writing.
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // A check that only connects is not counted as a fault.
    drop(Imap::silent_from(PROXY, port));
    usher.wait_metric("usher_proxy_headers_total", &[("result", "closed")], 1.0);
    let results: Vec<f64> =
        ["untrusted", "malformed", "too_long", "client", "local", "limit"].map(|result| headers(&usher, result)).into();
    assert_eq!(results, [1.0, 2.0, 2.0, 0.0, 0.0, 0.0]);
    assert_eq!(headers(&usher, "missing") + headers(&usher, "timeout"), 3.0);
    let reported = usher.wait_log("connection closed: no valid PROXY header from a trusted proxy", |line| {
        line["reason"] == "untrusted"
    });
    assert_eq!((&reported["proxy"], &reported["level"]), (&json!("127.0.0.77"), &json!("WARN")));
    usher.wait_metric("usher_connections", &[], 0.0);
    assert_eq!(peer.connections(), 0);
    log_in(Imap::with_header(PROXY, port, &v1("203.0.113.7", 1)), "alice");
}

#[test]
fn connections_awaiting_a_proxy_header_are_limited_as_half_open() {
    let peer = Scripted::accepting();
    let config = behind_proxy(Config::with_directory(slapd()).scripted(&peer));
    let config = config.set("/throttle", json!({"handshakes": {"mode": "enforce", "limit": 2}}));
    let usher = Usher::start(config.set("/listeners/0/trusted", "127.0.0.0/8"));
    let waiting = [(); 2].map(|()| Imap::silent_from(PROXY, usher.imaps_port()));
    usher.wait_metric("usher_connections", &[], 2.0);
    let refused =
        Imap::try_with_header(PROXY, usher.imaps_port(), &v1("203.0.113.7", 1)).map(|imap| imap.greeting.clone());
    assert!(refused.as_ref().is_err_and(|error| error.kind() != ErrorKind::WouldBlock), "{refused:?}");
    usher.wait_metric("usher_proxy_headers_total", &[("result", "limit")], 1.0);
    // A proxy without waiting connections is not blocked by another.
    drop(waiting);
    usher.wait_metric("usher_connections", &[], 0.0);
    log_in(Imap::with_header(PROXY, usher.imaps_port(), &v1("203.0.113.7", 1)), "alice");
}

#[test]
fn limits_count_the_clients_behind_a_proxy_and_not_the_proxy() {
    let peer = Scripted::accepting();
    let config = behind_proxy(Config::with_directory(slapd()).scripted(&peer));
    let config = config.set("/throttle", json!({"connections_per_prefix": {"mode": "enforce", "limit": 1}}));
    let usher = Usher::start(config);
    let port = usher.imaps_port();
    let _sessions = ["203.0.113.7", "203.0.113.8"].map(|client| Imap::with_header(PROXY, port, &v1(client, 1)));
    assert!(Imap::try_with_header(PROXY, port, &v1("203.0.113.7", 2)).is_err());
    let reported = usher.wait_log("login rate limit reached", |line| line["rule"] == "connections_per_prefix");
    assert_eq!(reported["client"], "203.0.113.7");
}

#[test]
fn reload_changes_the_trusted_networks() {
    let peer = Scripted::accepting();
    let mut usher = Usher::start(behind_proxy(Config::with_directory(slapd()).scripted(&peer)));
    assert!(Imap::try_with_header(CLIENT, usher.imaps_port(), &v1("203.0.113.7", 1)).is_err());
    usher.config.change("/listeners/0/trusted", json!(["127.0.0.77"]));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    log_in(Imap::with_header(CLIENT, usher.imaps_port(), &v1("203.0.113.7", 1)), "alice");
    assert!(Imap::try_with_header(PROXY, usher.imaps_port(), &v1("203.0.113.7", 1)).is_err());
    usher.config.change("/listeners/0", json!({"protocol": "imap", "address": "127.0.0.1:0", "tls": "implicit"}));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    log_in(Imap::tls_from(CLIENT, usher.imaps_port()), "alice");
    assert_eq!((client_of(&usher, 1), client_of(&usher, 2)), (json!("203.0.113.7"), json!("127.0.0.77")));
}

const FORWARDED_ID: &str = r#"ID ("name" "webmail" "X-Originating-IP" "203.0.113.50" "x-originating-port" "4712")"#;

#[test]
fn webmail_forwards_its_client_and_untrusted_senders_are_ignored() {
    let Trusting { dovecot, .. } = trusting();
    let config = forwarding(dovecot.imaps, "implicit", "id").set("/trusted", "127.0.0.30");
    let config = config.set("/throttle", json!({"connections_per_prefix": {"mode": "enforce", "limit": 3}}));
    let usher = Usher::start(config);
    let mut webmail = Imap::tls_from(WEBMAIL, usher.imaps_port());
    webmail.command(FORWARDED_ID).ok();
    // A wrong password is charged to the user and not to the webmail server.
    webmail.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    let webmail = log_in(webmail, "alice");
    for nth in [1, 2] {
        let event = usher.nth_login(nth, "alice");
        assert_eq!((&event["client"], &event["via"]), (&json!("203.0.113.50"), &json!("127.0.0.30")), "{event}");
    }
    dovecot.wait_logged(&["Login: user=<alice>, rip=<203.0.113.50>, rport=<4712>"]);
    drop(webmail);
    assert_eq!(usher.wait_log("end", |_| true)["client"], "203.0.113.50");

    // Connections are counted for the webmail server itself.
    let _four = [(); 3].map(|()| {
        let mut imap = Imap::tls_from(WEBMAIL, usher.imaps_port());
        imap.command(FORWARDED_ID).ok();
        imap
    });
    assert!(Imap::try_tls_from(WEBMAIL, usher.imaps_port()).is_err());

    let mut liar = Imap::tls_from(CLIENT, usher.imaps_port());
    liar.command(FORWARDED_ID).ok();
    let liar = log_in(liar, "anna");
    let event = usher.login("anna");
    assert_eq!((&event["client"], &event["via"]), (&json!("127.0.0.77"), &Value::Null), "{event}");
    dovecot.wait_logged(&["Login: user=<anna>, rip=<127.0.0.77>"]);
    drop(liar);
}

#[test]
fn forwarded_address_is_dropped_at_starttls_and_invalid_ones_are_ignored() {
    let peer = Scripted::accepting();
    let config = Config::with_directory(slapd()).scripted(&peer).set("/trusted", json!(["127.0.0.0/8"]));
    let usher = Usher::start(config);
    let mut imap = Imap::plain(usher.imap_port());
    imap.command(FORWARDED_ID).ok();
    imap.command("STARTTLS").ok();
    imap.start_tls();
    log_in(imap, "alice");
    for (nth, address) in ["localhost", "203.0.113", "", "203.0.113.7:1"].iter().enumerate() {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.command(&format!("ID (\"x-originating-ip\" \"{address}\")")).ok();
        log_in(imap, "alice");
        assert_eq!(client_of(&usher, nth + 2), "127.0.0.1", "{address}");
    }
    assert_eq!(client_of(&usher, 1), "127.0.0.1");
    // A later ID replaces an earlier one.
    let mut imap = Imap::tls(usher.imaps_port());
    imap.command(FORWARDED_ID).ok();
    imap.command("ID (\"x-originating-ip\" \"::ffff:203.0.113.51\")").ok();
    log_in(imap, "alice");
    assert_eq!(client_of(&usher, 6), "203.0.113.51");
    assert!(!peer.transcript().contains("originating"), "no client field is forwarded");
}

#[test]
fn probe_of_a_listener_with_proxy_headers_sends_its_own() {
    let more = |port: u16| {
        format!(
            "haproxy_trusted_networks = 127.0.0.0/8\nservice imap-login {{\n  inet_listener imaps_haproxy {{\n    port = {port}\n    \
             ssl = yes\n    haproxy = yes\n  }}\n}}\n"
        )
    };
    let port = free_port();
    let dovecot = Dovecot::start_with(&shared().certificates, &shared().server3, false, &more(port));
    for (probe, forward) in [("greeting", "proxy_v1"), ("greeting", "proxy_v2"), ("tcp", "proxy_v2")] {
        let config = forwarding(port, "implicit", forward).set("/routing/backends/0/probe", probe);
        let usher = Usher::start(config.set("/routing/backends/0/probe_interval", "1s"));
        usher.wait_metric("usher_backend_probes_total", &[("backend", "server3"), ("result", "ok")], 2.0);
        assert_eq!(usher.metric("usher_backend_up", &[("backend", "server3")]), 1.0);
        assert_eq!(usher.metric("usher_backend_probes_total", &[("result", "unreachable")]), 0.0);
    }
    let logged = dovecot.logged();
    assert!(!logged.contains("haproxy"), "{logged}");
}

#[test]
fn backend_that_rejects_the_client_address_is_at_fault() {
    let refusing = Scripted::tls(|peer| {
        peer.send(GREETING);
        while let Some((tag, command)) = peer.command() {
            let verdict = if command.starts_with("ID ") { "NO not from you" } else { "OK done" };
            peer.send(format!("{tag} {verdict}\r\n"));
        }
    });
    let config = Config::with_directory(slapd()).scripted(&refusing);
    let usher = Usher::start(config.set("/routing/backends/0/imap/forward", "id"));
    let reply = Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    let event = usher.login("alice");
    assert_eq!(event["result"], "backend_fault");
    let said = event["backend_reply"].as_str().unwrap();
    assert!(said.contains("is usher in its trusted networks?"), "{event}");
    assert!(reply.tagged.ends_with(&format!("(session {})", event["session"].as_str().unwrap())), "{reply:?}");
    assert!(!refusing.transcript().contains("AUTHENTICATE"), "no password before it");

    // A listener of Dovecot that requires a header, from an untrusted network.
    let port = free_port();
    let more = format!(
        "haproxy_trusted_networks = 192.0.2.0/24\nservice imap-login {{\n  inet_listener imaps_haproxy {{\n    port = {port}\n    \
         ssl = yes\n    haproxy = yes\n  }}\n}}\n"
    );
    let dovecot = Dovecot::start_with(&shared().certificates, &shared().server3, false, &more);
    let usher = Usher::start(forwarding(port, "implicit", "proxy_v2"));
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    dovecot.wait_logged(&["haproxy"]);
}

#[test]
fn session_id_is_in_replies_except_for_a_wrong_password() {
    let usher = Usher::start(Config::shared().set("/routing/backends/0/imap/address", "127.0.0.1:9"));
    let mut imap = Imap::tls(usher.imaps_port());
    let wrong = imap.login("alice", "wrong");
    assert_eq!(wrong.tagged, "NO [AUTHENTICATIONFAILED] Name or password is wrong");
    let down = imap.login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    let session = usher.nth_login(2, "alice")["session"].as_str().unwrap().to_owned();
    assert!(down.tagged.ends_with(&format!(" (session {session})")), "{down:?}");
}

#[test]
fn address_mode_without_protocol_support_is_a_config_error_with_its_line() {
    let config = forwarding(9, "implicit", "xclient");
    config.write();
    let said = command(&config, &["check"], b"");
    assert_eq!(said.code, 78, "{said:#?}");
    let all = said.stdout + &said.stderr;
    assert!(all.contains("routing.backends[0].imap.forward: imap has no such command: write `id`"), "{all}");
}
