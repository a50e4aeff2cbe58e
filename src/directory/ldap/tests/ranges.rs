//! Values that a server returns in pieces, as Active Directory does.

use super::*;

/// A server whose alice has `count` groups, of `width` bytes each, in pieces of `size`; `count` - 1 is the last.
async fn pieces(count: usize, width: usize, size: usize) -> Scripted {
    Scripted::start(move |seen| {
        let LdapOp::SearchRequest(request) = &seen.op else { return alice(seen) };
        let asked = request.attrs.iter().find_map(|name| name.strip_prefix("memberOf;range="));
        let first: usize = asked.map_or(0, |range| range.strip_suffix("-*").unwrap().parse().unwrap());
        let end = count.min(first + size);
        let values: Vec<String> = (first..end).map(|n| format!("CN=g{n},{:x>width$}", "")).collect();
        let values: Vec<&[u8]> = values.iter().map(String::as_bytes).collect();
        let range = if end == count {
            format!("memberOf;range={first}-*")
        } else {
            format!("memberOf;range={first}-{}", end - 1)
        };
        let mut attributes: Vec<(&str, &[&[u8]])> = vec![("memberOf", &[]), (&range, &values)];
        if asked.is_none() {
            attributes.push(("mailHost", &[b"server3"]));
        } else {
            assert_eq!((request.base.as_str(), request.attrs.len()), ("uid=alice,dc=x", 1));
        }
        vec![entry("uid=alice,dc=x", &attributes), done(Code::Success)]
    })
    .await
}

fn under(server: &Scripted, find: Find, value: String) -> Under {
    let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], find);
    // All pieces together, on a busy machine.
    (settings.timeout, settings.attempt_timeout) = (TEST_TIME, TEST_TIME);
    settings.allow.attribute = Some("memberOf".to_owned());
    settings.allow.values = [("imap", vec![value])].into();
    Under::test(&settings, Tuning::default())
}

fn group(n: usize, width: usize) -> String {
    format!("cn=g{n},{:x>width$}", "")
}

#[tokio::test]
async fn value_in_the_last_piece_allows() {
    for find in [searching(None), templated(None)] {
        let server = pieces(3_100, 0, 1_500).await;
        let identity = under(&server, find, group(3_099, 0)).alice().await.unwrap();
        let entry = identity.entry();
        assert_eq!((entry.allowed.as_slice(), &entry.fault), (&[group(3_099, 0)][..], &None));
        assert_eq!(entry.mail_hosts, ["server3"]);
        assert_eq!(server.searches().len(), 3);
    }
    // The same version, however it comes.
    let (whole, parts) = (pieces(100, 1_100, 1_500).await, pieces(100, 1_100, 30).await);
    let whole = under(&whole, searching(None), group(7, 1_100)).look_up("alice").await.0.unwrap();
    assert_eq!(whole, under(&parts, searching(None), group(7, 1_100)).look_up("alice").await.0.unwrap());
}

#[tokio::test]
async fn entry_beyond_the_bounds_allows_nothing() {
    // Values, bytes, pieces.
    for (count, width, size) in [(5_001, 0, 1_500), (1_100, 1_000, 500), (100, 0, 1)] {
        let server = pieces(count, width, size).await;
        let identity = under(&server, searching(None), group(0, width)).alice().await.unwrap();
        let entry = identity.entry();
        assert_eq!(entry.fault.as_deref(), Some(&EntryFault::TooLarge("memberOf".into())));
        assert_eq!(entry.allowed, Vec::<String>::new(), "not even what was read");
        assert!(server.searches().len() <= 64);
    }
    let server = pieces(5_000, 0, 1_500).await;
    assert_eq!(under(&server, searching(None), group(0, 0)).alice().await.unwrap().entry().fault, None);
}

/// What is read of an entry in part is no verdict.
#[tokio::test]
async fn missing_piece_is_an_outage() {
    type Answer = fn() -> Vec<ScriptedReply>;
    let answers: [Answer; 5] = [
        || vec![done(Code::OperationsError)],
        || vec![done(Code::Success)],
        || vec![entry("uid=alice,dc=x", &[]), done(Code::Success)],
        || vec![entry("uid=alice,dc=x", &[("memberOf;range=0-*", &[b"cn=g0"])]), done(Code::Success)],
        || vec![entry("uid=anna,dc=x", &[("memberOf;range=2-*", &[b"cn=g0"])]), done(Code::Success)],
    ];
    for answer in answers {
        let server = Scripted::start(move |seen| match &seen.op {
            LdapOp::SearchRequest(request) if request.attrs.len() > 1 => {
                let groups: &[&[u8]] = &[b"cn=g0", b"cn=g1"];
                vec![entry("uid=alice,dc=x", &[("memberOf;range=0-1", groups)]), done(Code::Success)]
            }
            LdapOp::SearchRequest(_) => answer(),
            _ => alice(seen),
        })
        .await;
        let result = under(&server, searching(None), "cn=g0".to_owned()).alice().await;
        assert!(matches!(result, Err(DirectoryError::Unavailable(_))), "{result:?}");
    }
}

/// Of other attributes no more is read, and a part is not taken for the whole.
#[tokio::test]
async fn part_of_another_attribute_is_a_fault() {
    let answer = vec![entry("uid=alice,dc=x", &[("mailHost;range=0-0", &[b"server3"])]), done(Code::Success)];
    let server = Scripted::start(first(vec![answer], is_search)).await;
    let found = Under::new(&[&server], searching(None)).look_up("alice").await.0.unwrap();
    assert_eq!(found.fault.as_deref(), Some(&EntryFault::TooManyValues("mailHost".into())));
    assert_eq!(server.searches().len(), 1);
}
