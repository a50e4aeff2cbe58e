//! Logins by client certificate (SASL EXTERNAL): which are accepted, which are refused, and how one is revoked.

use std::sync::Arc;

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};
use serde_json::json;

use crate::kit::authority::Authority;
use crate::kit::certs::Pair;
use crate::kit::client::{Tls, base64};
use crate::kit::process::{free_port, run};
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::tools::python;
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::{Config, Imap, User, Usher, dovecot, password_of, relay, shared};

/// The user's entry lists these certificates, or none.
pub(crate) fn list<'a>(slapd: &Slapd, uid: &str, pairs: impl IntoIterator<Item = &'a Pair>) {
    let value = |pair: &Pair| {
        let der = CertificateDer::from_pem_file(&pair.chain).unwrap();
        format!("userCertificate;binary:: {}\n", base64::engine::general_purpose::STANDARD.encode(&der))
    };
    let value: String = pairs.into_iter().map(value).collect();
    let dn = User::new(uid, None).dn();
    slapd.modify(&format!("dn: {dn}\nchangetype: modify\nreplace: userCertificate;binary\n{value}"));
}

pub(crate) fn directory() -> Slapd {
    Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() })
}

/// alice's mailbox at Dovecot, entered by its master user; a listener with TLS from the first byte and one with STARTTLS.
pub(crate) fn config(slapd: &Slapd, authority: &Authority) -> Config {
    let config = Config::with_directory(slapd).backend("server3", dovecot().imaps, &["server3"]);
    let password = config.file("backend.password", SERVICE_PASSWORD);
    let mut config = config
        .set("/routing/backends/0/service", json!({"login": "usher", "password_file": password}))
        .set("/directory/login_attribute", "uid")
        .set("/directory/watch", "auto");
    for listener in ["/listeners/0", "/listeners/1"] {
        config.change(&format!("{listener}/client_ca"), authority.ca().display().to_string());
        config.change(&format!("{listener}/client_login"), json!({"match": "certificate"}));
    }
    config
}

pub(crate) fn start(config: Config) -> Usher {
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    usher
}

pub(crate) fn showing(pair: &Pair) -> Tls {
    Tls { client_certificate: Some(pair.clone()), ..Tls::default() }
}

pub(crate) fn connect(usher: &Usher, pair: &Pair) -> Imap {
    Imap::try_tls(usher.imaps_port(), &showing(pair)).unwrap()
}

/// Whether the server takes the connection to its greeting.
pub(crate) fn is_greeted(port: u16, config: Arc<ClientConfig>) -> bool {
    Imap::try_tls_with(port, config, "usher.example.com").is_ok()
}

#[test]
fn listed_certificate_logs_in_until_it_is_deleted() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let pair = authority.certificate(1, "alice", &[], false);
    list(&slapd, "alice", Some(&pair));
    let usher = start(config(&slapd, &authority));

    let anonymous = Imap::tls(usher.imaps_port());
    assert!(!anonymous.greeting.contains("EXTERNAL"), "{}", anonymous.greeting);
    let mut imap = Imap::tls(usher.imaps_port());
    imap.command("AUTHENTICATE EXTERNAL =").is("NO ");
    imap.login("alice", &password_of("alice")).ok();

    let mut imap = connect(&usher, &pair);
    assert!(imap.greeting.contains(" AUTH=EXTERNAL"), "{}", imap.greeting);
    imap.command("AUTHENTICATE EXTERNAL =").ok();
    imap.command("SELECT INBOX").ok();
    let event = usher.wait_log("login", |line| line["certificate"].is_string());
    assert_eq!((&event["result"], &event["login_backend"]), (&json!("ok"), &json!("alice")), "{event}");
    let shown = event["certificate"].as_str().unwrap();
    assert!(shown.starts_with("certificate CN=alice, SHA-256 ") && shown.len() == 30 + 64, "{shown}");

    // After the challenge, with the user's name, and by STARTTLS.
    for authzid in ["", "alice", "a.liddell@example.com"] {
        let mut imap = connect(&usher, &pair);
        imap.send("a AUTHENTICATE EXTERNAL\r\n");
        assert_eq!(imap.line(), "+ ");
        imap.send(format!("{}\r\n", base64(authzid.as_bytes())));
        imap.reply("a").ok();
    }
    // Another user's name, known or not, is a wrong certificate; the connection stays usable.
    let mut refused = connect(&usher, &pair);
    for authzid in ["bob", "missing"] {
        let command = format!("AUTHENTICATE EXTERNAL {}", base64(authzid.as_bytes()));
        refused.command(&command).is("NO [AUTHENTICATIONFAILED] Name or password is wrong");
    }
    assert_eq!(usher.login("bob")["result"], "wrong_certificate");
    assert_eq!(usher.login("missing")["result"], "unknown_user");
    refused.command("AUTHENTICATE EXTERNAL AA==").is("BAD");
    refused.command("AUTHENTICATE EXTERNAL =").ok();

    list(&slapd, "alice", None);
    usher.wait_log("end", |line| line["cause"] == "certificate_removed");
    let rest = String::from_utf8_lossy(&imap.rest()).into_owned();
    assert!(rest.starts_with("* BYE"), "{rest}");
    let mut imap = connect(&usher, &pair);
    imap.command("AUTHENTICATE EXTERNAL =").is("NO [AUTHENTICATIONFAILED]");
    usher.wait_log("login", |line| line["login"] == "alice" && line["result"] == "wrong_certificate");
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn deleted_certificate_ends_no_session_by_password() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let pair = authority.certificate(1, "alice", &[], false);
    list(&slapd, "alice", Some(&pair));
    let usher = start(config(&slapd, &authority));
    let mut by_password = connect(&usher, &pair);
    by_password.login("alice", &password_of("alice")).ok();
    let mut by_certificate = connect(&usher, &pair);
    by_certificate.command("AUTHENTICATE EXTERNAL =").ok();
    list(&slapd, "alice", None);
    by_certificate.rest();
    by_password.command("NOOP").ok();
}

#[test]
fn mail_clients_log_in_by_certificate() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let pair = authority.certificate(1, "alice", &["a.liddell@example.com"], false);
    list(&slapd, "alice", Some(&pair));
    let (chain, key) = (pair.chain.display().to_string(), pair.key.display().to_string());
    let ca = shared().certificates.ca().display().to_string();
    let usher = start(config(&slapd, &authority));
    let script = format!(
        "import imaplib\ncontext.load_cert_chain({chain:?}, {key:?})\n\
         for name in (b'', b'alice'):\n    \
         connection = imaplib.IMAP4_SSL('localhost', port, ssl_context=context, timeout=40)\n    \
         connection.authenticate('EXTERNAL', lambda _: name)\n    \
         print(connection.select()[0])\n    connection.logout()\n\
         connection = imaplib.IMAP4_SSL('localhost', port, ssl_context=context, timeout=40)\n\
         try:\n    connection.authenticate('EXTERNAL', lambda _: b'bob')\nexcept imaplib.IMAP4.error as error:\n    print(error)\n"
    );
    let said = python(usher.imaps_port(), &script).succeeded();
    assert!(said.stdout.starts_with("OK\nOK\n") && said.stdout.contains("AUTHENTICATIONFAILED"), "{said:#?}");

    let port = usher.imaps_port();
    let target = format!("localhost:{port}");
    let words = ["s_client", "-quiet", "-crlf", "-CAfile", &ca, "-cert", &chain, "-key", &key, "-connect", &target];
    let said = run("openssl", &words, b"a AUTHENTICATE EXTERNAL =\nb SELECT INBOX\nc LOGOUT\n");
    assert!(said.stdout.contains("a OK") && said.stdout.contains("b OK"), "{said:#?}");

    let curl = |url: &str, more: &[&str]| {
        let fixed = ["-sS", "--max-time", "45", "--cacert", &ca, "--cert", &chain, "--key", &key];
        let login = ["-u", "alice:", "--login-options", "AUTH=EXTERNAL", url];
        run("curl", &[&fixed[..], &login, more].concat(), b"")
    };
    let said = curl(&format!("imaps://localhost:{port}/INBOX"), &["-X", "NOOP"]).succeeded();
    assert!(said.stdout.is_empty() || said.stdout.starts_with('*'), "{said:#?}");
    relay();
    let others = [("pop3", "pop3s", dovecot().pop3s), ("submission", "smtps", dovecot().submissions)];
    for (protocol, scheme, port) in others {
        let mut config = config(&slapd, &authority).without("/routing/backends/0/imap");
        let endpoint =
            json!({"address": format!("127.0.0.1:{port}"), "tls": "implicit", "server_name": "server3.example.com"});
        config.change(&format!("/routing/backends/0/{protocol}"), endpoint);
        for listener in ["/listeners/0", "/listeners/1"] {
            config.change(&format!("{listener}/protocol"), protocol);
        }
        let usher = start(config);
        let more: &[&str] = if protocol == "pop3" { &[] } else { &["-X", "NOOP"] };
        curl(&format!("{scheme}://localhost:{}", usher.imaps_port()), more).succeeded();
        assert_eq!(usher.wait_log("login", |line| line["certificate"].is_string())["result"], "ok", "{protocol}");
    }
}

#[test]
fn managesieve_client_logs_in_by_certificate() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let pair = authority.certificate(1, "alice", &[], false);
    list(&slapd, "alice", Some(&pair));
    let mut config = config(&slapd, &authority).without("/routing/backends/0/imap");
    let address = format!("127.0.0.1:{}", dovecot().sieve);
    let endpoint = json!({"address": address, "tls": "starttls", "server_name": "server3.example.com"});
    config.change("/routing/backends/0/managesieve", endpoint);
    for listener in ["/listeners/0", "/listeners/1"] {
        config.change(&format!("{listener}/protocol"), "managesieve");
    }
    let usher = start(config);
    let (chain, key) = (pair.chain.display().to_string(), pair.key.display().to_string());
    // RFC 5804 section 2.1: the initial response as a string; the empty one is no authzid.
    let script = format!(
        "import socket\ncontext.load_cert_chain({chain:?}, {key:?})\n\
         for command in (b'AUTHENTICATE \"EXTERNAL\" \"\"\\r\\n', b'AUTHENTICATE \"EXTERNAL\" \"YWxpY2U=\"\\r\\n'):\n    \
         connection = context.wrap_socket(socket.create_connection(('localhost', port), 40), server_hostname='localhost')\n    \
         lines = connection.makefile('rwb')\n    \
         listed = []\n    \
         while not (listed and listed[-1].startswith(b'OK')):\n        listed.append(lines.readline())\n    \
         print(b'EXTERNAL' in b''.join(listed))\n    \
         lines.write(command)\n    lines.flush()\n    print(lines.readline().decode())\n"
    );
    let said = python(usher.imaps_port(), &script).succeeded();
    assert_eq!(said.stdout.matches("True\nOK").count(), 2, "{said:#?}\n{}", usher.log_text());
}

#[test]
fn certificates_that_are_not_valid_do_not_pass_the_handshake() {
    let (slapd, authority, other) = (directory(), Authority::new("people"), Authority::new("others"));
    let usher = start(config(&slapd, &authority));
    let valid = authority.certificate(1, "alice", &[], false);
    assert!(is_greeted(usher.imaps_port(), showing(&valid).config()));
    for wrong in [authority.certificate(2, "alice", &[], true), other.certificate(3, "alice", &[], false)] {
        list(&slapd, "alice", Some(&wrong));
        assert!(!is_greeted(usher.imaps_port(), showing(&wrong).config()), "{}", wrong.chain.display());
    }
    let required = config(&slapd, &authority).set("/listeners/0/client_auth", "required");
    let usher = start(required);
    assert!(is_greeted(usher.imaps_port(), showing(&valid).config()));
    assert!(!is_greeted(usher.imaps_port(), Tls::default().config()));
    // The other listener does not require one.
    let mut imap = Imap::plain(usher.imap_port());
    imap.command("STARTTLS").ok();
    imap.start_tls();
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn revoked_certificate_is_refused_in_open_and_resumed_sessions() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let (pair, other) = (authority.certificate(1, "alice", &[], false), authority.certificate(2, "bob", &[], false));
    list(&slapd, "alice", Some(&pair));
    let crl = authority.revoke(&[2], 2049);
    let mut config = config(&slapd, &authority);
    // Tickets that stay valid through a reload.
    let keys = config.file("ticket.keys", base64(&[7; 48]));
    config.change("/tls/ticket_keys_file", keys.display().to_string());
    config.change("/listeners/0/crl", crl.display().to_string());
    let usher = start(config);
    assert!(!is_greeted(usher.imaps_port(), showing(&other).config()));
    let resumes = |config: &Arc<ClientConfig>| {
        let mut imap = Imap::try_tls_with(usher.imaps_port(), Arc::clone(config), "usher.example.com").unwrap();
        imap.command("AUTHENTICATE EXTERNAL =").ok();
        imap.connection().handshake_kind() == Some(HandshakeKind::Resumed)
    };
    let clients = [&TLS12, &TLS13].map(|version| Tls { versions: vec![version], ..showing(&pair) }.config());
    for client in &clients {
        assert_eq!((resumes(client), resumes(client)), (false, true));
    }
    let mut open = connect(&usher, &pair);
    authority.revoke(&[1, 2], 2049);
    assert_eq!(usher.hup()["message"], "reloaded");
    open.command("AUTHENTICATE EXTERNAL =").is("NO [AUTHENTICATIONFAILED]");
    usher.wait_log("login", |line| line["result"] == "certificate_revoked");
    for client in &clients {
        assert!(!is_greeted(usher.imaps_port(), Arc::clone(client)), "resumed");
        assert!(!is_greeted(usher.imaps_port(), Tls { versions: vec![&TLS13], ..showing(&pair) }.config()), "full");
    }
    // A list that was not renewed: nothing is known of a certificate, which is no fault of its owner.
    authority.revoke(&[], 2049);
    assert_eq!(usher.hup()["message"], "reloaded");
    let mut open = connect(&usher, &pair);
    authority.revoke(&[], 2021);
    assert_eq!(usher.hup()["message"], "reloaded");
    open.command("AUTHENTICATE EXTERNAL =").is("NO [UNAVAILABLE]");
    usher.wait_log("login", |line| line["result"] == "revocation_unknown");
    let checked = usher.command(&["check"]);
    assert!(
        checked.stdout.contains("no longer valid (nextUpdate)") || checked.stderr.contains("nextUpdate"),
        "{checked:#?}"
    );
}

#[test]
fn address_counts_where_its_authority_is_the_listeners_own() {
    let (slapd, vouching, common) = (directory(), Authority::new("vouching"), Authority::new("common"));
    let alice = vouching.certificate(1, "bob", &["a.liddell@example.com"], false);
    let forged = common.certificate(2, "bob", &["a.liddell@example.com"], false);
    let mut config = config(&slapd, &vouching);
    let keys = config.file("ticket.keys", base64(&[7; 48]));
    config.change("/tls/ticket_keys_file", keys.display().to_string());
    config.change("/tls/client_ca", common.ca().display().to_string());
    config.change("/listeners/0/client_login", json!({"match": "san_email"}));
    let [own, other] = [(); 2].map(|()| free_port());
    config.change("/listeners/0/address", format!("127.0.0.1:{own}"));
    let address = format!("127.0.0.1:{other}");
    let login = json!({"match": "certificate"});
    let second = json!({"protocol": "imap", "address": address, "tls": "implicit", "client_login": login});
    config.change("/listeners/1", second);
    let usher = start(config);
    let login = |client: &Arc<ClientConfig>, port: u16, authzid: &str| {
        let mut imap = Imap::try_tls_with(port, Arc::clone(client), "usher.example.com").unwrap();
        let initial = if authzid.is_empty() { "=".to_owned() } else { base64(authzid.as_bytes()) };
        imap.command(&format!("AUTHENTICATE EXTERNAL {initial}"))
    };
    let client = showing(&alice).config();
    // The address, or another name of the same entry; never the common name.
    for authzid in ["", "a.liddell@example.com", "alice"] {
        login(&client, own, authzid).ok();
    }
    for foreign in ["bob", "missing"] {
        login(&client, own, foreign).is("NO [AUTHORIZATIONFAILED]");
    }
    assert_eq!(usher.login("a.liddell@example.com")["login_backend"], "alice");
    // The other listener's authority vouches for no address, and its tickets bring no certificate here.
    for version in [&TLS12, &TLS13] {
        let client = Tls { versions: vec![version], ..showing(&forged) }.config();
        login(&client, other, "").is("NO [AUTHENTICATIONFAILED]");
        let ours = Imap::try_tls_with(other, Arc::clone(&client), "usher.example.com").unwrap();
        assert_eq!(ours.connection().handshake_kind(), Some(HandshakeKind::Resumed));
        assert!(!is_greeted(own, client), "{version:?}");
    }
}

#[test]
fn backend_without_a_service_account_takes_no_certificate() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let pair = authority.certificate(1, "alice", &[], false);
    list(&slapd, "alice", Some(&pair));
    let usher = start(config(&slapd, &authority).without("/routing/backends/0/service"));
    let mut imap = connect(&usher, &pair);
    imap.command("AUTHENTICATE EXTERNAL =").is("NO [CONTACTADMIN]");
    assert_eq!(usher.login("alice")["result"], "no_service_login");
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn owner_of_a_certificate_locks_nobody_out() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let pair = authority.certificate(1, "mallory", &[], false);
    let limit = json!({"free_failures": 1, "first_delay": "100ms", "max_delay": "800ms", "mode": "enforce"});
    let config = config(&slapd, &authority)
        .set("/throttle", json!({"failed_logins_per_user": limit}))
        .set("/limits/failed_logins", 20);
    let usher = start(config);
    let mut imap = connect(&usher, &pair);
    for _ in 0..4 {
        imap.command(&format!("AUTHENTICATE EXTERNAL {}", base64(b"alice"))).is("NO ");
    }
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    let event = usher.wait_log("login", |line| line["login"] == "alice" && line["result"] == "ok");
    assert!(event["limited_by"].is_null() && event["delay_ms"].is_null(), "{event}");
}
