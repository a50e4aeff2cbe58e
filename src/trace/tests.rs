//! Which sessions a trace shows, what bounds it, and how it ends.

use super::following::QUEUED;
use super::*;
use crate::proto::transcript::{Leg, LineKind};
use crate::sessions::registry::EntryRef;
use crate::sessions::registry::Registry;

fn traces() -> Arc<Traces> {
    Traces::new(IntGauge::new("traces", "active").unwrap())
}

fn filter(pairs: &[(&str, &str)]) -> Filter {
    let mut filter = Filter::default();
    pairs.iter().for_each(|(key, value)| filter.set(key, value).unwrap());
    filter
}

fn begin(traces: &Arc<Traces>, pairs: &[(&str, &str)]) -> TraceReceiver {
    traces.begin(filter(pairs), Vec::new(), DEFAULT).unwrap()
}

fn session(traces: &Arc<Traces>, client: &str) -> SessionTrace {
    let id = Registry::default().next_id();
    let new = NewSession { id, client: client.parse().unwrap(), protocol: "imap", since: Instant::now() };
    traces.session(new, || false)
}

fn says(session: &SessionTrace, line: &str) {
    session.line(Leg::Client, LineKind::Received, || line.to_owned());
}

fn named(session: &SessionTrace, name: &str) {
    session.learn(|| Some(Fact::Login(name.into())));
}

/// What has arrived, as texts; what is said about the trace itself in brackets.
async fn arrived(receiver: &mut TraceReceiver) -> Vec<String> {
    let mut all = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(1), receiver.next()).await {
        all.push(match message {
            TraceMessage::Started { what, seconds } => format!("[{what} {seconds}]"),
            TraceMessage::Line(line) => line.text,
            TraceMessage::Lost(lines) => format!("[lost {lines}]"),
            TraceMessage::Ended(summary) => format!("[{summary}]"),
        });
    }
    all
}

#[tokio::test(start_paused = true)]
async fn lines_are_held_until_the_name_is_known() {
    let traces = traces();
    let mut alice = begin(&traces, &[("user", "Alice")]);
    let (one, other) = (session(&traces, "192.0.2.1"), session(&traces, "192.0.2.2"));
    says(&one, "first");
    says(&other, "not shown");
    assert_eq!(arrived(&mut alice).await, ["[user=Alice 600]"]);
    named(&one, "alice");
    named(&other, "bob");
    says(&one, "second");
    says(&other, "not shown either");
    assert_eq!(arrived(&mut alice).await, ["first", "second"]);
    // The next attempt of the same connection may be by the user, who typed a blank behind the name.
    named(&other, "ALICE ");
    assert_eq!(arrived(&mut alice).await, ["not shown", "not shown either"]);
}

#[tokio::test(start_paused = true)]
async fn user_is_known_by_dn_and_by_other_names() {
    let traces = traces();
    let mut by_dn = begin(&traces, &[("user", "UID=alice,dc=x")]);
    let mut by_name = begin(&traces, &[("user", "alice")]);
    let known = vec![EntryRef::new(None, "uid=anna,dc=x")];
    let mut by_cache = traces.begin(filter(&[("user", "anna")]), known, DEFAULT).unwrap();
    let first = session(&traces, "192.0.2.1");
    named(&first, "alice");
    first.learn(|| Some(Fact::Entry(EntryRef::new(None, "uid=alice,dc=x"))));
    says(&first, "typed");
    // Under another name the same entry.
    let second = session(&traces, "192.0.2.1");
    named(&second, "a.smith@example.com");
    says(&second, "mail address");
    second.learn(|| Some(Fact::Entry(EntryRef::new(None, "uid=Alice,dc=x"))));
    let third = session(&traces, "192.0.2.1");
    named(&third, "anna@example.com");
    third.learn(|| Some(Fact::Entry(EntryRef::new(None, "uid=anna,dc=x"))));
    says(&third, "cached");
    assert_eq!(arrived(&mut by_dn).await[1..], ["typed", "mail address"]);
    assert_eq!(arrived(&mut by_name).await[1..], ["typed", "mail address"]);
    assert_eq!(arrived(&mut by_cache).await[1..], ["cached"]);
}

#[tokio::test(start_paused = true)]
async fn every_condition_must_match() {
    let traces = traces();
    let mut receiver = begin(&traces, &[("client", "192.0.2.0/24"), ("backend", "server3"), ("protocol", "imap")]);
    let (inside, outside) = (session(&traces, "192.0.2.9"), session(&traces, "198.51.100.1"));
    assert!(outside.transcript().is_off(), "no line of it can be wanted");
    says(&inside, "before");
    inside.learn(|| Some(Fact::Backend("server4".into())));
    assert_eq!(arrived(&mut receiver).await.len(), 1);
    inside.learn(|| Some(Fact::Backend("server3".into())));
    assert_eq!(arrived(&mut receiver).await, ["before"]);
    // A trusted proxy names its client later.
    let id = Registry::default().next_id();
    let new = NewSession { id, client: [198, 51, 100, 1].into(), protocol: "imap", since: Instant::now() };
    let proxied = traces.session(new, || true);
    says(&proxied, "proxied");
    proxied.learn(|| Some(Fact::Client([192, 0, 2, 8].into())));
    proxied.learn(|| Some(Fact::Backend("server3".into())));
    assert_eq!(arrived(&mut receiver).await, ["proxied"]);
}

#[tokio::test(start_paused = true)]
async fn slow_reader_loses_lines_and_learns_how_many() {
    let traces = traces();
    let mut receiver = begin(&traces, &[("client", "192.0.2.1")]);
    let sessions: Vec<_> = (0..3).map(|_| session(&traces, "192.0.2.1")).collect();
    for number in 0..QUEUED + 500 {
        says(&sessions[number / 600], &format!("{number}"));
    }
    let all = arrived(&mut receiver).await;
    assert_eq!(all.len(), 1 + QUEUED + 1);
    assert_eq!(all.last().unwrap(), "[lost 500]");
    // Lost lines are reported in their place.
    says(&sessions[0], "again");
    assert_eq!(arrived(&mut receiver).await, ["again"]);
}

#[tokio::test(start_paused = true)]
async fn session_and_its_lines_are_bounded() {
    let traces = traces();
    let mut receiver = begin(&traces, &[("user", "alice")]);
    let one = session(&traces, "192.0.2.1");
    (0..100).for_each(|number| says(&one, &format!("{number}")));
    named(&one, "alice");
    let held = arrived(&mut receiver).await;
    assert_eq!((held.len(), held[1].as_str(), held[64].as_str()), (65, "36", "99"), "the last 64");
    says(&one, &"x".repeat(5_000));
    says(&one, &"\u{1}".repeat(1_000));
    says(&one, &"\u{e000}".repeat(1_000));
    for long in arrived(&mut receiver).await {
        assert!(long.len() < 1_100 && long.ends_with('…'), "{}", long.len());
    }
    let other = session(&traces, "192.0.2.2");
    (0..100).for_each(|_| says(&other, &"\u{1}".repeat(1_000)));
    named(&other, "alice");
    let held: usize = arrived(&mut receiver).await.iter().map(String::len).sum();
    assert!((30 * 1024..=32 * 1024).contains(&held), "{held}");
    says(&one, "\u{1b}[31m\u{202e}\0");
    assert_eq!(arrived(&mut receiver).await, [r"\u{1b}[31m\u{202e}\0"]);
    let mut shown = 0;
    for _ in 0..20 {
        (0..100).for_each(|number| says(&one, &format!("{number}")));
        shown += arrived(&mut receiver).await.len();
    }
    assert!((990..=1_001).contains(&shown), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn traces_are_few_and_end_with_their_reader() {
    let traces = traces();
    assert!(session(&traces, "192.0.2.1").transcript().is_off());
    let mut all: Vec<_> = (0..TRACES).map(|_| begin(&traces, &[("user", "alice")])).collect();
    let refused = traces.begin(filter(&[("user", "bob")]), Vec::new(), DEFAULT).unwrap_err();
    assert_eq!((refused, traces.gauge.get()), (TraceRefused::TooMany, 4));
    let one = session(&traces, "192.0.2.1");
    all.pop();
    drop(begin(&traces, &[("user", "bob")]));
    drop(all);
    assert_eq!((traces.gauge.get(), traces.active.load(Ordering::Relaxed)), (0, 0));
    // A session that is still open no longer has a reader.
    named(&one, "alice");
    says(&one, "x");
    drop(one);
    assert_eq!(traces.held.load(Ordering::Relaxed), 0);
    assert!(session(&traces, "192.0.2.1").transcript().is_off());
}

#[tokio::test(start_paused = true)]
async fn trace_ends_with_a_sentence() {
    let traces = traces();
    let mut receiver = traces.begin(filter(&[("user", "alice")]), Vec::new(), Duration::from_secs(5)).unwrap();
    let one = session(&traces, "192.0.2.1");
    named(&one, "alice");
    says(&one, "line");
    let mut last = None;
    while let Some(message) = receiver.next().await {
        last = Some(message);
    }
    let Some(TraceMessage::Ended(summary)) = last else { panic!("{last:?}") };
    assert_eq!(summary.to_string(), "trace ended: 5 s are over; 1 session, 1 line");
    assert!(summary.is_complete);

    for (end, sentence) in [(TraceEnd::Reload, "reloaded"), (TraceEnd::Upgrade, "another process")] {
        let mut receiver = begin(&traces, &[("user", "alice")]);
        traces.end_all(end);
        let all = arrived(&mut receiver).await;
        assert!(all.last().unwrap().contains(sentence), "{all:?}");
        assert!(!receiver.summary().is_complete);
    }
    let refused = traces.begin(filter(&[("user", "alice")]), Vec::new(), DEFAULT).unwrap_err();
    assert_eq!(refused, TraceRefused::Stopping);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_hold_lines_are_bounded() {
    let traces = traces();
    let mut receiver = begin(&traces, &[("user", "alice")]);
    let all: Vec<_> = (0..HELD_SESSIONS + 3).map(|_| session(&traces, "192.0.2.1")).collect();
    assert_eq!(all.iter().filter(|session| session.transcript().is_off()).count(), 3);
    traces.end_all(TraceEnd::Reload);
    assert!(arrived(&mut receiver).await.last().unwrap().contains("3 sessions not looked at"));
}
