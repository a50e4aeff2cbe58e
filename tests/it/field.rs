//! Reports from the trackers of mail clients, mail servers and directories, tried on real programs: see
//! `docs/developer/field-cases.md`.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::kit::client::base64;
use crate::kit::dovecot::Dovecot;
use crate::kit::process::{folder, read_text};
use crate::kit::slapd::{Options, Slapd};
use crate::kit::tools::imaplib;
use crate::kit::users::{SUFFIX, User};
use crate::kit::{Config, Imap, Usher, dovecot, password_of, shared, slapd};

/// The protocols, in the order of the listeners of [`everything`].
const PROTOCOLS: [&str; 4] = ["imap", "pop3", "submission", "managesieve"];

/// A Dovecot whose users are these lines of a passwd-file besides the usual ones, with more configuration.
fn dovecot_with(users: &[u8], more: &str) -> Dovecot {
    let file = folder("passwd").join("users");
    std::fs::write(&file, users).unwrap();
    let users =
        format!("passdb {{\n  driver = passwd-file\n  args = scheme=PLAIN username_format=%u {}\n}}\n", file.display());
    Dovecot::start_with(&shared().certificates, &shared().server3, false, &(users + more))
}

/// All four protocols with this Dovecot as server3, a listener each with implicit TLS.
fn everything(slapd: &Slapd, dovecot: &Dovecot) -> Config {
    let listeners: Vec<_> = PROTOCOLS
        .iter()
        .map(|protocol| json!({"protocol": protocol, "address": "127.0.0.1:0", "tls": "implicit"}))
        .collect();
    let config = Config::with_directory(slapd).backend("server3", dovecot.imaps, &["server3"]);
    let endpoint = |port: u16, tls: &str| json!({"address": format!("127.0.0.1:{port}"), "tls": tls, "server_name": "server3.example.com"});
    config
        .set("/listeners", listeners)
        .set("/limits/failed_logins", 20)
        .set("/routing/backends/0/pop3", endpoint(dovecot.pop3s, "implicit"))
        .set("/routing/backends/0/submission", endpoint(dovecot.submissions, "implicit"))
        .set("/routing/backends/0/managesieve", endpoint(dovecot.sieve, "starttls"))
}

/// The port of a protocol of [`everything`].
fn port(usher: &Usher, protocol: &str) -> u16 {
    let at = PROTOCOLS.iter().position(|known| *known == protocol).unwrap();
    usher.addresses()[at].rsplit_once(':').unwrap().1.parse().unwrap()
}

/// A session of any protocol, and the reply to its login.
struct Session {
    _connection: Imap,
    reply: String,
}

/// Logs in over a protocol with the bytes of name and password, by AUTH PLAIN unless it is POP3.
fn log_in(usher: &Usher, protocol: &str, login: &str, password: &[u8]) -> Session {
    let mut client = Imap::tls(port(usher, protocol));
    let plain = base64(&[b"\0", login.as_bytes(), b"\0", password].concat());
    let reply = match protocol {
        "imap" => {
            client.send(format!("a LOGIN {{{}+}}\r\n{login} {{{}+}}\r\n", login.len(), password.len()));
            client.send([password, b"\r\n"].concat());
            client.reply("a").tagged
        }
        "pop3" => {
            client.send(format!("USER {login}\r\n"));
            assert!(client.line().starts_with("+OK"));
            client.send([b"PASS ", password, b"\r\n"].concat());
            client.line()
        }
        "submission" => {
            client.send("EHLO here\r\n");
            while client.line().starts_with("250-") {}
            client.send(format!("AUTH PLAIN {plain}\r\n"));
            client.line()
        }
        _ => {
            while !client.line().starts_with("OK") {}
            client.send(format!("AUTHENTICATE \"PLAIN\" \"{plain}\"\r\n"));
            client.line()
        }
    };
    Session { _connection: client, reply }
}

/// The start of the reply to a login that is accepted.
fn accepted(protocol: &str) -> &'static str {
    match protocol {
        "imap" => "OK [CAPABILITY ",
        "pop3" => "+OK Logged in.",
        "submission" => "235 2.7.0 Logged in.",
        _ => "OK \"Logged in.\"",
    }
}

#[test]
fn name_with_wildcards_is_accepted_without_quotes() {
    let names = ["star*fish", "alice%example", r"example\alice"];
    let slapd = Slapd::private();
    for name in names {
        slapd.add(&User { password: "p*ss%word".into(), ..User::new(name, Some("server3")) });
    }
    let dovecot = dovecot_with(
        br"star*fish:p*ss%word
alice%example:p*ss%word
example\\alice:p*ss%word
",
        "",
    );
    let usher = Usher::start(everything(&slapd, &dovecot));
    for name in names {
        // imaplib quotes a password, but sends a name as it is.
        let said = imaplib(port(&usher, "imap"), &format!("print(connection.login({name:?}, 'p*ss%word')[0])"));
        assert_eq!(said.succeeded().stdout, "OK\n");
        let mut imap = Imap::tls(port(&usher, "imap"));
        imap.command(&format!("LOGIN {name} p*ss%word")).ok();
    }
}

#[test]
fn password_in_another_charset_is_judged_by_the_directory() {
    let (slapd, password) = (Slapd::private(), b"p\xe4ssw\xf6rd");
    slapd.add(&User::new("latin", Some("server3")));
    let dn = User::new("latin", None).dn();
    let value = base64(password);
    slapd.modify(&format!("dn: {dn}\nchangetype: modify\nreplace: userPassword\nuserPassword:: {value}\n"));
    let dovecot = dovecot_with(b"latin:p\xe4ssw\xf6rd\n", "");
    let _relay = dovecot.relay();
    let usher = Usher::start(everything(&slapd, &dovecot));
    for protocol in PROTOCOLS {
        let reply = log_in(&usher, protocol, "latin", password).reply;
        assert!(reply.starts_with(accepted(protocol)), "{protocol}: {reply}");
    }
    // Quoted, as Outlook and old versions of Thunderbird send it.
    let mut imap = Imap::tls(port(&usher, "imap"));
    imap.send([b"a LOGIN latin \"", &password[..], b"\"\r\n"].concat());
    imap.reply("a").ok();
    // The same letters in UTF-8 are another password.
    let mut imap = Imap::tls(port(&usher, "imap"));
    imap.login("latin", "pässwörd").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.wait_log("login", |line| line["result"] == "wrong_password")["by"], "directory");
}

#[test]
fn client_that_enables_utf8_before_login_goes_on() {
    let usher = Usher::start(Config::with_directory(slapd()).backend("server3", dovecot().imaps, &["server3"]));
    // imaplib checks the capabilities, and allows ENABLE only after login unless it is configured otherwise.
    let script = format!(
        "imaplib.Commands['ENABLE'] = ('NONAUTH', 'AUTH')\nprint(connection.enable('UTF8=ACCEPT')[0])\n\
         connection._encoding = 'utf-8'\nprint(connection.login('gruen', {:?})[0])",
        password_of("gruen")
    );
    assert_eq!(imaplib(usher.imaps_port(), &script).succeeded().stdout, "OK\nOK\n");
}

#[test]
fn managesieve_literal_without_plus_is_no_command() {
    let config = Config::with_directory(slapd()).backend("server3", dovecot().imaps, &["server3"]);
    let config =
        config.speaking("managesieve", &[dovecot().sieve]).set("/routing/backends/0/managesieve/tls", "starttls");
    let usher = Usher::start(config);
    let message = base64(format!("\0alice\0{}", password_of("alice")).as_bytes());
    for initial in [true, false] {
        let mut sieve = Imap::tls(usher.imaps_port());
        while !sieve.line().starts_with("OK") {}
        if initial {
            sieve.send(format!("AUTHENTICATE \"PLAIN\" {{{}}}\r\n{message}\r\n", message.len()));
        } else {
            sieve.send("AUTHENTICATE \"PLAIN\"\r\n");
            assert_eq!(sieve.line(), "\"\"");
            sieve.send(format!("{{{}}}\r\n{message}\r\n", message.len()));
        }
        assert_eq!(sieve.line(), "OK \"Logged in.\"");
        sieve.send("LISTSCRIPTS\r\n");
        assert!(sieve.line().starts_with("OK"));
    }
}

#[test]
fn connection_limit_of_the_backend_is_passed_on_in_every_protocol() {
    let dovecot = dovecot_with(b"", "mail_max_userip_connections = 1\n");
    let _relay = dovecot.relay();
    let usher = Usher::start(everything(slapd(), &dovecot));
    let password = password_of("alice");
    let text = "Maximum number of connections from user+IP exceeded";
    let starts = ["NO [LIMIT] ", "-ERR [IN-USE] ", "454 4.7.0 ", "NO (TRYLATER) \""];
    for (protocol, start) in PROTOCOLS.into_iter().zip(starts) {
        let first = log_in(&usher, protocol, "alice", password.as_bytes());
        assert!(first.reply.starts_with(accepted(protocol)), "{protocol}: {}", first.reply);
        // Its login processes ask for the number before they are sure to see the first one.
        dovecot.wait_counted(protocol, "alice");
        let second = log_in(&usher, protocol, "alice", password.as_bytes()).reply;
        assert!(second.starts_with(&format!("{start}{text}")), "{protocol}: {second}");
        let event = usher.wait_log("login", |line| line["protocol"] == protocol && line["result"] != "ok");
        assert_eq!(event["result"], "backend_rejected", "{event}");
        // It is this user's limit: the address stays in use.
        let other = log_in(&usher, protocol, "anna", password_of("anna").as_bytes());
        assert!(other.reply.starts_with(accepted(protocol)), "{protocol}: {}", other.reply);
    }
}

#[test]
fn blank_at_the_end_of_a_name_is_the_same_user() {
    let dovecot = dovecot_with(b"", "");
    let _relay = dovecot.relay();
    let usher = Usher::start(everything(slapd(), &dovecot));
    for protocol in PROTOCOLS {
        for typed in ["alice ", " alice"] {
            let reply = log_in(&usher, protocol, typed, password_of("alice").as_bytes()).reply;
            assert!(reply.starts_with(accepted(protocol)), "{protocol}, {typed:?}: {reply}");
        }
    }
    let events: Vec<_> = usher.logged().into_iter().filter(|line| line["message"] == "login").collect();
    assert!(events.iter().all(|event| event["login_backend"] == "alice"), "{events:?}");
}

#[test]
fn directory_that_closes_idle_connections_stays_in_use() {
    let slapd = Slapd::with(Options { global: "idletimeout 1", ..Options::default() });
    let usher = Usher::start(Config::with_directory(&slapd).backend("server3", dovecot().imaps, &["server3"]));
    for (round, user) in ["alice", "anna", "quote"].into_iter().enumerate() {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login(user, "wrong").is("NO [AUTHENTICATIONFAILED]");
        imap.login(user, &password_of(user)).ok();
        // Those of the search and of the binds.
        slapd.wait_logged("closed (idletimeout)", 2 * (round + 1));
    }
    assert!(!usher.log_text().contains("marked down"), "{}", usher.log_text());
    for code in ["connection", "timeout"] {
        assert_eq!(usher.metric("usher_directory_operations_total", &[("code", code)]), 0.0);
    }
}

/// A hop before a directory that closes the connection of a refused bind, as 389-DS does with
/// `nsslapd-close-on-failed-bind`. Returns its port and the count of closed connections.
fn closes_after_refusals(directory: u16) -> (u16, Arc<AtomicUsize>) {
    let (listener, closed) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(AtomicUsize::new(0)));
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::clone(&closed));
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (mut client, mut server) = (client, TcpStream::connect(("127.0.0.1", directory)).unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                to.shutdown(Shutdown::Write)
            });
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                let mut chunk = [0; 65_536];
                while let Ok(n @ 1..) = server.read(&mut chunk) {
                    if client.write_all(&chunk[..n]).is_err() {
                        break;
                    }
                    // A BindResponse (RFC 4511 section 4.2.2) with the result invalidCredentials.
                    if chunk[..n].windows(4).any(|bytes| bytes[0] == 0x61 && bytes[2..] == [0x0a, 0x01])
                        && chunk[..n].windows(3).any(|bytes| bytes == [0x0a, 0x01, 49])
                    {
                        count.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    (port, closed)
}

#[test]
fn directory_that_closes_after_a_wrong_password_stays_in_use() {
    let (port, closed) = closes_after_refusals(slapd().port);
    let config = Config::with_url(&format!("ldap://127.0.0.1:{port}")).without("/directory/ca");
    let usher = Usher::start(config.backend("server3", dovecot().imaps, &["server3"]));
    for guess in 0..4 {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("alice", &format!("guess {guess}")).is("NO [AUTHENTICATIONFAILED]");
        // On another connection of the pool, or a new one.
        let user = ["anna", "quote", "space", "long"][guess];
        imap.login(user, &password_of(user)).ok();
    }
    assert_eq!(closed.load(Ordering::SeqCst), 4);
    assert!(!usher.log_text().contains("marked down"), "{}", usher.log_text());
}

#[test]
fn references_beside_an_entry_are_not_followed() {
    // A server that must not be connected to: the reference that Active Directory sends for its DNS zones.
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let references: String = ["DomainDnsZones", "ForestDnsZones"]
        .map(|zone| {
            let ldap = format!("ldap://{}/dc={zone},{SUFFIX}", trap.local_addr().unwrap());
            format!("dn: dc={zone},{SUFFIX}\nobjectClass: referral\nobjectClass: extensibleObject\ndc: {zone}\nref: {ldap}\n\n")
        })
        .concat();
    let slapd = Slapd::with(Options { entries: &references, ..Options::default() });
    let usher = Usher::start(Config::with_directory(&slapd).backend("server3", dovecot().imaps, &["server3"]));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    imap.login("unknown", "wrong").is("NO [AUTHENTICATIONFAILED]");
    imap.login("alice", &password_of("alice")).ok();
    assert!(trap.accept().is_err(), "a reference was followed");
}

#[test]
fn login_referral_of_a_backend_never_reaches_the_client() {
    let slapd = Slapd::private();
    slapd.add(&User::new("moved", Some("server3")));
    let users = format!("moved:{}::::::nologin=y host=server9.internal proxy_mech=PLAIN\n", password_of("moved"));
    let dovecot = dovecot_with(users.as_bytes(), "");
    let _relay = dovecot.relay();
    let usher = Usher::start(everything(&slapd, &dovecot));
    for (protocol, start) in
        PROTOCOLS.into_iter().zip(["NO [UNAVAILABLE] ", "-ERR [SYS/TEMP] ", "454 4.7.0 ", "NO (TRYLATER) "])
    {
        let reply = log_in(&usher, protocol, "moved", password_of("moved").as_bytes()).reply;
        assert!(reply.starts_with(start), "{protocol}: {reply}");
        assert!(!reply.contains("server9") && !reply.contains("REFERRAL"), "{protocol}: {reply}");
    }
}

/// The names of the tests of a source file.
fn tests_of(file: &Path) -> BTreeSet<String> {
    let text = read_text(file);
    let mut names = BTreeSet::new();
    let mut lines = text.lines().map(str::trim);
    while lines.by_ref().any(|line| line == "#[test]" || line.starts_with("#[tokio::test")) {
        let declared = lines.by_ref().find_map(|line| line.strip_prefix("async fn ").or(line.strip_prefix("fn ")));
        names.extend(declared.and_then(|rest| rest.split('(').next()).map(str::to_owned));
    }
    names
}

/// The source files that may hold these modules: `a::tests::b` is `a/tests/b.rs`, or inside of `a/tests.rs`,
/// `a/mod.rs` or `a.rs`.
fn files_of(root: &Path, modules: &[&str]) -> Vec<PathBuf> {
    let places = (1..=modules.len()).map(|depth| root.join("src").join(modules[..depth].join("/")));
    places.flat_map(|place| [place.with_extension("rs"), place.join("mod.rs")]).filter(|path| path.exists()).collect()
}

/// Whether a name in the page's column of tests is that of a test, of a module of tests, of a fuzz target or of a
/// script. A name alone is one of `file`, the file of `tests/it` that was named last.
fn exists<'p>(root: &Path, quoted: &'p str, file: &mut Option<&'p str>) -> bool {
    let name = match quoted.strip_prefix("it/").and_then(|rest| rest.split_once(".rs: ")) {
        Some((named, test)) => {
            *file = Some(named);
            test
        }
        None => quoted,
    };
    if name.contains('/') {
        return root.join(name).exists();
    }
    if !name.contains("::") {
        let is_fuzz_target = root.join(format!("fuzz/fuzz_targets/{name}.rs")).exists();
        return is_fuzz_target
            || file.is_some_and(|file| tests_of(&root.join(format!("tests/it/{file}.rs"))).contains(name));
    }
    let modules: Vec<&str> = name.split("::").collect();
    let (test, parents) = modules.split_last().unwrap();
    let whole = root.join("src").join(modules.join("/")).with_extension("rs").exists();
    whole || files_of(root, parents).iter().any(|file| *test == "tests" || tests_of(file).contains(*test))
}

#[test]
fn tests_named_in_the_page_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = read_text(&root.join("docs/developer/field-cases.md"));
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        // The column of tests is the last.
        let column = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        let mut file = None;
        for quoted in column.split('`').skip(1).step_by(2) {
            seen += 1;
            if !exists(root, quoted, &mut file) {
                wrong.push(quoted);
            }
        }
    }
    assert!(wrong.is_empty(), "no such tests: {wrong:#?}");
    assert!(seen >= 10, "only {seen} tests are named");
}
