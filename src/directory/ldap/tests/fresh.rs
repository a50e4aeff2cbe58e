//! Which server receives a password when servers differ about an entry: one that is current.

use super::*;
use crate::directory::{Floor, Freshness};

/// The newest version: alice is at `server4`. A server that shows less lags, or hides it.
#[derive(Default)]
struct Shown {
    newest: EntryVersion,
    gone: bool,
    followed: Option<Arc<str>>,
}

impl Floor for Shown {
    fn freshness(&self, shown: &Entry, _: &str) -> Freshness {
        let newest =
            || Arc::new(Entry { version: self.newest.clone(), ..Entry::for_tests("uid=alice,dc=x", &["server4"]) });
        match shown.mail_hosts.first().map(String::as_str) {
            Some("server4") => Freshness::CaughtUp,
            Some(_) if self.gone => Freshness::Deleted,
            Some(_) => Freshness::Behind(newest()),
            None => Freshness::Hidden(newest()),
        }
    }

    fn concerns(&self, _: &str) -> bool {
        true
    }

    fn followed(&self) -> Option<Arc<str>> {
        self.followed.clone()
    }
}

/// As [`alice`], with this mail host.
fn at(host: &'static [u8]) -> impl Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync {
    move |seen| match seen.base() {
        Some(_) => {
            let hosts: &[&[u8]] = &[host];
            let hosts = if host.is_empty() { &[] } else { hosts };
            vec![entry("uid=alice,dc=x", &[("mailHost", hosts), ("uid", &[b"alice"])]), done(Code::Success)]
        }
        None => alice(seen),
    }
}

struct Servers {
    list: Vec<Scripted>,
    under: Under,
}

impl Servers {
    async fn with(hosts: &[&'static [u8]], find: Find, timeout: Duration) -> Self {
        let mut list = Vec::new();
        for host in hosts {
            list.push(Scripted::start(at(host)).await);
        }
        let urls = list.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
        let settings =
            config::Directory { timeout, attempt_timeout: Duration::from_millis(400), ..settings(urls, find) };
        Self { under: Under::test(&settings, Tuning::default()), list }
    }

    async fn login(&self, password: &str, floor: &Shown) -> (Result<Identity, DirectoryError>, Trace) {
        let credential = Credential::for_tests("alice", password);
        within(self.under.ldap.authenticate(&credential, &|_| false, floor)).await
    }

    /// The passwords of alice that each server received.
    fn binds(&self) -> Vec<usize> {
        let of_alice =
            |server: &Scripted| server.binds().iter().filter(|(_, dn, _)| dn.starts_with("uid=alice")).count();
        self.list.iter().map(of_alice).collect()
    }
}

const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn password_is_sent_to_a_current_server() {
    let (_folder, _, account) = service(b"service");
    for find in [searching(None), templated(account)] {
        let servers = Servers::with(&[b"server3", b"server3", b"server4"], find.clone(), LONG).await;
        let (result, trace) = servers.login("right", &Shown::default()).await;
        assert_eq!(result.unwrap().entry().mail_hosts, ["server4"], "{find:?}");
        assert!(!trace.behind);
        let (result, trace) = servers.login("wrong", &Shown::default()).await;
        assert!(matches!(result, Err(DirectoryError::InvalidCredentials { .. })), "{result:?}");
        assert!(!trace.behind);
        // One attempt is one answered bind.
        assert_eq!(servers.binds(), [0, 0, 2], "{find:?}");
    }
}

#[tokio::test]
async fn followed_server_is_queried_first() {
    let servers = Servers::with(&[b"server3", b"server3", b"server4"], searching(None), LONG).await;
    let floor = Shown { followed: Some(servers.list[2].url().into()), ..Shown::default() };
    servers.login("right", &floor).await.0.unwrap();
    let searches: Vec<_> = servers.list.iter().map(|server| server.searches().len()).collect();
    assert_eq!(searches, [1, 0, 1]);
}

#[tokio::test]
async fn newest_version_decides_when_every_server_lags() {
    let (_folder, _, account) = service(b"service");
    for find in [searching(None), templated(account)] {
        let servers = Servers::with(&[b"server3", b"server3"], find, SHORT).await;
        let behind = cause(servers.login("right", &Shown::default()).await.0);
        assert!(matches!(behind, UnavailableCause::Behind { .. }), "{behind:?}");
        let disabled = Shown {
            newest: EntryVersion { disabled: true, held: true, ..EntryVersion::default() },
            ..Shown::default()
        };
        let refused = servers.login("right", &disabled).await.0.unwrap_err();
        assert_eq!(refused, account_of(AccountState::Disabled));
        let held = Shown { newest: EntryVersion { held: true, ..EntryVersion::default() }, ..Shown::default() };
        assert_eq!(
            servers.login("right", &held).await.0.unwrap_err(),
            DirectoryError::Held { dn: "uid=alice,dc=x".into() }
        );
        let gone = Shown { gone: true, ..Shown::default() };
        assert_eq!(servers.login("right", &gone).await.0.unwrap_err(), DirectoryError::NoEntry);
        assert_eq!(servers.binds(), [0, 0], "no password for a server that lags");
    }
}

fn account_of(state: AccountState) -> DirectoryError {
    DirectoryError::Account { dn: "uid=alice,dc=x".into(), state, proven: false }
}

/// Returns the newest version at the nth search.
fn catching_up(nth: usize) -> impl Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync {
    let searches = std::sync::atomic::AtomicUsize::new(0);
    move |seen| {
        let late = is_search(seen) && searches.fetch_add(1, Ordering::SeqCst) + 1 < nth;
        if late { at(b"server3")(seen) } else { at(b"server4")(seen) }
    }
}

#[tokio::test]
async fn short_lag_is_waited_for() {
    let late = Scripted::start(catching_up(3)).await;
    let under = Under::new(&[&late], searching(None));
    let credential = Credential::for_tests("alice", "right");
    let (result, _) = within(under.ldap.authenticate(&credential, &|_| false, &Shown::default())).await;
    assert_eq!(result.unwrap().entry().mail_hosts, ["server4"]);
    assert_eq!((late.searches().len(), late.binds().len()), (3, 1));
}

#[tokio::test]
async fn hidden_mail_host_is_read_from_another_server_or_unavailable() {
    let servers = Servers::with(&[b"", b"server4"], searching(None), SHORT).await;
    assert_eq!(servers.login("right", &Shown::default()).await.0.unwrap().entry().mail_hosts, ["server4"]);
    assert_eq!(servers.binds(), [0, 1]);
    let servers = Servers::with(&[b"", b""], searching(None), SHORT).await;
    let hidden = cause(servers.login("right", &Shown::default()).await.0);
    assert!(matches!(hidden, UnavailableCause::Hidden { .. }), "{hidden:?}");
    assert_eq!(servers.binds(), [0, 0]);
}

#[tokio::test]
async fn failed_bind_is_not_retried_on_a_lagging_server() {
    let broken = Scripted::start(
        |seen: &Recorded| if is_bind(seen) { vec![ScriptedReply::Close] } else { at(b"server4")(seen) },
    )
    .await;
    let lagging = Scripted::start(at(b"server3")).await;
    let good = Scripted::start(at(b"server4")).await;
    let under = Under::new(&[&broken, &lagging, &good], searching(None));
    let credential = Credential::for_tests("alice", "right");
    let (result, _) = within(under.ldap.authenticate(&credential, &|_| false, &Shown::default())).await;
    result.unwrap();
    assert_eq!((lagging.binds().len(), good.binds().len()), (0, 1));
}

/// A directory in which the template gives no entry.
fn nobody(seen: &Recorded) -> Vec<ScriptedReply> {
    match seen.base() {
        Some(_) => vec![done(Code::NoSuchObject)],
        None => alice(seen),
    }
}

#[tokio::test]
async fn unknown_name_is_no_outage_although_other_entries_have_changed() {
    let (_folder, _, account) = service(b"service");
    let (one, two) = (Scripted::start(nobody).await, Scripted::start(nobody).await);
    let under = Under::new(&[&one, &two], templated(account));
    let credential = Credential::for_tests("bob", "any");
    for followed in [None, Some(one.url()), Some(two.url())] {
        let floor = Shown { followed: followed.map(Into::into), ..Shown::default() };
        let (result, _) = within(under.ldap.authenticate(&credential, &|_| false, &floor)).await;
        assert!(matches!(result, Err(DirectoryError::InvalidCredentials { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn entry_missing_on_a_replica_is_bound_on_a_server_that_has_it() {
    let (_folder, _, account) = service(b"service");
    let (lagging, good) = (Scripted::start(nobody).await, Scripted::start(at(b"server4")).await);
    let under = Under::new(&[&lagging, &good], templated(account));
    let credential = Credential::for_tests("alice", "right");
    for followed in [None, Some(good.url())] {
        let floor = Shown { followed: followed.map(Into::into), ..Shown::default() };
        let (result, _) = within(under.ldap.authenticate(&credential, &|_| false, &floor)).await;
        assert_eq!(result.unwrap().entry().mail_hosts, ["server4"]);
    }
    assert!(!lagging.binds().iter().any(|(_, dn, _)| dn.starts_with("uid=")), "it lags");
}
