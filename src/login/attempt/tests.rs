//! An attempt with a directory in memory and a scripted frontend: what it does again, what it bounds, when it
//! replies.

mod acting;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::*;
use crate::backend::BackendFiles;
use crate::config::{self, Config};
use crate::directory::memory::Memory;
use crate::directory::{Directory, Entry};
use crate::limits::{Shares, Throttle};
use crate::login::core::{BackendParts, InForce};
use crate::login::history::LoginHistory;
use crate::proto;
use crate::sessions::closer::Closer;
use crate::sessions::maintenance::Maintenance;
use crate::sessions::registry::Registry;
use crate::telemetry::metrics::Metrics;
use crate::tracking::ChangeTrackers;

const DN: &str = "uid=alice,dc=example";
const REFUSAL_DELAY: Duration = Duration::from_secs(2);

/// What the process has for a login.
struct Process {
    directory: Arc<Memory>,
    core: ArcSwap<LoginCore>,
    limits: Throttle,
    tracking: ChangeTrackers,
    sessions: Arc<Registry>,
    history: LoginHistory,
    maintenance: Maintenance,
    metrics: Arc<Metrics>,
}

impl InForce for ArcSwap<LoginCore> {
    fn core(&self) -> Arc<LoginCore> {
        self.load_full()
    }
}

fn config() -> Config {
    let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})', watch: off}
routing: {backends: [{name: server3, hosts: [server3], imap: {address: '192.0.2.3:993', tls: implicit}}]}
limits: {refusal_delay: 2s}
";
    config::parse(Path::new("/c.yaml"), text).unwrap()
}

impl Process {
    fn new() -> Self {
        Self::of(config())
    }

    fn of(config: Config) -> Self {
        let metrics = Arc::new(Metrics::new());
        let sessions = Arc::<Registry>::default();
        let closer = Arc::new(Closer::new(Arc::clone(&sessions)));
        let directory = Memory::with_user("alice", "sesame", Entry::for_tests(DN, &["server3"]));
        Self {
            limits: Throttle::new(&config.throttle, Shares::default(), Arc::clone(&metrics)),
            core: ArcSwap::from_pointee(core(config, &directory, &metrics, None)),
            tracking: ChangeTrackers::new(Arc::clone(&sessions), Arc::clone(&closer), Arc::clone(&metrics)),
            maintenance: Maintenance::new(closer),
            directory,
            sessions,
            history: LoginHistory::default(),
            metrics,
        }
    }

    fn context(&self) -> LoginContext<'_> {
        LoginContext {
            in_force: &self.core,
            limits: &self.limits,
            tracking: &self.tracking,
            sessions: &self.sessions,
            maintenance: &self.maintenance,
            history: &self.history,
            metrics: &self.metrics,
        }
    }

    async fn login(&self, credential: Result<Credential, Refusal>, frontend: &Scripted) -> Result<usize, RefusedLogin> {
        self.attempt(credential, None, frontend).await
    }

    async fn attempt(
        &self,
        credential: Result<Credential, Refusal>,
        acting: Option<Acting>,
        frontend: &impl Frontend<Accepted = usize>,
    ) -> Result<usize, RefusedLogin> {
        let info = ConnectionInfo {
            session: self.sessions.next_id(),
            client: "192.0.2.7".parse().unwrap(),
            via: None,
            protocol: "imap",
        };
        let protocol = proto::by_name("imap").unwrap();
        let event = LoginEvent::default();
        let mut request =
            LoginRequest { info: &info, client_id: None, protocol, connection: None, credential, acting, event };
        attempt(self.context(), &mut request, frontend).await
    }

    async fn alice(&self, password: &str, frontend: &Scripted) -> Result<usize, RefusedLogin> {
        self.login(Ok(Credential::for_tests("alice", password)), frontend).await
    }

    /// How many events had this result.
    fn events(&self, result: &str) -> u64 {
        self.metrics.logins.with_label_values(&["imap", result]).get()
    }
}

/// A core of this config; the backends have no endpoints, as no test connects to one.
fn core(config: Config, directory: &Arc<Memory>, metrics: &Arc<Metrics>, previous: Option<&LoginCore>) -> LoginCore {
    let file = |settings: &config::Backend| {
        let account = |account: &config::BackendService| crate::backend::Service {
            login: account.login.clone(),
            password: crate::base::secret::Secret::copy_of(b"service"),
        };
        let impersonation = settings.impersonation_service.as_ref().map(account);
        (settings.name.clone(), BackendFiles { tls: Vec::new(), service: None, impersonation, probe: None })
    };
    let files: HashMap<_, _> = config.routing.backends.iter().map(file).collect();
    let parts = BackendParts { files, host: &"usher".into(), own: &Arc::from([]), kept: previous };
    LoginCore::new(config, vec![Arc::clone(directory) as Arc<dyn Directory>], Vec::new(), parts, metrics, previous)
}

/// What the frontend does, one step after another.
type Script = Box<dyn FnMut(&LoginAttempt<'_>) -> Result<Completion<usize>, Refusal> + Send>;

/// A frontend that does what its script says, and counts.
struct Scripted {
    script: Mutex<Script>,
    completed: AtomicUsize,
    /// The name at the backend.
    login: &'static str,
    /// Whether a user acts for it; `None`: either.
    acts: Option<bool>,
}

impl Scripted {
    fn new(script: impl FnMut(&LoginAttempt<'_>) -> Result<Completion<usize>, Refusal> + Send + 'static) -> Self {
        Self { script: Mutex::new(Box::new(script)), completed: AtomicUsize::new(0), login: "alice", acts: None }
    }

    fn accepting() -> Self {
        Self::new(|_| Ok(Completion::Accepted(0)))
    }

    fn completed(&self) -> usize {
        self.completed.load(Ordering::SeqCst)
    }
}

impl Frontend for Scripted {
    type Accepted = usize;

    async fn complete(
        &self,
        attempt: &LoginAttempt<'_>,
        _: AttemptedLogin<'_>,
        routed: RoutedLogin,
        _: &mut LoginEvent,
    ) -> Result<Completion<usize>, Refusal> {
        assert_eq!((&*routed.target.backend.name, routed.target.login.as_str()), ("server3", self.login));
        assert!(self.acts.is_none_or(|acts| routed.proven.identity.acting().is_some() == acts));
        self.completed.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        (self.script.lock().unwrap())(attempt)
    }
}

#[tokio::test(start_paused = true)]
async fn accepted_login_is_one_event_and_the_next_one_costs_no_bind() {
    let process = Process::new();
    for _ in 0..2 {
        assert_eq!(process.alice("sesame", &Scripted::accepting()).await.unwrap(), 0);
    }
    assert_eq!((process.directory.binds(), process.events("ok")), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn reload_during_an_attempt_leads_to_a_decision_of_the_new_core() {
    let process = Arc::new(Process::new());
    let first = process.core.load_full();
    let reloads = Arc::clone(&process);
    let frontend = Scripted::new(move |attempt| {
        if !std::ptr::eq(attempt.core, Arc::as_ptr(&first)) {
            return Ok(Completion::Accepted(1));
        }
        reloads.core.store(Arc::new(core(config(), &reloads.directory, &reloads.metrics, None)));
        Ok(Completion::Reloaded)
    });
    assert_eq!(process.alice("sesame", &frontend).await.unwrap(), 1);
    assert_eq!((frontend.completed(), process.directory.binds(), process.events("ok")), (2, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn entry_that_keeps_changing_is_decided_again_three_times_at_most() {
    let process = Process::new();
    let frontend = Scripted::new(|_| Ok(Completion::Outdated));
    let refused = process.alice("sesame", &frontend).await.unwrap_err();
    assert_eq!((refused.refusal, refused.reply), (Refusal::DirectoryUnavailable, Reply::Unavailable));
    assert_eq!((frontend.completed(), process.directory.binds()), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn defect_of_a_frontend_fails_one_attempt_with_one_event() {
    let process = Process::new();
    let frontend = Scripted::new(|_| panic!("on purpose"));
    assert_eq!(process.alice("sesame", &frontend).await.unwrap_err().refusal, Refusal::Internal);
    assert_eq!(process.events(Refusal::Internal.label()), 1);
    assert!(process.alice("sesame", &Scripted::accepting()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn wrong_password_is_refused_at_the_tick_and_reaches_no_frontend() {
    let process = Process::new();
    let (frontend, began) = (Scripted::accepting(), Instant::now());
    let refused = process.alice("guess", &frontend).await.unwrap_err();
    assert_eq!((refused.refusal, refused.reply), (Refusal::WrongPassword, Reply::AuthenticationFailed));
    assert_eq!((began.elapsed(), frontend.completed()), (REFUSAL_DELAY, 0));
}

#[tokio::test(start_paused = true)]
async fn unusable_name_is_refused_like_a_wrong_password_without_a_lookup() {
    let process = Process::new();
    let (frontend, began) = (Scripted::accepting(), Instant::now());
    let refused = process.login(Err(Refusal::InvalidUsername), &frontend).await.unwrap_err();
    assert_eq!((refused.reply, began.elapsed()), (Reply::AuthenticationFailed, REFUSAL_DELAY));
    assert_eq!((process.directory.binds(), frontend.completed()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn drained_backend_is_refused_after_a_right_password() {
    let process = Process::new();
    process.maintenance.drain("server3", 10);
    let frontend = Scripted::accepting();
    assert_eq!(process.alice("sesame", &frontend).await.unwrap_err().refusal, Refusal::BackendDraining);
    process.maintenance.undrain("server3");
    assert!(process.alice("sesame", &frontend).await.is_ok());
    assert_eq!(frontend.completed(), 1);
}

#[tokio::test(start_paused = true)]
async fn silent_directory_ends_the_attempt_at_its_deadline() {
    let process = Process::new();
    process.directory.set_fault("alice", crate::directory::memory::MemoryFault::Silence);
    let began = Instant::now();
    let refused = process.alice("sesame", &Scripted::accepting()).await.unwrap_err();
    assert_eq!((refused.refusal, began.elapsed()), (Refusal::Deadline, ATTEMPT_TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn right_password_from_another_network_is_refused_like_a_wrong_one() {
    let process = Process::new();
    process.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["198.51.100.0/24"]));
    let frontend = Scripted::accepting();
    for nth in 1..=2 {
        let began = Instant::now();
        let refused = process.alice("sesame", &frontend).await.unwrap_err();
        assert_eq!((refused.refusal, refused.reply), (Refusal::NetworkNotAllowed, Reply::AuthenticationFailed));
        assert_eq!((began.elapsed(), process.events("network_not_allowed")), (REFUSAL_DELAY, nth));
    }
    // Cached from where it is permitted, it waits for the throttle and the directory all the same.
    process.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["192.0.2.0/24"]));
    assert!(process.alice("sesame", &frontend).await.is_ok());
    // A client elsewhere does not learn of a hold.
    process.directory.modify("alice", |entry| {
        *entry = entry.clone().permitting(&["198.51.100.0/24"]);
        entry.version.held = true;
    });
    process.core.load().realms.all()[0].authn.cache().forget(&Entry::for_tests(DN, &["server3"]));
    let began = Instant::now();
    let refused = process.alice("sesame", &frontend).await.unwrap_err();
    assert_eq!((refused.refusal, began.elapsed()), (Refusal::NetworkNotAllowed, REFUSAL_DELAY));
    assert_eq!(frontend.completed(), 1);
}

#[tokio::test(start_paused = true)]
async fn repeated_refusal_takes_as_long_whether_the_password_is_right() {
    let process = Process::new();
    process.directory.set_fault("alice", crate::directory::memory::MemoryFault::Slow(Duration::from_millis(2_500)));
    process.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["198.51.100.0/24"]));
    let frontend = Scripted::accepting();
    for (password, binds) in [("guess", 1), ("guess", 1), ("sesame", 2), ("sesame", 3), ("guess", 3)] {
        let began = Instant::now();
        let refused = process.alice(password, &frontend).await.unwrap_err();
        assert_eq!((refused.reply, process.directory.binds()), (Reply::AuthenticationFailed, binds), "{password}");
        assert_eq!(began.elapsed(), REFUSAL_DELAY * 2, "{password}");
    }
}

#[tokio::test(start_paused = true)]
async fn password_that_may_not_be_used_is_refused_like_a_wrong_one() {
    let process = Process::new();
    let frontend = Scripted::accepting();
    process.directory.refuse_passwords("alice", true);
    // Right, wrong and of no user: the reply and its time are the same.
    for (password, reason, nth) in [
        ("sesame", "password_not_allowed", 1),
        ("guess", "password_not_allowed", 2),
        ("sesame", "password_not_allowed", 3),
    ] {
        let began = Instant::now();
        let refused = process.alice(password, &frontend).await.unwrap_err();
        assert_eq!((refused.refusal, refused.reply), (Refusal::PasswordNotAllowed, Reply::AuthenticationFailed));
        assert_eq!((began.elapsed(), process.events(reason)), (REFUSAL_DELAY, nth));
    }
    assert_eq!((process.directory.binds(), frontend.completed()), (0, 0));
    process.directory.refuse_passwords("alice", false);
    let began = Instant::now();
    assert_eq!(process.alice("guess", &frontend).await.unwrap_err().refusal, Refusal::WrongPassword);
    assert_eq!(began.elapsed(), REFUSAL_DELAY);
    assert!(process.alice("sesame", &frontend).await.is_ok());
}
