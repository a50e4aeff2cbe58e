//! Active Directory: what has left, numbers of another database, deleted objects that are not shown.

use std::sync::atomic::{AtomicUsize, Ordering};

use ldap3_proto::control::LdapControl;

use super::*;

/// What a controller shows.
#[derive(Clone, Copy)]
struct Controller {
    /// The account may read Deleted Objects.
    shows_deleted: bool,
    /// The invocationId after the first connection.
    restored: u8,
}

/// The ids of changed objects in the second and every later round of polls.
const CHANGED: [u8; 4] = [1, 2, 3, 77];

/// A controller with users 1 to 3: in the second round user 1 has moved to server4, 2 and 3 have left, and a computer has
/// changed.
async fn controller(shown: Controller) -> (Scripted, Arc<AtomicUsize>) {
    let (rounds, restarts) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&restarts);
    let server = Scripted::start(move |seen| {
        let LdapOp::SearchRequest(request) = &seen.op else { return bound(Code::Success) };
        let object = |number: u8| entry(&format!("cn={number}"), &[("objectGUID", &[&[number; 16]])]);
        let user = |number: u8, host: &[u8]| {
            entry(&format!("cn={number}"), &[("mailHost", &[host]), ("objectGUID", &[&[number; 16]])])
        };
        let usn = 100 + rounds.load(Ordering::SeqCst);
        match request.base.as_str() {
            "" => {
                rounds.fetch_add(1, Ordering::SeqCst);
                root(&[
                    ("highestCommittedUSN", &[usn.to_string().as_bytes()]),
                    ("dsServiceName", &[b"CN=NTDS Settings,CN=DC1"]),
                    ("namingContexts", &[b"CN=Configuration,dc=y", b"DC=y", b"DC=X"]),
                ])
            }
            "CN=NTDS Settings,CN=DC1" => {
                let restored = counted.fetch_add(1, Ordering::SeqCst) > 0;
                let id = if restored { shown.restored } else { 0 };
                vec![entry(&request.base, &[("invocationId", &[&[id; 16]])]), done(Code::Success)]
            }
            base if base.starts_with("<WKGUID=") => {
                assert_eq!(base, "<WKGUID=18E2EA80684F11D2B9AA00C04F79F805,DC=X>");
                let deleted = shown.shows_deleted.then(|| object(200));
                let code = if shown.shows_deleted { Code::Success } else { Code::NoSuchObject };
                deleted.into_iter().chain([done(code)]).collect()
            }
            "DC=X" => CHANGED.map(object).into_iter().chain([done(Code::Success)]).collect(),
            _ if asks(seen, "uSNChanged").is_some() => vec![user(1, b"server4"), done(Code::Success)],
            _ => vec![user(1, b"server3"), user(2, b"server3"), user(3, b"server3"), done(Code::Success)],
        }
    })
    .await;
    (server, restarts)
}

fn completed(changes: &[Change]) -> usize {
    changes.iter().filter(|change| **change == Change::Complete).count()
}

/// Whether each round read all users.
fn whole(changes: &[Change]) -> Vec<bool> {
    let round = |change: &Change| if let Change::RefreshStarted(round) = change { Some(round.whole) } else { None };
    changes.iter().filter_map(round).collect()
}

#[tokio::test]
async fn entries_that_leave_are_reported_and_not_those_that_stay() {
    let (server, _) = controller(Controller { shows_deleted: true, restored: 0 }).await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported = under.until(|changes| completed(changes) >= 2).await;
    let second = reported.iter().position(|change| *change == Change::Complete).unwrap() + 1;
    let mut gone = Vec::new();
    for change in reported[second..].iter().take_while(|change| **change != Change::Complete) {
        match change {
            Change::Deleted { id, dn: None } => gone.push(id.unwrap()),
            Change::Entry(shown) => assert_eq!(shown.entry.mail_hosts, ["server4"]),
            Change::RefreshStarted(round) => assert!(!round.whole && round.local_timestamps),
            other => panic!("{other:?}"),
        }
    }
    gone.sort();
    assert_eq!(gone, [id(2), id(3), id(77)], "the tracker ignores what it does not know");
    // The ids come first: a user that changes in between is found, not missed.
    let seen = server.seen();
    let at = |wanted: &dyn Fn(&Recorded) -> bool| seen.iter().position(wanted).unwrap();
    assert!(at(&|seen| seen.base() == Some("DC=X")) < at(&|seen| asks(seen, "uSNChanged").is_some()));
    let ids = &seen[at(&|seen| seen.base() == Some("DC=X"))];
    assert!(ids.controls.iter().any(|control| matches!(control, LdapControl::SimplePagedResults { .. })));
}

#[tokio::test]
async fn all_users_are_read_once_where_deleted_objects_are_shown() {
    let (server, restarts) = controller(Controller { shows_deleted: true, restored: 0 }).await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported = under.until(|changes| completed(changes) >= 22).await;
    assert!(restarts.load(Ordering::SeqCst) >= 2, "another connection");
    let whole = whole(&reported);
    assert!(whole[0] && !whole[1..].contains(&true), "{whole:?}");
    let rests = reported.iter().filter(|change| **change == Change::RestDeleted).count();
    assert_eq!(rests, 1);
}

#[tokio::test]
async fn all_users_are_read_every_tenth_round_where_deleted_objects_are_hidden() {
    let (server, _) = controller(Controller { shows_deleted: false, restored: 0 }).await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported = under.until(|changes| completed(changes) >= 21).await;
    let rounds: Vec<_> = whole(&reported).iter().enumerate().filter(|(_, whole)| **whole).map(|(at, _)| at).collect();
    assert_eq!(rounds[..3], [0, 10, 20]);
}

#[tokio::test]
async fn restored_controller_is_read_again() {
    let (server, _) = controller(Controller { shows_deleted: true, restored: 9 }).await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported = under.until(|changes| completed(changes) >= 11).await;
    let rounds: Vec<_> = whole(&reported).iter().enumerate().filter(|(_, whole)| **whole).map(|(at, _)| at).collect();
    assert_eq!(rounds[..2], [0, 10], "the numbers of another database are not compared");
}

/// A refusal of the search for ids ends the round before anything is reported as gone.
#[tokio::test]
async fn refused_search_for_ids_deletes_no_entry() {
    let server = Scripted::start(|seen| match seen.base() {
        Some("") => root(&[("highestCommittedUSN", &[b"5"]), ("namingContexts", &[b"dc=x"])]),
        Some("dc=x")
            if asks(seen, "uSNChanged").is_none()
                && matches!(&seen.op, LdapOp::SearchRequest(request) if request.attrs == ["objectGUID"]) =>
        {
            vec![entry("cn=1", &[("objectGUID", &[&[1; 16]])]), done(Code::SizeLimitExceeded)]
        }
        Some(base) if base.starts_with("<WKGUID") => vec![done(Code::NoSuchObject)],
        Some(_) => {
            vec![entry("cn=1", &[("mailHost", &[b"server3"]), ("objectGUID", &[&[1; 16]])]), done(Code::Success)]
        }
        None => bound(Code::Success),
    })
    .await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported = under.until(|changes| changes.contains(&Change::Lost)).await;
    assert_eq!(kinds(&reported), ["RefreshStarted", "cn=1 is at server3", "RestDeleted", "Complete", "Lost"]);
}

/// An entry that exceeds a limit exists. Without an id it cannot be named, so that none is taken for deleted.
#[tokio::test]
async fn entry_beyond_a_limit_is_not_deleted() {
    for (named, expected) in [(true, &["Present", "RestDeleted"][..]), (false, &[])] {
        let server = Scripted::start(move |seen| match &seen.op {
            LdapOp::SearchRequest(_) if is_root(seen) => root(&[]),
            LdapOp::SearchRequest(_) => {
                let hosts: Vec<Vec<u8>> = (0..100).map(|number| format!("server{number}").into_bytes()).collect();
                let hosts: Vec<&[u8]> = hosts.iter().map(Vec::as_slice).collect();
                let uuid: &[&[u8]] = &[b"01010101-0101-0101-0101-010101010101"];
                let id = if named { vec![("entryUUID", uuid)] } else { Vec::new() };
                let attributes = [("mailHost", hosts.as_slice())].into_iter().chain(id).collect::<Vec<_>>();
                vec![entry("uid=a", &attributes), done(Code::Success)]
            }
            _ => bound(Code::Success),
        })
        .await;
        let under = Under::test(&[&server], WatchMode::Poll);
        let reported = under.until(|changes| changes.contains(&Change::Complete)).await;
        let round: Vec<_> = kinds(&reported).into_iter().take_while(|kind| kind != "Complete").skip(1).collect();
        let round: Vec<_> = round.iter().map(|kind| kind.split('(').next().unwrap()).collect();
        assert_eq!(round, expected, "{named}");
    }
}

#[test]
fn naming_context_is_the_longest_that_holds_the_base() {
    let contexts = ["DC=example,DC=com", "CN=Configuration,DC=example,DC=com", "dc=corp,dc=example,dc=com", ""];
    let root = RootDse { contexts: contexts.map(str::to_owned).to_vec(), ..RootDse::default() };
    for (base, context) in [
        ("ou=people,DC=Corp,DC=example,DC=com", Some(contexts[2])),
        ("ou=people, dc=Corp, dc=example, dc=com", Some(contexts[2])),
        ("dc=example,dc=com", Some(contexts[0])),
        ("ou=x,dc=notcorp,dc=example,dc=com", Some(contexts[0])),
        ("ou=x,xdc=example,dc=com", None),
        ("dc=com", None),
        ("", None),
        ("ou=é", None),
    ] {
        assert_eq!(root.context_of(base), context, "{base}");
    }
}
