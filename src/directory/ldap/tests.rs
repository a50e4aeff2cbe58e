//! The directory against scripted servers, over real sockets.
#![allow(clippy::wildcard_enum_match_arm)] // a test names what it expects; the rest is a failure

mod accounts;
mod answers;
mod connections;
mod fresh;
mod hostile;
mod named;
mod ranges;
mod restricted;
mod servers;
mod service;
mod tls;

use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ldap3_proto::proto::LdapOp;
use ldap3_proto::{LdapFilter, LdapResultCode as Code, LdapSearchScope};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::base::credential::{Credential, Login};
use crate::config::{
    self, Balance, Canary, Connections, DirectoryServer, DisabledBy, Find, LdapScheme, ServiceAccount,
};
use crate::directory::ldap::Ldap;
use crate::directory::ldap::error::RequestError;
use crate::directory::ldap::scripted::{
    Recorded, Scripted, ScriptedReply, alice, bound, bound_with, done, entry, extended, first, reference,
};
use crate::directory::ldap::tuning::Tuning;
use crate::directory::{
    Availability, BindDiagnostic, Diagnosis as _, Directory, DirectoryError, Entry, EntryFault, EntryVersion, Identity,
    NameKind, NoFloor, Probes as _, ServerResult, Trace, UnavailableCause,
};
use crate::outcome::{AccountState, Proof};
use crate::proto::ldap::template::{Template, TemplatePart};
use crate::telemetry::labels::DirectoryOperation;
use crate::telemetry::metrics::Metrics;

/// The time limit of a test.
const TEST_TIME: Duration = Duration::from_secs(20);

fn text(text: &str) -> TemplatePart {
    TemplatePart::Text(text.to_owned())
}

fn searching(service: Option<ServiceAccount>) -> Find {
    let parts = vec![text("(uid="), TemplatePart::Login, text(")")];
    Find::Search { service, base: "dc=x".to_owned(), filter: Template { parts } }
}

fn templated(service: Option<ServiceAccount>) -> Find {
    let parts = vec![text("uid="), TemplatePart::Local, text(",dc=x")];
    Find::UserDn { template: Template { parts }, service }
}

fn settings(servers: Vec<DirectoryServer>, find: Find) -> config::Directory {
    config::Directory {
        name: "default".to_owned(),
        key: "directory".to_owned(),
        domains: Vec::new(),
        windows_domains: Vec::new(),
        servers,
        starttls: false,
        srv_targets: Vec::new(),
        resolver: Vec::new(),
        ca: None,
        client_certificate: None,
        groups: Vec::new(),
        plaintext: true,
        find,
        mail_host_attribute: "mailHost".to_owned(),
        grant_attribute: None,
        login_attribute: Some("uid".to_owned()),
        networks_attribute: None,
        allow: config::Allow::default(),
        password_filter: None,
        timeout: Duration::from_secs(5),
        attempt_timeout: Duration::from_millis(1_200),
        max_message: 1 << 20,
        balance: Balance::First,
        connections: Connections {
            min: 0,
            max: 4,
            idle_timeout: Duration::from_secs(30),
            max_age: Duration::from_secs(1_800),
            max_operations: 100_000,
        },
        canary: None,
        reveal_account_state: false,
        disabled_by: DisabledBy::DEFAULT.to_vec(),
        watch: config::Watch::off(),
        mail_filter: None,
        reads_certificates: false,
        claim_attributes: Vec::new(),
        other_filters: Vec::new(),
        results: [(19, AccountState::Locked)].into(),
    }
}

/// A directory under test, with its metrics.
struct Under {
    ldap: Ldap,
    metrics: Arc<Metrics>,
}

impl Under {
    fn test(settings: &config::Directory, tuning: Tuning) -> Self {
        let metrics = Arc::new(Metrics::new());
        Self {
            ldap: Ldap::tuned(settings, crate::directory::DirectoryTls::default(), metrics.clone(), tuning),
            metrics,
        }
    }

    fn new(servers: &[&Scripted], find: Find) -> Self {
        let servers = servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
        Self::test(&settings(servers, find), Tuning::default())
    }

    async fn login(&self, login: &str, password: &str) -> (Result<Identity, DirectoryError>, Trace) {
        let credential = Credential::for_tests(login, password);
        within(self.ldap.authenticate(&credential, &|_| false, &NoFloor)).await
    }

    async fn alice(&self) -> Result<Identity, DirectoryError> {
        self.login("alice", "right").await.0
    }

    async fn look_up(&self, login: &str) -> (Result<Entry, DirectoryError>, Trace) {
        let login = Login::parse(login.as_bytes()).unwrap();
        within(self.ldap.find(&login, NameKind::Login)).await
    }

    fn count(&self, server: &Scripted, operation: &str, code: &str) -> u64 {
        let url = format!("ldap://127.0.0.1:{}", server.port);
        self.metrics.directory_operations.with_label_values(&["default", url.as_str(), operation, code]).get()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIME, future).await.expect("the test's own deadline")
}

/// Waits for an event without a signal.
async fn until(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn cause(result: Result<impl std::fmt::Debug, DirectoryError>) -> UnavailableCause {
    match result {
        Err(DirectoryError::Unavailable(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

fn code(result: Result<impl std::fmt::Debug, DirectoryError>) -> (DirectoryOperation, u32) {
    match cause(result) {
        UnavailableCause::Result { operation, result, .. } => (operation, result.code),
        other => panic!("{other:?}"),
    }
}

fn is_search(seen: &Recorded) -> bool {
    seen.base().is_some()
}

fn is_bind(seen: &Recorded) -> bool {
    seen.bind().is_some()
}

/// Finds every user by `uid`, accepts every bind, and has no canary.
fn every_user(seen: &Recorded) -> Vec<ScriptedReply> {
    let name = match &seen.op {
        LdapOp::SearchRequest(request) => match &request.filter {
            LdapFilter::Equality(_, name) => name.clone(),
            _ => "root".to_owned(),
        },
        _ => return bound(Code::Success),
    };
    match name.as_str() {
        "canary" => vec![done(Code::Success)],
        _ => vec![entry(&format!("uid={name},dc=x"), &[("mailHost", &[b"server3"])]), done(Code::Success)],
    }
}

/// The log, at every level.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Emits the line "directory server failed" while a subscriber is active. tracing computes once, when a
/// line is first reached, whether it is enabled, and another test's thread without subscriber may be first;
/// a later subscriber has it computed again.
async fn meet_the_line(failing: &Scripted) {
    let _anybody = tracing::subscriber::set_default(tracing_subscriber::registry());
    cause(Under::new(&[failing], templated(None)).alice().await);
}

/// A file with a password, and its service account.
fn service(password: &[u8]) -> (tempfile::TempDir, PathBuf, Option<ServiceAccount>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::File::create(&file).unwrap().write_all(password).unwrap();
    let account = ServiceAccount { dn: "cn=usher".to_owned(), password_file: file.clone() };
    (folder, file, Some(account))
}

fn account(state: AccountState, proven: bool) -> DirectoryError {
    DirectoryError::Account { dn: "uid=alice,dc=x".into(), state, proven }
}
