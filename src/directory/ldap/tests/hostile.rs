//! Hostile servers: replies that are malformed, that belong to another request, or that never end.

use super::*;
use crate::proto::ldap::ber::{digits, wrapped};

/// An LDAPMessage around an operation.
fn message(id: i32, operation: &[u8]) -> Vec<u8> {
    wrapped(0x30, &[&wrapped(0x02, &[&digits(u32::try_from(id).unwrap())]), operation])
}

/// An LDAPResult whose code has this content.
fn result(tag: u8, code: &[u8]) -> Vec<u8> {
    wrapped(tag, &[&wrapped(0x0a, &[code]), b"\x04\x00\x04\x00"])
}

/// `30 84 <length>` in itself, 20,000 times.
fn nested() -> Vec<u8> {
    let levels = 20_000_u32;
    (1..=levels).rev().flat_map(|level| [&[0x30, 0x84][..], &((level - 1) * 6).to_be_bytes()].concat()).collect()
}

/// A SearchResultEntry with the nested elements as its attributes: its beginning is an LDAPMessage.
fn nested_within(id: i32, tag: u8) -> Vec<u8> {
    message(id, &wrapped(tag, &[b"\x04\x00", &nested()]))
}

fn is_malformed(result: Result<impl std::fmt::Debug, DirectoryError>) -> bool {
    matches!(cause(result), UnavailableCause::Malformed { .. })
}

#[tokio::test]
async fn nested_replies_end_no_process() {
    for (what, bytes) in
        [("from the first byte", (|_, _| nested()) as fn(i32, u8) -> Vec<u8>), ("in an answer", nested_within)]
    {
        // As the reply to a search, and as the reply to a bind.
        let searched = Scripted::start(move |seen: &Recorded| vec![ScriptedReply::Raw(bytes(seen.id, 0x64))]).await;
        let under = Under::new(&[&searched], searching(None));
        assert!(is_malformed(under.alice().await), "{what}");
        let script = move |seen: &Recorded| match seen.bind() {
            Some(_) => vec![ScriptedReply::Raw(bytes(seen.id, 0x61))],
            None => alice(seen),
        };
        let bound = Scripted::start(script).await;
        let under = Under::new(&[&bound], searching(None));
        assert!(is_malformed(under.alice().await), "{what}");
        assert_eq!(under.count(&bound, "bind", "malformed"), 1);
        // It is marked down at once: no entry is the cause.
        assert!(!under.ldap.server(0).health().is_in_use(), "{what}");
    }
}

#[tokio::test]
async fn invalid_result_code_is_no_success() {
    for code in [&b""[..], b"\x01\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00", b"\x05\x01\x00\x00\x00\x00"] {
        let script = move |seen: &Recorded| match seen.bind() {
            Some(_) => vec![ScriptedReply::Raw(message(seen.id, &result(0x61, code)))],
            None => alice(seen),
        };
        let server = Scripted::start(script).await;
        assert!(is_malformed(Under::new(&[&server], searching(None)).alice().await), "bind {code:?}");
        let script = move |seen: &Recorded| match seen.bind() {
            None => vec![ScriptedReply::Raw(message(seen.id, &result(0x65, code)))],
            Some(_) => alice(seen),
        };
        let server = Scripted::start(script).await;
        assert!(is_malformed(Under::new(&[&server], searching(None)).alice().await), "search {code:?}");
        assert!(is_malformed(Under::new(&[&server], templated(None)).alice().await), "read {code:?}");
    }
}

#[tokio::test]
async fn only_a_bind_response_with_its_id_answers_a_bind() {
    let ok = |tag| move |id| message(id, &result(tag, b"\x00"));
    type Bytes = Box<dyn Fn(i32) -> Vec<u8> + Send + Sync>;
    let answers: Vec<(&str, Bytes)> = vec![
        ("the next id", Box::new(move |id| ok(0x61)(id + 1))),
        ("the id of nothing", Box::new(move |_| ok(0x61)(0))),
        ("the id before", Box::new(move |_| ok(0x61)(127))),
        ("the end of a search", Box::new(ok(0x65))),
        ("an extended response", Box::new(ok(0x78))),
        ("an answer to what usher never asks", Box::new(ok(0x67))),
        ("another id, and then the right one", Box::new(move |id| [ok(0x61)(id + 1), ok(0x61)(id)].concat())),
        ("an entry", Box::new(|id| message(id, b"\x64\x04\x04\x00\x30\x00"))),
    ];
    for (what, bytes) in answers {
        let script = move |seen: &Recorded| match seen.bind() {
            Some(_) => vec![ScriptedReply::Raw(bytes(seen.id))],
            None => alice(seen),
        };
        let server = Scripted::start(script).await;
        let under = Under::new(&[&server], searching(None));
        assert!(is_malformed(under.alice().await), "{what}");
        assert_eq!(server.binds().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn unsolicited_message_ends_a_connection_before_its_next_bind() {
    let success = |id| message(id, &result(0x61, b"\x00"));
    let script = move |seen: &Recorded| match seen.bind() {
        // The reply to the next bind, before it is sent.
        Some((_, "wrong")) => {
            vec![ScriptedReply::Raw([message(seen.id, &result(0x61, b"\x31")), success(seen.id + 1)].concat())]
        }
        Some(_) => bound(Code::InvalidCredentials),
        None => alice(seen),
    };
    let server = Scripted::start(script).await;
    let under = Under::new(&[&server], searching(None));
    for password in ["wrong", "other"] {
        let refused = under.login("alice", password).await.0;
        assert!(matches!(refused, Err(DirectoryError::InvalidCredentials { .. })), "{refused:?}");
    }
    let connections: Vec<_> = server.binds().into_iter().map(|(connection, ..)| connection).collect();
    assert_ne!(connections[0], connections[1]);
}

#[tokio::test]
async fn notice_of_disconnection_ends_the_connection() {
    let name = b"1.3.6.1.4.1.1466.20036";
    let result = [&b"\x0a\x01\x34\x04\x00\x04\x04bye!"[..], &wrapped(0x8a, &[name])].concat();
    // As in the standard, and as Active Directory sends it: with the name after the operation.
    let usual = message(0, &wrapped(0x78, &[&result]));
    let odd = message(0, &[wrapped(0x78, &[b"\x0a\x01\x34\x04\x00\x04\x00"]), wrapped(0x8a, &[name])].concat());
    for notice in [usual, odd] {
        let said = notice.clone();
        let script = move |seen: &Recorded| match seen.bind() {
            Some(_) => vec![ScriptedReply::Raw(said.clone())],
            None => alice(seen),
        };
        let server = Scripted::start(script).await;
        let UnavailableCause::Connection { fault, .. } = cause(Under::new(&[&server], searching(None)).alice().await)
        else {
            panic!("a broken connection");
        };
        let text = fault.to_string();
        assert!(text.starts_with("server closed the connection with result 52 (unavailable)"), "{text}");
        let server = Scripted::start(move |_: &Recorded| vec![ScriptedReply::Raw(notice.clone())]).await;
        let UnavailableCause::Connection { fault, .. } = cause(Under::new(&[&server], searching(None)).alice().await)
        else {
            panic!("a broken connection");
        };
        let text = fault.to_string();
        assert!(text.starts_with("server closed the connection with result 52 (unavailable)"), "{text}");
    }
}

#[tokio::test]
async fn message_beyond_the_limit_is_refused_by_its_header() {
    // 2 GiB, and silence: the rest is not waited for.
    for header in [&b"\x30\x84\x7f\xff\xff\xff\x02\x01\x01"[..], b"\x30\x83\x10\x00\x00\x02\x01"] {
        for bind in [false, true] {
            let script = move |seen: &Recorded| match seen.bind() {
                None if bind => alice(seen),
                _ => vec![ScriptedReply::Raw(header.to_vec())],
            };
            let server = Scripted::start(script).await;
            let under = Under::new(&[&server], searching(None));
            let began = Instant::now();
            assert!(is_malformed(under.alice().await));
            assert!(began.elapsed() < Duration::from_millis(1_200), "{:?}", began.elapsed());
        }
    }
    // A message within a larger configured limit is read.
    let long = vec![b'x'; 300_000];
    let answer = vec![entry("uid=alice,dc=x", &[("sn", &[&long]), ("mailHost", &[b"server3"])]), done(Code::Success)];
    for (most, expected) in [(200_000, false), (400_000, true)] {
        for find in [searching(None), templated(None)] {
            let server = Scripted::start(first(vec![answer.clone(); 9], is_search)).await;
            let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], find);
            settings.max_message = most;
            let under = Under::test(&settings, Tuning::default());
            let result = under.alice().await;
            assert_eq!(result.is_ok(), expected, "{result:?}");
            // The cause may be one entry: another server, or another user, is tried next.
            assert!(under.ldap.server(0).health().is_in_use());
        }
    }
}

#[tokio::test]
async fn dripping_server_is_bounded_by_the_attempt_timeout() {
    // Each byte resets a read timeout, and none is the last.
    let drip = |bytes: Vec<u8>| -> Vec<ScriptedReply> {
        bytes
            .into_iter()
            .flat_map(|byte| [ScriptedReply::Raw(vec![byte]), ScriptedReply::Pause(Duration::from_millis(20))])
            .collect()
    };
    let long = message(1, &wrapped(0x61, &[b"\x0a\x01\x00\x04\x00", &wrapped(0x04, &[&[b'x'; 2_000]])]));
    for bind in [false, true] {
        let long = long.clone();
        let script = move |seen: &Recorded| match seen.bind() {
            None if bind => alice(seen),
            _ => drip(long.clone()),
        };
        let server = Scripted::start(script).await;
        let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
        settings.attempt_timeout = Duration::from_millis(300);
        let under = Under::test(&settings, Tuning::default());
        let began = Instant::now();
        assert_eq!(cause(under.alice().await), UnavailableCause::Timeout);
        assert!(began.elapsed() < Duration::from_millis(2_700), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn server_recovers_after_a_malformed_reply() {
    let odd = Arc::new(AtomicBool::new(true));
    let is_odd = odd.clone();
    let script = move |seen: &Recorded| match is_odd.load(Ordering::SeqCst) {
        true => vec![ScriptedReply::Raw(nested())],
        false => alice(seen),
    };
    let (server, standby) = (Scripted::start(script).await, Scripted::start(alice).await);
    let servers = [&server, &standby].map(|server| server.server(LdapScheme::Ldap, "127.0.0.1"));
    let tuning = Tuning { down: Duration::from_millis(50), ..Tuning::default() };
    let under = Under::test(&settings(servers.to_vec(), searching(None)), tuning);
    under.alice().await.unwrap();
    within(async {
        while under.ldap.server(0).health().is_in_use() {
            under.ldap.run_due();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(under.count(&server, "search", "malformed") > 0);
    odd.store(false, Ordering::SeqCst);
    within(async {
        while !under.ldap.server(0).health().is_in_use() {
            under.ldap.run_due();
            under.alice().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn lag_memory_is_bounded_by_the_entry_limit() {
    // Another entry for each that is read, as long as the client reads.
    let entries = |copies: usize| {
        move |seen: &Recorded| match seen.base() {
            Some("" | "dc=x") => {
                let csn = &b"20261126140005.000000Z#000000#001#000000"[..];
                let one = entry("dc=x", &[("namingContexts", &[b"dc=x"]), ("contextCSN", &[csn])]);
                let mut replies = vec![one; copies];
                replies.push(done(Code::Success));
                replies
            }
            _ => alice(seen),
        }
    };
    for (copies, is_known) in [(1, true), (100, false)] {
        let one = Scripted::start(entries(copies)).await;
        let two = Scripted::start(entries(copies)).await;
        let servers = [&one, &two].map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).into();
        let mut settings = settings(servers, searching(None));
        settings.watch.mode = config::WatchMode::Auto;
        let under = Under::test(&settings, Tuning::default());
        within(under.ldap.probe()).await.unwrap();
        let known = [&one, &two].map(|server| under.ldap.lag(&server.url()).is_some());
        assert_eq!(known.contains(&true), is_known, "{copies}");
    }
}
