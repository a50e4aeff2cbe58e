//! What each map answers, without LDAP and without Postfix.

use std::path::Path;

use super::*;
use crate::config;
use crate::directory::memory::Memory;
use crate::directory::{Availability, Directory, EntryFault, EntryVersion, UnavailableCause};

const TO_3: &str = "OK lmtp:server3";

struct Setup {
    config: Config,
    directory: Arc<Memory>,
    realms: Realms,
}

fn setup(keys: &str) -> Setup {
    let text = format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directory: {{servers: ['ldaps://one'], base: dc=x, filter: '(uid={{login}})'}}
socketmap: {{address: '127.0.0.1:0', domains: [example.com], recipient_delimiter: '+'{keys}}}
routing: {{backends: [{{name: server3, delivery: 'lmtp:server3', imap: {{address: '192.0.2.3:993', tls: implicit}}}}]}}
"
    );
    let config = config::parse(Path::new("/c.yaml"), &text).unwrap();
    let directory = Memory::with_user("alice", "sesame", Entry::for_tests("uid=alice", &["server3"]));
    directory.set_mail("alice", "alice@example.com");
    let realms = Realms::new(&config, vec![Arc::clone(&directory) as Arc<dyn Directory>], None);
    Setup { config, directory, realms }
}

impl Setup {
    async fn ask(&self, map: SocketmapMap, key: &str) -> (String, DecidedBy) {
        let delivery = Delivery::of(&self.config, &self.realms).unwrap();
        let located = delivery.locate(key.as_bytes()).await;
        let mut written = Vec::new();
        delivery.answer(map, &located).answer.write(&mut written);
        let text = String::from_utf8(written).unwrap();
        let text = text.split_once(':').unwrap().1.trim_end_matches(',').to_owned();
        (text, located.by)
    }

    async fn transport(&self, key: &str) -> String {
        self.ask(SocketmapMap::Transport, key).await.0
    }

    async fn recipient(&self, key: &str) -> String {
        self.ask(SocketmapMap::Recipient, key).await.0
    }
}

#[tokio::test(start_paused = true)]
async fn only_addresses_of_the_domains_are_looked_up() {
    let setup = setup("");
    // Whatever is looked up is answered by TEMP.
    setup.directory.set_outage(true);
    for key in [
        "*",
        "",
        "@",
        "alice",
        "@example.com",
        "alice@",
        "alice@example.org",
        "alice@a.example.com",
        "alice@example.com.",
    ] {
        assert_eq!(setup.ask(SocketmapMap::Transport, key).await, ("NOTFOUND ".to_owned(), DecidedBy::Usher), "{key}");
    }
    for key in [" alice@example.com", "alice@example.com ", "al\0ice@example.com", "al\nice@example.com"] {
        assert_eq!(setup.transport(key).await, "NOTFOUND ", "{key:?}");
    }
    let long = format!("{}@example.com", "x".repeat(Login::MAX));
    assert_eq!(setup.transport(&long).await, "NOTFOUND ");
    assert_eq!(setup.transport("alice@example.com").await, "TEMP the directory is not available");
    assert_eq!(setup.transport("a@b@example.com").await, "TEMP the directory is not available", "the last @ counts");
    let delivery = Delivery::of(&setup.config, &setup.realms).unwrap();
    assert!(matches!(delivery.locate(b"\xffalice@example.com").await.meaning, Meaning::Foreign(_)));
}

#[tokio::test(start_paused = true)]
async fn whole_address_is_first_and_case_does_not_matter() {
    let setup = setup("");
    assert_eq!(setup.transport("ALICE@Example.Com").await, TO_3);
    assert_eq!(setup.recipient("Alice+x@example.com").await, "OK alice@example.com");
    setup.directory.add("list", "x", Entry::for_tests("uid=list", &["server9"]));
    setup.directory.set_mail("list", "alice+list@example.com");
    assert_eq!(setup.recipient("alice+list@example.com").await, "OK alice+list@example.com");
    assert_eq!(
        setup.transport("alice+list@example.com").await,
        "TEMP its mail host is not that of a configured backend"
    );
    // What is uncertain about the whole address is not decided by the rest of it.
    setup.directory.add("other", "x", Entry::for_tests("uid=other", &["server3"]));
    setup.directory.set_mail("other", "alice+two@example.com");
    setup.directory.add("another", "x", Entry::for_tests("uid=another", &["server3"]));
    setup.directory.set_mail("another", "alice+two@example.com");
    assert_eq!(setup.transport("alice+two@example.com").await, "TEMP several entries have this address");
}

#[tokio::test(start_paused = true)]
async fn held_or_faulty_entry_is_never_rejected() {
    let setup = setup(", delivery_when_disabled: reject");
    let version = |held, disabled| EntryVersion { held, disabled, ..EntryVersion::default() };
    let cases = [
        (version(false, false), TO_3, "OK alice@example.com"),
        (version(false, true), "NOTFOUND ", "NOTFOUND "),
        (version(true, false), "TEMP the mailbox is held: it is being moved", "OK alice@example.com"),
        (version(true, true), "TEMP the mailbox is held: it is being moved", "OK alice@example.com"),
    ];
    for (version, transport, recipient) in cases {
        setup.directory.set_version("alice", version);
        setup.realms.all()[0].authn.cache().drop_all();
        for _ in 0..2 {
            assert_eq!(setup.transport("alice@example.com").await, transport);
            assert_eq!(setup.recipient("alice@example.com").await, recipient);
        }
    }
    setup.directory.set_version("alice", version(false, true));
    setup.directory.modify("alice", |entry| entry.fault = Some(Box::new(EntryFault::LongDn)));
    setup.realms.all()[0].authn.cache().drop_all();
    assert_eq!(setup.transport("alice@example.com").await, "TEMP its entry cannot be used");
    assert_eq!(setup.recipient("alice@example.com").await, "OK alice@example.com");
}

#[tokio::test(start_paused = true)]
async fn cached_entry_answers_for_ttl_and_in_an_outage_for_stale() {
    let setup = setup("");
    assert_eq!(setup.ask(SocketmapMap::Transport, "alice@example.com").await, (TO_3.to_owned(), DecidedBy::Directory));
    assert_eq!(setup.ask(SocketmapMap::Transport, "alice@example.com").await.1, DecidedBy::Cache);
    tokio::time::advance(setup.config.cache.ttl).await;
    setup.directory.set_outage(true);
    assert_eq!(setup.transport("alice@example.com").await, "TEMP the directory is not available", "no outage is known");
    setup.directory.set_availability(Availability::Unreachable);
    assert_eq!(setup.ask(SocketmapMap::Transport, "alice@example.com").await, (TO_3.to_owned(), DecidedBy::Stale));
    tokio::time::advance(setup.config.cache.stale).await;
    assert_eq!(setup.transport("alice@example.com").await, "TEMP the directory is not available");
}

#[tokio::test(start_paused = true)]
async fn address_that_is_gone_does_not_come_back_in_an_outage() {
    let setup = setup("");
    assert_eq!(setup.transport("alice@example.com").await, TO_3);
    tokio::time::advance(setup.config.cache.ttl).await;
    setup.directory.set_mail("alice", "liddell@example.com");
    assert_eq!(setup.transport("alice@example.com").await, "NOTFOUND ");
    setup.directory.set_outage(true);
    setup.directory.set_availability(Availability::Unreachable);
    assert_eq!(setup.transport("alice@example.com").await, "TEMP the directory is not available");
}

#[test]
fn entry_in_several_directories_is_not_chosen_from() {
    let entry = |dn: &str| (Ok(Arc::new(Entry::for_tests(dn, &["server3"]))), DecidedBy::Directory);
    let none = || (Err(DirectoryError::NoEntry), DecidedBy::Directory);
    let down = || (Err(DirectoryError::Unavailable(UnavailableCause::Timeout)), DecidedBy::Directory);
    let dns = |answers| match one(answers).0 {
        Ok(entry) => entry.dn.to_string(),
        Err(DirectoryError::SeveralEntries { dns, .. }) => dns.join(" "),
        Err(error) => error.to_string(),
    };
    assert_eq!(dns(vec![none(), entry("uid=a"), none()]), "uid=a");
    assert_eq!(dns(vec![down(), entry("uid=a")]), "uid=a", "the outage of one harms no user of another");
    assert_eq!(dns(vec![entry("uid=a"), entry("uid=b")]), "uid=a uid=b");
    assert_eq!(dns(vec![none(), none()]), "no entry matches");
    assert_eq!(dns(vec![none(), down()]), "directory lookup failed: timed out", "never an unknown address");
    let several = || {
        let dns = vec!["uid=c".into(), "uid=d".into()];
        (Err(DirectoryError::SeveralEntries { dns, proof: Proof::Missing }), DecidedBy::Directory)
    };
    assert_eq!(dns(vec![entry("uid=a"), several()]), "uid=c uid=d");
}

#[test]
fn extension_is_split_as_postfix_splits_it() {
    for (delimiters, address, expected) in [
        ("", "bob+list@example.com", None),
        ("+", "bob@example.com", None),
        ("+", "bob+list@example.com", Some("bob@example.com")),
        ("+", "bob+a+b@example.com", Some("bob@example.com")),
        ("+", "+list@example.com", None),
        ("+", "bob+@example.com", Some("bob@example.com")),
        ("+-", "bob-a+b@example.com", Some("bob@example.com")),
        ("-+", "bob+a-b@example.com", Some("bob@example.com")),
        ("+", "bob-a@example.com", None),
        ("+", "bob@ex+ample.com", None),
        ("-", "owner-list@example.com", None),
        ("-", "list-request@example.com", None),
        ("+", "owner-list+x@example.com", Some("owner-list@example.com")),
        ("-", "double-bounce@example.com", None),
        ("-", "mailer-daemon@example.com", None),
        ("+", "gr\u{fc}n+x@example.com", Some("gr\u{fc}n@example.com")),
    ] {
        assert_eq!(without_extension(delimiters, address).as_deref(), expected, "{delimiters} {address}");
    }
}
