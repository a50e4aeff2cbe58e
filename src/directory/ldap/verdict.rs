//! What the replies of a server mean for a login: the result of a bind, and of a search for one entry.
//!
//! Only result 0 of a bind authenticates and only 49 is a wrong password; an account state that accompanies either takes
//! precedence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::policy::BindResponse;
use super::query::{INVALID_CREDENTIALS, SIZE_LIMIT, SUCCESS, SearchResult};
use super::tuning::locked;
use crate::directory::identity::AcceptedBind;
use crate::directory::{BindDiagnostic, DirectoryError, Entry, EntryVersion, Trace, UnavailableCause};
use crate::outcome::AccountState;
use crate::telemetry::labels::DirectoryOperation;
use crate::telemetry::metrics::Metrics;

/// Evaluates the results of binds.
#[derive(Debug)]
pub(super) struct BindVerdicts {
    /// The account states that the settings give to result codes.
    results: BTreeMap<u32, AccountState>,
    metrics: Arc<Metrics>,
    /// The servers that have reported an account as locked: if a server does, an unnamed refusal of a locked
    /// account is not caused by the lock.
    pub(super) reports_locks: Mutex<BTreeSet<Arc<str>>>,
}

impl BindVerdicts {
    pub(super) fn new(results: &BTreeMap<u32, AccountState>, metrics: Arc<Metrics>) -> Self {
        Self { results: results.clone(), metrics, reports_locks: Mutex::default() }
    }

    /// Evaluates an answered bind.
    pub(super) fn judge(
        &self,
        bound: BindResponse,
        dn: &str,
        seen: &EntryVersion,
        trace: &mut Trace,
    ) -> Result<AcceptedBind, DirectoryError> {
        trace.diagnostic = bound.diagnostic;
        let account = |state, proven| DirectoryError::Account { dn: dn.into(), state, proven };
        match (bound.code, bound.diagnostic) {
            // Also beside success: a server that requires a password change first allows this user nothing
            // else, and a password set by an administrator must not open a mailbox indefinitely.
            (_, Some(BindDiagnostic::State { state, proven })) => {
                if let (AccountState::Locked, Some(server)) = (state, &trace.server) {
                    locked(&self.reports_locks).insert(Arc::clone(server));
                }
                Err(account(state, proven))
            }
            (SUCCESS, said) => {
                if let Some(warning) = said.and_then(BindDiagnostic::warning) {
                    self.metrics.directory_password_warnings.of(warning).inc();
                }
                Ok(AcceptedBind::new())
            }
            (INVALID_CREDENTIALS, Some(BindDiagnostic::NoAccount)) => Err(DirectoryError::NoEntry),
            (INVALID_CREDENTIALS, said) => {
                // A lock that is not reported may hide that the password is right.
                let is_looked_at = !seen.locked || self.server_reports_locks(trace.server.as_ref());
                let seen = (said.is_none() && is_looked_at).then(|| Box::new(seen.clone()));
                Err(DirectoryError::InvalidCredentials { dn: dn.into(), seen })
            }
            (code, _) => Err(match self.results.get(&code) {
                // It is unknown whether the server checked the password.
                Some(state) => account(*state, false),
                None => unavailable(trace, |server| UnavailableCause::Result {
                    server,
                    operation: DirectoryOperation::Bind,
                    code,
                }),
            }),
        }
    }

    /// Whether this server reports locked accounts as such. The set is bounded by the number of servers.
    fn server_reports_locks(&self, server: Option<&Arc<str>>) -> bool {
        let known = locked(&self.reports_locks);
        server.is_some_and(|server| known.contains(server))
    }
}

/// The only entry of a search.
pub(super) fn single_entry(found: SearchResult, trace: &Trace) -> Result<Entry, DirectoryError> {
    match found {
        SearchResult { entries: 2.., .. } | SearchResult { code: SIZE_LIMIT, .. } => {
            Err(DirectoryError::SeveralEntries)
        }
        SearchResult { code: 0, first: Some(entry), .. } => require_dn(entry, trace),
        SearchResult { code: 0, entries: 0, .. } => Err(DirectoryError::NoEntry),
        SearchResult { code: 0, first: None, .. } => {
            Err(unavailable(trace, |server| UnavailableCause::Malformed { server }))
        }
        SearchResult { code, .. } => Err(unavailable(trace, |server| UnavailableCause::Result {
            server,
            operation: DirectoryOperation::Search,
            code,
        })),
    }
}

/// The entry of a read.
pub(super) fn read_entry(found: SearchResult, trace: &Trace) -> Result<Entry, DirectoryError> {
    match found {
        SearchResult { entries: 2.., .. } | SearchResult { code: SIZE_LIMIT, .. } => {
            Err(DirectoryError::SeveralEntries)
        }
        SearchResult { code: 0, entries: 1, first: Some(entry) } => require_dn(entry, trace),
        SearchResult { code: 0, entries: 1, first: None } => {
            Err(unavailable(trace, |server| UnavailableCause::Malformed { server }))
        }
        // Success without an entry: access rules hide it, and its mail host is unknown.
        SearchResult { code, .. } => Err(unavailable(trace, |server| UnavailableCause::Result {
            server,
            operation: DirectoryOperation::Read,
            code,
        })),
    }
}

/// Refuses an entry without a DN: a bind as it would be anonymous.
pub(super) fn require_dn(entry: Entry, trace: &Trace) -> Result<Entry, DirectoryError> {
    if entry.dn.is_empty() {
        return Err(unavailable(trace, |server| UnavailableCause::Malformed { server }));
    }
    Ok(entry)
}

/// Whether a search for one entry found it.
pub(super) fn matches(found: &SearchResult, trace: &Trace) -> Result<bool, DirectoryError> {
    match found.code {
        SUCCESS => Ok(found.entries > 0),
        code => Err(unavailable(trace, |server| UnavailableCause::Result {
            server,
            operation: DirectoryOperation::Read,
            code,
        })),
    }
}

/// A lookup failure of the server that answered last.
fn unavailable(trace: &Trace, cause: impl FnOnce(Arc<str>) -> UnavailableCause) -> DirectoryError {
    DirectoryError::Unavailable(cause(trace.server.clone().unwrap_or_default()))
}
