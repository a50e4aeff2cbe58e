//! ManageSieve: Pigeonhole plays server3, timsieved server4.

use std::sync::Once;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::kit::client::Tls;
use crate::kit::scripted::{Peer, Scripted};
use crate::kit::slapd::Slapd;
use crate::kit::tools::sieve_connect;
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::{Config, Imap, Sieve, Usher, cyrus, dovecot, password_of};

const SCRIPT: &str = "require \"fileinto\";\r\nif header :contains \"subject\" \"usher\" { fileinto \"usher\"; }\r\n";

/// Both servers by STARTTLS. timsieved has nothing else, and Pigeonhole before 2.4 cannot be relied on
/// with anything else: see `tls` in config.example.yaml.
fn config() -> Config {
    static MAILBOXES: Once = Once::new();
    // timsieved accepts only users with a mailbox, which imapd creates.
    MAILBOXES.call_once(|| {
        for uid in ["bob", "ben"] {
            let tls = Tls { server_name: "server4.example.com", ..Tls::default() };
            Imap::try_tls(cyrus().imaps, &tls).unwrap().authenticate("", uid, password_of(uid).as_bytes()).ok();
        }
    });
    Config::shared()
        .speaking("managesieve", &[dovecot().sieve, cyrus().sieve])
        .set("/routing/backends/0/managesieve/tls", "starttls")
        .set("/routing/backends/1/managesieve/tls", "starttls")
}

/// A scripted server, as server3.
fn scripted(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> (Scripted, Config) {
    let server = Scripted::tls(script);
    let config = Config::shared().speaking("managesieve", &[server.port]);
    (server, config)
}

/// Sends a greeting and reads a login: `false` if none came.
fn takes_a_login(peer: &mut Peer) -> bool {
    peer.send("\"IMPLEMENTATION\" \"scripted\"\r\n\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\nOK\r\n");
    peer.line().is_some_and(|line| line.starts_with("AUTHENTICATE \"PLAIN\" "))
}

/// Uploads a script, lists it and reads it back.
fn works(sieve: &mut Sieve, name: &str) {
    let put = sieve.command(&format!("PUTSCRIPT \"{name}\" {{{}+}}\r\n{SCRIPT}", SCRIPT.len()));
    assert!(put.last().unwrap().starts_with("OK"), "{put:?}");
    let listed = sieve.command("LISTSCRIPTS");
    assert!(listed.iter().any(|line| line.starts_with(&format!("\"{name}\""))), "{listed:?}");
    let read = sieve.command(&format!("GETSCRIPT \"{name}\""));
    assert!(read[0].ends_with(SCRIPT), "{read:?}");
}

#[test]
fn alice_lands_on_pigeonhole_and_bob_on_timsieved() {
    let usher = Usher::start(config());
    for (uid, server) in [("alice", "Pigeonhole"), ("bob", "Cyrus timsieved")] {
        let mut sieve = Sieve::tls(usher.imaps_port());
        assert_eq!(sieve.greeting[..2], ["\"IMPLEMENTATION\" \"usher\"", "\"SASL\" \"PLAIN LOGIN\""]);
        assert!(sieve.authenticate(uid, &password_of(uid)).starts_with("OK"));
        let listed = sieve.command("CAPABILITY");
        assert!(listed[0].starts_with("\"IMPLEMENTATION\"") && listed[0].contains(server), "{listed:?}");
        works(&mut sieve, "usher");
        assert!(sieve.command("LOGOUT").last().unwrap().starts_with("OK"));
        let event = usher.login(uid);
        assert_eq!((&event["protocol"], &event["result"]), (&json!("managesieve"), &json!("ok")), "{event}");
    }
}

/// Where capabilities are sent unsolicited and where not (RFC 5804 sections 1.7, 2.1 and 2.2), on
/// either side of usher, in every combination: with one list too many or too few, the replies below
/// would be off by one.
#[test]
fn capabilities_are_sent_at_every_transition_and_nowhere_else() {
    let service = |config: Config| {
        let password = config.file("backend.password", SERVICE_PASSWORD);
        let service = json!({"login": "usher", "password_file": password});
        let config = config.set("/directory/login_attribute", "uid");
        config.set("/routing/backends/0/service", service.clone()).set("/routing/backends/1/service", service)
    };
    let backends = [("alice", config()), ("alice", service(config())), ("bob", config()), ("bob", service(config()))];
    for (uid, config) in backends {
        let usher = Usher::start(config);
        for implicit in [true, false] {
            let mut sieve = if implicit {
                Sieve::tls(usher.imaps_port())
            } else {
                let mut sieve = Sieve::plain(usher.imap_port());
                assert!(sieve.greeting.contains(&"\"SASL\" \"\"".to_owned()), "{:?}", sieve.greeting);
                assert!(sieve.greeting.contains(&"\"STARTTLS\"".to_owned()), "{:?}", sieve.greeting);
                let under_tls = sieve.start_tls();
                assert!(under_tls.contains(&"\"SASL\" \"PLAIN LOGIN\"".to_owned()), "{under_tls:?}");
                assert!(!under_tls.contains(&"\"STARTTLS\"".to_owned()), "{under_tls:?}");
                sieve
            };
            // A refused login in between, with no list after it either.
            assert_eq!(sieve.authenticate(uid, "wrong"), "NO \"Name or password is wrong\"");
            let before = sieve.command("CAPABILITY");
            assert!(before[0].contains("usher"), "{before:?}");
            assert!(sieve.authenticate(uid, &password_of(uid)).starts_with("OK"));
            let noop = sieve.command("NOOP \"sync\"");
            assert!(noop.len() == 1 && noop[0].starts_with("OK (TAG "), "{noop:?}");
            let after = sieve.command("CAPABILITY");
            assert!(after.len() > 3 && !after[0].contains("usher"), "{after:?}");
            assert!(sieve.command("LISTSCRIPTS").last().unwrap().starts_with("OK"));
        }
    }
}

#[test]
fn commands_pipelined_after_a_login_arrive_in_order() {
    let usher = Usher::start(config());
    for uid in ["anna", "ben"] {
        let mut sieve = Sieve::tls(usher.imaps_port());
        let message = STANDARD.encode(format!("\0{uid}\0{}", password_of(uid)));
        sieve.send(format!(
            "AUTHENTICATE \"PLAIN\"\r\n{{{}+}}\r\n{message}\r\nNOOP \"a\"\r\nPUTSCRIPT \"p\" {{{}+}}\r\n{SCRIPT}\r\n\
             LOGOUT\r\n",
            message.len(),
            SCRIPT.len()
        ));
        let first = sieve.answer();
        assert_eq!(first[0], "\"\"", "an empty challenge");
        assert!(first.len() == 2 && first[1].starts_with("OK"), "{first:?}");
        assert!(sieve.answer()[0].starts_with("OK (TAG "));
        assert!(sieve.answer()[0].starts_with("OK"));
        assert!(sieve.answer()[0].starts_with("OK"), "LOGOUT");
        sieve.expect_clean_end();
    }
}

#[test]
fn sieve_connect_uploads_and_lists() {
    let usher = Usher::start(config());
    for uid in ["anna", "ben"] {
        let file = usher.config.file("by-sieve-connect.sieve", SCRIPT).display().to_string();
        let run = |arguments: &[&str]| sieve_connect(usher.imap_port(), uid, &password_of(uid), arguments);
        run(&["--upload", "--localsieve", &file, "--remotesieve", "connected"]).succeeded();
        let listed = run(&["--list"]).succeeded();
        assert!(listed.stdout.contains("\"connected\""), "{listed:#?}");
        let read = run(&["--download", "--remotesieve", "connected", "--localsieve", "/dev/stdout"]).succeeded();
        assert!(read.stdout.contains("fileinto \"usher\""), "{read:#?}");
        let refused = sieve_connect(usher.imap_port(), uid, "wrong", &["--list"]);
        assert!(refused.code != 0 && refused.stderr.contains("Name or password is wrong"), "{refused:#?}");
    }
}

#[test]
fn alpn_is_strict_for_managesieve() {
    let usher = Usher::start(config());
    let connect = |alpn: &'static [u8]| Sieve::try_tls(usher.imaps_port(), &Tls { alpn: vec![alpn], ..Tls::default() });
    assert!(connect(b"managesieve").is_ok());
    assert!(connect(b"imap").is_err());
}

#[test]
fn outage_is_never_a_wrong_password() {
    let mut slapd = Slapd::private();
    let config = Config::with_directory(&slapd).backend("server3", 1, &["server3"]);
    // No server listens there.
    let usher = Usher::start(config.speaking("managesieve", &[1]));
    let mut sieve = Sieve::tls(usher.imaps_port());
    assert!(sieve.authenticate("alice", &password_of("alice")).starts_with("NO (TRYLATER) \""));
    assert_eq!(usher.login("alice")["result"], "backend_unreachable");
    assert_eq!(sieve.authenticate("alice", "wrong"), "NO \"Name or password is wrong\"");
    // bob's server is not configured.
    let refused = sieve.authenticate("bob", &password_of("bob"));
    assert!(refused.starts_with("NO \"Your mailbox cannot be reached, please contact your administrator"), "{refused}");
    slapd.stop();
    assert!(sieve.authenticate("carol", &password_of("carol")).starts_with("NO (TRYLATER) \""));
    assert_eq!(usher.login("carol")["result"], "directory_unavailable");
}

#[test]
fn cleartext_login_is_refused_without_a_lookup() {
    let usher = Usher::start(config());
    let mut sieve = Sieve::plain(usher.imap_port());
    assert!(sieve.authenticate("alice", &password_of("alice")).starts_with("NO (ENCRYPT-NEEDED) \""));
    assert_eq!(usher.wait_log("login", |_| true)["result"], "tls_required");
    assert_eq!(usher.metric("usher_decisions_total", &[("by", "directory")]), 0.0);
}

#[test]
fn backend_without_managesieve_is_a_clear_refusal() {
    let usher = Usher::start(Config::shared().speaking("managesieve", &[dovecot().sieve]));
    let mut sieve = Sieve::tls(usher.imaps_port());
    let refused = sieve.authenticate("bob", &password_of("bob"));
    assert!(
        refused.starts_with("NO \"Your mailbox cannot be reached by this protocol, please contact your administrator"),
        "{refused}"
    );
    assert_eq!(usher.login("bob")["result"], "protocol_not_served");
}

#[test]
fn referral_is_neither_followed_nor_forwarded() {
    for answer in ["BYE (REFERRAL \"sieve://inside.example\") \"inside\"", "NO (REFERRAL \"sieve://inside.example\")"] {
        let (server, config) = scripted(move |peer| {
            if takes_a_login(peer) {
                peer.send(format!("{answer}\r\n"));
                peer.wait_for_end();
            }
        });
        let usher = Usher::start(config);
        let mut sieve = Sieve::tls(usher.imaps_port());
        let reported = sieve.authenticate("alice", &password_of("alice"));
        let session = usher.login("alice")["session"].as_str().unwrap().to_owned();
        let words = "The mail service is not available, try again later";
        assert_eq!(reported, format!("NO (TRYLATER) \"{words} (session {session})\""));
        assert_eq!(usher.login("alice")["result"], "backend_fault");
        assert_eq!(server.connections(), 1);
    }
}

#[test]
fn capability_list_after_a_login_is_consumed_and_later_replies_are_forwarded() {
    let (_server, config) = scripted(|peer| {
        if !takes_a_login(peer) {
            return;
        }
        peer.send("OK \"in\"\r\n");
        assert_eq!(peer.line().as_deref(), Some("NOOP"));
        // As some do, against RFC 5804 section 2.1, as if a security layer had been negotiated.
        peer.send("\"IMPLEMENTATION\" \"scripted\"\r\n\"UNAUTHENTICATE\"\r\nOK \"list\"\r\nOK \"noop\"\r\n");
        while let Some(command) = peer.line() {
            peer.send(format!("OK \"did {command}\"\r\n"));
        }
    });
    let usher = Usher::start(config);
    let mut sieve = Sieve::tls(usher.imaps_port());
    assert_eq!(sieve.authenticate("alice", &password_of("alice")), "OK \"in\"");
    assert_eq!(sieve.command("HAVESPACE"), ["OK \"did HAVESPACE\""]);
}

#[test]
fn drain_sends_bye() {
    let usher = Usher::start(config());
    let mut sieve = Sieve::tls(usher.imaps_port());
    usher.terminate();
    assert!(sieve.answer()[0].starts_with("BYE (TRYLATER) \""));
    sieve.expect_clean_end();
}
