//! No external text becomes a log field: from clients, the directory or mail servers.

use serde_json::{Value, json};

use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, User, Usher, password_of};

/// Text that a log parser must not take for fields.
const FORGED: &str = r#""x" result="ok" client=203.0.113.9 login="boss" session=0"#;

/// The fields of a login line that contain no external text.
fn is_true(line: &Value, result: &str) {
    assert_eq!(line["result"], result, "{line}");
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1"), "{line}");
    assert_eq!(line["session"].as_str().unwrap().len(), 13, "{line}");
}

#[test]
fn untrusted_text_stays_in_its_field_in_both_formats() {
    for format in ["text", "json"] {
        let slapd = Slapd::private();
        slapd.add(&User { password: password_of("mallory"), ..User::new(FORGED, Some("server3")) });
        let backend = Scripted::tls(|peer| {
            peer.send(GREETING);
            if let Some(tag) = peer.take_login() {
                peer.send(format!("{tag} NO [LIMIT] {FORGED}\r\n"));
            }
        });
        let config = Config::with_directory(&slapd).scripted(&backend).set("/limits/failed_logins", 50);
        let usher = Usher::start(config.set("/log", json!({"format": format, "level": "debug"})));

        // The name.
        let mut imap = Imap::tls(usher.imaps_port());
        imap.authenticate("", FORGED, b"wrong").is("NO [AUTHENTICATIONFAILED]");
        let line = usher.login(FORGED);
        is_true(&line, "wrong_password");
        drop(imap);

        // The client's ID, the entry's DN, and the mail server's text.
        let mut imap = Imap::tls(usher.imaps_port());
        let quoted = FORGED.replace('"', "\\\"");
        imap.command(&format!(r#"ID ("name" "{quoted}" "version" "{quoted}")"#)).ok();
        imap.authenticate("", FORGED, password_of("mallory").as_bytes()).is("NO [LIMIT]");
        let line = usher.nth_login(2, FORGED);
        is_true(&line, "backend_rejected");
        assert_eq!(line["client_name"], FORGED, "{line}");
        assert_eq!(line["client_version"], FORGED, "{line}");
        assert_eq!(line["backend_reply"], format!("[LIMIT] {FORGED}"), "{line}");
        assert_eq!(line["login_backend"], FORGED, "{line}");
        assert!(line["dn"].as_str().unwrap().contains("result"), "{line}");
    }
}

/// A DN with an escaped comma, as slapd writes it (RFC 4514 section 2.4).
const SMITH: &str = r"uid=Smith\2C John,ou=people,dc=example,dc=com";

#[test]
fn dn_is_escaped_once_by_the_format() {
    for format in ["text", "json"] {
        let slapd = Slapd::private();
        slapd.add(&User::new("Smith, John", Some("server3")));
        let backend = Scripted::tls(|peer| {
            peer.send(GREETING);
            peer.accept_login();
            peer.wait_for_end();
        });
        let config = Config::with_directory(&slapd).scripted(&backend);
        let usher = Usher::start(config.set("/log", json!({"format": format, "level": "info"})));

        let mut imap = Imap::tls(usher.imaps_port());
        imap.authenticate("", "Smith, John", password_of("Smith, John").as_bytes()).ok();
        assert_eq!(usher.login("Smith, John")["dn"], SMITH);
        assert!(usher.log_text().contains(r"uid=Smith\\2C John"), "{}", usher.log_text());
        assert!(!usher.log_text().contains(r"uid=Smith\\\"), "{}", usher.log_text());
        Imap::tls(usher.imaps_port()).authenticate("", r"AD\smith", b"wrong").is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(usher.login(r"AD\smith")["result"], "unknown_user");

        // The commands show the same DN, as text and as JSON.
        for arguments in [&["explain", "Smith, John"][..], &["cache", "show", "Smith, John"]] {
            let said = usher.command(arguments);
            assert!(said.stdout.contains(SMITH), "{arguments:?}: {said:#?}");
            let said = usher.command(&[arguments, &["--json"]].concat());
            assert!(said.stdout.contains(&SMITH.replace('\\', r"\\")), "{arguments:?}: {said:#?}");
        }
        let said = usher.command(&["sessions", "--json"]);
        let sessions: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(sessions[0]["dn"], SMITH, "{sessions}");
        let said = usher.command(&["explain", r"AD\smith"]);
        assert!(said.stdout.starts_with("AD\\smith\n"), "{said:#?}");
        let said = usher.command(&["cache", "drop", "Smith, John"]);
        assert!(said.stdout.contains(SMITH), "{said:#?}");
    }
}
