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
        assert!(said.stdout.starts_with("AD\\smith now, in the running usher\n"), "{said:#?}");
        let said = usher.command(&["cache", "drop", "Smith, John"]);
        assert!(said.stdout.contains(SMITH), "{said:#?}");
    }
}

/// The names before `=` of a log line, as far as they are not in quotes.
fn names_of(line: &str) -> Vec<String> {
    let mut bare = String::new();
    let mut is_quoted = false;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if is_quoted => drop(letters.next()),
            '"' => is_quoted = !is_quoted,
            _ if !is_quoted => bare.push(letter),
            _ => {}
        }
    }
    let pairs = bare.split_whitespace().filter_map(|word| word.split_once('='));
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    pairs.map(|(name, _)| name.to_owned()).filter(|name| is_name(name)).collect()
}

#[test]
fn fields_of_documented_lines_are_logged() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut sources, mut folders) = (String::new(), vec![root.join("src")]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    // A field has a value, or is a variable of its name: with a comma behind it.
    let is_logged = |name: &str| {
        [format!(" {name} = "), format!(" {name},"), format!("%{name},"), format!("?{name},"), format!(" {name}={{")]
            .iter()
            .any(|field| sources.contains(field))
    };
    let (mut documented, mut unknown) = (0, Vec::new());
    let folders = ["docs", "docs/developer"].map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
    let pages = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    for page in pages.chain([root.join("README.md")]).filter(|page| page.extension().is_some_and(|end| end == "md")) {
        for line in std::fs::read_to_string(&page).unwrap().lines() {
            let is_line = [" INFO ", " WARN ", " ERROR ", " DEBUG "].iter().any(|level| line.contains(level));
            let names = if is_line { names_of(line) } else { Vec::new() };
            documented += names.len();
            unknown.extend(names.into_iter().filter(|name| !is_logged(name)).map(|name| (page.clone(), name)));
        }
    }
    assert!(documented > 30, "{documented}");
    assert_eq!(unknown, []);
}
