//! Entries by id and by DN, and what is counted of them.

use super::*;
use crate::directory::EntryVersion;

fn entry(id: u8, dn: &str, host: &str, version: &str) -> Arc<Entry> {
    let version = EntryVersion {
        id: EntryId::from_bytes(&[id; 16]),
        revision: (!version.is_empty()).then(|| version.into()),
        ..EntryVersion::default()
    };
    Arc::new(Entry { version, ..Entry::for_tests(dn, &[host]) })
}

fn named(id: Option<u8>, dn: Option<&str>) -> EntryNames {
    let id = id.and_then(|id| EntryId::from_bytes(&[id; 16]));
    EntryNames { realm: Realm::DEFAULT, id, dn: dn.map(Arc::from) }
}

fn csn(second: u32) -> String {
    format!("202611261400{second:02}.000001Z#000000#000#000000")
}

fn entries() -> TrackedEntries {
    TrackedEntries::new(10, Duration::from_secs(300))
}

fn host(reconciled: Reconciled) -> String {
    match reconciled {
        Reconciled::AsReported => "as shown".to_owned(),
        Reconciled::Replaced(entry) => entry.mail_hosts[0].clone(),
        Reconciled::Deleted => "gone".to_owned(),
        Reconciled::HeldElsewhere => "held elsewhere".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn watch_takes_precedence_until_the_reply_is_current() {
    let entries = entries();
    entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
    let (key, _) = entries.observe(&named(Some(1), None)).unwrap();
    entries.apply(&key, entry(1, "uid=a", "new", &csn(5)), None);
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(1)))), "new");
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", &csn(5)))), "as shown");
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "newer", &csn(6)))), "as shown");
    // By the second, if a server shows no more.
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", "20261126140004Z"))), "new");
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", "20261126140005Z"))), "as shown");
    // Without a version, for a while.
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", ""))), "new");
    tokio::time::advance(floor::UNORDERED_PERIOD).await;
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", ""))), "as shown");
    assert_eq!(host(entries.reconcile(&entry(2, "uid=b", "old", &csn(1)))), "as shown");
}

#[tokio::test(start_paused = true)]
async fn entry_is_found_under_its_new_dn_and_not_under_its_old_one() {
    let entries = entries();
    entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
    let (key, _) = entries.observe(&named(Some(1), None)).unwrap();
    entries.apply(&key, entry(1, "uid=b", "old", &csn(2)), None);
    assert!(entries.by_dn(Realm::DEFAULT, &"uid=a".into()).is_none());
    assert_eq!(entries.by_dn(Realm::DEFAULT, &"uid=b".into()).unwrap().entry.dn.as_ref(), "uid=b");
    // Another entry gets the old DN.
    entries.record_login(&entry(2, "uid=a", "old", &csn(3)));
    assert_eq!(entries.users(), 2);
    assert!(entries.observe(&named(Some(3), Some("uid=a"))).is_none());
}

#[tokio::test(start_paused = true)]
async fn entries_without_an_id_never_share_a_key() {
    let unnamed = |dn: &str, host: &str| Arc::new(Entry { ..Entry::for_tests(dn, &[host]) });
    let entries = entries();
    entries.record_login(&unnamed("uid=a", "one"));
    let (renamed, _) = entries.observe(&named(None, Some("uid=a"))).unwrap();
    entries.apply(&renamed, unnamed("uid=b", "one"), None);
    // Another entry takes the free DN; both are tracked.
    entries.record_login(&unnamed("uid=a", "two"));
    let (other, _) = entries.observe(&named(None, Some("uid=a"))).unwrap();
    assert_eq!(renamed, other, "the key of the free DN");
    assert_eq!(entries.users(), 2);
    let host = |dn: &str| entries.by_dn(Realm::DEFAULT, &dn.into()).unwrap().entry.mail_hosts[0].clone();
    assert_eq!((host("uid=a"), host("uid=b")), ("two".to_owned(), "one".to_owned()));
    // A change reported for a known DN replaces its entry, and adds no second one.
    entries.record_change(&unnamed("uid=a", "three"));
    entries.track(&unnamed("uid=a", "three"));
    assert_eq!((entries.users(), host("uid=a")), (2, "three".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn deleted_entry_is_deleted_on_a_lagging_replica_too() {
    let entries = entries();
    entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
    let (key, _) = entries.observe(&named(None, Some("uid=a"))).unwrap();
    entries.mark_deleted(&key);
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(1)))), "gone");
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(2)))), "as shown");
    // A new entry with the old DN.
    assert_eq!(host(entries.reconcile(&entry(2, "uid=a", "old", &csn(2)))), "as shown");
    assert_eq!(entries.users(), 0);
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_and_released() {
    let entries = TrackedEntries::new(2, Duration::from_secs(300));
    for id in 1..=3 {
        entries.record_login(&entry(id, &format!("uid={id}"), "old", &csn(1)));
    }
    assert_eq!(entries.users(), 2);
    entries.sweep(|_| false);
    assert_eq!(entries.users(), 2, "their decisions may be cached");
    tokio::time::advance(LAG).await;
    entries.sweep(|entry| &*entry.dn == "uid=1");
    assert_eq!(entries.users(), 1, "it has sessions");
    entries.sweep(|_| false);
    assert_eq!((entries.users(), entries.lock().keys_by_dn.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn full_table_evicts_entries_without_sessions() {
    let entries = TrackedEntries::new(3, Duration::from_secs(300));
    let is_tracked = |id: u8| entries.by_dn(Realm::DEFAULT, &format!("uid={id}").into()).is_some();
    let an_entry = |id: u8| entry(id, &format!("uid={id}"), "old", &csn(1));
    (1..=3).for_each(|id| entries.record_change(&an_entry(id)));
    entries.record_login(&an_entry(4));
    assert_eq!([1, 2, 3, 4].map(is_tracked), [false, true, true, true], "the oldest has gone");
    entries.record_login(&an_entry(2));
    entries.record_change(&an_entry(5));
    assert_eq!([2, 3, 4, 5].map(is_tracked), [true, false, true, true], "a user's entry stays");
    entries.track(&an_entry(6));
    assert_eq!([2, 4, 5, 6].map(is_tracked), [true, true, false, true]);
    let (_, tracked) = entries.track(&an_entry(7));
    assert_eq!((tracked.entry.dn.as_ref(), is_tracked(7)), ("uid=7", false), "users only: there is no room");
    entries.record_login(&an_entry(8));
    assert_eq!((entries.users(), is_tracked(8), entries.lock().changed_only.len()), (3, false, 0));
}

#[tokio::test(start_paused = true)]
async fn entry_not_observed_in_a_refresh_is_missing() {
    let entries = entries();
    for id in 1..=3 {
        entries.record_login(&entry(id, &format!("uid={id}"), "old", &csn(1)));
    }
    entries.begin_round();
    entries.observe_present(Realm::DEFAULT, &[EntryId::from_bytes(&[1; 16]).unwrap()]);
    entries.observe(&named(None, Some("uid=2")));
    entries.record_login(&entry(4, "uid=4", "old", &csn(1)));
    let missing: Vec<_> =
        entries.unobserved(Realm::DEFAULT).into_iter().map(|(_, tracked)| tracked.entry.dn.to_string()).collect();
    assert_eq!(missing, ["uid=3"]);
}

#[tokio::test(start_paused = true)]
async fn brake_keeps_tracked_users_on_their_backends() {
    let entries = entries();
    entries.record_login(&entry(1, "uid=a", "old", &csn(1)));
    entries.brake(true);
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", &csn(9)))), "old");
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "old", &csn(9)))), "as shown");
    assert_eq!(host(entries.reconcile(&entry(2, "uid=b", "new", &csn(9)))), "as shown");
    entries.brake(false);
    assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "new", &csn(9)))), "as shown");
}

#[tokio::test(start_paused = true)]
async fn entries_of_two_realms_with_the_same_dn_and_id_never_meet() {
    let entries = entries();
    let other_realm = |id: Option<u8>, host: &str| {
        let mut other = Entry::clone(&entry(1, "uid=a", host, &csn(9)));
        other.version.realm = Realm::for_tests(1);
        other.version.id = id.and_then(|id| EntryId::from_bytes(&[id; 16]));
        Arc::new(other)
    };
    for id in [Some(1), None] {
        entries.record_login(&entry(1, "uid=a", "own", &csn(1)));
        entries.record_login(&other_realm(id, "other"));
        let names = other_realm(id, "other").names();
        let (key, _) = entries.observe(&names).unwrap();
        entries.apply(&key, other_realm(id, "moved"), None);
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "own", &csn(1)))), "as shown");
        assert_eq!(entries.by_dn(Realm::DEFAULT, &"uid=a".into()).unwrap().entry.mail_hosts, ["own"]);
        assert_eq!(entries.by_dn(Realm::for_tests(1), &"uid=a".into()).unwrap().entry.mail_hosts, ["moved"]);
        // A refresh of one directory says nothing about the entries of the other.
        entries.begin_round();
        assert_eq!(entries.unobserved(Realm::for_tests(1)).len(), 1);
        assert!(entries.unobserved(Realm::DEFAULT).iter().all(|(key, _)| key.realm == Realm::DEFAULT));
        entries.mark_deleted(&entries.observe(&names).unwrap().0);
        assert_eq!(host(entries.reconcile(&entry(1, "uid=a", "own", &csn(1)))), "as shown");
    }
}

impl TrackedInner {
    /// Compares everything that is counted or listed as entries change with a recount.
    fn assert_consistent(&self) {
        let mut totals = Totals::default();
        self.entries.values().for_each(|tracked| totals.add(tracked));
        assert_eq!(self.totals, totals);
        let order: BTreeMap<u64, EntryKey> =
            self.entries.iter().map(|(key, tracked)| (tracked.number, key.clone())).collect();
        assert_eq!(self.order, order);
        let unproven = self.entries.values().filter(|tracked| tracked.proven_at.is_none());
        assert_eq!(self.changed_only, unproven.map(|tracked| tracked.number).collect());
        for (by_dn, key) in &self.keys_by_dn {
            let tracked = &self.entries[key];
            assert_eq!(*by_dn, EntryKey::by_dn(key.realm, &tracked.entry.dn));
        }
    }
}

/// Logins take the lock: nothing that concerns all entries visits more than a piece of them under it, and no total is
/// computed when it is asked for.
#[tokio::test(start_paused = true)]
async fn totals_of_100_000_entries_equal_a_recount_after_any_change() {
    const ENTRIES: u32 = 100_000;
    let numbered = |number: u32, host: &str| {
        let mut id = [7; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let has_id = !number.is_multiple_of(3);
        let version = EntryVersion {
            id: EntryId::from_bytes(&id).filter(|_| has_id),
            revision: Some(csn(number % 60).into()),
            ..EntryVersion::default()
        };
        Arc::new(Entry { version, ..Entry::for_tests(&format!("uid={number}"), &[host]) })
    };
    let entries = TrackedEntries::new(ENTRIES as usize, Duration::from_secs(300));
    for number in 0..ENTRIES {
        let one = numbered(number, "old");
        if number % 10 == 9 { entries.record_change(&one) } else { assert!(entries.record_login(&one)) }
    }
    assert_eq!((entries.users(), entries.count_deferred()), (90_000, 0));
    entries.begin_round();
    for number in (0..ENTRIES).step_by(7) {
        let one = numbered(number, "new");
        let (key, _) = entries.observe(&one.names()).unwrap();
        match number % 5 {
            0 => entries.mark_deleted(&key),
            1 => entries.defer(&key, DeferredChange::Entry(one)),
            2 => entries.apply(
                &key,
                Arc::new(Entry { dn: format!("uid={number},ou=new").into(), ..Entry::clone(&one) }),
                None,
            ),
            3 => entries.refresh(&key, one),
            _ => drop(entries.track(&one)),
        }
    }
    // Room for these is made by entries without a login.
    (ENTRIES..ENTRIES + 100).for_each(|number| assert!(entries.record_login(&numbered(number, "old"))));
    {
        let inner = entries.lock();
        inner.assert_consistent();
        assert_eq!(inner.entries.len(), ENTRIES as usize);
    }
    let deferred = entries.deferred().len();
    assert!(deferred > 2_000 && deferred == entries.count_deferred());
    let missing = entries.unobserved(Realm::DEFAULT);
    let expected = entries.lock().entries.values().filter(|one| one.round == 0 && !one.deleted).count();
    assert_eq!(missing.len(), expected);
    tokio::time::advance(LAG).await;
    entries.sweep(|_| false);
    let inner = entries.lock();
    inner.assert_consistent();
    assert_eq!(inner.entries.len(), deferred, "only those that the brake keeps");
}

#[tokio::test(start_paused = true)]
async fn visit_of_all_entries_lets_logins_in_after_each_piece() {
    let entries = TrackedEntries::new(10_000, Duration::from_secs(300));
    let named = |number: usize| Arc::new(Entry::for_tests(&format!("uid={number}"), &[]));
    (0..2 * PIECE).for_each(|number| assert!(entries.record_login(&named(number))));
    let mut visited = 0;
    std::thread::scope(|scope| {
        // Begins in the first piece, and waits for its end.
        let mut login = None;
        entries.in_pieces(|_, _| {
            login.get_or_insert_with(|| {
                scope.spawn(|| (0..PIECE).all(|number| entries.record_login(&named(9_000 + number))))
            });
            visited += 1;
            None::<()>
        });
        assert!(login.unwrap().join().unwrap());
    });
    assert_eq!(visited, 2 * PIECE, "entries that are added meanwhile are not visited");
    assert_eq!(entries.users(), 3 * PIECE);
}
