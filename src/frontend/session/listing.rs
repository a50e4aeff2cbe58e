//! The last step before a client is sent OK: its session is listed, and no change since the decision
//! invalidates it.
//!
//! From the listing on, `kick`, `sessions`, a drain and the watch see the session, however long its client
//! takes to accept the OK. So the order is: list, compare with the changes received, check the cache for
//! invalidation, OK, relay. What happened before the listing is found by the comparison; what happens later
//! finds the session.

use std::sync::Arc;

use crate::login::authn::Proven;
use crate::login::core::{LoginContext, LoginCore};
use crate::outcome::{AccountState, Refusal};
use crate::sessions::registry::{ListedSession, Session, SessionBasis, StopHandle, TerminationReason};

/// A session that may begin.
#[derive(Debug)]
pub(super) struct Listing {
    /// Keeps it listed.
    pub(super) listed: ListedSession,
    /// Resolves when it has to end.
    pub(super) stop: StopHandle,
}

/// Why a session does not begin.
#[derive(Debug)]
pub(super) enum NotListed {
    /// The entry has changed: decide again with its current version.
    Again,
    /// A reload has replaced the cache: decide again by the core in force.
    Reloaded,
    /// It would have to end at once.
    Refused(Refusal),
}

/// Lists a session whose backend has accepted its login, decided by this core.
///
/// # Errors
/// Why the client must not be sent OK; the session is not listed then.
pub(super) fn list(
    context: LoginContext<'_>,
    decided: &LoginCore,
    proven: &Proven,
    session: Session,
    backend_login: Arc<str>,
) -> Result<Listing, NotListed> {
    let identity = &proven.identity;
    let basis = SessionBasis {
        entry: identity.shared_entry(),
        backend_login,
        certificate: identity.certificate(),
        acting: identity.acting().cloned(),
    };
    let (listed, mut asked_to_end) = context.sessions.list(session.clone(), basis.clone());
    // Loaded behind the listing: a later reload compares all that is listed.
    let newest = context.in_force.core();
    if !decided.realms.are_kept(&newest.realms, proven) {
        return Err(NotListed::Reloaded);
    }
    context.tracking.check_listed(&session, &basis, |realm| newest.setting(realm)).map_err(not_listed)?;
    if !decided.realms.is_current(proven) {
        return Err(NotListed::Again);
    }
    asked_to_end.requested().map_or(Ok(()), |why| Err(not_listed(why)))?;
    Ok(Listing { listed, stop: asked_to_end })
}

/// The meaning of a termination reason before the client was sent OK.
fn not_listed(why: TerminationReason) -> NotListed {
    // The backend has accepted the password that the directory had accepted.
    let account = |state| Refusal::Account { state, proven: true };
    NotListed::Refused(match why {
        // A new decision finds the new mail host or networks, waits for the hold, or rejects the password or the
        // certificate.
        TerminationReason::Moved
        | TerminationReason::Network
        | TerminationReason::Hold
        | TerminationReason::PasswordChanged
        | TerminationReason::CertificateRemoved
        | TerminationReason::GrantRevoked
        | TerminationReason::AddressReturned => {
            return NotListed::Again;
        }
        TerminationReason::Disabled => account(AccountState::Disabled),
        TerminationReason::Expired => account(AccountState::AccountExpired),
        TerminationReason::Deleted => Refusal::UnknownUser,
        TerminationReason::Drain => Refusal::Draining,
        TerminationReason::BackendDrained => Refusal::BackendDraining,
        TerminationReason::Kicked => Refusal::Kicked,
    })
}
