//! Whoever owns the store: what it can do, and what it cannot.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::super::seal::Purpose;
use super::*;

/// What is sent to the channel of all members, as it is sent.
fn recorded(store: &Redis, channel: &str, what: impl FnOnce()) -> Vec<u8> {
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", store.port)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes()).unwrap();
    let (mut read, mut buffer) = (Vec::new(), [0; 65_536]);
    let confirmation = format!("subscribe\r\n${}\r\n{channel}\r\n:1\r\n", channel.len());
    let mut fill = |read: &mut Vec<u8>| {
        let length = socket.read(&mut buffer).unwrap();
        read.extend(&buffer[..length]);
    };
    while !String::from_utf8_lossy(&read).contains(&confirmation) {
        fill(&mut read);
    }
    read.clear();
    what();
    let start = format!("$7\r\nmessage\r\n${}\r\n{channel}\r\n$", channel.len());
    loop {
        fill(&mut read);
        let found = read.windows(start.len()).position(|part| part == start.as_bytes());
        let Some(rest) = found.map(|at| &read[at + start.len()..]) else { continue };
        let Some(end) = rest.iter().position(|byte| *byte == b'\r') else { continue };
        let length: usize = String::from_utf8_lossy(&rest[..end]).parse().unwrap();
        if let Some(body) = rest.get(end + 2..end + 2 + length) {
            return body.to_vec();
        }
    }
}

/// Publishes bytes, which redis-cli would not take as arguments.
fn inject(store: &Redis, channel: &str, body: &[u8]) {
    raw(store, &[b"PUBLISH", channel.as_bytes(), body]);
}

/// Runs a command of any bytes.
fn raw(store: &Redis, words: &[&[u8]]) {
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", store.port)).unwrap();
    let mut command = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        command.extend(format!("${}\r\n", word.len()).as_bytes());
        command.extend(*word);
        command.extend(b"\r\n");
    }
    socket.write_all(&command).unwrap();
    let mut reply = [0; 64];
    let length = socket.read(&mut reply).unwrap();
    assert_ne!(reply.first(), Some(&b'-'), "{}", String::from_utf8_lossy(&reply[..length]));
}

const CHANNEL: &str = "usher:mail:c";

#[tokio::test(flavor = "multi_thread")]
async fn forged_replayed_and_garbage_messages_do_nothing_and_are_counted() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    let mut at_b = b.subscribe();
    let sealed = recorded(&store, CHANNEL, || a.publish(b"hello".to_vec()));
    assert_eq!(&*received(&mut at_b).await.body, b"hello");
    let counted = async |reason: FleetRejection, body: &[u8], channel: &str| {
        let before = b.rejected(reason);
        inject(&store, channel, body);
        until(reason.label(), || b.rejected(reason) == before + 1).await;
    };
    counted(FleetRejection::Replayed, &sealed, CHANNEL).await;
    counted(FleetRejection::Garbage, b"", CHANNEL).await;
    counted(FleetRejection::Garbage, b"hello", CHANNEL).await;
    counted(FleetRejection::UnknownSecret, &[0; 100], CHANNEL).await;
    let mut forged = sealed.clone();
    *forged.last_mut().unwrap() ^= 1;
    counted(FleetRejection::Forged, &forged, CHANNEL).await;
    // Good for one channel, and sent to another.
    counted(FleetRejection::Forged, &sealed, &format!("{CHANNEL}:{}", b.id())).await;
    // A process that was not there when it was sent.
    let c = joined(store.port, "mx3", 3).await;
    let mut at_c = c.subscribe();
    // It may not listen yet.
    until("refused", || {
        inject(&store, CHANNEL, &sealed);
        c.rejected(FleetRejection::NotAddressed) > 0
    })
    .await;
    // Another secret, the same name.
    let mut stranger = Setting::at(store.port, "mx4");
    stranger.secrets = vec![9];
    let stranger = stranger.start();
    until("counted", || a.rejected(FleetRejection::UnknownSecret) > 0).await;
    assert!(at_b.try_recv().is_err() && at_c.try_recv().is_err());
    until("as before", || a.is_up() && b.is_up() && a.members().len() == 3).await;
    assert!(stranger.members().len() <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_message_is_stale() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    let channel = a.channel();
    let time = a.store_time().unwrap() - 31_000_000;
    let envelope = |from, number, time| Envelope {
        kind: Kind::Notice,
        from,
        number,
        time,
        question: 0,
        addressed: vec![b.id()],
        body: b"hello".to_vec(),
    };
    let send = |envelope: Envelope| inject(&store, CHANNEL, &envelope.seal(&a.files.load().sealer, &channel).unwrap());
    send(envelope(a.id(), 1_000, time));
    until("stale", || b.rejected(FleetRejection::Stale) == 1).await;
    // Of a process that is not there: it waits for a beat, and no longer.
    send(envelope(MemberId::random(), 1_001, time + 31_000_000));
    until("unknown", || b.rejected(FleetRejection::UnknownMember) == 1).await;
    assert_eq!(b.all_rejected(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_marks_kick_nobody_and_an_old_drain_lasts_until_the_next_beat() {
    let store = Redis::start();
    let (a, b) = (joined(store.port, "mx1", 1).await, joined(store.port, "mx2", 2).await);
    a.joined(2).await;
    let kicks = |node: &Node| node.marks().borrow().events_after(0).count();
    let drained = |node: &Node| node.marks().borrow().get(MarkKind::Drain, b"server3").map(|mark| mark.body.to_vec());
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    a.set_mark(MarkKind::Kick, &[], b"one", None);
    until("both", || kicks(&b) == 1 && drained(&b).is_some()).await;
    let old: Vec<_> = ["k", "kt", "ke"].map(|key| (key, dump(&store, key))).into();
    a.set_mark(MarkKind::Drain, b"server3", b"off", None);
    until("undrained", || drained(&b).as_deref() == Some(b"off")).await;
    drop(a);
    until("gone", || b.members().len() == 1).await;
    // Everything as it was, and all clocks as well: a new process reads it, b is kicked no second time.
    let put_back = || old.iter().for_each(|(key, dump)| restore(&store, key, dump));
    put_back();
    let c = joined(store.port, "mx3", 2).await;
    until("undrained again", || drained(&c).as_deref() == Some(b"off")).await;
    put_back();
    until("undrained again", || {
        b.beat_now.notify_one();
        store.command(&["HLEN", "usher:mail:k"]) != "0" && drained(&b).as_deref() == Some(b"off")
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!((kicks(&b), kicks(&c)), (1, 0));
    assert_eq!((drained(&b), drained(&c)), (Some(b"off".to_vec()), Some(b"off".to_vec())));
}

/// A key as the store would keep it in a file.
fn dump(store: &Redis, key: &str) -> Vec<u8> {
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", store.port)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.write_all(format!("DUMP usher:mail:{key}\r\n").as_bytes()).unwrap();
    let (mut read, mut buffer) = (Vec::new(), [0; 65_536]);
    loop {
        let length = socket.read(&mut buffer).unwrap();
        read.extend(&buffer[..length]);
        let Some(end) = read.windows(2).position(|part| part == b"\r\n") else { continue };
        let length: usize = String::from_utf8_lossy(&read[1..end]).parse().unwrap();
        if let Some(body) = read.get(end + 2..end + 2 + length) {
            return body.to_vec();
        }
    }
}

fn restore(store: &Redis, key: &str, dump: &[u8]) {
    raw(store, &[b"RESTORE", format!("usher:mail:{key}").as_bytes(), b"0", dump, b"REPLACE"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_every_key_does_nothing_and_is_replaced() {
    let store = Redis::start();
    let a = joined(store.port, "mx1", 1).await;
    a.set_mark(MarkKind::Drain, b"server3", b"on", None);
    until("written", || store.command(&["HLEN", "usher:mail:k"]) == "2").await;
    let fields: Vec<String> = store.command(&["HKEYS", "usher:mail:k"]).lines().map(str::to_owned).collect();
    for field in fields.iter().map(String::as_str).chain(["other"]) {
        store.command(&["HSET", "usher:mail:k", field, "9999999999999999 253402300799000 garbage"]);
        store.command(&["ZADD", "usher:mail:kt", "9999999999999999", field]);
    }
    let now = (a.store_time().unwrap() / 1_000).to_string();
    for index in 0..20 {
        let id = format!("{index:016x}");
        store.command(&["ZADD", "usher:mail:m", &now, &id]);
        store.command(&["SET", &format!("usher:mail:m:{id}"), "garbage"]);
    }
    store.command(&["ZADD", "usher:mail:m", &now, "no id"]);
    store.command(&["SET", "usher:mail:m:no id", "garbage"]);
    // From a clock that was ahead: it takes no place.
    store.command(&["ZADD", "usher:mail:m", "9999999999999", "0"]);
    until("counted", || a.rejected(FleetRejection::Garbage) > 20).await;
    until("removed", || store.command(&["ZSCORE", "usher:mail:m", "0"]).is_empty()).await;
    for field in &fields {
        until("replaced", || !store.command(&["HGET", "usher:mail:k", field]).ends_with("garbage")).await;
    }
    assert!(a.is_up() && a.members().len() == 1);
    let b = joined(store.port, "mx2", 2).await;
    until("the mark", || b.marks().borrow().get(MarkKind::Drain, b"server3").is_some()).await;
    // Keys of another type: the beat fails, and nothing else.
    store.command(&["SET", "usher:mail:k", "text"]);
    store.command(&["SET", "usher:mail:m", "text"]);
    until("down", || !a.is_up()).await;
    assert_eq!(a.count("bob").await, Err(Unavailable::Down));
    store.command(&["FLUSHALL"]);
    a.joined(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_that_sends_without_an_end_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, sent) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for answer in [&b"$2000000000\r\n"[..], b"*100000000\r\n", b"!-1\r\n", b"%-1\r\n", b"+", b"*1\r\n*1\r\n"] {
            let (mut socket, _) = listener.accept().unwrap();
            let mut total = socket.write(answer).unwrap_or_default();
            while let Ok(length) = socket.write(&[b'_'; 65_536]) {
                total += length;
                if total > 64 << 20 {
                    break;
                }
            }
            sender.send(total).unwrap();
        }
    });
    let setting = Setting::at(port, "mx1");
    for _ in 0..6 {
        let opened = Connection::open(&address(port), &setting.settings, &setting.files(), &[], None).await;
        assert!(opened.is_err());
        let total = tokio::task::block_in_place(|| sent.recv_timeout(LIMIT)).unwrap();
        // What the kernel holds is not usher's memory.
        assert!(total < 48 << 20, "{total}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn record_that_was_kept_brings_no_dead_member_back() {
    let store = Redis::start();
    let a = joined(store.port, "mx1", 1).await;
    let id = MemberId::random();
    let member = Member {
        id,
        node: "mx2".into(),
        version: "1".into(),
        config: 1,
        counts: Counts::from([("users".into(), 1_000_000_000)]),
    };
    let put = |time: u64| {
        let record =
            a.files.load().sealer.seal(Purpose::Member, id.to_string().as_bytes(), &member.encode(time)).unwrap();
        raw(&store, &[b"SET", format!("usher:mail:m:{id}").as_bytes(), &record]);
        store.command(&["ZADD", "usher:mail:m", "9999999999999", &id.to_string()]);
        store.command(&["ZADD", "usher:mail:m", &(a.store_time().unwrap() / 1_000).to_string(), &id.to_string()]);
        a.beat_now.notify_one();
    };
    put(a.store_time().unwrap() - 31_000_000);
    until("refused", || a.rejected(FleetRejection::Stale) > 0).await;
    assert_eq!((a.members().len(), a.know("users", 3)), (1, 3));
    put(a.store_time().unwrap() + 40_000_000);
    until("refused", || a.rejected(FleetRejection::Stale) > 1).await;
    assert_eq!(a.members().len(), 1);
    put(a.store_time().unwrap());
    until("taken", || a.members().len() == 2).await;
    assert_eq!(a.know("users", 3), 1_000_000_000);
}

/// A store that answers every beat, under a clock of the year 10000.
fn store_of_another_age() -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, beats) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&beats);
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                let mut reader = std::io::BufReader::new(socket.try_clone().unwrap());
                let mut socket = socket;
                while let Some(words) = command(&mut reader) {
                    let time = "$12\r\n253402300801\r\n$1\r\n0\r\n";
                    let answer = match words[0].to_ascii_uppercase().as_slice() {
                        b"HELLO" => {
                            "%2\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n".to_owned()
                        }
                        b"TIME" => format!("*2\r\n{time}"),
                        b"EVALSHA" if words.len() == 18 => {
                            counted.fetch_add(1, Ordering::Relaxed);
                            format!("*7\r\n{time}$8\r\nepoch123\r\n:1\r\n$3\r\n0 0\r\n*0\r\n*0\r\n")
                        }
                        _ => "+OK\r\n".to_owned(),
                    };
                    if socket.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, beats)
}

fn command(reader: &mut impl std::io::BufRead) -> Option<Vec<Vec<u8>>> {
    let mut line = String::new();
    let mut number = |reader: &mut dyn std::io::BufRead| {
        line.clear();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        line.trim_end().get(1..)?.parse::<usize>().ok()
    };
    let count = number(reader)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(reader)? + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Some(words)
}

#[tokio::test(flavor = "multi_thread")]
async fn store_of_another_age_ends_no_mark() {
    let (port, beats) = store_of_another_age();
    let node = Setting::at(port, "mx1").start();
    node.set_mark(MarkKind::Drain, b"server3", b"on", None);
    until("beats", || beats.load(Ordering::Relaxed) > 2).await;
    assert!(!node.is_up() && node.marks().borrow().get(MarkKind::Drain, b"server3").is_some());
    assert_eq!(node.store_time(), None);
}
