//! The request of a probe, and the canary.
//!
//! The canary is an entry with a known mail host that every server must return. A server that lost its data,
//! its access rules or the right subtree answers every search promptly and wrongly: "no such user", "no mail
//! host". Only such an entry distinguishes that from the truth. It is read whenever a search connection is
//! opened, at each probe, and before an empty result is accepted.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tracing::{error, info};

use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::endpoint::Endpoint;
use crate::directory::ldap::error::RequestError;
use crate::directory::ldap::health::OperationOrigin;
use crate::directory::ldap::query::{SearchRequest, SearchResult};
use crate::directory::ldap::tuning::locked;
use crate::directory::{Trace, UnavailableCause};

/// The request of a probe.
#[derive(Debug)]
pub(crate) struct ServerProbe {
    pub(crate) request: Arc<SearchRequest>,
    /// The expected value; without a canary any reply is accepted.
    mail_host: Option<String>,
    canary: Mutex<CanaryState>,
}

#[derive(Debug, Default, Clone, Copy)]
struct CanaryState {
    shown_at: Option<Instant>,
    missing: bool,
}

impl ServerProbe {
    /// With `mail_host`, `query` asks for the canary.
    pub(crate) fn new(query: Arc<SearchRequest>, mail_host: Option<String>) -> Self {
        Self { request: query, mail_host, canary: Mutex::default() }
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

    /// Whether the canary must be read before an empty result is accepted: unless that was done just now.
    pub(crate) fn is_due(&self, endpoint: &Endpoint) -> bool {
        let shown_at = locked(&self.canary).shown_at;
        self.has_canary() && shown_at.is_none_or(|shown| shown.elapsed() >= endpoint.tuning.canary_valid)
    }

    /// Sends the probe's request on a new connection.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        connection: &mut BindClient,
        deadline: Instant,
    ) -> Result<(), UnavailableCause> {
        let query = &self.request;
        let asked = connection.search(query, endpoint.patience);
        let answer =
            endpoint.timed(query.operation, deadline, &mut Trace::default(), asked, SearchResult::result).await;
        let found = answer.map_err(|error| endpoint.note_error(query.operation, OperationOrigin::Probe, &error))?;
        self.check(endpoint, &found)
    }

    /// Evaluates the reply to a probe.
    pub(crate) fn check(&self, endpoint: &Endpoint, found: &SearchResult) -> Result<(), UnavailableCause> {
        let operation = self.request.operation;
        endpoint
            .note_result(operation, OperationOrigin::Probe, &found.result(), Instant::now())
            .map_err(RequestError::cause)?;
        let shown = self.shows_canary(found);
        let mut canary = locked(&self.canary);
        let changed = canary.missing == shown;
        canary.missing = !shown;
        if shown {
            canary.shown_at = Some(Instant::now());
        }
        drop(canary);
        if shown {
            if changed {
                info!(server = %endpoint.url, "directory server returns the canary again");
            }
            return Ok(());
        }
        if changed {
            let (code, entries, result) = (found.code, found.entries, found.result());
            error!(server = %endpoint.url, code, %result, entries, "directory server does not return the canary; not used");
        }
        let cause = UnavailableCause::Canary { server: endpoint.url.clone() };
        endpoint.server_failed(OperationOrigin::Probe, &cause);
        Err(cause)
    }
}
