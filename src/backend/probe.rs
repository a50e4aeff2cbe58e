//! A probe of a backend address: the steps of a login without a user.
//!
//! It has a login's patience, and logs in only with the probe account.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use super::Service;
use super::addresses::{Evidence, RunningProbe};
use super::endpoint::{Endpoint, send_header};
use super::error::BackendError;
use super::observed::Observations;
use crate::base::secret::Secret;
use crate::config::Probe;
use crate::proto::transcript::Transcript;
use crate::proto::{BackFault, BackSettings, Origin, software};
use crate::telemetry::labels::ProbeResult;

/// The session id that probes forward.
const PROBE_SESSION: &str = "PROBE";
/// How long a probe may take to close its connection.
const PROBE_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Endpoint {
    /// Probes one address and records the result.
    pub(super) async fn run_probe(self: Arc<Self>, mut probe: RunningProbe) {
        let probed = self.probe(&mut probe).await;
        let result = match &probed {
            Ok(proof) => {
                if let Some(proof) = proof {
                    self.pool.succeeded(probe.attempt.address, *proof);
                }
                ProbeResult::Ok
            }
            // The server can be reached; what the rejection means is another matter.
            Err(BackendError::Refused(words)) if !words.unavailable => {
                self.rejections.record(probe.attempt.address.ip());
                self.pool.succeeded(probe.attempt.address, Evidence::Login);
                ProbeResult::Refused
            }
            Err(error) => {
                // Logged here, because there may be no login to report it.
                if error.is_local_fault() {
                    let (backend, address) = (&*self.pool.backend, probe.attempt.address);
                    warn!(backend, protocol = self.protocol.name, %address, %error, "cannot probe backend: local error");
                }
                self.pool.failed(&probe.attempt, error);
                error.probe_result()
            }
        };
        self.metrics.backend_probes.at(&self.pool.backend, result).inc();
        match &probed {
            Err(BackendError::Refused(reply)) if !reply.unavailable => {
                self.pool.account_refused(&format!("the probe account is rejected: {}", reply.text));
            }
            Ok(Some(Evidence::Login)) => self.pool.account_accepted(),
            Ok(_) | Err(_) => {}
        }
    }

    /// Runs the configured kind of probe, with a login's patience. An address is up again only after its greeting.
    async fn probe(self: &Arc<Self>, probe: &mut RunningProbe) -> Result<Option<Evidence>, BackendError> {
        let (address, deadline) = (probe.attempt.address, Instant::now() + self.timeout);
        let mut tcp = self.connect(address, deadline).await.tcp?;
        probe.connected();
        send_header(&mut tcp, &self.header(None)).await?;
        if self.pool.settings.probe == Probe::Tcp && !probe.is_recovery() {
            return Ok(None);
        }
        match self.dialogue(address, tcp, None, deadline, None).await {
            // It greets but offers no login without TLS or an account, which this probe does not need.
            Err(BackendError::Fault(BackFault::NoMechanism)) if self.account.is_none() => Ok(Some(Evidence::Greeting)),
            conversed => conversed.map(Some),
        }
    }

    /// From the connection to a login that is about to be sent, or with the probe's account further. A service
    /// account's name is used as a login would use it; its password is not sent. `observed` collects the
    /// observations of an inspection.
    pub(super) async fn dialogue(
        self: &Arc<Self>,
        address: SocketAddr,
        tcp: TcpStream,
        service: Option<&Service>,
        deadline: Instant,
        mut observed: Option<&mut Observations>,
    ) -> Result<Evidence, BackendError> {
        let account = self.account.as_ref();
        // Forwards usher's own address, so that a backend that does not trust usher is detected.
        let own = tcp.local_addr().ok().map(|own| Origin {
            client: own,
            local: own,
            session: PROBE_SESSION.to_owned(),
            greeting: None,
        });
        // The probe account logs in as itself, not for another user.
        let service = service.filter(|_| account.is_none());
        let mut settings = self.trial(account, service, own.and_then(|own| self.forwarded_client(&own)));
        let mut talk =
            self.begin(tcp, settings.clone(), deadline, &Transcript::default(), observed.as_deref_mut()).await?;
        self.record_capabilities(address, &talk);
        self.pool.greeted(address, talk.greeted_after);
        if let Some(observed) = &mut observed
            && let Some((question, end)) = software::question(self.protocol)
        {
            // A login does not ask this: a server that closes over it, or does not reply, has no fault.
            let asked = timeout_at(deadline, talk.ask(question, end)).await;
            observed.identity = asked.ok().and_then(Result::ok).unwrap_or_default();
        }
        let (mut stream, proof) = match account {
            Some(_) => {
                let again = async |settings: &BackSettings| {
                    let mut tcp = self.connect(address, deadline).await.tcp?;
                    send_header(&mut tcp, &self.header(None)).await?;
                    self.begin(tcp, settings.clone(), deadline, &Transcript::default(), None).await
                };
                let logged_in = timeout_at(deadline, self.log_in(talk, &mut settings, again)).await;
                let logged_in = logged_in.map_err(|_| self.late_login(address));
                (logged_in.flatten()?.stream, Evidence::Login)
            }
            None => (talk.into_stream(), Evidence::Greeting),
        };
        let _ = timeout(PROBE_CLOSE_TIMEOUT, stream.shutdown()).await;
        Ok(proof)
    }

    /// A login without a user: as this account, as far as a service account's, or without any account.
    pub(super) fn trial(
        &self,
        account: Option<&Service>,
        service: Option<&Service>,
        forward: Option<Origin>,
    ) -> BackSettings {
        BackSettings {
            tls: self.tls,
            login: account.map(|account| account.login.clone().into_bytes()).unwrap_or_default(),
            password: account.map_or_else(|| Secret::new(Vec::new()), |account| account.password.clone()),
            token: None,
            service: service.map(|service| service.login.clone().into_bytes()),
            forward,
            untagged_limit: self.untagged_limit,
            host: Arc::clone(&self.host),
            initial_response: self.pool.takes_initial_responses(),
            ehlo: None,
        }
    }
}
