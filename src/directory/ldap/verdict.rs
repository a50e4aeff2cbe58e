//! What the replies of a server mean for a login: the result of a bind, and of a search for one entry.
//!
//! Only result 0 of a bind authenticates and only 49 is a wrong password; an account state that accompanies either takes
//! precedence. What the other codes mean is one table, `proto/ldap/result.rs`, and what a vendor's text adds another,
//! `proto/ldap/vendor.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::policy::BindResponse;
use super::query::SearchResult;
use super::tuning::locked;
use crate::config;
use crate::directory::identity::AcceptedBind;
use crate::directory::{
    BindDiagnostic, DirectoryError, Entry, EntryFault, EntryVersion, Realm, ServerResult, Trace, UnavailableCause,
};
use crate::outcome::{AccountState, Proof};
use crate::proto::ldap::result::{self, BindMeaning, SUCCESS, SearchMeaning};
use crate::proto::ldap::vendor;
use crate::telemetry::labels::DirectoryOperation;
use crate::telemetry::metrics::Metrics;

/// Evaluates the results of binds.
#[derive(Debug)]
pub(super) struct BindVerdicts {
    /// The account states that the settings give to result codes.
    results: BTreeMap<u32, AccountState>,
    directory: &'static str,
    metrics: Arc<Metrics>,
    /// The servers that have reported an account as locked: if a server does, an unnamed refusal of a locked
    /// account is not caused by the lock.
    pub(super) reports_locks: Mutex<BTreeSet<Arc<str>>>,
}

impl BindVerdicts {
    pub(super) fn new(settings: &config::Directory, metrics: Arc<Metrics>) -> Self {
        let directory = Realm::named(&settings.name).name();
        Self { results: settings.results.clone(), directory, metrics, reports_locks: Mutex::default() }
    }

    /// Evaluates an answered bind.
    pub(super) fn judge(
        &self,
        bound: &BindResponse,
        (dn, origin): (&str, DnOrigin),
        seen: &EntryVersion,
        trace: &mut Trace,
    ) -> Result<AcceptedBind, DirectoryError> {
        trace.diagnostic = bound.diagnostic;
        let account = |state, proven| DirectoryError::Account { dn: dn.into(), state, proven };
        let code = bound.result.code;
        match (result::of(code).bind, bound.diagnostic) {
            // Also beside success: a server that requires a password change first allows this user nothing
            // else, and a password set by an administrator must not open a mailbox indefinitely.
            (_, Some(BindDiagnostic::State { state, proven })) => {
                if let (AccountState::Locked, Some(server)) = (state, &trace.server) {
                    locked(&self.reports_locks).insert(Arc::clone(server));
                }
                Err(account(state, proven))
            }
            (BindMeaning::Accepted, said) => {
                if let Some(warning) = said.and_then(BindDiagnostic::warning) {
                    self.metrics.directory_password_warnings.at(self.directory, warning).inc();
                }
                Ok(AcceptedBind::new())
            }
            (BindMeaning::WrongPassword, Some(BindDiagnostic::NoAccount)) => Err(DirectoryError::NoEntry),
            (BindMeaning::WrongPassword, said) => {
                // A lock that is not reported may hide that the password is right.
                let is_looked_at = !seen.locked || self.server_reports_locks(trace.server.as_ref());
                let seen = (said.is_none() && is_looked_at).then(|| Box::new(seen.clone()));
                Err(DirectoryError::InvalidCredentials { dn: dn.into(), seen })
            }
            // A server that answers unknown names so must not be distinguishable from one that answers 49.
            (BindMeaning::NoSuchName, _) if origin == DnOrigin::Template => Err(DirectoryError::NoEntry),
            // What the server demands of every user is nothing that this entry lacks, and no state of its account.
            (BindMeaning::NoPassword | BindMeaning::Undecided, _) if is_about_connection(&bound.result) => {
                Err(undecided(DirectoryOperation::Bind, bound.result.clone(), trace))
            }
            (BindMeaning::Alias, _) if origin == DnOrigin::Template => Err(alias(dn)),
            (BindMeaning::NoPassword, _) => Err(DirectoryError::NoPassword { dn: dn.into() }),
            (BindMeaning::NoSuchName | BindMeaning::Alias | BindMeaning::ServerFailed | BindMeaning::Undecided, _) => {
                Err(match self.results.get(&code) {
                    // It is unknown whether the server checked the password.
                    Some(state) => account(*state, false),
                    None => undecided(DirectoryOperation::Bind, bound.result.clone(), trace),
                })
            }
        }
    }

    /// Whether this server reports locked accounts as such. The set is bounded by the number of servers.
    fn server_reports_locks(&self, server: Option<&Arc<str>>) -> bool {
        let known = locked(&self.reports_locks);
        server.is_some_and(|server| known.contains(server))
    }
}

/// Whether the server's text says that the connection is what it refuses.
fn is_about_connection(result: &ServerResult) -> bool {
    let text = result.message.as_deref().unwrap_or_default();
    vendor::of(result.code, text).is_some_and(|row| row.meaning.is_about_connection())
}

/// A DN that was made of the login name, and is that of an alias.
pub(super) fn alias(dn: &str) -> DirectoryError {
    let fault = Box::new(EntryFault::Alias(None));
    DirectoryError::UnusableEntry { dn: dn.into(), fault, proof: Proof::Missing }
}

/// Where the DN of a bind is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DnOrigin {
    /// The directory has returned it.
    Directory,
    /// It was made of the login name.
    Template,
}

/// The only entry of a search, before the bind.
pub(super) fn single_entry(found: SearchResult, trace: &Trace) -> Result<Entry, DirectoryError> {
    only_entry(found, Proof::Missing, trace).and_then(|entry| entry.ok_or(DirectoryError::NoEntry))
}

/// The entry of a read as the user, after the bind.
pub(super) fn read_entry(found: SearchResult, trace: &Trace) -> Result<Entry, DirectoryError> {
    // Success without an entry: access rules hide it, and its mail host is unknown.
    let hidden = || undecided(DirectoryOperation::Read, SUCCESS.into(), trace);
    only_entry(found, Proof::Given, trace).and_then(|entry| entry.ok_or_else(hidden))
}

/// The entry of a read as the service account, without a bind.
pub(super) fn read_as_service(found: SearchResult, trace: &Trace) -> Result<Entry, DirectoryError> {
    let hidden = || undecided(DirectoryOperation::Read, SUCCESS.into(), trace);
    only_entry(found, Proof::Missing, trace).and_then(|entry| entry.ok_or_else(hidden))
}

/// The only entry that was found, if there is one.
fn only_entry(found: SearchResult, proof: Proof, trace: &Trace) -> Result<Option<Entry>, DirectoryError> {
    let result = found.result();
    let SearchResult { is_read, entries, first, second, other, .. } = found;
    let several = |first: Option<Entry>| {
        let dns = first.map(|entry| entry.dn).into_iter().chain(second.clone()).collect();
        Err(DirectoryError::SeveralEntries { dns, proof })
    };
    let operation = match proof {
        Proof::Missing => DirectoryOperation::Search,
        Proof::Given => DirectoryOperation::Read,
    };
    match (result::of(result.code).search, entries) {
        (_, 2..) => several(first),
        (SearchMeaning::Complete, 0) if other => Err(DirectoryError::NoEntry),
        (SearchMeaning::Complete, _) => first.map(|entry| require_dn(entry, proof, trace)).transpose(),
        // A DN names one entry: there cannot be more.
        (SearchMeaning::More, _) if is_read => {
            let dn = first.map(|entry| entry.dn).or_else(|| trace.dn.clone()).unwrap_or_default();
            Err(DirectoryError::UnusableEntry { dn, fault: Box::new(EntryFault::Ended(result)), proof })
        }
        (SearchMeaning::More, 1) => several(first),
        // Without an entry the limit says nothing about how many match.
        (
            SearchMeaning::More | SearchMeaning::NoSuchName | SearchMeaning::ServerFailed | SearchMeaning::Undecided,
            _,
        ) => Err(undecided(operation, result, trace)),
    }
}

/// Refuses an entry without a DN, as a bind as it would be anonymous, one with a DN that was cut, and an alias.
pub(super) fn require_dn(entry: Entry, proof: Proof, trace: &Trace) -> Result<Entry, DirectoryError> {
    if entry.dn.is_empty() {
        return Err(unavailable(trace, |server| UnavailableCause::Malformed { server }));
    }
    match entry.fault {
        Some(fault) if matches!(*fault, EntryFault::LongDn | EntryFault::Alias(_)) => {
            Err(DirectoryError::UnusableEntry { dn: entry.dn, fault, proof })
        }
        fault => Ok(Entry { fault, ..entry }),
    }
}

/// Whether a search for one entry found it.
pub(super) fn matches(found: &SearchResult, trace: &Trace) -> Result<bool, DirectoryError> {
    match result::of(found.code).search {
        SearchMeaning::Complete => Ok(found.entries > 0),
        SearchMeaning::More if found.is_read => {
            let (dn, fault) = (trace.dn.clone().unwrap_or_default(), Box::new(EntryFault::Ended(found.result())));
            Err(DirectoryError::UnusableEntry { dn, fault, proof: Proof::Given })
        }
        SearchMeaning::More | SearchMeaning::NoSuchName | SearchMeaning::ServerFailed | SearchMeaning::Undecided => {
            Err(undecided(DirectoryOperation::Read, found.result(), trace))
        }
    }
}

/// A result that decides nothing.
fn undecided(operation: DirectoryOperation, result: ServerResult, trace: &Trace) -> DirectoryError {
    unavailable(trace, |server| UnavailableCause::Result { server, operation, result })
}

/// A lookup failure of the server that answered last.
fn unavailable(trace: &Trace, cause: impl FnOnce(Arc<str>) -> UnavailableCause) -> DirectoryError {
    DirectoryError::Unavailable(cause(trace.server.clone().unwrap_or_default()))
}
