//! A member of a fleet for benches (feature `internals`): not part of the product.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{AttemptOutcome, FleetRunner, SessionPermit, Shares, Throttle};
use crate::base::credential::{Credential, CredentialSecret, Login};
use crate::base::secret::Secret;
use crate::config::Config;
use crate::directory::{EntryKey, Realm};
use crate::fleet::{self, Fleet, FleetFiles, Sealer};
use crate::telemetry::labels::FleetResult;
use crate::telemetry::metrics::Metrics;
use crate::tls::key_lines::KeyLines;

/// An usher without clients, directory and backends: its limits, and its part of the fleet.
#[derive(Debug)]
pub struct SampleMember {
    fleet: Arc<Fleet>,
    throttle: Throttle,
    metrics: Arc<Metrics>,
}

/// A session that is counted until it is dropped.
#[derive(Debug)]
pub struct SampleSession(#[expect(dead_code, reason = "it is held")] SessionPermit);

impl SampleMember {
    /// Joins the fleet of this config, whose store is reached without TLS and password; `None`: it has none, or its
    /// secret cannot be read. To be called within a runtime.
    #[must_use]
    pub fn join(config: &Config) -> Option<Self> {
        let settings = config.fleet.clone()?;
        let sealer = Sealer::new(&KeyLines::read(&settings.secret_file).ok()?, &settings.name).ok()?;
        let files = FleetFiles { tls: None, password: None, sealer: Arc::new(sealer) };
        let metrics = Arc::new(Metrics::new());
        let fleet = Fleet::new(settings, Arc::new(files), config.fleet_digest(), &super::SCRIPTS, Arc::clone(&metrics));
        let throttle = Throttle::new(&config.throttle, Shares::default(), Arc::clone(&metrics));
        throttle.share(Arc::new(FleetRunner::new(&fleet)));
        for task in fleet::TASKS {
            tokio::spawn(Arc::clone(&fleet).run(task));
        }
        Some(Self { fleet, throttle, metrics })
    }

    /// How many members it knows; 0: it does not use the store.
    #[must_use]
    pub fn members(&self) -> usize {
        if self.fleet.is_up() { self.fleet.members().len() } else { 0 }
    }

    /// A login that asks the directory, which accepts the password or not. Returns how long its charge took.
    pub async fn asks(&self, client: IpAddr, login: &Login, password: &Secret, is_right: bool) -> Duration {
        let credential = Credential::new(login.clone(), CredentialSecret::Password(password.clone()));
        let entry = entry_of(login);
        let began = Instant::now();
        let charged = self.throttle.attempt(client, &credential).await;
        let took = began.elapsed();
        if let Ok(mut attempt) = charged {
            let may_bind = attempt.begin_lookup().is_some_and(|gate| gate.may_bind(&entry));
            attempt.settle(if is_right && may_bind { AttemptOutcome::Right(entry) } else { AttemptOutcome::Wrong });
        }
        took
    }

    /// A cached password is right.
    pub fn recalls(&self, client: IpAddr, login: &Login) {
        self.throttle.cached_success(client, login, &entry_of(login));
    }

    /// A session begins; `None`: it is one too many.
    #[must_use]
    pub fn session(&self, client: IpAddr, login: &Login) -> Option<SampleSession> {
        self.throttle.session(client, &entry_of(login)).ok().map(SampleSession)
    }

    /// How many writes wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.fleet.waiting_writes()
    }

    /// How many writes were dropped, and how many charges had no answer.
    #[must_use]
    pub fn failures(&self) -> [u64; 2] {
        let commands = |result| self.metrics.fleet_commands.of(result).get();
        let unanswered = [FleetResult::Late, FleetResult::Unavailable, FleetResult::Error].map(commands);
        [self.metrics.fleet_writes_dropped.get(), unanswered.iter().sum()]
    }
}

fn entry_of(login: &Login) -> EntryKey {
    EntryKey::by_dn(Realm::DEFAULT, &format!("uid={},ou=people,dc=example,dc=com", login.as_str()).into())
}
