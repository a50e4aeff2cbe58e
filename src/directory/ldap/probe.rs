//! The request of a probe, and the canary.
//!
//! The canary is an entry with a known mail host that every server must return. A server that lost its data,
//! its access rules or the right subtree answers every search promptly and wrongly: "no such user", "no mail
//! host", "from everywhere". Only such an entry distinguishes that from the truth. It is read whenever a search
//! connection is opened, at each probe, and before an answer is accepted that lacks what a server may hide.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tracing::{error, info};

use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::endpoint::Endpoint;
use crate::directory::ldap::error::RequestError;
use crate::directory::ldap::health::OperationOrigin;
use crate::directory::ldap::query::{SearchRequest, SearchResult};
use crate::directory::ldap::tuning::locked;
use crate::directory::{Entry, Trace, UnavailableCause};
use crate::telemetry::log::Escaped;

/// The request of a probe.
#[derive(Debug)]
pub(crate) struct ServerProbe {
    pub(crate) request: Arc<SearchRequest>,
    /// What is expected; without a canary any reply is accepted.
    expected: Option<ExpectedCanary>,
    canary: Mutex<CanaryState>,
}

/// What the canary has to show.
#[derive(Debug)]
pub(crate) struct ExpectedCanary {
    /// The mail host.
    pub(crate) mail_host: String,
    /// `networks_attribute`: without a value, all users would be let in from everywhere.
    pub(crate) networks: Option<Arc<str>>,
    /// `hold_attribute`: without a value, no user would be held.
    pub(crate) hold: Option<Arc<str>>,
    /// `grant_attribute`: without a value, all sessions of users that act for a mailbox by it would end.
    pub(crate) grants: Option<Arc<str>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct CanaryState {
    shown_at: Option<Instant>,
    missing: bool,
}

impl ServerProbe {
    /// With `expected`, `query` asks for the canary.
    pub(crate) fn new(query: Arc<SearchRequest>, expected: Option<ExpectedCanary>) -> Self {
        Self { request: query, expected, canary: Mutex::default() }
    }

    pub(crate) fn has_canary(&self) -> bool {
        self.expected.is_some()
    }

    /// Whether an answer lacks what a server may hide although the entry has it.
    pub(crate) fn may_be_hidden(&self, found: &SearchResult) -> bool {
        let lacks_attribute =
            |entry: &Entry| self.expected.as_ref().is_some_and(|expected| expected.lacking(entry).is_some());
        found.lacks_mail_host() || found.first.as_ref().is_some_and(lacks_attribute)
    }

    /// Whether the last read of the canary failed.
    pub(crate) fn canary_missing(&self) -> bool {
        locked(&self.canary).missing
    }

    /// Checks that the canary is shown as expected.
    ///
    /// # Errors
    /// What it shows instead, and whether it only lacks a value.
    fn shows_canary(&self, found: &SearchResult) -> Result<(), (Arc<str>, bool)> {
        let Some(expected) = &self.expected else { return Ok(()) };
        let Some(entry) = found.first.as_ref().filter(|_| found.code == 0 && found.entries == 1) else {
            let (entries, result) = (found.entries, found.result());
            let fault = match entries {
                0 if found.code == 0 => "not shown (no such entry)".into(),
                0 | 1 => format!("not shown ({result})").into(),
                _ => "there are several such entries".into(),
            };
            return Err((fault, false));
        };
        if !entry.mail_hosts.iter().any(|host| host.eq_ignore_ascii_case(&expected.mail_host)) {
            let wanted = &expected.mail_host;
            let fault = match entry.mail_hosts.first() {
                Some(host) => format!("its mail host is {}, not {wanted}", Escaped(host.as_bytes())).into(),
                None => format!("it has no mail host in place of {wanted}").into(),
            };
            return Err((fault, false));
        }
        // Not asked of each entry: one without a value grants nothing.
        let lacking = expected.grants.as_ref().filter(|_| entry.grants.is_empty()).cloned();
        let lacking = lacking.or_else(|| expected.lacking(entry));
        lacking.map_or(Ok(()), |attribute| Err((format!("shows no {attribute}").into(), true)))
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
        let fault = self.shows_canary(found).err();
        let shown = fault.is_none();
        let mut canary = locked(&self.canary);
        let changed = canary.missing == shown;
        canary.missing = !shown;
        if shown {
            canary.shown_at = Some(Instant::now());
        }
        drop(canary);
        let Some((fault, lacks)) = fault else {
            if changed {
                info!(directory = endpoint.shown, server = %endpoint.url, "directory server returns the canary again");
            }
            return Ok(());
        };
        if changed {
            let (code, entries, result) = (found.code, found.entries, found.result());
            let reason = &*fault;
            error!(directory = endpoint.shown, server = %endpoint.url, code, %result, entries, reason, "directory server does not return the canary; not used");
        }
        let cause = UnavailableCause::Canary { server: endpoint.url.clone(), fault, lacks };
        endpoint.server_failed(OperationOrigin::Probe, &cause);
        Err(cause)
    }
}

impl ExpectedCanary {
    /// The attribute of which an entry shows no value.
    fn lacking(&self, entry: &Entry) -> Option<Arc<str>> {
        let networks = self.networks.as_ref().filter(|_| entry.networks.is_none());
        networks.or_else(|| self.hold.as_ref().filter(|_| !entry.version.held)).cloned()
    }
}
