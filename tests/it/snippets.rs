//! Lines that the documentation shows for mail servers: each is loaded by the program it is for, in the version it
//! is for, and does there what the text says. Dovecot 2.4 comes from a later Debian and runs in a folder of its own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::kit::dovecot_versions::{VERSIONS, Version, VersionedDovecot};
use crate::kit::process::{folder, run, unpacked};
use crate::kit::slapd::{Options, Slapd};
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::{Imap, Usher, password_of};

/// A fenced block of the documentation.
pub(crate) struct Snippet {
    place: String,
    heading: String,
    language: String,
    pub(crate) text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every block of every page.
fn snippets() -> Vec<Snippet> {
    let folders = ["docs", "docs/developer"].map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let pages = folders.into_iter().flatten().flatten().map(|entry| entry.path());
    let mut pages: Vec<PathBuf> = pages.filter(|page| page.extension().is_some_and(|kind| kind == "md")).collect();
    pages.push(root().join("README.md"));
    pages.sort();
    let mut all: Vec<Snippet> = Vec::new();
    for page in pages {
        let (mut heading, mut open, mut indent) = (String::new(), None::<Snippet>, 0);
        for (number, line) in std::fs::read_to_string(&page).unwrap().lines().enumerate() {
            let start = line.trim_start();
            match (open.take(), start.strip_prefix("```")) {
                (Some(snippet), Some(_)) => all.push(snippet),
                (Some(mut snippet), None) => {
                    // A block in a list is indented as a whole.
                    let line = if line.len() < start.len() + indent { start } else { &line[indent..] };
                    snippet.text += &format!("{line}\n");
                    open = Some(snippet);
                }
                (None, Some(language)) => {
                    indent = line.len() - start.len();
                    let place = format!("{}:{}", page.display(), number + 1);
                    open = Some(Snippet {
                        place,
                        heading: heading.clone(),
                        language: language.to_owned(),
                        text: String::new(),
                    });
                }
                (None, None) if line.starts_with('#') => line.clone_into(&mut heading),
                (None, None) => {}
            }
        }
    }
    all
}

/// The blocks of this language.
pub(crate) fn of_language(language: &str) -> Vec<Snippet> {
    let found: Vec<Snippet> = snippets().into_iter().filter(|snippet| snippet.language == language).collect();
    assert!(!found.is_empty(), "no snippet for {language}");
    found
}

/// The one block for this version that has this line.
pub(crate) fn with_line(version: Version, line: &str) -> String {
    let found = of_language(version.language()).into_iter().find(|snippet| snippet.text.contains(line));
    found.unwrap_or_else(|| panic!("no snippet with {line}")).text
}

#[test]
fn dovecot_snippets_are_loaded_by_their_version() {
    for version in VERSIONS {
        for snippet in of_language(version.language()) {
            let output = version.doveconf(&snippet.text);
            assert_eq!(output.code, 0, "{}: {output:#?}", snippet.place);
            // doveconf prints what differs from its defaults, in the same form.
            for line in
                snippet.text.lines().map(str::trim).filter(|line| line.contains(" = ") && !line.contains("mode"))
            {
                assert!(output.stdout.contains(line), "{}: {line}: {output:#?}", snippet.place);
            }
        }
    }
}

#[test]
fn dovecot_snippets_stand_in_pairs_and_are_marked() {
    let all = snippets();
    let marked: Vec<&Snippet> = all.iter().filter(|snippet| snippet.language.starts_with("dovecot")).collect();
    assert!(marked.len() >= 12, "{}", marked.len());
    for pair in marked.chunks(2) {
        let languages: Vec<&str> = pair.iter().map(|snippet| &*snippet.language).collect();
        assert_eq!(languages, ["dovecot-2.3", "dovecot-2.4"], "{}", pair[0].place);
        assert_eq!(pair[0].heading, pair[1].heading, "{}", pair[0].place);
    }
    let words =
        ["passdb", "inet_listener", "service imap", "login_trusted_networks", "haproxy_trusted", "service_count"];
    // What a command prints is no configuration.
    let others =
        all.iter().filter(|snippet| !snippet.language.starts_with("dovecot-2.") && !snippet.text.starts_with("$ "));
    for snippet in others {
        let is_dovecot = words.iter().any(|word| snippet.text.contains(word));
        assert!(!is_dovecot, "{}: mark it as dovecot-2.3 or dovecot-2.4", snippet.place);
    }
    let removed = marked.iter().filter(|snippet| snippet.text.contains("service_count"));
    assert!(removed.into_iter().all(|snippet| snippet.language == "dovecot-2.3"));
}

#[test]
fn schema_is_loaded_by_slapd_and_its_attributes_can_be_used() {
    let [schema] = of_language("slapd-schema").try_into().ok().expect("one block");
    let file = folder("schema").join("usher.schema");
    std::fs::write(&file, &schema.text).unwrap();
    let entry = "dn: uid=schema,ou=people,dc=example,dc=com\nobjectClass: inetOrgPerson\nobjectClass: usherUser\n\
                 uid: schema\ncn: schema\nsn: schema\nmailHold: moving\nmailNetworks: 192.0.2.0/24\n\
                 mailNetworks: 2001:db8::/32\nmailGrant: uid=alice,ou=people,dc=example,dc=com\nmailAccess: imap\n";
    let include = format!("include {}", file.display());
    let slapd = Slapd::with(Options { global: &include, entries: entry, ..Options::default() });
    slapd.wait_for("uid=schema,ou=people,dc=example,dc=com", "mailNetworks: 2001:db8::/32");
}

#[test]
fn dovecot_refuses_what_the_manual_says_it_refuses() {
    for version in VERSIONS {
        let output = version.doveconf("service imap-login { process_min_avail = 2 }\n");
        assert_ne!(output.code, 0);
        assert!(output.stderr.contains("Garbage after '{'"), "{output:#?}");
    }
    let output = Version::V24.doveconf(&with_line(Version::V23, "service_count"));
    assert!(output.code != 0 && output.stderr.contains("Unknown setting: service_count"), "{output:#?}");
    let output = Version::V23.doveconf(&with_line(Version::V24, "restart_request_count"));
    assert!(
        output.code != 0 && output.stderr.contains("Unknown setting: service { restart_request_count"),
        "{output:#?}"
    );
}

#[test]
fn cyrus_snippets_are_known_to_cyrus() {
    let cyrus = unpacked("cyrus");
    let folder = folder("cyr_info");
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("cyrus.conf"), "START {\n}\nSERVICES {\n}\nEVENTS {\n}\n").unwrap();
    let head = "configdirectory: /var/lib/cyrus\ndefaultpartition: default\npartition-default: /var/spool/cyrus\n";
    let architecture = run("gcc", &["-print-multiarch"], b"").succeeded().stdout;
    let libraries = cyrus.join("usr/lib").join(architecture.trim());
    let libraries = format!("LD_LIBRARY_PATH={}", libraries.display());
    let program = cyrus.join("usr/lib/cyrus/bin/cyr_info").display().to_string();
    let unknown = |text: &str| {
        std::fs::write(path("imapd.conf"), format!("{head}{text}")).unwrap();
        let arguments = [&libraries, &program, "-C", &path("imapd.conf"), "-M", &path("cyrus.conf"), "conf-lint"];
        run("env", &arguments, b"").succeeded().stdout
    };
    assert!(unknown("maxlogins_per_hots: 0\n").contains("maxlogins_per_hots"));
    for snippet in of_language("imapd.conf") {
        assert_eq!(unknown(&snippet.text), "", "{}", snippet.place);
    }
}

#[test]
fn postfix_snippets_are_known_to_postfix() {
    let postfix = unpacked("postfix");
    let folder = folder("postconf");
    std::fs::write(folder.join("master.cf"), "").unwrap();
    let libraries = format!("LD_LIBRARY_PATH={}", postfix.join("usr/lib/postfix").display());
    let (program, path) = (postfix.join("usr/sbin/postconf").display().to_string(), folder.display().to_string());
    let warnings = |text: &str| {
        std::fs::write(folder.join("main.cf"), format!("compatibility_level = 3.6\n{text}")).unwrap();
        run("env", &[&libraries, &program, "-c", &path, "-n"], b"").succeeded().stderr
    };
    assert!(warnings("smtpd_authorised_xclient_hosts = 192.0.2.10\n").contains("unused parameter"));
    for snippet in of_language("main.cf") {
        assert_eq!(warnings(&snippet.text), "", "{}", snippet.place);
    }
}

/// usher's address towards Dovecot: a connection within one address is trusted always.
const OWN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);

#[test]
fn documented_master_user_logs_in_for_users() {
    for version in VERSIONS {
        let dovecot = VersionedDovecot::start(version, &with_line(version, "master = yes"));
        let config = dovecot.config().set("/directory/login_attribute", "uid");
        let password = config.file("server3.password", SERVICE_PASSWORD);
        let service = json!({"login": "usher", "password_file": password});
        let usher = Usher::start(config.set("/routing/backends/0/service", service));
        // Dovecot does not know her password, and the directory does.
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("anna", "wrong").is("NO [AUTHENTICATIONFAILED]");
        imap.login("anna", &password_of("anna")).ok();
        imap.command("SELECT INBOX").ok();
        dovecot.wait_logged(&["aster user logging in as anna"]);
    }
}

#[test]
fn documented_trust_forwards_the_client_and_ends_the_penalty() {
    for version in VERSIONS {
        let trust = with_line(version, "login_trusted_networks").replace("192.0.2.10 192.0.2.11", &OWN.to_string());
        for (more, forward) in [("", "none"), (&*trust, "id")] {
            let dovecot = VersionedDovecot::start(version, more);
            let config = dovecot.config().set("/routing/backends/0/source", OWN.to_string());
            let usher = Usher::start(config.set("/routing/backends/0/imap/forward", forward));
            // The directory accepts her password, and Dovecot does not.
            let mut imap = Imap::tls(usher.imaps_port());
            imap.login("anna", &password_of("anna")).is("NO [UNAVAILABLE]");
            assert_eq!(usher.login("anna")["result"], "backend_rejected");
            assert_eq!(dovecot.penalties().contains(&OWN.to_string()), forward == "none", "{}", dovecot.penalties());
            if forward == "id" {
                Imap::tls_from([127, 0, 0, 77], usher.imaps_port()).login("alice", &password_of("alice")).ok();
                dovecot.wait_logged(&["user=<alice>", "rip=127.0.0.77"]);
            }
        }
    }
}

#[test]
fn documented_port_without_tls_is_open_to_one_peer() {
    for (version, trusts) in [(Version::V23, true), (Version::V24, false)] {
        let line = if version == Version::V23 { "disable_plaintext_auth = no" } else { "auth_allow_cleartext = yes" };
        let snippet = with_line(version, line).replace("192.0.2.20", &OWN.to_string());
        let dovecot = VersionedDovecot::start(version, &snippet);
        assert!(dovecot.login_in_clear(OWN).starts_with("a OK "));
        let other = dovecot.login_in_clear(Ipv4Addr::new(127, 0, 0, 11));
        assert!(other.starts_with("a NO [PRIVACYREQUIRED]"), "{other}");
        let dovecot = VersionedDovecot::start(version, &format!("login_trusted_networks = {OWN}\n"));
        assert_eq!(dovecot.login_in_clear(OWN).starts_with("a OK "), trusts);
    }
}
