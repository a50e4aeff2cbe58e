//! Replies of a server and their results: entries, bind results, malformed bytes.

use super::*;
use crate::telemetry::labels::DirectoryOperation;

#[tokio::test]
async fn search_and_bind_give_an_identity() {
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], searching(None));
    let (identity, trace) = under.login("alice", "right").await;
    let identity = identity.unwrap();
    assert_eq!(&*identity.entry().dn, "uid=alice,dc=x");
    assert_eq!(identity.entry().mail_hosts, ["server3"]);
    assert_eq!(identity.entry().logins, ["alice"]);
    assert_eq!(trace.server.as_deref(), Some(&*format!("ldap://127.0.0.1:{}", server.port)));
    assert_eq!(trace.code, Some(0));
    assert!(trace.search.is_some() && trace.bind.is_some());

    let seen = server.seen();
    let LdapOp::SearchRequest(request) = &seen[0].op else { panic!("{seen:?}") };
    assert_eq!(request.base, "dc=x");
    assert_eq!(request.scope, LdapSearchScope::Subtree);
    assert_eq!(request.filter, LdapFilter::Equality("uid".to_owned(), "alice".to_owned()));
    let watched: Vec<String> = super::super::lookup::attributes_of(&settings(Vec::new(), searching(None)))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(request.attrs, watched);
    assert_eq!((request.sizelimit, request.timelimit, request.typesonly), (2, 2, false));
    // Anonymous: no bind before the search, and the bind has its own connection.
    assert_eq!(server.binds(), [(1, "uid=alice,dc=x".to_owned(), "right".to_owned())]);
    assert_eq!(under.count(&server, "search", "0"), 1);
    assert_eq!(under.count(&server, "bind", "0"), 1);
    assert_eq!(under.count(&server, "connect", "0"), 2);
}

#[tokio::test]
async fn bind_and_read_give_an_identity() {
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], templated(None));
    let (identity, trace) = under.login("alice@example.com", "right").await;
    assert_eq!(identity.unwrap().entry().mail_hosts, ["server3"]);
    assert!(trace.search.is_some() && trace.bind.is_some());
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(seen[0].bind(), Some(("uid=alice,dc=x", "right")));
    let LdapOp::SearchRequest(request) = &seen[1].op else { panic!("{seen:?}") };
    assert_eq!((request.base.as_str(), request.scope.clone()), ("uid=alice,dc=x", LdapSearchScope::Base));
    assert_eq!(request.filter, LdapFilter::Present("objectClass".to_owned()));
    assert_eq!(seen[1].connection, seen[0].connection, "the entry is read as the user");
}

#[tokio::test]
async fn wrong_password_is_refused_and_keeps_the_connection() {
    let server = Scripted::start(alice).await;
    for find in [searching(None), templated(None)] {
        let under = Under::new(&[&server], find);
        let (result, trace) = under.login("alice", "wrong").await;
        assert_eq!(
            result,
            Err(DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: Some(Box::default()) })
        );
        assert_eq!(trace.code, Some(49));
        let before = server.connections();
        under.alice().await.unwrap();
        assert_eq!(server.connections(), before, "no new connection for the next user");
    }
}

#[tokio::test]
async fn bind_on_one_server_decides() {
    let (one, two) = (Scripted::start(alice).await, Scripted::start(alice).await);
    let under = Under::new(&[&one, &two], searching(None));
    under.login("alice", "wrong").await.0.unwrap_err();
    assert_eq!(one.binds().len(), 1);
    assert_eq!(two.connections(), 0);
}

#[tokio::test]
async fn entry_count_decides() {
    let one = || entry("uid=alice,dc=x", &[("mailHost", &[b"server3"])]);
    let two = || entry("uid=alice,cn=compat,dc=x", &[]);
    let several = |dns: &[&str]| {
        let dns = dns.iter().map(|dn| (*dn).into()).collect();
        Some(DirectoryError::SeveralEntries { dns, proof: Proof::Missing })
    };
    let both = &["uid=alice,dc=x", "uid=alice,cn=compat,dc=x"][..];
    let cases: Vec<(Vec<ScriptedReply>, Option<DirectoryError>)> = vec![
        (vec![done(Code::Success)], Some(DirectoryError::NoEntry)),
        (vec![reference(), done(Code::Success)], Some(DirectoryError::NoEntry)),
        (vec![one(), two(), done(Code::Success)], several(both)),
        (vec![one(), two(), one(), done(Code::Success)], several(both)),
        (vec![one(), two(), done(Code::SizeLimitExceeded)], several(both)),
        (vec![one(), done(Code::SizeLimitExceeded)], several(&both[..1])),
        // Active Directory sends references with every reply under the root.
        (vec![reference(), one(), reference(), done(Code::Success)], None),
    ];
    for (answer, expected) in cases {
        let server = Scripted::start(first(vec![answer.clone(), answer.clone()], is_search)).await;
        let under = Under::new(&[&server], searching(None));
        assert_eq!(under.look_up("alice").await.0.err(), expected, "{answer:?}");
        assert_eq!(under.alice().await.err(), expected, "{answer:?}");
        assert_eq!(server.binds().len(), usize::from(expected.is_none()), "{answer:?}");
    }
}

#[tokio::test]
async fn indeterminate_result_is_no_refusal() {
    let codes = [
        (Code::Referral, 10),
        (Code::NoSuchObject, 32),
        (Code::InvalidDNSyntax, 34),
        (Code::InsufficentAccessRights, 50),
        (Code::Busy, 51),
        (Code::Unavailable, 52),
        (Code::UnwillingToPerform, 53),
        (Code::Other, 80),
    ];
    for (name, number) in codes {
        let searched = name.clone();
        let server = Scripted::start(first(vec![vec![done(searched)]], is_search)).await;
        let under = Under::new(&[&server], searching(None));
        let (result, trace) = under.login("alice", "right").await;
        assert_eq!(code(result), (DirectoryOperation::Search, number));
        assert_eq!(trace.code, Some(number));

        let server = Scripted::start(first(vec![bound(name.clone())], is_bind)).await;
        let under = Under::new(&[&server], searching(None));
        assert_eq!(code(under.alice().await), (DirectoryOperation::Bind, number));
        // A referral never receives the password.
        assert_eq!(server.binds().len(), 1);

        let server = Scripted::start(first(vec![vec![done(name)]], is_search)).await;
        let under = Under::new(&[&server], templated(None));
        assert_eq!(code(under.alice().await), (DirectoryOperation::Read, number));
    }
}

#[tokio::test]
async fn entry_unreadable_to_the_user_is_no_refusal() {
    let server = Scripted::start(first(vec![vec![done(Code::Success)]], is_search)).await;
    let under = Under::new(&[&server], templated(None));
    assert_eq!(code(under.alice().await), (DirectoryOperation::Read, 0));
}

#[tokio::test]
async fn busy_and_unavailable_go_to_the_next_server_once() {
    for name in [Code::Busy, Code::Unavailable, Code::Other] {
        let always = vec![vec![done(name)]; 9];
        let servers = [
            Scripted::start(first(always.clone(), is_search)).await,
            Scripted::start(first(always, is_search)).await,
            Scripted::start(alice).await,
        ];
        let under = Under::new(&[&servers[0], &servers[2]], searching(None));
        assert_eq!(&*under.alice().await.unwrap().entry().dn, "uid=alice,dc=x");
        let under = Under::new(&[&servers[0], &servers[1], &servers[2]], searching(None));
        let before = servers[2].searches().len();
        cause(under.alice().await);
        assert_eq!(servers[2].searches().len(), before, "two servers are asked, not three");
    }
}

#[tokio::test]
async fn answered_bind_is_not_repeated_on_another_server() {
    for name in [Code::Busy, Code::Unavailable, Code::Other] {
        let unsure = Scripted::start(first(vec![bound(name)], is_bind)).await;
        let next = Scripted::start(alice).await;
        let under = Under::new(&[&unsure, &next], searching(None));
        assert!(matches!(
            cause(under.alice().await),
            UnavailableCause::Result { operation: DirectoryOperation::Bind, .. }
        ));
        assert_eq!((unsure.binds().len(), next.binds().len()), (1, 0));
    }
}

#[tokio::test]
async fn user_input_stays_data_on_the_wire() {
    let nobody = |seen: &Recorded| match seen.bind() {
        Some(_) => bound(Code::InvalidCredentials),
        None => vec![done(Code::Success)],
    };
    for name in ["*", "*)(uid=*", r"a\2a", "(", r"\", "jürgen", "a b", "{login}", "uid=*"] {
        let server = Scripted::start(nobody).await;
        let under = Under::new(&[&server], searching(None));
        assert_eq!(under.look_up(name).await.0, Err(DirectoryError::NoEntry), "{name}");
        let LdapOp::SearchRequest(request) = server.seen()[0].op.clone() else { panic!() };
        assert_eq!(request.filter, LdapFilter::Equality("uid".to_owned(), name.to_owned()));
    }
    let under_dn = async |name: &str| {
        let server = Scripted::start(nobody).await;
        let under = Under::new(&[&server], templated(None));
        under.login(name, "x").await.0.unwrap_err();
        server.binds()[0].1.clone()
    };
    assert_eq!(under_dn("alice,ou=admins").await, r"uid=alice\2cou\3dadmins,dc=x");
    assert_eq!(under_dn("a+cn=b").await, r"uid=a\2bcn\3db,dc=x");
    assert_eq!(under_dn("#x").await, r"uid=\23x,dc=x");
}

#[tokio::test]
async fn bind_requires_name_and_password() {
    let nameless = vec![entry("", &[("mailHost", &[b"server3"])]), done(Code::Success)];
    let server = Scripted::start(first(vec![nameless.clone(), nameless], is_search)).await;
    let under = Under::new(&[&server], searching(None));
    assert!(matches!(cause(under.alice().await), UnavailableCause::Malformed { .. }));
    for password in ["", "a\0b"] {
        assert!(matches!(cause(under.login("alice", password).await.0), UnavailableCause::Connection { .. }));
    }
    assert_eq!(server.binds(), []);
}

#[tokio::test]
async fn name_without_a_required_part_sends_no_request() {
    let server = Scripted::start(alice).await;
    let parts = vec![text("(mail="), TemplatePart::Local, text("@"), TemplatePart::Domain, text(")")];
    let find = Find::Search { service: None, base: "dc=x".to_owned(), filter: Template { parts } };
    let under = Under::new(&[&server], find);
    for name in ["alice", "alice@", "@x"] {
        assert_eq!(under.login(name, "right").await.0, Err(DirectoryError::NoEntry));
        assert_eq!(under.look_up(name).await.0, Err(DirectoryError::NoEntry));
    }
    assert_eq!(server.connections(), 0);
    let query = |name: &str| under.ldap.describe_lookup(&Login::parse(name.as_bytes()).unwrap());
    assert_eq!(query("a(@b"), r"search for (mail=a\28@b) under dc=x");
    assert!(query("alice").starts_with("no lookup:"));
}

#[tokio::test]
async fn attributes_are_matched_in_any_case_and_bounded() {
    async fn read(attributes: &[(&str, &[&[u8]])]) -> Result<Entry, DirectoryError> {
        let answer = vec![entry("uid=alice,dc=x", attributes), done(Code::Success)];
        let server = Scripted::start(first(vec![answer], is_search)).await;
        Under::new(&[&server], searching(None)).look_up("alice").await.0
    }
    let entry = read(&[("MAILHOST", &[b"a"]), ("mailhost;lang-de", &[b"b"]), ("Uid", &[b"c"]), ("sn", &[b"d"])]).await;
    let entry = entry.unwrap();
    assert_eq!((entry.mail_hosts, entry.logins), (vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]));

    let entry = read(&[("mailHost", &[b"server3\xff"])]).await.unwrap();
    assert_eq!(entry.mail_hosts, ["server3\u{fffd}"], "not UTF-8 matches nothing");
    assert_eq!(read(&[]).await.unwrap().mail_hosts, Vec::<String>::new());

    let long = vec![b'x'; 1_025];
    let found = read(&[("MAILHOST", &[&long])]).await.unwrap();
    assert_eq!(found.fault, Some(Box::new(EntryFault::LongValue("mailHost".into()))));
    assert_eq!(found.mail_hosts, [""], "nothing that is cut, and not without the attribute");
    let many = vec![&b"x"[..]; 65];
    let found = read(&[("uid", &many)]).await.unwrap();
    assert_eq!(found.fault, Some(Box::new(EntryFault::TooManyValues("uid".into()))));
    let sound = read(&[("uid", &many[..64]), ("sn", &many)]).await.unwrap();
    assert_eq!((sound.logins.len(), sound.fault), (64, None));
}

#[tokio::test]
async fn silent_server_costs_one_attempt_and_is_marked_down() {
    let (silent, good) = (Scripted::start(|_| Vec::new()).await, Scripted::start(alice).await);
    let servers = vec![silent.server(LdapScheme::Ldap, "127.0.0.1"), good.server(LdapScheme::Ldap, "127.0.0.1")];
    let mut settings = settings(servers, searching(None));
    settings.attempt_timeout = Duration::from_millis(200);
    let under = Under::test(&settings, Tuning { down: Duration::from_secs(600), ..Tuning::default() });
    let started = Instant::now();
    under.alice().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200));
    for _ in 0..5 {
        under.ldap.run_due();
        under.alice().await.unwrap();
    }
    assert_eq!(under.count(&silent, "search", "timeout"), 1, "it is down");
    // The deciding probe times out too.
    until(|| under.count(&silent, "read", "timeout") == 1).await;
    until(|| silent.open() == 0).await;
    assert_eq!(under.metrics.directory_failovers.with_label_values(&["default", &silent.url()]).get(), 1);
}

#[tokio::test]
async fn malformed_reply_is_an_unavailable_directory() {
    type Bytes = fn(u8) -> Vec<u8>;
    let answers: [(&str, Bytes); 11] = [
        ("not LDAP at all", |_| [&b"HTTP/1.1 400 Bad Request\r\n"[..], &[b'x'; 200]].concat()),
        ("no sequence", |_| vec![0x04, 0x02, 0x61, 0x62]),
        ("an empty sequence (the decoder panics)", |_| vec![0x30, 0x00]),
        ("no message ID (the decoder panics)", |_| vec![0x30, 0x02, 0x65, 0x00]),
        ("a bind response to a search (the driver panics)", |id| {
            vec![0x30, 0x0c, 0x02, 0x01, id, 0x61, 0x07, 0x0a, 0x01, 0x00, 0x04, 0x00, 0x04, 0x00]
        }),
        ("a result without a code (the driver panics)", |id| vec![0x30, 0x05, 0x02, 0x01, id, 0x65, 0x00]),
        ("a primitive result (the driver panics)", |id| vec![0x30, 0x06, 0x02, 0x01, id, 0x45, 0x01, 0x00]),
        ("an entry without anything", |id| vec![0x30, 0x05, 0x02, 0x01, id, 0x64, 0x00]),
        ("an entry whose attributes are a string", |id| {
            vec![0x30, 0x0b, 0x02, 0x01, id, 0x64, 0x06, 0x04, 0x02, b'x', b'=', 0x04, 0x00]
        }),
        ("an entry whose name is not UTF-8", |id| {
            vec![0x30, 0x0a, 0x02, 0x01, id, 0x64, 0x05, 0x04, 0x01, 0xff, 0x30, 0x00]
        }),
        ("a diagnostic that is not UTF-8", |id| {
            vec![0x30, 0x0d, 0x02, 0x01, id, 0x65, 0x08, 0x0a, 0x01, 0x00, 0x04, 0x00, 0x04, 0x01, 0xff]
        }),
    ];
    for (what, bytes) in answers {
        let script = move |seen: &Recorded| {
            vec![ScriptedReply::Raw(bytes(u8::try_from(seen.id).unwrap())), ScriptedReply::Close]
        };
        let bad = Scripted::start(script).await;
        let under = Under::new(&[&bad], searching(None));
        assert!(matches!(cause(under.alice().await), UnavailableCause::Malformed { .. }), "{what}");
        let good = Scripted::start(alice).await;
        let under = Under::new(&[&bad, &good], searching(None));
        under.alice().await.unwrap();
    }
    for (what, bytes) in &answers[..4] {
        let bytes = *bytes;
        let script = move |seen: &Recorded| {
            vec![ScriptedReply::Raw(bytes(u8::try_from(seen.id).unwrap())), ScriptedReply::Close]
        };
        let bad = Scripted::start(script).await;
        let under = Under::new(&[&bad], templated(None));
        assert!(matches!(cause(under.alice().await), UnavailableCause::Malformed { .. }), "{what}");
    }
    // The reply to a bind is parsed in the calling task: the panic is contained there too.
    let answers: [Bytes; 3] = [
        |id| vec![0x30, 0x05, 0x02, 0x01, id, 0x61, 0x00],
        |id| vec![0x30, 0x06, 0x02, 0x01, id, 0x41, 0x01, 0x00],
        |id| vec![0x30, 0x0d, 0x02, 0x01, id, 0x61, 0x08, 0x0a, 0x01, 0x00, 0x04, 0x01, 0xff, 0x04, 0x00],
    ];
    for bytes in answers {
        let script = move |seen: &Recorded| vec![ScriptedReply::Raw(bytes(u8::try_from(seen.id).unwrap()))];
        let bad = Scripted::start(script).await;
        let under = Under::new(&[&bad], templated(None));
        assert!(matches!(cause(under.alice().await), UnavailableCause::Malformed { .. }));
        assert_eq!(under.count(&bad, "bind", "malformed"), 1);
    }
}

#[tokio::test]
async fn log_lines_and_errors_contain_no_password() {
    meet_the_line(&Scripted::start(|_: &Recorded| vec![ScriptedReply::Close]).await).await;
    let lines = Lines::default();
    let writer = lines.clone();
    // Of everything except the codec of the scripted server, which logs each message at trace.
    let ours = tracing_subscriber::filter::filter_fn(|meta| !meta.target().starts_with("ldap3_proto"));
    let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(output.with_filter(ours));
    let _guard = tracing::subscriber::set_default(subscriber);

    let (_folder, _file, account) = service(b"service-hunter2");
    let answers = [
        vec![ScriptedReply::Close],
        vec![ScriptedReply::Raw(vec![0x30, 0x00])],
        bound(Code::Busy),
        bound(Code::Referral),
    ];
    for answer in answers {
        let server = Scripted::start(first(vec![answer], is_bind)).await;
        for find in [searching(None), searching(account.clone()), templated(None)] {
            let under = Under::new(&[&server], find);
            for _ in 0..2 {
                let reported = format!("{:?}", under.login("alice", "hunter2").await);
                assert!(!reported.contains("hunter2"), "{reported}");
            }
            assert!(!format!("{:?}", under.ldap).contains("hunter2"));
        }
    }
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("directory request failed"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn oversized_entry_is_no_fault_of_the_server() {
    let odd = |seen: &Recorded| match seen.base() {
        Some(_) => vec![entry("uid=alice,dc=x", &[("mailHost", &[&[b'x'; 1_025]])]), done(Code::Success)],
        None => alice(seen),
    };
    let (server, standby) = (Scripted::start(odd).await, Scripted::start(alice).await);
    let under = Under::new(&[&server, &standby], searching(None));
    for _ in 0..3 {
        let identity = under.alice().await.unwrap();
        assert!(identity.entry().fault.is_some(), "the password is right, the entry leads nowhere");
    }
    let wrong = under.login("alice", "wrong").await.0;
    assert!(matches!(wrong, Err(DirectoryError::InvalidCredentials { .. })), "{wrong:?}");
    assert_eq!(under.count(&server, "connect", "0"), 2, "its connections are as good as before");
    assert_eq!(standby.searches().len(), 0, "no other server is asked");
}

#[tokio::test]
async fn entry_with_a_long_dn_is_never_bound() {
    let dn = format!("uid={},dc=x", "a".repeat(9_000));
    let answer = vec![entry(&dn, &[("mailHost", &[b"server3"])]), done(Code::Success)];
    let server = Scripted::start(first(vec![answer], is_search)).await;
    let result = Under::new(&[&server], searching(None)).alice().await;
    let Err(DirectoryError::UnusableEntry { dn, fault, proof }) = result else { panic!("{result:?}") };
    assert_eq!((dn.len(), *fault, proof), (8 * 1_024, EntryFault::LongDn, Proof::Missing));
    assert_eq!(server.binds(), []);
}

/// The read of one DN cannot find several entries.
#[tokio::test]
async fn size_limit_of_a_read_concerns_that_entry() {
    let answer = vec![done(Code::SizeLimitExceeded)];
    let server = Scripted::start(first(vec![answer.clone(), answer], is_search)).await;
    let under = Under::new(&[&server], templated(None));
    for _ in 0..2 {
        let (result, trace) = under.login("alice", "right").await;
        let fault = Box::new(EntryFault::Ended(ServerResult::new(4, "said the server")));
        let expected = DirectoryError::UnusableEntry { dn: "uid=alice,dc=x".into(), fault, proof: Proof::Given };
        assert_eq!((result.err(), trace.code), (Some(expected), Some(4)));
    }
    // With the entry nothing is missing, for the mail host as for a filter.
    let found = || vec![entry("uid=alice,dc=x", &[("mailHost", &[b"server3"])]), done(Code::SizeLimitExceeded)];
    let server = Scripted::start(first(vec![found(), found()], is_search)).await;
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], templated(None));
    settings.allow.filter = Some("(memberOf=cn=mail,dc=x)".to_owned());
    let identity = Under::test(&settings, Tuning::default()).alice().await.unwrap();
    assert_eq!(
        (identity.entry().mail_hosts.as_slice(), identity.entry().in_group),
        (&["server3".to_owned()][..], true)
    );
    // Without an entry the limit of a search is one of the server.
    let server = Scripted::start(first(vec![vec![done(Code::SizeLimitExceeded)]], is_search)).await;
    let result = Under::new(&[&server], searching(None)).alice().await;
    assert_eq!(code(result), (DirectoryOperation::Search, 4));
}

/// What a bind with this result is, by a DN that was made of the name and by one that was found.
#[tokio::test]
async fn bind_result_means_what_the_table_says() {
    let no_password = || DirectoryError::NoPassword { dn: "uid=alice,dc=x".into() };
    for number in [
        1_u8, 2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 21, 32, 33, 34, 36, 48, 50, 51, 52, 53, 54, 64, 80, 99,
    ] {
        for (find, by_name) in [(searching(None), false), (templated(None), true)] {
            let server = Scripted::start(move |seen| match seen.bind() {
                Some(_) => bound_with(seen, number, "NDS error: said", &[]),
                None => alice(seen),
            })
            .await;
            let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], find);
            settings.results.clear();
            let under = Under::test(&settings, Tuning::default());
            let (result, trace) = under.login("alice", "right").await;
            let error = result.unwrap_err();
            assert_eq!((trace.code, trace.message.as_deref()), (Some(number.into()), Some("NDS error: said")));
            match number {
                16 | 48 => assert_eq!(error, no_password(), "{number}"),
                17 | 32 | 34 if by_name => assert_eq!(error, DirectoryError::NoEntry, "{number}"),
                33 | 36 if by_name => assert_eq!(error, alias_error(None, Proof::Missing), "{number}"),
                _ => {
                    assert_eq!(code(Err::<(), _>(error.clone())), (DirectoryOperation::Bind, number.into()));
                    let text = error.to_string();
                    assert!(text.contains(&format!("result {number}")) && text.contains("NDS error: said"), "{text}");
                }
            }
            assert_eq!(server.binds().len(), 1, "one guess is one answered bind");
        }
    }
}

fn alias_error(of: Option<&str>, proof: Proof) -> DirectoryError {
    let fault = Box::new(EntryFault::Alias(of.map(Into::into)));
    DirectoryError::UnusableEntry { dn: "uid=alice,dc=x".into(), fault, proof }
}

/// An alias that matches is no user: it gets no bind, and its target is not read.
#[tokio::test]
async fn alias_is_refused_as_what_it_is() {
    let target: &[u8] = b"uid=anna,dc=x";
    let found = move || {
        let attributes: &[(&str, &[&[u8]])] = &[("aliasedObjectName", &[target]), ("mailHost", &[b"server3"])];
        vec![entry("uid=alice,dc=x", attributes), done(Code::Success)]
    };
    let server = Scripted::start(first(vec![found(), found()], is_search)).await;
    let under = Under::new(&[&server], searching(None));
    let expected = |proof| Err(alias_error(Some("uid=anna,dc=x"), proof));
    assert_eq!(under.look_up("alice").await.0, expected(Proof::Missing));
    let (refused, _) = under.login("alice", "right").await;
    assert_eq!(refused.map(drop), expected(Proof::Missing).map(drop));
    assert!(server.binds().is_empty() && server.searches().iter().all(|base| base == "dc=x"));
    // A server that accepts a bind as the alias has proven the password, and leads nowhere either.
    let server = Scripted::start(first(vec![found()], is_search)).await;
    let (refused, _) = Under::new(&[&server], templated(None)).login("alice", "right").await;
    assert_eq!(refused.map(drop), expected(Proof::Given).map(drop));
}

/// What a server demands of every connection is no missing password of this entry, and no state of its account.
#[tokio::test]
async fn demand_on_the_connection_decides_nothing_about_the_user() {
    for (number, text) in [
        (48_u8, "anonymous bind disallowed"),
        (48, "Anonymous access is not allowed."),
        (53, "Minimum SSF not met."),
        (8, "strong(er) authentication required"),
        (13, "TLS confidentiality required"),
    ] {
        for find in [searching(None), templated(None)] {
            let server = Scripted::start(move |seen| match seen.bind() {
                Some(_) => bound_with(seen, number, text, &[]),
                None => alice(seen),
            })
            .await;
            let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], find);
            settings.results = [(53, AccountState::Disabled)].into();
            let (result, _) = Under::test(&settings, Tuning::default()).login("alice", "right").await;
            assert_eq!(code(result), (DirectoryOperation::Bind, number.into()), "{text}");
        }
    }
}

#[tokio::test]
async fn text_that_repeats_the_password_is_in_no_error() {
    let echo = |seen: &Recorded| match seen.bind() {
        Some((_, password)) => bound_with(seen, 53, &format!("cannot bind with {password}"), &[]),
        None => alice(seen),
    };
    let server = Scripted::start(echo).await;
    let (folder, _file, account) = service(b"service-hunter2");
    for find in [searching(None), templated(None), searching(account)] {
        let reported = format!("{:?}", Under::new(&[&server], find).login("alice", "alice-hunter2").await);
        assert!(reported.contains("text withheld") && !reported.contains("hunter2"), "{reported}");
    }
    drop(folder);
}
