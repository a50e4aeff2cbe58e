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
