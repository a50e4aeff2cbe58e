//! Members that are all well.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn members_meet_count_together_and_leave() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    assert_eq!((a.most_members(), b.most_members()), (2, 2));
    let nodes: Vec<_> = a.members().iter().map(|member| member.node.to_string()).collect();
    assert_eq!(nodes, ["mx1", "mx2"]);
    assert_eq!((a.count("bob").await, b.count("bob").await, b.count("eve").await), (Ok(1), Ok(2), Ok(1)));
    // An upgrade: two processes of a node are two members and one share.
    let c = joined(store.port, "mx2", 3).await;
    assert_eq!(c.most_members(), 2);
    c.leave().await;
    drop(c);
    a.joined(2).await;
    // A node that ends is not lost.
    let d = joined(store.port, "mx4", 3).await;
    a.joined(3).await;
    d.leave().await;
    drop(d);
    a.joined(2).await;
    until("heard", || a.absent_nodes().is_empty() && b.absent_nodes().is_empty()).await;
    // Nothing in the store names a user.
    let content = store.content();
    for name in ["mx1", "mx2", "bob", "eve"] {
        assert!(!content.contains(name), "{name}: {content}");
    }
    assert_eq!(a.all_rejected() + b.all_rejected(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_member_ends_within_its_life() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    let (killed, key) = (Instant::now(), b.member_key(b.id()));
    drop(b);
    assert_eq!(store.command(&["EXISTS", key.as_str()]), "1");
    a.joined(1).await;
    assert!(killed.elapsed() < Duration::from_secs(36), "{:?}", killed.elapsed());
    assert_eq!(store.command(&["EXISTS", key.as_str()]), "0");
    assert_eq!(a.most_members(), 2, "the share stays for a while");
    // It may be cut off and still have sessions.
    assert_eq!(a.absent_nodes().iter().map(|(node, _)| &**node).collect::<Vec<_>>(), ["mx2"]);
    let _again = joined(store.port, "mx2", 2).await;
    until("back", || a.absent_nodes().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notice_reaches_all_others_and_question_is_answered() {
    let store = Redis::start();
    let nodes =
        [joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await, joined(store.port, "mx3", 3).await];
    for node in &nodes {
        node.joined(3).await;
    }
    let [a, b, c] = &nodes;
    let (mut at_a, mut at_b, mut at_c) = (a.subscribe(), b.subscribe(), c.subscribe());
    a.publish(b"hello".to_vec());
    for inbox in [&mut at_b, &mut at_c] {
        let message = received(inbox).await;
        assert_eq!((&*message.body, &*message.from.node, message.is_question()), (&b"hello"[..], "mx1", false));
    }
    let asked = Instant::now();
    let answers = a.ask(b"who".to_vec(), LIMIT, |_| true);
    let replies = async {
        let question = received(&mut at_b).await;
        assert!(question.is_question());
        // As large as it may be, and one byte more.
        b.answer(&question, vec![7; LARGEST_ANSWER]);
        let question = received(&mut at_c).await;
        c.answer(&question, vec![7; LARGEST_ANSWER + 1]);
    };
    let (answers, ()) = tokio::join!(answers, replies);
    let answers = answers.unwrap();
    assert!(asked.elapsed() < LIMIT);
    let found: Vec<_> =
        answers.iter().map(|answer| (&*answer.member.node, answer.body.as_ref().map(Vec::len))).collect();
    assert_eq!(found, [("mx2", Ok(LARGEST_ANSWER)), ("mx3", Err(&NoAnswer::TooLarge))]);
    // One that does not answer is named.
    let answers = a.ask(b"who".to_vec(), Duration::from_millis(50), |_| true).await.unwrap();
    let found: Vec<_> = answers.iter().map(|answer| (&*answer.member.node, answer.body.clone())).collect();
    assert_eq!(found, [("mx2", Err(NoAnswer::Silent)), ("mx3", Err(NoAnswer::Silent))]);
    assert!(at_a.try_recv().is_err(), "no member hears itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_written_behind() {
    let store = Redis::start();
    let a = joined(store.port, "mx1", 1).await;
    let (sender, mut receiver) = mpsc::channel(1_000);
    let key = a.key(KeyKind::Sessions, &[b"bob"]).unwrap();
    for _ in 0..1_000 {
        let sender = sender.clone();
        let done: Done = Box::new(move |value| sender.try_send(value.int()).unwrap());
        a.order(&COUNT, vec![key.clone()], vec![1_i64.into()], Some(done));
    }
    let mut highest = None;
    for _ in 0..1_000 {
        highest = highest.max(timeout(LIMIT, receiver.recv()).await.unwrap().unwrap());
    }
    assert_eq!((highest, a.dropped()), (Some(1_000), 0));
    store.freeze();
    for _ in 0..3 * WRITES {
        a.order(&COUNT, vec![key.clone()], vec![1_i64.into()], None);
    }
    assert!(a.dropped() >= u64::try_from(WRITES).unwrap(), "{}", a.dropped());
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_script_is_sent_again() {
    let store = Redis::start();
    let a = joined(store.port, "mx1", 1).await;
    for round in 1..4 {
        store.command(&["SCRIPT", "FLUSH"]);
        assert_eq!(a.count("bob").await, Ok(round));
    }
    assert!(a.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fleets_in_a_store_do_not_meet() {
    let store = Redis::start();
    let mut other = Setting::at(store.port, "mx9");
    other.settings.name = "test".into();
    let (a, b) = (joined(store.port, "mx1", 1).await, other.start());
    b.joined(1).await;
    let mut at_b = b.subscribe();
    a.set_mark(MarkKind::Drain, b"server3", b"", None);
    a.publish(b"hello".to_vec());
    assert_eq!((a.count("bob").await, b.count("bob").await), (Ok(1), Ok(1)));
    until("a beat", || store.command(&["HLEN", "usher:mail:k"]) == "2").await;
    assert!(b.marks().borrow().get(MarkKind::Drain, b"server3").is_none() && at_b.try_recv().is_err());
    assert_eq!((a.members().len(), b.members().len(), a.all_rejected(), b.all_rejected()), (1, 1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_rotates_without_a_gap() {
    let store = Redis::start();
    let (mut of_a, mut of_b) = (Setting::at(store.port, "mx1"), Setting::at(store.port, "mx2"));
    let (a, b) = (of_a.start(), of_b.start());
    a.joined(2).await;
    b.joined(2).await;
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    let mut at_b = b.subscribe();
    let mut count = 0;
    // A line is added, the file is copied from one to the other, the oldest line is removed.
    let mut sealing = 1;
    for secrets in [vec![1, 2], vec![1, 2, 3], vec![2, 3, 4], vec![3, 4, 5]] {
        let stored = || {
            let fields = store.command(&["HKEYS", "usher:mail:k"]);
            fields.lines().map(|field| store.command(&["HGET", "usher:mail:k", field])).collect::<Vec<_>>()
        };
        let before = stored();
        for of_node in [true, false] {
            let (setting, node) = if of_node { (&mut of_a, &a) } else { (&mut of_b, &b) };
            setting.secrets.clone_from(&secrets);
            node.update(setting.files(), 1);
            a.publish(secrets.clone());
            assert_eq!(&*received(&mut at_b).await.body, &secrets[..]);
            count += 2;
            assert_eq!((a.count("bob").await, b.count("bob").await), (Ok(count - 1), Ok(count)));
            until("a beat", || a.is_up() && b.is_up() && a.members().len() == 2 && b.members().len() == 2).await;
        }
        // A line is removed only once nothing is sealed by it.
        if std::mem::replace(&mut sealing, secrets[secrets.len() - 2]) != secrets[secrets.len() - 2] {
            until("all is sealed again", || stored().iter().all(|sealed| !before.contains(sealed))).await;
            // Each member's own record, too: it is written with each heartbeat.
            let records = || {
                let keys = store.command(&["KEYS", "usher:mail:m:*"]);
                keys.lines().map(|key| store.command(&["GET", key])).collect::<Vec<_>>()
            };
            let old = records();
            assert_eq!(old.len(), 2);
            until("both records are new", || records().iter().all(|record| !old.contains(record))).await;
        }
    }
    assert_eq!((a.all_rejected(), b.all_rejected()), (0, 0));
    // One that has only the newest lines finds names and marks.
    let mut of_c = Setting::at(store.port, "mx3");
    of_c.secrets = vec![3, 4, 5];
    let c = of_c.start();
    c.joined(3).await;
    assert_eq!(c.count("bob").await, Ok(count + 1));
    until("the mark", || c.marks().borrow().get(MarkKind::Drain, b"server3").is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_configuration_is_counted() {
    let store = Redis::start();
    let mut of_b = Setting::at(store.port, "mx2");
    of_b.config = 2;
    let (a, b) = (joined(store.port, "mx1", 1).await, of_b.start());
    b.joined(2).await;
    a.joined(2).await;
    let differing = |node: &Node| node.metrics.fleet_config_mismatch.with_label_values(&[] as &[&str]).get();
    assert_eq!((differing(&a), differing(&b)), (1, 1));
    b.update(of_b.files(), 1);
    until("the same", || differing(&a) == 0 && differing(&b) == 0).await;
}
