//! Cached entries, their lifetime, and their separation.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::directory::EntryId;

const TTL: Duration = Duration::from_secs(300);
const NEGATIVE_TTL: Duration = Duration::from_secs(30);
const STALE: Duration = Duration::from_secs(3_600);
const DN: &str = "uid=alice,ou=people,dc=example,dc=com";

fn cache() -> Cache {
    Cache::new(&config::Cache {
        ttl: TTL,
        negative_ttl: NEGATIVE_TTL,
        negative_ttl_max: NEGATIVE_TTL * 30,
        stale: STALE,
        capacity: 100,
    })
}

fn credential(name: &str, password: &str) -> Credential {
    Credential::for_tests(name, password)
}

fn learn_right(cache: &Cache, name: &str, password: &str) {
    cache.right(&credential(name, password), Arc::new(Identity::for_tests(DN, &["server3"])), cache.stamp());
}

fn learn_wrong(cache: &Cache, name: &str, password: &str) {
    cache.wrong(&credential(name, password), &Arc::from(DN), &EntryVersion::default(), cache.stamp());
}

fn ask(cache: &Cache, name: &str, password: &str) -> &'static str {
    match cache.lookup(&credential(name, password)) {
        CacheAnswer::Right(_) => "right",
        CacheAnswer::Wrong(_) => "wrong",
        CacheAnswer::Unknown => "nothing",
    }
}

#[tokio::test(start_paused = true)]
async fn valid_password_is_cached_for_its_ttl_and_no_other_matches() {
    let cache = cache();
    assert_eq!(ask(&cache, "alice", "sesame"), "nothing");
    learn_right(&cache, "alice", "sesame");
    assert_eq!(ask(&cache, "alice", "sesame"), "right");
    assert_eq!(ask(&cache, "alice", "sesame "), "nothing");
    assert_eq!(ask(&cache, "bob", "sesame"), "nothing");
    tokio::time::advance(TTL - Duration::from_millis(1)).await;
    assert_eq!(ask(&cache, "alice", "sesame"), "right");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(ask(&cache, "alice", "sesame"), "nothing");
}

#[tokio::test(start_paused = true)]
async fn wrong_password_under_the_template_spelling_hides_no_other_result() {
    let cache = cache();
    let respelled = Arc::from("UID=Alice, OU=people,DC=example,DC=com");
    let wrong =
        |password| cache.wrong(&credential("Alice", password), &respelled, &EntryVersion::default(), cache.stamp());
    wrong("before");
    assert_eq!(ask(&cache, "Alice", "before"), "wrong");
    learn_right(&cache, "Alice", "sesame");
    wrong("after");
    assert_eq!(ask(&cache, "Alice", "sesame"), "right");
    assert_eq!(ask(&cache, "Alice", "after"), "wrong");
    learn_right(&cache, "Alice", "sesame");
    assert_eq!(ask(&cache, "Alice", "after"), "wrong");
}

#[tokio::test(start_paused = true)]
async fn wrong_password_is_cached_separately_and_for_less_time() {
    let cache = cache();
    learn_right(&cache, "alice", "sesame");
    for guess in 0..50 {
        learn_wrong(&cache, "alice", &format!("guess {guess}"));
    }
    assert_eq!(ask(&cache, "alice", "sesame"), "right", "guessing must not push out a right password");
    assert_eq!(ask(&cache, "alice", "guess 49"), "wrong");
    assert_eq!(ask(&cache, "alice", "guess 42"), "wrong");
    assert_eq!(ask(&cache, "alice", "guess 41"), "nothing", "eight wrong ones are kept");
    tokio::time::advance(NEGATIVE_TTL).await;
    assert_eq!(ask(&cache, "alice", "guess 49"), "nothing");
}

#[tokio::test(start_paused = true)]
async fn new_password_requires_the_others_to_be_verified_again() {
    let cache = cache();
    learn_right(&cache, "alice", "old");
    learn_right(&cache, "alice", "new");
    assert_eq!(ask(&cache, "alice", "new"), "right");
    assert_eq!(ask(&cache, "alice", "old"), "nothing", "the directory must be queried again");
    learn_wrong(&cache, "alice", "old");
    assert_eq!(ask(&cache, "alice", "old"), "wrong");
    assert_eq!(ask(&cache, "alice", "new"), "right");
}

#[tokio::test(start_paused = true)]
async fn app_passwords_are_cached_together() {
    let cache = cache();
    let passwords = ["main", "phone", "laptop", "tablet"];
    for password in passwords {
        learn_right(&cache, "alice", password);
    }
    // Each was new once; verified again, each is cached and affects no other.
    for password in passwords {
        learn_right(&cache, "alice", password);
    }
    for password in passwords {
        assert_eq!(ask(&cache, "alice", password), "right", "{password}");
    }
    learn_right(&cache, "alice", "fifth");
    assert_eq!(ask(&cache, "alice", "fifth"), "right");
}

#[tokio::test(start_paused = true)]
async fn password_that_became_valid_is_no_longer_refused() {
    let cache = cache();
    learn_wrong(&cache, "alice", "soon");
    assert_eq!(ask(&cache, "alice", "soon"), "wrong");
    learn_right(&cache, "alice", "soon");
    assert_eq!(ask(&cache, "alice", "soon"), "right");
}

#[tokio::test(start_paused = true)]
async fn spellings_of_one_entry_share_the_cached_entry() {
    let cache = cache();
    learn_right(&cache, "alice", "sesame");
    learn_right(&cache, "alice@example.com", "sesame");
    learn_wrong(&cache, "alice@example.com", "guess");
    assert_eq!(ask(&cache, "alice", "guess"), "wrong");
}

#[tokio::test(start_paused = true)]
async fn reply_requested_before_a_change_is_not_cached_after_it() {
    let cache = cache();
    let before = cache.stamp();
    cache.forget(&Entry::for_tests(DN, &[]));
    assert!(!cache.holds(&Entry::for_tests(DN, &[]), before));
    cache.right(&credential("alice", "sesame"), Arc::new(Identity::for_tests(DN, &["server3"])), before);
    assert_eq!(ask(&cache, "alice", "sesame"), "nothing");
    learn_right(&cache, "alice", "sesame");
    assert_eq!(ask(&cache, "alice", "sesame"), "right");
    assert_eq!(cache.entries(), 1);
    cache.forget(&Entry::for_tests(DN, &[]));
    assert_eq!(ask(&cache, "alice", "sesame"), "nothing");
    assert_eq!(cache.entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn stale_entries_are_used_only_during_an_outage() {
    let cache = cache();
    let stale = |password: &str| cache.stale(&credential("alice", password)).is_some();
    learn_right(&cache, "alice", "sesame");
    tokio::time::advance(TTL).await;
    assert_eq!((ask(&cache, "alice", "sesame"), stale("sesame"), stale("other")), ("nothing", true, false));
    // Possibly replaced: not accepted before it is verified again.
    learn_right(&cache, "alice", "new");
    assert_eq!((stale("sesame"), stale("new")), (false, true));
    learn_wrong(&cache, "alice", "new");
    assert!(!stale("new"));
    learn_right(&cache, "alice", "new");
    tokio::time::advance(STALE - Duration::from_millis(1)).await;
    assert!(stale("new"));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!stale("new"));
    learn_right(&cache, "alice", "new");
    cache.forget(&Entry::for_tests(DN, &[]));
    assert!(!stale("new"));
    let never = config::Cache {
        ttl: TTL,
        negative_ttl: NEGATIVE_TTL,
        negative_ttl_max: NEGATIVE_TTL,
        stale: Duration::ZERO,
        capacity: 100,
    };
    let cache = Cache::new(&never);
    learn_right(&cache, "alice", "sesame");
    assert!(cache.stale(&credential("alice", "sesame")).is_none());
}

/// An entry of this directory, with this id if it is known.
fn entry(realm: u8, id: Option<u8>, dn: &str) -> Entry {
    let id = id.and_then(|id| EntryId::from_bytes(&[id; 16]));
    let version = EntryVersion { realm: Realm::for_tests(realm), id, ..EntryVersion::default() };
    Entry { version, ..Entry::for_tests(dn, &["server3"]) }
}

fn learn_entry(cache: &Cache, name: &str, entry: &Entry) {
    let identity = Identity::for_tests(&entry.dn, &[]).with_entry(Arc::new(entry.clone()));
    cache.right(&credential(name, "sesame"), Arc::new(identity), cache.stamp());
}

#[tokio::test(start_paused = true)]
async fn entries_of_two_realms_with_the_same_dn_never_meet() {
    for id in [None, Some(1)] {
        let cache = cache();
        let (ours, theirs) = (entry(0, id, DN), entry(1, id, DN));
        learn_entry(&cache, "alice@ours.example", &ours);
        learn_entry(&cache, "alice@theirs.example", &theirs);
        assert_eq!(cache.entries(), 2);
        let wrong = credential("alice@theirs.example", "guess");
        cache.wrong(&wrong, &theirs.dn, &theirs.version, cache.stamp());
        assert_eq!(ask(&cache, "alice@theirs.example", "guess"), "wrong");
        assert_eq!(ask(&cache, "alice@ours.example", "guess"), "nothing");
        assert!(!cache.refused_before(&credential("alice@ours.example", "guess"), &ours));
        cache.forget(&theirs);
        assert_eq!(ask(&cache, "alice@theirs.example", "sesame"), "nothing");
        assert_eq!(ask(&cache, "alice@ours.example", "sesame"), "right");
    }
}

#[tokio::test(start_paused = true)]
async fn dn_that_passes_to_another_entry_passes_on_no_password() {
    let cache = cache();
    let (first, second) = (entry(0, Some(1), DN), entry(0, Some(2), DN));
    learn_entry(&cache, "alice", &first);
    cache.wrong(&credential("alice", "guess"), &first.dn, &first.version, cache.stamp());
    // The first entry gets another DN, and its data stays its own.
    learn_entry(&cache, "alicia", &Entry { dn: "uid=alicia".into(), ..first });
    cache.wrong(&credential("alice", "other guess"), &second.dn, &second.version, cache.stamp());
    assert_eq!(ask(&cache, "alice", "sesame"), "nothing");
    assert_eq!(ask(&cache, "alice", "guess"), "nothing");
    assert!(!cache.refused_before(&credential("alice", "guess"), &second));
    assert_eq!((ask(&cache, "alicia", "sesame"), ask(&cache, "alicia", "guess")), ("right", "wrong"));
}

#[tokio::test(start_paused = true)]
async fn entry_is_forgotten_whether_or_not_its_id_is_shown() {
    for (cached, reported) in [(Some(1), None), (None, Some(1)), (Some(1), Some(1))] {
        let cache = cache();
        learn_entry(&cache, "alice", &entry(0, cached, DN));
        learn_entry(&cache, "bob", &entry(0, Some(2), "uid=bob"));
        cache.forget(&entry(0, reported, DN));
        assert_eq!(ask(&cache, "alice", "sesame"), "nothing", "{cached:?} {reported:?}");
        assert_eq!(ask(&cache, "bob", "sesame"), "right");
    }
}

/// Two names of one entry, whose servers do not all show its id.
#[tokio::test(start_paused = true)]
async fn password_is_judged_alike_whether_or_not_the_id_is_shown() {
    for (first, second) in [(None, Some(1)), (Some(1), None), (Some(1), Some(2))] {
        let at = format!("{first:?} {second:?}");
        let (before, after) = (entry(0, first, DN), entry(0, second, DN));
        let both = ["alice", "alice@example.com"];
        let cache = cache();
        both.iter().for_each(|name| learn_entry(&cache, name, &before));
        cache.wrong(&credential("alice", "next"), &before.dn, &before.version, cache.stamp());
        let next = Identity::for_tests(DN, &[]).with_entry(Arc::new(after.clone()));
        cache.right(&credential("alice", "next"), Arc::new(next), cache.stamp());
        assert_eq!(both.map(|name| ask(&cache, name, "sesame")), ["nothing"; 2], "{at}: it may have been replaced");
        assert_ne!(ask(&cache, "alice@example.com", "next"), "wrong", "{at}: it is correct by now");

        let cache = self::cache();
        both.iter().for_each(|name| learn_entry(&cache, name, &before));
        cache.wrong(&credential("alice", "sesame"), &after.dn, &after.version, cache.stamp());
        assert_ne!(ask(&cache, "alice@example.com", "sesame"), "right", "{at}: it was refused");
        assert!(cache.stale(&credential("alice@example.com", "sesame")).is_none(), "{at}: it was refused");
        // A guess costs the owner nothing.
        both.iter().for_each(|name| learn_entry(&cache, name, &before));
        cache.wrong(&credential("alice", "guess"), &after.dn, &after.version, cache.stamp());
        assert_eq!(ask(&cache, "alice@example.com", "sesame"), "right", "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn administrator_finds_and_drops_an_entry_by_dn_or_name() {
    let cache = cache();
    for name in ["Alice", "UID=ALICE,ou=people,dc=example,dc=com"] {
        learn_entry(&cache, "alice", &entry(0, Some(1), DN));
        let found = cache.remembered(name);
        assert_eq!(found.iter().map(|record| &*record.dn).collect::<Vec<_>>(), [DN], "{name}");
        cache.drop_entry(&found[0]);
        assert!(cache.remembered(name).is_empty() && cache.entry_of(credential("alice", "x").login()).is_none());
    }
    learn_entry(&cache, "alice", &entry(0, Some(1), DN));
    cache.names.invalidate_all();
    assert_eq!(cache.remembered(DN).len(), 1, "its name was evicted");
}

#[tokio::test(start_paused = true)]
async fn administrator_finds_and_drops_what_tokens_have_led_to() {
    let cache = cache();
    let login = |name: &str| Login::parse(name.as_bytes()).unwrap();
    let search = |name: Login| TokenSearch { filter: "(mail=a@example.com)".to_owned(), name };
    let keep = |name: Login| {
        let found = Arc::new(entry(0, Some(1), DN));
        cache.keep_found(search(name), &login("a@example.com"), found, cache.stamp());
    };
    for name in ["A@example.com", "liddell", "UID=ALICE,ou=people,dc=example,dc=com"] {
        keep(Login::absent());
        keep(login("liddell"));
        tokio::time::advance(Duration::from_secs(1)).await;
        let found = cache.remembered(name);
        let [record] = found.as_slice() else { panic!("{name}: {found:?}") };
        assert_eq!((&*record.dn, record.tokens, record.right, cache.all_entries()), (DN, 2, 0, 1), "{name}");
        assert_eq!(record.names, ["a@example.com", "liddell"]);
        assert_eq!((record.age, record.entry.is_some()), (Some(Duration::from_secs(1)), true));
        cache.drop_entry(record);
        assert!(cache.remembered(name).is_empty() && cache.found(&search(Login::absent())).is_none());
    }
    // Of a user with a password too it is one entry.
    keep(Login::absent());
    learn_entry(&cache, "alice", &entry(0, Some(1), DN));
    let found = cache.remembered("alice");
    assert_eq!((found.len(), found[0].tokens, found[0].right, cache.all_entries()), (1, 1, 1, 1));
    cache.drop_entry(&found[0]);
    assert!(cache.remembered("a@example.com").is_empty());
    // A change that was seen ends it as well.
    keep(Login::absent());
    cache.forget(&entry(0, Some(1), DN));
    assert!(cache.remembered("a@example.com").is_empty());
}

/// A decision read while its entry is being dropped must not be used afterwards,
/// wherever between the steps of [`Cache::forget`] its stamp was read.
#[test]
fn decision_read_during_forget_is_not_cached() {
    const ROUNDS: usize = 100_000;
    let cache = cache();
    let forgotten = AtomicUsize::new(0);
    let (credential, entry) = (credential("alice", "sesame"), Entry::for_tests(DN, &[]));
    let read = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                let identity = Identity::for_tests(DN, &[&round.to_string()]);
                cache.right(&credential, Arc::new(identity), cache.stamp());
                cache.forget(&entry);
                forgotten.store(round, Ordering::SeqCst);
            }
        });
        let mut read = 0_usize;
        while forgotten.load(Ordering::SeqCst) < ROUNDS {
            let since = cache.stamp();
            let CacheAnswer::Right(identity) = cache.lookup(&credential) else { continue };
            let round: usize = identity.entry().mail_hosts[0].parse().unwrap();
            while forgotten.load(Ordering::SeqCst) < round {
                std::hint::spin_loop();
            }
            read += 1;
            assert!(!cache.holds(&entry, since), "round {round} was forgotten and its decision holds");
        }
        read
    });
    assert!(read > 0, "no decision was ever read while it was there");
}

/// Logins read the directory and store their decisions while changes of the entry are reported: a decision older than the
/// last reported change must not be there, whichever of them each login began before.
#[test]
fn no_older_decision_is_cached_once_a_change_was_reported() {
    const CHANGES: usize = 3_000;
    // The second hides the id from the change, as some servers do.
    for shows_id in [true, false] {
        let cache = cache();
        let (directory, reported) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let credential = credential("alice", "sesame");
        let version = |number: usize, id| Entry { mail_hosts: vec![number.to_string()], ..entry(0, id, DN) };
        let answers = std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=CHANGES {
                    directory.store(number, Ordering::SeqCst);
                    cache.forget(&version(number, shows_id.then_some(1)));
                    reported.store(number, Ordering::SeqCst);
                }
            });
            let login = || {
                let mut answers = 0;
                while reported.load(Ordering::SeqCst) < CHANGES {
                    let newest = reported.load(Ordering::SeqCst);
                    if let CacheAnswer::Right(identity) = cache.lookup(&credential) {
                        let answered: usize = identity.entry().mail_hosts[0].parse().unwrap();
                        assert!(answered >= newest, "{answered} is cached though {newest} was reported");
                        answers += 1;
                    }
                    let since = cache.stamp();
                    let read = Arc::new(version(directory.load(Ordering::SeqCst), Some(1)));
                    cache.right(&credential, Arc::new(Identity::for_tests(DN, &[]).with_entry(read)), since);
                }
                answers
            };
            let logins = [scope.spawn(login), scope.spawn(login)];
            logins.into_iter().map(|login| login.join().unwrap()).sum::<usize>()
        });
        assert!(answers > 0, "no decision was ever cached");
    }
}

#[tokio::test(start_paused = true)]
async fn address_is_no_login_name_and_follows_changes_of_its_entry() {
    let cache = cache();
    let address = Login::parse(b"a@example.com").unwrap();
    cache.keep_mail(&address, Arc::new(entry(0, Some(1), DN)), cache.stamp());
    assert!(cache.mail(&address).is_some() && cache.mail_stale(&address).is_some());
    assert_eq!(ask(&cache, "a@example.com", "sesame"), "nothing");
    assert!(cache.entry_of(&address).is_none() && cache.stale(&credential("a@example.com", "sesame")).is_none());
    // The same text as another user's login name.
    learn_entry(&cache, "a@example.com", &entry(0, Some(2), "uid=other"));
    assert_eq!(cache.mail(&address).map(|entry| entry.dn.to_string()), Some(DN.to_owned()));
    let found = cache.remembered("A@example.com");
    assert_eq!(
        found.iter().map(|record| (&*record.dn, record.right, record.addresses.len())).collect::<Vec<_>>(),
        [(DN, 0, 1), ("uid=other", 1, 0)]
    );
    assert_eq!(cache.all_entries(), 2);
    cache.forget(&entry(0, Some(1), DN));
    assert!(cache.mail(&address).is_none() && cache.mail_stale(&address).is_none());
    assert!(cache.mail_before(&address).is_some(), "what it led to is known to the brake");
    cache.keep_mail(&address, Arc::new(entry(0, Some(1), DN)), cache.stamp());
    cache.forget_mail(&address);
    assert!(cache.mail(&address).is_none() && cache.mail_before(&address).is_some());
    cache.keep_mail(&address, Arc::new(entry(0, Some(1), DN)), cache.stamp());
    cache.remembered(DN).iter().for_each(|record| cache.drop_entry(record));
    assert!(cache.mail_before(&address).is_none());
    assert_eq!(ask(&cache, "a@example.com", "sesame"), "right", "the other user's");
}
