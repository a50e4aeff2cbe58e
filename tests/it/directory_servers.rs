//! Directory servers with a name or a key of their own in `directory.servers`.

use serde_json::{Value, json};

use crate::kit::certs::Leaf;
use crate::kit::slapd::{Options, Slapd};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, dovecot, password_of, shared};

/// A server with this certificate, known as `server`.
fn config(slapd: &Slapd, server: Value) -> Config {
    let config = Config::with_directory(slapd).backend("server3", dovecot().imaps, &["server3"]);
    config.set("/directory/servers/0", server)
}

fn login(config: Config) {
    let usher = Usher::start(config);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
}

/// What `check --connect` finds of the connection.
fn connection(config: &Config) -> Value {
    config.write();
    let said = command(config, &["check", "--connect", "--json"], b"");
    let report: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    let mut subjects = report["subjects"].as_array().unwrap().iter();
    let directory = subjects.find(|subject| subject["kind"] == "directory").unwrap();
    directory["findings"][0].clone()
}

/// Logins get through, and a wrong password is one; with the other settings none does, and it is an outage.
#[test]
fn name_beside_the_url_is_the_one_that_is_verified() {
    let pair = shared().certificates.leaf("per-server-name", Leaf::server(&["ldap.example.net"]));
    let slapd = Slapd::with(Options { pair: Some(&pair), ..Options::default() });
    let named = |name: &str| config(&slapd, json!({"url": slapd.tls_url(), "server_name": name}));
    login(named("ldap.example.net"));
    login(named("ldap.example.net").set("/directory/starttls", true).set("/directory/servers/0/url", slapd.url()));
    let usher = Usher::start(named("ldap.example.net"));
    Imap::tls(usher.imaps_port()).login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");

    for other in [named("ldap.example.org"), config(&slapd, json!(slapd.tls_url()))] {
        let found = connection(&other);
        assert_eq!(found["state"], "problem", "{found:#}");
        let advice = found["advice"].as_str().unwrap();
        assert!(advice.contains("`server_name` beside the server's `url` in directory.servers"), "{found:#}");
        let usher = Usher::start(other);
        Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    }
}

/// Nothing verifies the certificate but its key: of another authority, for another name, and over.
#[test]
fn pinned_key_takes_the_place_of_chain_and_name() {
    let leaf = Leaf { wrong_ca: true, expired: true, ..Leaf::server(&["ldap.example.net"]) };
    let pair = shared().certificates.leaf("per-server-pin", leaf);
    let slapd = Slapd::with(Options { pair: Some(&pair), ..Options::default() });
    let other = &shared().server3.pin;
    let pinned = |url: String, pins: Value| config(&slapd, json!({"url": url, "pin_sha256": pins}));
    let sound = pinned(slapd.tls_url(), json!([other, pair.pin])).without("/directory/ca");
    let found = connection(&sound);
    assert!(found["state"] == "ok" && found.to_string().contains("verified by its pin alone"), "{found:#}");
    login(sound);
    login(pinned(slapd.url(), json!(pair.pin)).set("/directory/starttls", true));

    let wrong = pinned(slapd.tls_url(), json!(other));
    let found = connection(&wrong);
    assert!(found["state"] == "problem" && found.to_string().contains(&pair.pin), "{found:#}");
    let usher = Usher::start(wrong);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
}

/// A pin is of one server: it opens no other, and takes nothing from one that is verified by chain and name.
#[test]
fn pin_of_one_server_is_not_that_of_another() {
    let leaf = Leaf { wrong_ca: true, ..Leaf::server(&["127.0.0.1"]) };
    let pair = shared().certificates.leaf("per-server-other", leaf);
    let rogue = Slapd::with(Options { pair: Some(&pair), ..Options::default() });
    let mut good = Slapd::private();
    let servers = json!([{"url": good.tls_url(), "pin_sha256": [pair.pin, shared().ldap.pin]}, rogue.tls_url()]);
    let config = config(&good, json!("")).set("/directory/servers", servers);
    let usher = Usher::start(config);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    good.stop();
    Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).is("NO [UNAVAILABLE]");
    assert_eq!(rogue.binds("uid=bob,ou=people,dc=example,dc=com"), 0);
}
