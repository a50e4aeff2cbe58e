//! Members at a real store, and what happens when it is unavailable, slow, full, emptied, or another fleet's.

#[allow(dead_code, reason = "integration tests use the rest")]
#[path = "../../tests/it/kit/process.rs"]
mod process;
#[allow(dead_code, reason = "integration tests use the rest")]
#[path = "../../tests/it/kit/redis.rs"]
mod redis;

mod faults;
mod hostile;
mod inspected;
mod marks;
mod together;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use self::redis::{Redis, SlowWay};
use super::*;
use crate::config::StoreAddress;
use crate::tls::key_lines::KeyLines;

/// The longest wait of a test.
const LIMIT: Duration = Duration::from_secs(20);

/// For the kit.
fn wait_limit(limit: Duration) -> Duration {
    limit.min(LIMIT)
}

static COUNT: FleetScript = FleetScript::new("test_count", "return redis.call('INCRBY', KEYS[1], ARGV[1])");

/// Settings that a test changes.
#[derive(Clone)]
struct Setting {
    settings: config::Fleet,
    secrets: Vec<u8>,
    password: Option<&'static str>,
    tls: Option<Arc<rustls::ClientConfig>>,
    config: u64,
}

fn address(port: u16) -> StoreAddress {
    StoreAddress { encrypted: false, local: true, host: "127.0.0.1".into(), port }
}

impl Setting {
    fn at(port: u16, node: &str) -> Self {
        let settings = config::Fleet {
            name: "mail".into(),
            node: node.into(),
            stores: vec![address(port)],
            user: None,
            password_file: None,
            ca: None,
            secret_file: PathBuf::new(),
            // A busy machine is no slow store.
            timeout: Duration::from_millis(500),
        };
        Self { settings, secrets: vec![1], password: None, tls: None, config: 1 }
    }

    fn files(&self) -> Arc<FleetFiles> {
        let folder = process::folder("secret");
        let lines: String = self.secrets.iter().map(|byte| STANDARD.encode([*byte; 48]) + "\n").collect();
        process::write_secret(&folder.join("secret"), lines);
        let lines = KeyLines::read(&folder.join("secret")).unwrap();
        let sealer = Arc::new(Sealer::new(&lines, &self.settings.name).unwrap());
        let password = self.password.map(|word| crate::base::secret::Secret::copy_of(word.as_bytes()));
        Arc::new(FleetFiles { tls: self.tls.clone(), password, sealer })
    }

    fn start(&self) -> Node {
        let metrics = Arc::new(Metrics::new());
        let fleet = Fleet::new(self.settings.clone(), self.files(), self.config, &[], metrics);
        let tasks = TASKS.map(|task| tokio::spawn(Arc::clone(&fleet).run(task))).into();
        Node { fleet, tasks }
    }
}

/// A member; killed when it is dropped.
struct Node {
    fleet: Arc<Fleet>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl std::ops::Deref for Node {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

impl Node {
    /// Waits until it is up, and knows this number of members.
    async fn joined(&self, members: usize) {
        until("joined", || self.is_up() && self.members().len() == members).await;
    }

    async fn count(&self, name: &str) -> Result<i64, Unavailable> {
        let key = self.key(KeyKind::User, &[name.as_bytes()]).ok_or(Unavailable::Down)?;
        self.eval(&COUNT, &[key], &[1_i64.into()]).await.map(|value| value.int().unwrap())
    }

    fn rejected(&self, reason: FleetRejection) -> u64 {
        self.metrics.fleet_rejected.of(reason).get()
    }

    fn all_rejected(&self) -> u64 {
        use crate::base::labels::Label as _;
        let noted = |reason: &&FleetRejection| **reason != FleetRejection::NotAddressed;
        FleetRejection::ALL.iter().filter(noted).map(|reason| self.rejected(*reason)).sum()
    }

    fn dropped(&self) -> u64 {
        self.metrics.fleet_writes_dropped.get()
    }
}

/// A member that has joined alone, or as one of several.
async fn joined(port: u16, node: &str, members: usize) -> Node {
    let node = Setting::at(port, node).start();
    node.joined(members).await;
    node
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn received(messages: &mut broadcast::Receiver<Message>) -> Message {
    timeout(LIMIT, messages.recv()).await.expect("a message comes").unwrap()
}
