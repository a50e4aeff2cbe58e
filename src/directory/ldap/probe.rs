//! Probes of a directory server: it is reachable, accepts the service account and returns the canary.
//!
//! The canary is an entry with a known mail host that every server must return. A server that lost its data,
//! its access rules or the right subtree answers every search promptly and wrongly: "no such user", "no mail
//! host". Only such an entry distinguishes that from the truth. It is read whenever a search connection is
//! opened, at each probe, and before an empty result is accepted.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::time::Instant;
use tracing::{error, info};

use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::bind_pool::{RequestError, Server, locked};
use crate::directory::ldap::connection::{SearchRequest, SearchResult};
use crate::directory::ldap::health::OperationOrigin;
use crate::directory::ldap::lag::ReplicationLag;
use crate::directory::{Trace, UnavailableCause};

/// The request of a probe.
#[derive(Debug)]
pub(crate) struct ServerProbe {
    request: Arc<SearchRequest>,
    /// The expected value; without a canary any reply is accepted.
    mail_host: Option<String>,
    canary: Mutex<CanaryState>,
    /// Read along with it, where replication lag is measured.
    pub(crate) lag: Option<ReplicationLag>,
}

#[derive(Debug, Default, Clone, Copy)]
struct CanaryState {
    shown_at: Option<Instant>,
    missing: bool,
}

impl ServerProbe {
    /// With `mail_host`, `question` asks for the canary.
    pub(crate) fn new(question: Arc<SearchRequest>, mail_host: Option<String>) -> Self {
        Self { request: question, mail_host, canary: Mutex::default(), lag: None }
    }

    pub(crate) fn has_canary(&self) -> bool {
        self.mail_host.is_some()
    }

    /// Whether the last read of the canary failed.
    pub(crate) fn canary_missing(&self) -> bool {
        locked(&self.canary).missing
    }

    fn shows_canary(&self, found: &SearchResult) -> bool {
        let Some(wanted) = &self.mail_host else { return true };
        let hosts = found.first.as_ref().map(|entry| entry.mail_hosts.as_slice()).unwrap_or_default();
        found.code == 0 && found.entries == 1 && hosts.iter().any(|host| host.eq_ignore_ascii_case(wanted))
    }
}

impl Server {
    /// Probes the server; the result is recorded in `health`.
    pub(crate) async fn run_probe(self: &Arc<Self>) -> Result<(), UnavailableCause> {
        let deadline = Instant::now() + self.patience.saturating_mul(2);
        if !self.health.is_in_use() || self.health.is_suspect() {
            // A fresh connection: an old one would report a past state.
            *locked(&self.search) = None;
        }
        if self.needs_service {
            let mut trace = Trace::default();
            let shared = self.search_connection(deadline, &mut trace).await.map_err(RequestError::cause)?;
            // A new connection has returned the canary already.
            if shared.is_used() || !self.probe.has_canary() {
                let answer = self.ask(&shared, &self.probe.request, deadline, &mut trace).await;
                let found = answer
                    .map_err(|error| self.note_error(self.probe.request.operation, OperationOrigin::Probe, &error))?;
                self.check_probe(&found)?;
            } else {
                shared.mark_used();
            }
            self.measure_lag(&shared, deadline).await;
        } else {
            let mut connection = self.connect(deadline, &mut Trace::default()).await.map_err(RequestError::cause)?;
            self.probe_connection(&mut connection, deadline).await?;
            self.keep(connection);
        }
        if self.health.probe_succeeded() {
            info!(server = %self.url, "directory server up again");
        }
        self.top_up(deadline).await
    }

    /// Sends the probe's request on a new connection.
    pub(crate) async fn probe_connection(
        &self,
        connection: &mut BindClient,
        deadline: Instant,
    ) -> Result<(), UnavailableCause> {
        let question = &self.probe.request;
        let asked = connection.search(question, self.patience);
        let answer = self.timed(question.operation, deadline, &mut Trace::default(), asked, |found| found.code).await;
        let found = answer.map_err(|error| self.note_error(question.operation, OperationOrigin::Probe, &error))?;
        self.check_probe(&found)
    }

    /// Checks the canary before an empty result is accepted, unless that was done just now.
    pub(crate) async fn confirm_canary(self: &Arc<Self>, deadline: Instant) -> Result<(), UnavailableCause> {
        let shown_at = locked(&self.probe.canary).shown_at;
        if !self.probe.has_canary() || shown_at.is_some_and(|shown| shown.elapsed() < self.tuning.canary_valid) {
            return Ok(());
        }
        let mut trace = Trace::default();
        let shared = self.search_connection(deadline, &mut trace).await.map_err(RequestError::cause)?;
        let answer = self.ask(&shared, &self.probe.request, deadline, &mut trace).await;
        let found =
            answer.map_err(|error| self.note_error(self.probe.request.operation, OperationOrigin::Probe, &error))?;
        self.check_probe(&found)
    }

    /// Evaluates the reply to a probe.
    fn check_probe(&self, found: &SearchResult) -> Result<(), UnavailableCause> {
        let operation = self.probe.request.operation;
        self.note_result(operation, OperationOrigin::Probe, found.code, Instant::now()).map_err(RequestError::cause)?;
        let shown = self.probe.shows_canary(found);
        let mut canary = locked(&self.probe.canary);
        let changed = canary.missing == shown;
        canary.missing = !shown;
        if shown {
            canary.shown_at = Some(Instant::now());
        }
        drop(canary);
        if shown {
            if changed {
                info!(server = %self.url, "directory server returns the canary again");
            }
            return Ok(());
        }
        if changed {
            let (code, entries) = (found.code, found.entries);
            error!(server = %self.url, code, entries, "directory server does not return the canary; not used");
        }
        let cause = UnavailableCause::Canary { server: self.url.clone() };
        self.server_failed(OperationOrigin::Probe, &cause);
        Err(cause)
    }
}
