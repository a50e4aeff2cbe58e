//! What passes between ushers and their store has no user's name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::fleet::{url, with_store};
use crate::kit::redis::{Redis, SlowWay};
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::{Config, Imap, User, Usher, password_of};

const CLIENT: [u8; 4] = [127, 0, 0, 2];

/// A text as it could be written: as it is, in hexadecimal, and in base64 wherever it begins.
fn forms(text: &str) -> Vec<Vec<u8>> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![text.as_bytes().to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    for (before, first) in [(0, 0), (1, 2), (2, 3)] {
        let whole = STANDARD_NO_PAD.encode([&vec![0; before], text.as_bytes()].concat());
        // Without the letters that depend on what is around it.
        let last = whole.len() - usize::from(!(before + text.len()).is_multiple_of(3));
        forms.push(whole.as_bytes()[first..last].to_vec());
    }
    forms
}

fn finds(passed: &[u8], text: &str) -> bool {
    forms(text).iter().any(|form| passed.windows(form.len()).any(|window| window.eq_ignore_ascii_case(form)))
}

#[test]
fn nothing_sent_to_the_store_or_by_it_names_a_user() {
    let names: Vec<String> = (1..=4).map(|number| format!("somebody{number}")).collect();
    let entries: String = names.iter().map(|name| User::new(name, Some("server3")).ldif()).collect();
    let slapd =
        Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, entries: &entries, ..Options::default() });
    let servers = [Scripted::accepting(), Scripted::accepting()];
    let store = Redis::start();
    let way = SlowWay::to(store.port);
    let ushers = ["entrance-one", "entrance-two"].map(|node| {
        let config = Config::with_directory(&slapd)
            .backend("server3", servers[0].port, &["server3"])
            .backend("server4", servers[1].port, &["server4"])
            .set("/routing/backends/1/imap/server_name", "server3.example.com")
            .set("/directory/watch", "auto")
            .set("/directory/brake", 3)
            .set("/limits/failed_logins", 100);
        let usher = Usher::start(with_store(config, &url(way.port), node).set("/fleet/timeout", "500ms"));
        usher.wait_log("LDAP change notification active", |_| true);
        usher
    });
    for usher in &ushers {
        usher.wait_metric("usher_fleet_members", &[], 2.0);
    }
    let [one, two] = &ushers;
    let mut sessions = Vec::new();
    for (usher, names) in ushers.iter().zip(names.chunks(2)) {
        // The second of each is cached.
        for name in names.iter().chain(names) {
            let mut imap = Imap::tls_from(CLIENT, usher.imaps_port());
            imap.login(name, &password_of(name)).ok();
            sessions.push(imap);
        }
        for (name, password) in [(names[0].as_str(), "guessed-at-once"), ("unheard-of", "guessed-again")] {
            Imap::tls_from(CLIENT, usher.imaps_port()).login(name, password).is("NO [AUTHENTICATIONFAILED]");
        }
    }
    for command in [
        &["sessions", "--fleet", "--json"][..],
        &["explain", "somebody3", "--running", "--fleet"],
        &["cache", "show", "somebody3", "--fleet"],
        &["backends", "drain", "server4", "--fleet"],
        &["backends", "undrain", "server4", "--fleet"],
        &["kick", "--user", "somebody4", "--fleet"],
        &["cache", "drop", "somebody4", "--fleet"],
        &["status", "--fleet"],
    ] {
        let said = one.command(command);
        assert!(said.stdout.contains("entrance-two"), "{command:?}: {said:?}");
    }
    // The kick has ended both of its sessions.
    two.wait_metric("usher_sessions", &[], 2.0);
    let change = |name: &String| {
        format!("dn: {}\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n\n", User::new(name, None).dn())
    };
    slapd.modify(&names.iter().map(change).collect::<String>());
    for usher in &ushers {
        usher.wait_metric("usher_fleet_brake", &[], 4.0);
    }
    one.command(&["confirm", "--fleet"]).succeeded();
    for usher in &ushers {
        usher.wait_metric("usher_fleet_brake", &[], 0.0);
    }
    one.command(&["drain", "--node", "entrance-two"]).succeeded();
    assert_eq!(two.exit_code(), 0);

    let passed = way.passed();
    for seen in ["EVALSHA", "PUBLISH", "SUBSCRIBE", "usher:mail:c"] {
        assert!(passed.iter().any(|bytes| finds(bytes, seen)), "{seen}: is all recorded?");
    }
    for secret in [
        "somebody",
        "unheard-of",
        "uid=some",
        "dc=example",
        "ou=people",
        "server3",
        "server4",
        "mailHost",
        "guessed",
        "1-secret",
        "127.0.0",
        "entrance",
        "/kick",
        "/sessions",
    ] {
        let found = passed.iter().position(|bytes| finds(bytes, secret));
        assert!(found.is_none(), "{secret}: {}", String::from_utf8_lossy(&passed[found.unwrap()]).escape_debug());
    }
    let long = [b"before ".as_slice(), STANDARD_NO_PAD.encode("xx somebody yy").as_bytes()].concat();
    assert!(finds(&long, "somebody") && finds(b"..736F6d65626f6479..", "somebody"), "the search finds other forms");
}
