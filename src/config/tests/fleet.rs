//! The section `fleet`.

use super::*;

const FLEET: &str = "fleet: {name: mail, node: mx1, store: 'rediss://store.example.com', secret_file: fleet.secret}";

#[track_caller]
fn mistake(from: &str, to: &str, key: &str, phrase: &str) {
    assert!(FLEET.contains(from), "{from:?}");
    let text = format!("{SOUND}{} # HERE\n", FLEET.replacen(from, to, 1));
    only_problem(&text, marked(&text), key, phrase);
}

#[track_caller]
fn suspicion(more: &str, key: &str, phrase: &str) {
    let text = format!("{SOUND}{} # HERE\n", FLEET.replacen("}", more, 1));
    let warnings = parse_text(&text).expect("refused").warnings;
    let [warning] = warnings.as_slice() else { panic!("not one warning: {warnings:#?}") };
    assert_eq!((warning.key.as_str(), warning.line), (key, marked(&text)), "{warning}");
    assert!(warning.message.contains(phrase), "{warning}");
}

#[test]
fn mistakes_are_reported() {
    mistake("name: mail, ", "", "fleet.name", "missing: write a name that all its ushers have in common");
    mistake("name: mail", "name: Mail", "fleet.name", "1 to 32 lower-case letters");
    mistake("node: mx1", "node: 'm x'", "fleet.node", "1 to 64 letters");
    mistake("store: 'rediss://store.example.com', ", "", "fleet.store", "missing: write the URL of the store");
    mistake("rediss://", "redis://", "fleet.store", "would cross the network in clear");
    mistake("rediss://", "https://", "fleet.store", "write a URL such as rediss://");
    mistake("rediss://", "rediss://usher:secret@", "fleet.store", "not allowed in the URL");
    mistake("rediss://", "redis-cluster://", "fleet.store", "a cluster is not supported");
    mistake("'rediss://store.example.com'", "[]", "fleet.store", "the list is empty");
    let twice = "['rediss://a', 'rediss://a:6379']";
    mistake("'rediss://store.example.com'", twice, "fleet.store[1]", "already used by fleet.store[0]");
    let many: Vec<_> = (0..9).map(|index| format!("'rediss://s{index}'")).collect();
    mistake("'rediss://store.example.com'", &format!("[{}]", many.join(", ")), "fleet.store", "more than 8 stores");
    mistake(", secret_file: fleet.secret", "", "fleet.secret_file", "missing: name the file with the secret");
    mistake("}", ", user: usher}", "fleet.password_file", "missing: name the file with the password");
    mistake("}", ", user: 'u s', password_file: p}", "fleet.user", "1 to 128 visible");
    mistake("}", ", secret: abc}", "fleet.secret", "put it into a file and name the file with `secret_file`");
    mistake("}", ", secretfile: abc}", "fleet.secretfile", "did you mean `secret_file`?");
    mistake("}", ", password: secret}", "fleet.password", "put it into a file and name the file with `password_file`");
    mistake("}", ", timeout: 4ms}", "fleet.timeout", "write 5ms to 1s (default 20ms)");
    mistake("}", ", timeout: 2s}", "fleet.timeout", "write 5ms to 1s");
    mistake("}", ", plaintext: maybe}", "fleet.plaintext", "`true` or `false`");
}

#[test]
fn suspicious_settings_are_reported() {
    suspicion(", plaintext: true}", "fleet.plaintext", "without effect");
    let text = format!(
        "{SOUND}{} # HERE\n",
        FLEET.replacen("rediss://", "redis://", 1).replacen("}", ", plaintext: true}", 1)
    );
    let warnings = parse_text(&text).expect("refused").warnings;
    assert!(warnings[0].message.contains("crosses the network in clear"), "{warnings:?}");
    let text = format!(
        "{SOUND}{} # HERE\n",
        FLEET.replacen("rediss://store.example.com", "redis://[::1]", 1).replacen("}", ", ca: c.pem}", 1)
    );
    let warnings = parse_text(&text).expect("refused").warnings;
    assert!(warnings[0].key == "fleet.ca" && warnings[0].message.contains("without effect"), "{warnings:?}");
}

#[test]
fn digest_is_of_what_ushers_have_in_common() {
    let digest = |text: &str| parse_text(text).unwrap().fleet_digest();
    let text = format!("{SOUND}{FLEET}\n");
    assert_eq!(digest(&text), digest(&text));
    for (from, to) in [("node: mx1", "node: mx2"), ("hostname: mail.example.com", "hostname: mx.example.com")] {
        assert!(text.contains(from), "{from}");
        assert_eq!(digest(&text), digest(&text.replacen(from, to, 1)), "{from}");
    }
    for (from, to) in [("fleet: {name: mail", "fleet: {name: test"), ("connections: 100", "connections: 101")] {
        assert!(text.contains(from), "{from}");
        assert_ne!(digest(&text), digest(&text.replacen(from, to, 1)), "{from}");
    }
}
