//! Marks: that they are in force everywhere, and stay.

use super::*;

fn drained(node: &Node) -> Option<Vec<u8>> {
    node.marks().borrow().get(MarkKind::Drain, b"server3").map(|mark| mark.body.to_vec())
}

fn kicks(node: &Node) -> Vec<Vec<u8>> {
    let marks = node.marks();
    let marks = marks.borrow();
    marks.events_after(0).filter(|(_, mark)| mark.kind == MarkKind::Kick).map(|(_, mark)| mark.body.to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn standing_mark_is_in_force_within_a_second_also_for_later_members() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    let set = Instant::now();
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    assert_eq!(drained(&a).as_deref(), Some(&b"on"[..]));
    until("the mark", || drained(&b).is_some()).await;
    assert!(set.elapsed() < Duration::from_secs(3), "{:?}", set.elapsed());
    let c = joined(store.port, "mx3", 3).await;
    until("the mark", || drained(&c).is_some()).await;
    // The later of two counts, whoever sets it.
    c.set_mark(MarkKind::Drain, b"server3", b"off", Some(Duration::from_secs(3_600)));
    for node in [&a, &b] {
        until("the later mark", || drained(node).as_deref() == Some(b"off")).await;
    }
    // It outlives its writer.
    drop(c);
    store.command(&["FLUSHALL"]);
    let d = joined(store.port, "mx4", 3).await;
    until("the mark", || drained(&d).as_deref() == Some(b"off")).await;
    assert_eq!(a.all_rejected() + b.all_rejected() + d.all_rejected(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_store_gets_marks_and_names_again() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    until("the mark", || drained(&b).is_some()).await;
    let (key, generation) = (a.key(KeyKind::User, &[b"bob"]), *a.generation().borrow());
    assert_eq!(a.count("bob").await, Ok(1));
    store.command(&["FLUSHALL"]);
    until("rewritten", || store.command(&["HLEN", "usher:mail:k"]) == "2").await;
    until("noticed", || *a.generation().borrow() > generation && *b.generation().borrow() > generation).await;
    assert_eq!((a.count("bob").await, b.count("bob").await), (Ok(1), Ok(2)));
    assert_eq!(a.key(KeyKind::User, &[b"bob"]), key, "the names are the fleet's own");
    assert!(drained(&a).is_some() && drained(&b).is_some() && a.is_up() && b.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn event_happens_once_in_each_other_process() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    let set = Instant::now();
    a.set_mark(MarkKind::Kick, &[], b"one", None);
    until("the kick", || kicks(&b) == [b"one"]).await;
    assert!(set.elapsed() < Duration::from_secs(3), "{:?}", set.elapsed());
    a.set_mark(MarkKind::Kick, &[], b"two", None);
    until("both kicks", || kicks(&b) == [b"one", b"two"]).await;
    // A process that comes within the minute hears it from the one that kicked.
    let c = joined(store.port, "mx3", 3).await;
    until("the kicks", || kicks(&c).len() == 2).await;
    store.command(&["FLUSHALL"]);
    until("rewritten", || store.command(&["HLEN", "usher:mail:k"]) == "3").await;
    let beats = |node: &Node| *node.generation().borrow();
    until("read again", || beats(&b) > 1 && beats(&c) > 1).await;
    assert_eq!((kicks(&a).len(), kicks(&b).len(), kicks(&c).len()), (0, 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn mark_set_while_the_store_is_away_is_written_later() {
    let mut store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    store.stop();
    until("down", || !a.is_up() && !b.is_up()).await;
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    a.set_mark(MarkKind::Kick, &[], b"one", None);
    store.start_again();
    until("the marks", || drained(&b).is_some() && kicks(&b) == [b"one"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mark_ends_and_marks_are_bounded() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    a.set_mark(MarkKind::Drain, b"server3", b"on", Some(Duration::from_secs(1)));
    until("the mark", || drained(&b).is_some()).await;
    until("its end", || drained(&a).is_none() && drained(&b).is_none()).await;
    for number in 0..2 * super::super::marks::MOST {
        a.set_mark(MarkKind::Drain, number.to_string().as_bytes(), b"", None);
    }
    a.set_mark(MarkKind::Drain, &[0; super::super::marks::LARGEST_MARK + 1], b"", None);
    until("all that fit", || b.marks().borrow().all(MarkKind::Drain).count() == super::super::marks::MOST - 1).await;
    assert_eq!(store.command(&["HLEN", "usher:mail:k"]), super::super::marks::MOST.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_events_leave_places_for_standing_marks() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    let most = super::super::marks::MOST_EVENTS;
    for node in [&a, &b] {
        let placed = (0..2 * most).filter(|_| node.set_mark(MarkKind::Kick, &[], b"one", None)).count();
        assert_eq!(placed, most);
    }
    for number in 0..100_u8 {
        assert!(a.set_mark(MarkKind::Drain, &[number], b"on", None));
    }
    until("the drains", || b.marks().borrow().all(MarkKind::Drain).count() == 100).await;
}
