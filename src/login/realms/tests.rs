//! Several directories in memory: which of them decides, and that nothing of one counts in another.

use std::net::Ipv4Addr;
use std::path::Path;

use super::*;
use crate::config;
use crate::directory::memory::{Memory, MemoryFault};
use crate::directory::{Availability, EntryVersion};
use crate::outcome::Proof;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const DN: &str = "uid=alice,dc=x";

struct Setup {
    corp: Arc<Memory>,
    partner: Arc<Memory>,
    config: Config,
    realms: Realms,
}

fn config() -> Config {
    let directory = |name: &str, domains: &str| {
        format!(
            "{{name: {name}, domains: {domains}, servers: ['ldaps://{name}'], base: dc=x, filter: '(uid={{login}})', watch: off}}"
        )
    };
    let text = format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directories:
  - {}
  - {}
routing: {{backends: [{{name: server3, imap: {{address: '192.0.2.3:993', tls: implicit}}}}]}}
",
        directory("corp", "[corp.example, both.example]"),
        directory("partner", "[partner.example, both.example]"),
    );
    config::parse(Path::new("/c.yaml"), &text).unwrap()
}

/// An entry with the same DN in each.
fn alice(realm: &str) -> Entry {
    let version = EntryVersion { realm: Realm::named(realm), ..EntryVersion::default() };
    Entry { version, ..Entry::for_tests(DN, &["server3"]) }
}

fn setup() -> Setup {
    let corp = Memory::with_user("alice@corp.example", "corp", alice("corp"));
    let partner = Memory::with_user("alice@partner.example", "partner", alice("partner"));
    let config = config();
    let realms = realms(&config, [&corp, &partner], None);
    Setup { corp, partner, config, realms }
}

fn realms(config: &Config, memory: [&Arc<Memory>; 2], previous: Option<&Realms>) -> Realms {
    Realms::new(config, memory.map(|one| Arc::clone(one) as Arc<dyn Directory>).to_vec(), previous)
}

impl Setup {
    async fn decision(&self, name: &str, password: &str) -> AuthDecision {
        let credential = Credential::for_tests(name, password);
        match self.realms.recall(&credential, CLIENT) {
            Some(known) => known,
            None => self.realms.attempt(&credential, CLIENT, None).await,
        }
    }

    /// The refusal, what decided, and the directory.
    async fn decide(&self, name: &str, password: &str) -> (Option<Refusal>, DecidedBy, Option<&'static str>) {
        let decision = self.decision(name, password).await;
        (decision.result.err(), decision.by, decision.directory)
    }
}

#[tokio::test(start_paused = true)]
async fn domain_chooses_and_the_same_dn_never_meets() {
    let setup = setup();
    let (corp, partner) = ("alice@corp.example", "alice@partner.example");
    for by in [DecidedBy::Directory, DecidedBy::Cache] {
        assert_eq!(setup.decide(corp, "corp").await, (None, by, Some("corp")));
        assert_eq!(setup.decide(partner, "partner").await, (None, by, Some("partner")));
    }
    // The password of one, right and cached there, opens nothing of the other.
    for by in [DecidedBy::Directory, DecidedBy::Negative] {
        assert_eq!(setup.decide(partner, "corp").await, (Some(Refusal::WrongPassword), by, Some("partner")));
        assert_eq!(setup.decide(corp, "partner").await, (Some(Refusal::WrongPassword), by, Some("corp")));
    }
    // What is forgotten in one stays in the other, whose entry has the same DN.
    let [one, other] = setup.realms.all() else { panic!("two directories") };
    let decided = setup.decision(corp, "corp").await.result.unwrap();
    let known = setup.decision(partner, "partner").await.result.unwrap();
    one.authn.cache().forget(&alice("corp"));
    assert!(!setup.realms.is_current(&decided) && setup.realms.is_current(&known));
    let right = |realm: &RealmCore| realm.authn.cache().remembered(DN).iter().map(|known| known.right).sum::<usize>();
    assert_eq!((right(one), right(other)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn name_of_no_directory_is_an_unknown_user_and_costs_a_guess() {
    let setup = setup();
    for name in ["alice", "alice@", "alice@corp.example.", "alice@corp.example@other", "alice@\u{441}orp.example"] {
        let credential = Credential::for_tests(name, "corp");
        assert!(setup.realms.recall(&credential, CLIENT).is_none(), "{name}: charged as any other");
        let decided = setup.decide(name, "corp").await;
        assert_eq!(decided, (Some(Refusal::UnknownUser), DecidedBy::Usher, None), "{name}");
    }
    assert_eq!((setup.corp.binds(), setup.partner.binds()), (0, 0));
    assert_eq!(setup.decide("alice", "").await.0, Some(Refusal::EmptyPassword));
}

#[tokio::test(start_paused = true)]
async fn shared_domain_is_searched_in_both() {
    let setup = setup();
    setup.partner.add("bob@both.example", "right", alice("partner"));
    assert_eq!(
        setup.decide("bob@both.example", "wrong").await,
        (Some(Refusal::WrongPassword), DecidedBy::Directory, Some("partner"))
    );
    assert_eq!((setup.corp.binds(), setup.partner.binds()), (0, 1), "a password goes to the one that has the entry");
    for by in [DecidedBy::Directory, DecidedBy::Cache] {
        assert_eq!(setup.decide("bob@both.example", "right").await, (None, by, Some("partner")));
    }
    let unknown = setup.decide("carol@both.example", "right").await;
    assert_eq!(unknown, (Some(Refusal::UnknownUser), DecidedBy::Directory, None));
    let found = setup.realms.find(&Login::parse(b"bob@both.example").unwrap()).await.0.unwrap();
    assert_eq!(found.version.realm.name(), "partner");
}

#[tokio::test(start_paused = true)]
async fn entry_in_both_is_refused_with_both_dns() {
    let setup = setup();
    let name = "bob@both.example";
    setup.partner.add(name, "right", Entry { dn: "uid=bob,dc=partner".into(), ..alice("partner") });
    assert_eq!(setup.decide(name, "right").await.0, None);
    // It is in the other one, too, and the cached decision ends.
    setup.corp.add(name, "right", Entry { dn: "uid=bob,dc=corp".into(), ..alice("corp") });
    let credential = Credential::for_tests(name, "right");
    let decision = setup.realms.decide(&credential, CLIENT, LookupMode::Directory).await;
    assert_eq!(decision.result.unwrap_err(), Refusal::SeveralEntries(Proof::Missing));
    assert_eq!(
        (decision.dn.as_deref(), decision.other_dn.as_deref()),
        (Some("uid=bob,dc=corp"), Some("uid=bob,dc=partner"))
    );
    assert_eq!((decision.directory, decision.other_directory), (Some("corp"), Some("partner")));
    assert_eq!(
        setup.decide(name, "right").await.0,
        Some(Refusal::SeveralEntries(Proof::Missing)),
        "the cache has forgotten"
    );
    assert_eq!((setup.corp.binds(), setup.partner.binds()), (0, 1));
    let found = setup.realms.find(&Login::parse(name.as_bytes()).unwrap()).await.0;
    assert!(matches!(found, Err(DirectoryError::SeveralEntries { dns, .. }) if dns.len() == 2));
}

#[tokio::test(start_paused = true)]
async fn outage_of_one_is_no_outage_of_the_other_and_no_wrong_password() {
    let setup = setup();
    setup.partner.add("bob@both.example", "right", alice("partner"));
    setup.corp.set_outage(true);
    setup.corp.set_availability(Availability::Unreachable);
    assert_eq!(setup.decide("alice@partner.example", "partner").await.0, None);
    assert_eq!(setup.decide("alice@corp.example", "corp").await.0, Some(Refusal::DirectoryUnavailable));
    assert_eq!(setup.decide("bob@both.example", "right").await, (None, DecidedBy::Directory, Some("partner")));
    assert_eq!(setup.decide("bob@both.example", "wrong").await.0, Some(Refusal::WrongPassword));
    // It may be one of the directory that does not answer.
    assert_eq!(setup.decide("carol@both.example", "right").await.0, Some(Refusal::DirectoryUnavailable));
}

#[tokio::test(start_paused = true)]
async fn user_of_a_shared_domain_gets_in_by_an_earlier_decision_during_an_outage() {
    let setup = setup();
    setup.corp.add("bob@both.example", "right", alice("corp"));
    assert_eq!(setup.decide("bob@both.example", "right").await.0, None);
    tokio::time::advance(setup.config.cache.ttl + Duration::from_secs(1)).await;
    setup.corp.set_outage(true);
    setup.corp.set_availability(Availability::Unreachable);
    assert_eq!(setup.decide("bob@both.example", "right").await, (None, DecidedBy::Stale, Some("corp")));
    assert_eq!(setup.decide("bob@both.example", "wrong").await.0, Some(Refusal::DirectoryUnavailable));
}

#[tokio::test(start_paused = true)]
async fn user_who_has_moved_to_the_other_directory_is_found_there() {
    let setup = setup();
    let name = "bob@both.example";
    setup.corp.add(name, "old", alice("corp"));
    assert_eq!(setup.decide(name, "old").await.2, Some("corp"));
    setup.corp.remove(name);
    setup.partner.add(name, "new", alice("partner"));
    assert_eq!(setup.decide(name, "new").await, (None, DecidedBy::Directory, Some("partner")));
    // The old decision does not come back during the first directory's outage.
    setup.corp.set_outage(true);
    setup.corp.set_availability(Availability::Unreachable);
    assert_eq!(setup.decide(name, "new").await.2, Some("partner"));
}

#[tokio::test(start_paused = true)]
async fn silent_directory_delays_the_users_of_no_other() {
    let setup = setup();
    setup.corp.set_fault("alice@corp.example", MemoryFault::Silence);
    let started = tokio::time::Instant::now();
    let credential = Credential::for_tests("alice@corp.example", "corp");
    let silent = setup.realms.attempt(&credential, CLIENT, None);
    let other = async {
        assert_eq!(setup.decide("alice@partner.example", "partner").await.0, None);
        started.elapsed()
    };
    let took = tokio::select! {
        _ = silent => panic!("it does not answer"),
        took = other => took,
    };
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn reload_keeps_the_cache_of_a_directory_that_stays_and_of_no_other() {
    let setup = setup();
    assert_eq!(setup.decide("alice@partner.example", "partner").await.1, DecidedBy::Directory);
    // Another one before it, which takes over a domain: the place in the list means nothing.
    let mut config = setup.config.clone();
    config.directories.remove(0);
    config.directories.insert(0, config::Directory { name: "third".to_owned(), ..setup.config.directories[0].clone() });
    let third = Memory::with_user("alice@corp.example", "third", alice("third"));
    let newer = realms(&config, [&third, &setup.partner], Some(&setup.realms));
    let newer = Setup { corp: third, partner: Arc::clone(&setup.partner), config: config.clone(), realms: newer };
    assert_eq!(newer.decide("alice@partner.example", "partner").await, (None, DecidedBy::Cache, Some("partner")));
    assert_eq!(newer.decide("alice@corp.example", "third").await, (None, DecidedBy::Directory, Some("third")));
    let proven = newer.decision("alice@partner.example", "partner").await.result.unwrap();
    assert!(setup.realms.are_kept(&newer.realms, &proven));
    // Other servers: what is cached of them says nothing about these.
    config.directories[1].servers.clear();
    let newest = realms(&config, [&newer.corp, &setup.partner], Some(&newer.realms));
    assert!(!newer.realms.are_kept(&newest, &proven));
}
