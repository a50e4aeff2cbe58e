//! What the registry lists, ends and counts.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::base::clock::unix_now;
use crate::directory::{EntryId, EntryVersion, Realm};

fn names(id: Option<EntryId>, dn: Option<&str>) -> EntryNames {
    EntryNames { realm: Realm::DEFAULT, id, dn: dn.map(Arc::from) }
}

fn list(registry: &Arc<Registry>, session: Session) -> (ListedSession, StopHandle) {
    let basis = SessionBasis::for_tests(&session.dn);
    registry.list(session, basis)
}

fn session(registry: &Registry) -> Session {
    Session {
        id: registry.next_id(),
        login: "alice".into(),
        dn: "uid=alice".into(),
        acting: None,
        acting_dn: None,
        directory: None,
        acting_directory: None,
        client: IpAddr::from([127, 0, 0, 1]).into(),
        protocol: "imap".into(),
        backend: "server3".into(),
        address: None,
        since: unix_now(),
    }
}

#[test]
fn session_is_listed_while_its_guard_lives() {
    let registry = Arc::new(Registry::default());
    let listed = list(&registry, session(&registry));
    assert_eq!(registry.count(), 1);
    assert_eq!(registry.sessions()[0].login.as_ref(), "alice");
    drop(listed);
    assert_eq!(registry.count(), 0);
}

#[tokio::test]
async fn sessions_of_an_entry_are_found_under_its_new_dn() {
    let registry = Arc::new(Registry::default());
    let [one, two] = [(); 2].map(|()| list(&registry, session(&registry)));
    let stranger = Session { dn: "uid=alic".into(), ..session(&registry) };
    let _stranger = list(&registry, stranger);
    let (old, new) = (names(None, Some("uid=alice")), names(None, Some("uid=alicia")));
    assert_eq!((registry.of(&old).len(), registry.of(&new).len()), (2, 0));
    registry.rename(&old, &"uid=alicia".into());
    let ids = [one.0.id, two.0.id];
    assert_eq!(registry.of(&new).iter().map(|(session, _)| session.id).collect::<Vec<_>>(), ids);
    assert!(!registry.has(&old) && registry.has(&names(None, Some("uid=alic"))));
    assert_eq!(registry.sessions()[0].dn.as_ref(), "uid=alicia");
    assert!(registry.end(ids[0], TerminationReason::Moved));
    assert!(!registry.end(ids[0], TerminationReason::Hold), "once is enough");
    assert_eq!(one.1.await, TerminationReason::Moved);
    drop((one.0, two));
    assert!(!registry.has(&new));
    assert!(!registry.end(ids[1], TerminationReason::Moved), "it has ended");
}

#[tokio::test]
async fn entry_of_a_session_is_found_by_its_id_and_by_its_dn() {
    let registry = Arc::new(Registry::default());
    let id = |number: u8| EntryId::from_bytes(&[number; 16]);
    let with_id = |dn: &str, number: u8| {
        let marks = EntryVersion { id: id(number), ..EntryVersion::default() };
        let basis = SessionBasis {
            entry: Arc::new(Entry { version: marks, ..Entry::for_tests(dn, &[]) }),
            ..SessionBasis::for_tests(dn)
        };
        registry.list(Session { dn: dn.into(), ..session(&registry) }, basis)
    };
    let (alice, _asked) = with_id("uid=alice", 1);
    let dn = |id, dn: Option<&str>| Some(registry.entry(&names(id, dn))?.dn.to_string());
    assert_eq!(dn(id(1), None).as_deref(), Some("uid=alice"));
    assert_eq!(dn(None, Some("uid=alice")).as_deref(), Some("uid=alice"));
    assert_eq!(dn(id(1), Some("uid=other")).as_deref(), Some("uid=alice"));
    assert_eq!(dn(id(2), Some("uid=alice")), None, "another entry has taken the name");
    assert_eq!(dn(id(2), None), None);
    registry.rename(&names(id(1), Some("uid=alice")), &Arc::from("uid=alicia"));
    assert_eq!(dn(id(1), None).as_deref(), Some("uid=alicia"));
    drop(alice);
    assert_eq!((dn(id(1), None), dn(None, Some("uid=alicia"))), (None, None));
    let table = registry.lock();
    assert!(table.by_principal.is_empty());
}

#[tokio::test]
async fn stop_request_is_seen_at_once() {
    let registry = Arc::new(Registry::default());
    let (listed, mut asked) = list(&registry, session(&registry));
    assert_eq!(asked.requested(), None);
    registry.end(listed.id, TerminationReason::Kicked);
    assert_eq!(asked.requested(), Some(TerminationReason::Kicked));
    registry.end_all();
    assert_eq!(list(&registry, session(&registry)).1.requested(), Some(TerminationReason::Drain));
}

#[tokio::test]
async fn sessions_are_stopped_oldest_first_and_then_all() {
    let registry = Arc::new(Registry::default());
    let [mut one, mut two, mut three] = [(); 3].map(|()| list(&registry, session(&registry)));
    assert!(registry.end_oldest());
    assert_eq!((&mut one.1).await, TerminationReason::Drain);
    assert_eq!(registry.count(), 3, "listed until it has ended");
    drop(two.0);
    assert!(registry.end_oldest());
    (&mut three.1).await;
    assert!(!registry.end_oldest());
    registry.end_all();
    list(&registry, session(&registry)).1.await;
    (&mut two.1).await;
}
#[tokio::test]
async fn sessions_of_a_backend_are_stopped_oldest_first() {
    let registry = Arc::new(Registry::default());
    let at = |backend: &str| {
        let session = Session { backend: backend.into(), ..session(&registry) };
        list(&registry, session)
    };
    let (mut one, other, mut two) = (at("server3"), at("server4"), at("server3"));
    let (backend, why) = (Arc::from("server3"), TerminationReason::BackendDrained);
    assert!(registry.end_oldest_of(&backend, why));
    assert_eq!((one.1.requested(), two.1.requested()), (Some(why), None));
    assert!(registry.end(two.0.id, TerminationReason::Kicked));
    assert!(!registry.end_oldest_of(&backend, why), "all were asked to end");
    assert_eq!(registry.counts()["server3"]["imap"], 2, "listed until they have ended");
    drop((one, two));
    assert!(!registry.counts().contains_key("server3"));
    drop(other);
    let table = registry.lock();
    assert!(table.counts.is_empty() && table.open.is_empty() && table.open_by_backend.is_empty());
}

/// Every index is equal to a recount after any sequence of events.
#[tokio::test]
async fn indexes_equal_a_recount() {
    let registry = Arc::new(Registry::default());
    let mut listed = Vec::new();
    for number in 0..2_000_usize {
        let one = Session {
            dn: format!("uid={}", number % 50).into(),
            backend: format!("server{}", number % 7).into(),
            protocol: if number % 3 == 0 { "pop3" } else { "imap" }.into(),
            ..session(&registry)
        };
        listed.push(list(&registry, one));
        match number % 5 {
            0 => drop(listed.swap_remove(number * 31 % listed.len())),
            1 => drop(registry.end(listed[number * 17 % listed.len()].0.id, TerminationReason::Moved)),
            2 => drop(registry.end_oldest()),
            3 => registry.rename(&names(None, Some(&format!("uid={}", number % 50))), &"uid=renamed".into()),
            _ => drop(registry.end_oldest_of(&"server1".into(), TerminationReason::BackendDrained)),
        }
    }
    assert!(listed.len() > 3 * PAGE, "more than some pages: {}", listed.len());
    let ids: BTreeSet<SessionId> = listed.iter().map(|(listed, _)| listed.id).collect();
    assert_eq!(registry.listed().map(|(session, _)| session.id).collect::<BTreeSet<_>>(), ids);
    let mut counts: BTreeMap<Arc<str>, BTreeMap<Cow<'static, str>, usize>> = BTreeMap::new();
    let table = registry.lock();
    for (session, _) in table.sessions.values() {
        let protocols = counts.entry(Arc::clone(&session.backend)).or_default();
        *protocols.entry(session.protocol.clone()).or_default() += 1;
    }
    assert_eq!(table.counts, counts);
    let principals = table.sessions.values().flat_map(|(one, basis)| {
        let keys: Vec<_> = principals(one, basis).flat_map(|names| names.keys().collect::<Vec<_>>()).collect();
        keys.into_iter().map(|key| (key, one.id))
    });
    assert_eq!(table.by_principal, principals.collect());
    let open: BTreeSet<_> = table.open.iter().map(|(id, open)| (Arc::clone(&open.backend), *id)).collect();
    assert_eq!(table.open_by_backend, open);
}

#[tokio::test]
async fn sessions_of_two_realms_with_the_same_dn_never_meet() {
    let registry = Arc::new(Registry::default());
    let own = list(&registry, session(&registry));
    let mut entry = Entry::for_tests("uid=alice", &[]);
    entry.version.realm = Realm::for_tests(1);
    let basis = SessionBasis { entry: Arc::new(entry), backend_login: "alice".into(), certificate: None, acting: None };
    let other = registry.list(session(&registry), basis);
    let in_realm = |realm| EntryNames { realm, id: None, dn: Some("uid=alice".into()) };
    for (realm, id) in [(Realm::DEFAULT, own.0.id), (Realm::for_tests(1), other.0.id)] {
        let found: Vec<_> = registry.of(&in_realm(realm)).iter().map(|(session, _)| session.id).collect();
        assert_eq!(found, [id]);
        assert_eq!(registry.entry(&in_realm(realm)).unwrap().version.realm, realm);
    }
    registry.rename(&in_realm(Realm::for_tests(1)), &"uid=alicia".into());
    assert_eq!(registry.of(&in_realm(Realm::DEFAULT))[0].0.dn.as_ref(), "uid=alice");
    assert!(!registry.has(&in_realm(Realm::for_tests(1))));
}

#[test]
fn addresses_of_a_user_are_those_of_its_open_sessions_at_the_backend() {
    let registry = Arc::new(Registry::default());
    let at = |last: u8| SocketAddr::from(([192, 0, 2, last], 993));
    let begin = |dn: &str, backend: &str, last: u8| {
        list(
            &registry,
            Session { dn: dn.into(), backend: backend.into(), address: Some(at(last)), ..session(&registry) },
        )
    };
    let alice = names(None, Some("uid=alice")).by_dn().unwrap();
    let found = || registry.addresses_of(&alice, "server3");
    assert_eq!(found(), []);
    let first = begin("uid=alice", "server3", 1);
    let _others = (begin("uid=alice", "server4", 2), begin("uid=anna", "server3", 3));
    assert_eq!(found(), [at(1)]);
    let _later = (begin("uid=alice", "server3", 4), begin("uid=alice", "server3", 1));
    assert_eq!(found(), [at(1), at(4)], "the latest first");
    // One that is ending does not keep its user there.
    let ending = begin("uid=alice", "server3", 5);
    assert_eq!(found(), [at(5), at(1), at(4)]);
    assert!(registry.end(ending.0.id, TerminationReason::AddressReturned));
    drop(first);
    assert_eq!(found(), [at(1), at(4)]);
}

/// Sessions end by themselves while two administrators end them, too: each is asked once, each that was asked knows why, and
/// nothing is left of any.
#[test]
fn each_session_is_asked_to_end_once_whoever_asks() {
    const SESSIONS: usize = 2_000;
    let registry = Arc::new(Registry::default());
    let (asked, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let backend: Arc<str> = "server3".into();
    let told = std::thread::scope(|scope| {
        for why in [TerminationReason::Kicked, TerminationReason::Moved] {
            let (registry, backend, asked, is_over) = (&registry, &backend, &asked, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    let newest = registry.sessions().last().map(|session| session.id);
                    let ended = [
                        newest.is_some_and(|id| registry.end(id, why)),
                        registry.end_oldest_of(backend, TerminationReason::BackendDrained),
                    ];
                    asked.fetch_add(ended.into_iter().filter(|ended| *ended).count(), Ordering::SeqCst);
                }
            });
        }
        let mut stops = Vec::new();
        let mut open = VecDeque::new();
        for _ in 0..SESSIONS {
            let (guard, stop) = list(&registry, session(&registry));
            stops.push(stop);
            open.push_back(guard);
            if open.len() > 4 {
                open.pop_front();
            }
        }
        drop(open);
        is_over.store(true, Ordering::SeqCst);
        stops
    });
    // A sender that was dropped with its session says `Drain`.
    let reasons = told.into_iter().map(|mut stop| stop.requested());
    let told = reasons.filter(|why| *why != Some(TerminationReason::Drain)).count();
    assert_eq!(told, asked.into_inner());
    assert!(told > 0 && registry.count() == 0 && registry.counts().is_empty());
    let table = registry.lock();
    assert!(table.by_principal.is_empty() && table.open.is_empty() && table.open_by_backend.is_empty());
}
