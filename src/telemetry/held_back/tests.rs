//! What is listed, what ends, and that names without an entry fill nothing.

use super::*;

const LIMIT: Reason = Reason::Limit(LimitRule::FailedLoginsPerUser);
const LASTING: Beginning<'_> = Beginning::of_limit();

fn users(held: &HeldBackUsers) -> Vec<String> {
    held.list().listed.into_iter().filter_map(|one| one.user).collect()
}

#[tokio::test(start_paused = true)]
async fn limit_is_over_a_minute_after_the_last_attempt_and_a_hold_when_it_is_reported() {
    let held = HeldBackUsers::default();
    assert!(held.is_empty());
    held.begin(LIMIT, Who::User("alice"), LASTING);
    let by = Beginning { modified: (Some("cn=admin"), None), ..Beginning::default() };
    held.begin(Reason::Hold, Who::User("uid=bob"), by);
    tokio::time::advance(Duration::from_secs(40)).await;
    held.begin(LIMIT, Who::User(" Alice "), LASTING);
    tokio::time::advance(Duration::from_secs(40)).await;
    held.sweep();
    assert_eq!((users(&held), held.counts()), (vec!["alice".to_owned(), "uid=bob".to_owned()], [1, 0, 1]));
    let [limit, hold] = held.list().listed.try_into().unwrap();
    assert_eq!((limit.seen, limit.until.is_some()), (2, true));
    assert_eq!((hold.by.as_deref(), hold.until), (Some("cn=admin"), None));
    tokio::time::advance(Duration::from_secs(20)).await;
    held.sweep();
    assert_eq!(users(&held), ["uid=bob"]);
    tokio::time::advance(Duration::from_secs(100_000)).await;
    held.sweep();
    held.end(Reason::Locked, Who::User("uid=bob"), Beginning::default());
    held.end(Reason::Hold, Who::User("uid=bob"), Beginning { directory: Some("other"), ..Beginning::default() });
    assert_eq!(users(&held), ["uid=bob"]);
    held.end(Reason::Hold, Who::User("UID=Bob"), Beginning::default());
    assert!(held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn hold_that_a_refresh_does_not_report_has_ended() {
    let held = HeldBackUsers::default();
    for dn in ["uid=a", "uid=b"] {
        held.begin(Reason::Hold, Who::User(dn), Beginning::default());
    }
    let elsewhere = Beginning { directory: Some("other"), ..Beginning::default() };
    held.begin(Reason::Hold, Who::User("uid=c"), elsewhere);
    held.begin_refresh(Some("other"));
    held.end_refresh(None);
    assert_eq!(held.counts(), [3, 0, 0]);
    held.begin_refresh(None);
    held.begin(Reason::Hold, Who::User("uid=b"), Beginning::default());
    held.end_refresh(None);
    assert_eq!(users(&held), ["uid=b", "uid=c"]);
}

#[tokio::test(start_paused = true)]
async fn hold_of_a_directory_that_reports_no_longer_is_forgotten_unless_it_reports_again() {
    let held = HeldBackUsers::default();
    let lasts = Some(Duration::from_secs(600));
    held.begin(Reason::Hold, Who::User("uid=a"), Beginning::default());
    held.let_holds_expire(None, lasts);
    tokio::time::advance(Duration::from_secs(599)).await;
    held.let_holds_expire(None, None);
    tokio::time::advance(Duration::from_secs(599)).await;
    held.sweep();
    assert_eq!(users(&held), ["uid=a"]);
    held.let_holds_expire(Some("other"), lasts);
    tokio::time::advance(Duration::from_secs(601)).await;
    held.sweep();
    assert_eq!(users(&held), ["uid=a"]);
    held.let_holds_expire(None, lasts);
    tokio::time::advance(Duration::from_secs(601)).await;
    held.sweep();
    assert!(held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn million_names_take_bounded_memory_and_few_lines() {
    let held = HeldBackUsers::default();
    for number in 0..50_000 {
        held.begin(LIMIT, Who::User(&format!("{number}{}", "x".repeat(1_000))), LASTING);
    }
    let list = held.list();
    assert_eq!((list.listed.len(), list.more), (LISTED, MOST - LISTED));
    assert!(list.listed.iter().all(|one| one.user.as_ref().unwrap().len() <= LONGEST));
    {
        let inner = held.lock();
        let lines = &inner.lines[&LIMIT];
        assert_eq!((lines.written, lines.begun, lines.not_listed), (LINES, 50_000 - 20, 50_000 - 1_024));
    }
    held.sweep();
    tokio::time::advance(LIMIT_LASTS).await;
    held.sweep();
    assert!(held.is_empty() && held.lock().lines.is_empty());
}
