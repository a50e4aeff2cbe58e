//! The watch with scripted servers: malformed content synchronization, Active Directory's
//! USNs, and servers that fail and recover.
#![allow(clippy::wildcard_enum_match_arm)] // a script answers what it expects

mod usn;

use std::sync::Mutex;

use ldap3_proto::LdapResultCode as Code;
use ldap3_proto::proto::{LdapFilter, LdapOp};
use tokio::task::JoinSet;

use super::*;
use crate::config::{self, Find, LdapScheme, Watch};
use crate::directory::EntryId;
use crate::directory::ldap::scripted::{Recorded, Scripted, ScriptedReply, bound, done, entry};
use crate::proto::ldap::template::{Template, TemplatePart};
use crate::telemetry::metrics::Metrics;

const TEST_TIME: Duration = Duration::from_secs(20);
const SYNC_INFO: &[u8] = b"1.3.6.1.4.1.4203.1.9.1.4";

/// A watch under test, and its reports.
struct Under {
    reported: Arc<Mutex<Vec<Change>>>,
    _task: JoinSet<()>,
}

impl Under {
    fn test(servers: &[&Scripted], mode: WatchMode) -> Self {
        let parts =
            vec![TemplatePart::Text("(uid=".to_owned()), TemplatePart::Login, TemplatePart::Text(")".to_owned())];
        let settings = config::Directory {
            servers: servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect(),
            find: Find::Search { service: None, base: "dc=x".to_owned(), filter: Template { parts } },
            watch: Watch { mode, poll_interval: Duration::from_millis(20), ..Watch::off() },
            ..config::Directory::for_tests()
        };
        let ldap = Ldap::new(&settings, None.into(), Arc::new(Metrics::new()));
        let reported = Arc::new(Mutex::new(Vec::new()));
        let (list, mut task) = (Arc::clone(&reported), JoinSet::new());
        task.spawn(async move { ldap.watch_changes(&|change| list.lock().unwrap().push(change)).await });
        Self { reported, _task: task }
    }

    /// Waits until this was reported, and returns all reports.
    async fn until(&self, what: impl Fn(&[Change]) -> bool) -> Vec<Change> {
        let waited = timeout(TEST_TIME, async {
            while !what(&self.reported.lock().unwrap()) {
                sleep(Duration::from_millis(2)).await;
            }
        });
        let is_reported = waited.await.is_ok();
        let reported = self.reported.lock().unwrap().clone();
        assert!(is_reported, "{reported:?}");
        reported
    }
}

fn ber(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82][..], &length, &content].concat()
}

fn message(seen: &Recorded, op: &[u8], controls: &[u8]) -> ScriptedReply {
    let id = u8::try_from(seen.id).unwrap();
    ScriptedReply::Raw(ber(0x30, &[&[2, 1, id], op, controls]))
}

/// An entry with a Sync State control.
fn synced(seen: &Recorded, dn: &str, id: u8, state: u8, cookie: &[u8]) -> ScriptedReply {
    let attribute = ber(0x30, &[&ber(4, &[b"mailHost"]), &ber(0x31, &[&ber(4, &[b"server3"])])]);
    let op = ber(0x64, &[&ber(4, &[dn.as_bytes()]), &ber(0x30, &[&attribute])]);
    let cookie = if cookie.is_empty() { Vec::new() } else { ber(4, &[cookie]) };
    let value = ber(0x30, &[&[10, 1, state], &ber(4, &[&[id; 16]]), &cookie]);
    let control = ber(0x30, &[&ber(4, &[message::SYNC_STATE.as_bytes()]), &ber(4, &[&value])]);
    message(seen, &op, &ber(0xa0, &[&control]))
}

fn info(seen: &Recorded, value: &[u8]) -> ScriptedReply {
    message(seen, &ber(0x79, &[&ber(0x80, &[SYNC_INFO]), &ber(0x81, &[value])]), b"")
}

/// The end of the refresh, with the cookie.
fn refreshed(seen: &Recorded) -> ScriptedReply {
    info(seen, &ber(0xa1, &[&ber(4, &[b"c1"])]))
}

fn root(attributes: &[(&str, &[&[u8]])]) -> Vec<ScriptedReply> {
    vec![entry("", attributes), done(Code::Success)]
}

fn syncing() -> Vec<ScriptedReply> {
    root(&[("supportedControl", &[b"1.2.3", SYNC_REQUEST.as_bytes()])])
}

fn id(byte: u8) -> EntryId {
    EntryId::from_bytes(&[byte; 16]).unwrap()
}

fn is_root(seen: &Recorded) -> bool {
    seen.base() == Some("")
}

/// The changes without the contents of the entries.
fn kinds(changes: &[Change]) -> Vec<String> {
    let kind = |change: &Change| match change {
        Change::Entry(shown) => format!("{} is at {}", shown.entry.dn, shown.entry.mail_hosts.join(",")),
        Change::RefreshStarted(_) => "RefreshStarted".to_owned(),
        Change::Deleted { dn, .. } => format!("{} deleted", dn.as_deref().unwrap_or("unnamed")),
        other => format!("{other:?}"),
    };
    changes.iter().map(kind).collect()
}

#[tokio::test]
async fn refresh_is_reported_and_then_each_change() {
    let server = Scripted::start(|seen| match &seen.op {
        LdapOp::SearchRequest(_) if is_root(seen) => syncing(),
        LdapOp::SearchRequest(_) if seen.connection == 0 => vec![
            synced(seen, "uid=a", 1, 1, b""),
            synced(seen, "uid=b", 2, 0, b""),
            refreshed(seen),
            synced(seen, "uid=a,ou=y", 1, 2, b"c2"),
            synced(seen, "uid=b", 2, 3, b"c3"),
            ScriptedReply::Close,
        ],
        LdapOp::SearchRequest(_) => {
            let ids = ber(0xa3, &[&[1, 1, 0xff], &ber(0x31, &[&ber(4, &[&[1; 16]])])]);
            vec![
                info(seen, &ids),
                info(seen, &ber(0xa2, &[])),
                ScriptedReply::Wait(Arc::new(tokio::sync::Semaphore::new(0))),
            ]
        }
        _ => bound(Code::Success),
    })
    .await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let complete = |changes: &[Change]| changes.iter().filter(|change| **change == Change::Complete).count();
    let reported = under.until(|changes| complete(changes) == 2).await;
    let present = format!("Present([{:?}])", id(2));
    assert_eq!(
        kinds(&reported),
        [
            "RefreshStarted",
            "uid=a is at server3",
            &present,
            "RestDeleted", // without a cookie, everything entries sent
            "Complete",
            "uid=a,ou=y is at server3",
            "uid=b deleted",
            "Lost",
            "RefreshStarted",
            "unnamed deleted",
            "RestDeleted", // the present phase
            "Complete",
        ]
    );
    // The second connection resumed where the first had ended.
    let cookies: Vec<_> = server.seen().iter().filter_map(Recorded::sync_cookie).collect();
    assert_eq!(cookies, [None, Some(b"c3".to_vec())]);
}

#[tokio::test]
async fn malformed_replies_end_only_the_connection() {
    let malformed: Vec<fn(&Recorded) -> Vec<ScriptedReply>> = vec![
        // An entry without the control, with a truncated one, with an invalid state and id.
        |_| vec![entry("uid=a", &[])],
        |seen| vec![synced(seen, "uid=a", 1, 9, b"")],
        |seen| {
            let control = ber(0x30, &[&ber(4, &[message::SYNC_STATE.as_bytes()]), &ber(4, &[b"\x30\x7f"])]);
            vec![message(seen, &ber(0x64, &[&ber(4, &[b"uid=a"]), &ber(0x30, &[])]), &ber(0xa0, &[&control]))]
        },
        // Messages between the entries.
        |seen| vec![info(seen, b"")],
        |seen| vec![info(seen, b"\xa4\x00")],
        |seen| vec![info(seen, b"\xa3\x84\xff\xff\xff\xff")],
        |seen| vec![message(seen, &ber(0x79, &[&ber(0x80, &[SYNC_INFO])]), b"")],
        // An entry that is a string.
        |seen| vec![message(seen, b"\x44\x01x", b"")],
        |_| vec![ScriptedReply::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), ScriptedReply::Close],
    ];
    for (number, answer) in malformed.into_iter().enumerate() {
        let server = Scripted::start(move |seen| match &seen.op {
            LdapOp::SearchRequest(_) if is_root(seen) => syncing(),
            LdapOp::SearchRequest(_) if seen.connection == 0 => answer(seen),
            LdapOp::SearchRequest(_) => {
                vec![refreshed(seen), ScriptedReply::Wait(Arc::new(tokio::sync::Semaphore::new(0)))]
            }
            _ => bound(Code::Success),
        })
        .await;
        let under = Under::test(&[&server], WatchMode::Sync);
        let reported = under.until(|changes| changes.last() == Some(&Change::Complete)).await;
        assert_eq!(
            kinds(&reported),
            ["RefreshStarted", "Lost", "RefreshStarted", "RestDeleted", "Complete"],
            "answer {number}"
        );
    }
}

#[tokio::test]
async fn server_that_requires_a_refresh_or_refuses_is_kept() {
    let refusal = |code| {
        Scripted::start(move |seen: &Recorded| match &seen.op {
            LdapOp::SearchRequest(_) if is_root(seen) => syncing(),
            LdapOp::SearchRequest(_) if seen.connection == 0 => {
                vec![message(seen, &ber(0x65, &[code, b"\x04\x00\x04\x00"]), b"")]
            }
            LdapOp::SearchRequest(_) if seen.sync_cookie().is_some() => vec![refreshed(seen)],
            LdapOp::SearchRequest(_) => vec![entry("uid=a", &[]), done(Code::Success)],
            _ => bound(Code::Success),
        })
    };
    // syncRefreshRequired (4096): again at once, by the same method.
    let server = refusal(&b"\x0a\x02\x10\x00"[..]).await;
    let under = Under::test(&[&server], WatchMode::Auto);
    under.until(|changes| changes.last() == Some(&Change::Complete)).await;
    assert_eq!(server.connections(), 2);
    // unavailableCriticalExtension (12): by polling.
    let server = refusal(&b"\x0a\x01\x0c"[..]).await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported = under.until(|changes| changes.contains(&Change::Complete)).await;
    assert_eq!(kinds(&reported)[..5], ["RefreshStarted", "Lost", "RefreshStarted", "uid=a is at ", "RestDeleted"]);
}

/// A filter that begins with all users, followed by this.
fn asks(seen: &Recorded, attribute: &str) -> Option<String> {
    let LdapOp::SearchRequest(request) = &seen.op else { return None };
    let LdapFilter::And(parts) = &request.filter else { return None };
    parts.iter().find_map(|part| match part {
        LdapFilter::GreaterOrEqual(name, value) if name == attribute => Some(value.clone()),
        _ => None,
    })
}

#[tokio::test]
async fn domain_controller_with_a_decreased_usn_is_read_again() {
    let roots = std::sync::atomic::AtomicUsize::new(0);
    let server = Scripted::start(move |seen| match &seen.op {
        LdapOp::SearchRequest(_) if is_root(seen) => {
            // It was restored after the second poll; the first request reads its capabilities.
            let usn = if roots.fetch_add(1, Ordering::SeqCst) < 3 { b"500" } else { b"100" };
            root(&[("highestCommittedUSN", &[usn])])
        }
        LdapOp::SearchRequest(_) => vec![done(Code::Success)],
        _ => bound(Code::Success),
    })
    .await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported =
        under.until(|changes| changes.iter().filter(|change| **change == Change::Complete).count() >= 4).await;
    let whole = reported.iter().filter_map(|change| match change {
        Change::RefreshStarted(round) => Some(round.whole),
        _ => None,
    });
    assert_eq!(whole.take(4).collect::<Vec<_>>(), [true, false, true, false]);
    let numbers: Vec<_> = server.seen().iter().filter_map(|seen| asks(seen, "uSNChanged")).collect();
    assert_eq!(numbers[..2], ["451", "51"]);
}

#[tokio::test]
async fn active_directory_is_polled_by_usn() {
    let rounds = std::sync::atomic::AtomicU64::new(100);
    let server = Scripted::start(move |seen| match &seen.op {
        LdapOp::SearchRequest(request) if is_root(seen) => {
            let counts = request.attrs.iter().any(|name| name == "highestCommittedUSN");
            let usn = rounds.fetch_add(u64::from(counts), Ordering::SeqCst).to_string();
            root(&[("highestCommittedUSN", &[usn.as_bytes()])])
        }
        LdapOp::SearchRequest(_) => match asks(seen, "uSNChanged") {
            None => vec![
                entry("cn=a", &[("mailHost", &[b"server3"]), ("objectGUID", &[&[1; 16]])]),
                crate::directory::ldap::scripted::reference(),
                done(Code::Success),
            ],
            Some(usn) if usn == "52" => vec![
                entry(
                    "cn=a",
                    &[
                        ("mailHost", &[b"server4"]),
                        ("objectGUID", &[&[1; 16]]),
                        ("userAccountControl", &[b"514"]),
                        ("pwdLastSet", &[b"133"]),
                    ],
                ),
                done(Code::Success),
            ],
            Some(_) => vec![done(Code::Success)],
        },
        _ => bound(Code::Success),
    })
    .await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported =
        under.until(|changes| changes.iter().filter(|change| **change == Change::Complete).count() >= 3).await;
    let first = [
        "RefreshStarted",
        "cn=a is at server3",
        "RestDeleted",
        "Complete",
        "RefreshStarted",
        "cn=a is at server4",
        "Complete",
    ];
    assert_eq!(kinds(&reported)[..7], first);
    let rounds = reported.iter().filter_map(|change| match change {
        Change::RefreshStarted(round) => Some((round.whole, round.local_timestamps)),
        _ => None,
    });
    assert_eq!(rounds.take(2).collect::<Vec<_>>(), [(true, true), (false, true)]);
    let Change::Entry(shown) = &reported[5] else { panic!("{reported:?}") };
    let version = &shown.entry.version;
    assert_eq!((version.id, version.disabled, version.password_changed.is_some()), (Some(id(1)), true, true));
    // From the USN of the poll before plus one, less the overlap: read before the search.
    let numbers: Vec<_> = server.seen().iter().filter_map(|seen| asks(seen, "uSNChanged")).collect();
    assert_eq!(numbers[..2], ["52", "53"]);
    assert!(server.seen().iter().all(|seen| seen.connection == 0), "the numbers are of one server and connection");
}

#[tokio::test]
async fn other_servers_are_polled_by_time_and_periodically_in_full() {
    let server = Scripted::start(|seen| match &seen.op {
        LdapOp::SearchRequest(_) if is_root(seen) => root(&[]),
        LdapOp::SearchRequest(_) => {
            let time: &[u8] =
                if asks(seen, "modifyTimestamp").is_some() { b"20260101000009Z" } else { b"20260101000001Z" };
            vec![entry("uid=a", &[("modifyTimestamp", &[time])]), done(Code::Success)]
        }
        _ => bound(Code::Success),
    })
    .await;
    let under = Under::test(&[&server], WatchMode::Poll);
    let whole = |changes: &[Change]| changes.iter().filter(|change| **change == Change::RestDeleted).count();
    let reported = under.until(|changes| whole(changes) == 2).await;
    let rounds = reported.iter().filter(|change| matches!(change, Change::RefreshStarted(_))).count();
    assert_eq!(rounds, 11, "every tenth is whole");
    let times: Vec<_> = server.seen().iter().filter_map(|seen| asks(seen, "modifyTimestamp")).collect();
    // It reaches some polls back: a change may arrive late from another master.
    assert_eq!(times[..4], ["20260101000001Z"; 4]);
    assert_eq!(times[4..9], ["20260101000009Z"; 5]);
}

#[tokio::test]
async fn incomplete_reply_deletes_no_entry() {
    let server = Scripted::start(|seen| match &seen.op {
        LdapOp::SearchRequest(_) if is_root(seen) => root(&[]),
        LdapOp::SearchRequest(_) => vec![entry("uid=a", &[]), done(Code::SizeLimitExceeded)],
        _ => bound(Code::Success),
    })
    .await;
    let under = Under::test(&[&server], WatchMode::Auto);
    let reported = under.until(|changes| changes.contains(&Change::Lost)).await;
    assert_eq!(kinds(&reported), ["RefreshStarted", "uid=a is at ", "Lost"]);
}

#[tokio::test]
async fn first_server_with_change_notification_is_preferred() {
    let asked = Scripted::start(|seen| match &seen.op {
        LdapOp::SearchRequest(_) => root(&[]),
        _ => bound(Code::Success),
    })
    .await;
    let reporting = Scripted::start(|seen| match &seen.op {
        LdapOp::SearchRequest(_) if is_root(seen) => syncing(),
        LdapOp::SearchRequest(_) => {
            vec![refreshed(seen), ScriptedReply::Wait(Arc::new(tokio::sync::Semaphore::new(0)))]
        }
        _ => bound(Code::Success),
    })
    .await;
    let under = Under::test(&[&asked, &reporting], WatchMode::Auto);
    under.until(|changes| changes.contains(&Change::Complete)).await;
    assert_eq!(asked.searches(), [""]);
    assert_eq!(reporting.searches(), ["", "dc=x"]);
}
