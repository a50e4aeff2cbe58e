//! Authentication: decides whether a name and password belong to a user.
//!
//! In order: input that must not reach a directory is refused; the cache answers what it knows; one flight per
//! name and password asks the directory. Only the directory's invalidCredentials makes a password wrong, and
//! only its own diagnostics make an account unusable; any other failure is a failed lookup
//! ([`Refusal::DirectoryUnavailable`]). An answer counts only for clients at an address that the entry permits
//! (`networks`): cached for another, it is as if there were none. While no directory server is in use, cached users get in for up to
//! `cache.stale`, and no user is refused from that data.

mod mail;
mod token;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use crate::base::clock::unix_now;
use crate::base::credential::{AnswerDigest, Credential, CredentialSecret, Login};
use crate::base::flights::{FlightError, Flights};
use crate::base::labels::labels;
use crate::cache::{self, Cache, CacheStamp};
use crate::directory::{
    Availability, Directory, DirectoryError, Entry, EntryFault, EntryKey, Identity, NameKind, Networks, Realm, Trace,
    UnavailableCause,
};
use crate::limits::BindGate;
use crate::login::networks;
use crate::outcome::{AccountState, Refusal};
use crate::proto::ldap::template::Template;
use crate::telemetry::labels::DecisionBasis;
use crate::telemetry::log::Repeats;
use crate::token::VerifiedToken;
use crate::tracking::{Reconciled, TrackedEntries};
pub(crate) use mail::FoundAddress;
use mail::MailFlights;
use token::{ClaimAnswer, ClaimKey};

labels! {
    /// The source of a decision.
    pub enum DecidedBy {
        /// A bind now.
        Directory => "directory",
        /// A bind within `cache.ttl`.
        Cache => "cache",
        /// invalidCredentials within `cache.negative_ttl`, or earlier if a lookup showed no sign that the password
        /// may be valid by now; or a token that has led to no user a moment ago.
        Negative => "negative",
        /// A bind within `cache.stale`, while no directory server is in use, or while wrong guesses have locked the
        /// account and the user is at a known prefix.
        Stale => "stale",
        /// A bind, now or cached, of another user that may act for the mailbox.
        Impersonation => "impersonation",
        /// No lookup: such a name or password is never sent.
        Usher => "usher",
    }
}

impl DecidedBy {
    /// What it counts as; `None`: a decision of no interest.
    pub(super) const fn basis(self) -> Option<DecisionBasis> {
        match self {
            Self::Directory => Some(DecisionBasis::Directory),
            Self::Cache => Some(DecisionBasis::Cache),
            Self::Negative => Some(DecisionBasis::Negative),
            Self::Stale => Some(DecisionBasis::Stale),
            Self::Impersonation => Some(DecisionBasis::Impersonation),
            Self::Usher => None,
        }
    }
}

/// Whether cached data may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupMode {
    /// The cache first.
    Cached,
    /// The directory, whatever is cached.
    Directory,
}

/// An authenticated user, as of a point in the cache's history.
#[derive(Debug, Clone)]
pub struct Proven {
    /// The identity.
    pub identity: Arc<Identity>,
    /// The token that has proven it, if one has.
    pub(crate) token: Option<Arc<VerifiedToken>>,
    /// In the history of the cache of its directory.
    pub(super) since: CacheStamp,
    /// The same for the user who acts, if one does.
    pub(super) acting_since: CacheStamp,
}

impl Proven {
    /// The name by which the user has been found: the one that was sent, or a token's claim.
    #[must_use]
    pub(crate) fn name<'a>(&'a self, sent: &'a Login) -> &'a Login {
        self.token.as_ref().map_or(sent, |token| token.claim())
    }

    /// The user's name for administrators. A claim may be a number that says nothing to an administrator.
    #[must_use]
    pub(super) fn shown_name(&self, sent: &Login) -> Login {
        let named = self.identity.entry().logins.first().and_then(|name| Login::parse(name.as_bytes()));
        named.unwrap_or_else(|| self.name(sent).clone())
    }

    /// The identity of another user, which rests on this one: as of `since` in the cache of its own directory.
    pub(super) fn with_identity(&self, identity: Identity, since: CacheStamp) -> Self {
        Self { identity: Arc::new(identity), token: None, since, acting_since: self.since }
    }
}

/// A decision and its source.
#[derive(Debug, Clone)]
pub struct AuthDecision {
    /// The user, or the refusal.
    pub result: Result<Proven, Refusal>,
    /// The source of the decision.
    pub by: DecidedBy,
    /// The entry's DN if known, refused or not.
    pub dn: Option<Arc<str>>,
    /// The DN of another entry that matches.
    pub other_dn: Option<Arc<str>>,
    /// Why the entry cannot be used.
    pub fault: Option<Box<EntryFault>>,
    /// Why the directory gave no verdict.
    pub unavailable: Option<Box<str>>,
    /// Details of the directory request.
    pub trace: Trace,
    /// The directory that has decided; `None`: none was asked.
    pub realm: Option<Realm>,
    /// Its name, where there are several.
    pub directory: Option<&'static str>,
    /// The name of another one that has an entry with this name.
    pub other_directory: Option<&'static str>,
    /// The entry for which the password was not sent, because too many were tried.
    pub withheld: Option<EntryKey>,
    /// The token, if one was verified.
    pub(crate) token: Option<Arc<VerifiedToken>>,
}

impl AuthDecision {
    fn remembered(identity: Arc<Identity>, since: CacheStamp, by: DecidedBy) -> Self {
        let dn = Some(Arc::clone(&identity.entry().dn));
        Self { dn, ..Self::new(Ok(Proven { identity, token: None, since, acting_since: since }), by) }
    }

    pub(super) fn refused(refusal: Refusal, by: DecidedBy) -> Self {
        Self::new(Err(refusal), by)
    }

    /// Of a lookup that did not take place, or was aborted.
    fn without_answer(error: FlightError) -> Self {
        let refusal = match error {
            FlightError::TooMany => Refusal::Limit,
            FlightError::Lost => Refusal::Internal,
        };
        Self::refused(refusal, DecidedBy::Usher)
    }

    fn new(result: Result<Proven, Refusal>, by: DecidedBy) -> Self {
        let (dn, other_dn, fault, unavailable, trace) = Default::default();
        let (realm, directory, other_directory, withheld, token) = Default::default();
        Self { result, by, dn, other_dn, fault, unavailable, trace, realm, directory, other_directory, withheld, token }
    }
}

type FlightResult = Arc<(Result<Arc<Identity>, DirectoryError>, Trace, CacheStamp, EntryCheck)>;

/// The entry as found between the search and the bind.
#[derive(Debug, Clone, Default)]
struct EntryCheck {
    /// The entry, if it is locked.
    locked: Option<Arc<Entry>>,
    /// Its key, if its delay had not passed: the password was not sent.
    withheld: Option<EntryKey>,
    /// The networks that it permits.
    networks: Option<Arc<Networks>>,
}

impl EntryCheck {
    /// The entry, if the answer may be due to a lock by wrong guesses. A lock by an administrator sets
    /// `disabled` (draft-behera-ldap-password-policy-10 section 5.3.3).
    fn locked_by_guesses<T>(&self, answer: &Result<T, DirectoryError>) -> Option<&Arc<Entry>> {
        let is_refused = matches!(
            answer,
            Err(DirectoryError::InvalidCredentials { .. } | DirectoryError::Account { state: AccountState::Locked, .. })
        );
        self.locked.as_ref().filter(|entry| is_refused && !entry.version.disabled && !entry.version.held)
    }
}

/// Authenticates names and passwords.
pub struct Authenticator {
    directory: Arc<dyn Directory>,
    cache: Arc<Cache>,
    entries: Arc<TrackedEntries>,
    /// The lookups of names and passwords.
    flights: Flights<(Login, AnswerDigest), FlightResult>,
    /// Those of the users of tokens.
    claims: Flights<ClaimKey, Arc<ClaimAnswer>>,
    /// Those of mail addresses.
    mails: MailFlights,
    /// The directory's name, where there are several.
    shown: Option<&'static str>,
    repeats: Repeats,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// With this directory, cache and tracked entries, and at most `flights` concurrent lookups of each kind.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, cache: Arc<Cache>, entries: Arc<TrackedEntries>, flights: usize) -> Self {
        let repeats = Repeats::default();
        let (flights, claims, mails) = (Flights::new(flights), Flights::new(flights), MailFlights::new());
        Self { directory, cache, entries, flights, claims, mails, shown: None, repeats }
    }

    /// The same with this name in the log.
    #[must_use]
    pub(super) fn shown_as(self, shown: Option<&'static str>) -> Self {
        Self { shown, ..self }
    }

    /// The cache, to be carried over a reload.
    #[must_use]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The tracked entries, to be carried over a reload.
    #[must_use]
    pub fn entries(&self) -> &Arc<TrackedEntries> {
        &self.entries
    }

    /// The directory.
    pub(super) fn directory(&self) -> &dyn Directory {
        &*self.directory
    }

    /// Decides without a lookup: a password that must not be sent, and cached answers. `None`: a directory
    /// lookup is needed, which counts as a guess.
    #[must_use]
    pub fn recall(&self, credential: &Credential, client: IpAddr) -> Option<AuthDecision> {
        unusable(credential).or_else(|| self.recalled(credential, client))
    }

    fn recalled(&self, credential: &Credential, client: IpAddr) -> Option<AuthDecision> {
        let is_unreachable = || self.directory.availability() == Availability::Unreachable;
        let outdated = || is_unreachable().then(|| self.stale(credential, client)).flatten();
        self.cached(credential, client).or_else(outdated)
    }

    fn cached(&self, credential: &Credential, client: IpAddr) -> Option<AuthDecision> {
        let since = self.cache.stamp();
        match self.cache.lookup(credential) {
            // It may have expired since: the directory is asked again.
            cache::CacheAnswer::Right(identity) if account_state(&identity).is_some() => None,
            // From another network it is a guess like any other, and takes as long.
            cache::CacheAnswer::Right(identity) if !identity.entry().permits(client) => None,
            cache::CacheAnswer::Right(identity) => Some(AuthDecision::remembered(identity, since, DecidedBy::Cache)),
            cache::CacheAnswer::Wrong(dn) => {
                let refused = AuthDecision::refused(Refusal::WrongPassword, DecidedBy::Negative);
                Some(AuthDecision { dn: Some(dn), ..refused })
            }
            cache::CacheAnswer::Unknown => None,
        }
    }

    /// The cached decision to use while the directory is unreachable.
    fn stale(&self, credential: &Credential, client: IpAddr) -> Option<AuthDecision> {
        let since = self.cache.stamp();
        let is_usable =
            |identity: &Arc<Identity>| account_state(identity).is_none() && identity.entry().permits(client);
        let identity = self.cache.stale(credential).filter(is_usable)?;
        Some(AuthDecision::remembered(identity, since, DecidedBy::Stale))
    }

    /// Decides about an attempt whose delay has passed. The gate is checked before the entry is bound.
    pub async fn attempt(&self, credential: &Credential, client: IpAddr, gate: Option<Arc<BindGate>>) -> AuthDecision {
        let decision = self.decide_through(credential, client, LookupMode::Cached, gate.as_ref()).await;
        // The flight may have been started by another client, whose prefix is not known.
        let is_let = |gate: &Arc<BindGate>| {
            decision.withheld.as_ref().is_some_and(|entry| gate.is_exempt() || gate.is_known(entry))
        };
        if gate.as_ref().is_some_and(is_let) {
            return self.decide_through(credential, client, LookupMode::Cached, gate.as_ref()).await;
        }
        decision
    }

    /// Decides, within the directory's `timeout`, plus the time of a probe for a cached user.
    pub async fn decide(&self, credential: &Credential, client: IpAddr, ask: LookupMode) -> AuthDecision {
        self.decide_through(credential, client, ask, None).await
    }

    async fn decide_through(
        &self,
        credential: &Credential,
        client: IpAddr,
        ask: LookupMode,
        gate: Option<&Arc<BindGate>>,
    ) -> AuthDecision {
        if let Some(refused) = unusable(credential) {
            return refused;
        }
        if ask == LookupMode::Cached
            && let Some(cached) = self.recalled(credential, client)
        {
            return cached;
        }
        let lookup = || self.look_up(credential.clone(), gate.cloned());
        let flight = (credential.login().clone(), credential.digest().narrow());
        let result = self.flights.join(flight, lookup).await;
        match result {
            // The first logins of an outage detect it here.
            Ok(result) if ask == LookupMode::Cached && matches!(result.0, Err(DirectoryError::Unavailable(_))) => {
                match self.stale(credential, client) {
                    Some(cached) if self.directory.settled_availability().await != Availability::Available => cached,
                    Some(_) | None => self.judge(&result, client),
                }
            }
            Ok(result) => {
                let owner = gate.and_then(|gate| self.known_owner_of_locked(credential, client, &result, gate));
                owner.unwrap_or_else(|| self.judge(&result, client))
            }
            Err(error) => AuthDecision::without_answer(error),
        }
    }

    /// Takes note of what the directory has said about an entry although it was cached. If the password is wrong by now,
    /// or the entry is deleted, the cache forgets it.
    pub(super) fn decided_again(&self, decision: &AuthDecision, cached: &Entry) {
        if let Err(
            Refusal::WrongPassword
            | Refusal::UnknownUser
            | Refusal::NoPassword
            | Refusal::WrongCertificate
            | Refusal::SeveralEntries(_)
            | Refusal::UnusableEntry(_)
            | Refusal::PasswordNotAllowed
            | Refusal::Account { .. },
        ) = &decision.result
        {
            self.cache.forget(cached);
        }
    }

    /// The owner of an account locked by wrong guesses, at a known prefix, with the password that was correct
    /// within `cache.stale` and has not been changed since.
    fn known_owner_of_locked(
        &self,
        credential: &Credential,
        client: IpAddr,
        result: &FlightResult,
        gate: &BindGate,
    ) -> Option<AuthDecision> {
        let (answer, trace, since, check) = result.as_ref();
        let entry = check.locked_by_guesses(answer).filter(|entry| gate.is_known(&entry.key()))?;
        let identity = unchanged(&self.cache, credential, entry)?;
        let entry = match self.entries.reconcile(entry) {
            Reconciled::AsReported => Arc::clone(entry),
            Reconciled::Replaced(newer) => newer,
            Reconciled::Deleted | Reconciled::HeldElsewhere => return None,
        };
        if entry.version.disabled || entry.version.held || !entry.permits(client) {
            return None;
        }
        let identity = Arc::new(Identity::clone(&identity).with_entry(entry));
        let decision = AuthDecision::remembered(identity, *since, DecidedBy::Stale);
        Some(AuthDecision { trace: trace.clone(), ..decision })
    }

    /// Whether an entry is held, as far as is visible without a password; `None` if unknown. `filter` is that of the
    /// directory.
    pub(crate) async fn is_held(&self, name: &Login, proven: &Proven, filter: Option<&Template>) -> Option<bool> {
        match &proven.token {
            Some(token) => self.is_claim_held(token, filter).await,
            None => self.is_entry_held(self.directory.find(name, NameKind::Login).await.0.ok()?),
        }
    }

    fn is_entry_held(&self, entry: Entry) -> Option<bool> {
        match self.entries.reconcile(&entry) {
            Reconciled::AsReported | Reconciled::HeldElsewhere => Some(entry.version.held),
            Reconciled::Replaced(newer) => Some(newer.version.held),
            Reconciled::Deleted => None,
        }
    }

    /// The lookup of one flight: asks, and updates the cache even when every client is gone.
    fn look_up(
        &self,
        credential: Credential,
        gate: Option<Arc<BindGate>>,
    ) -> impl Future<Output = FlightResult> + use<> {
        let (directory, cache, entries) =
            (Arc::clone(&self.directory), Arc::clone(&self.cache), Arc::clone(&self.entries));
        let since = cache.stamp();
        async move {
            let check = Mutex::new(EntryCheck::default());
            let refused_before = |entry: &Entry| {
                let refused = cache.refused_before(&credential, entry);
                let withheld = gate.as_ref().filter(|_| !refused).and_then(|gate| {
                    let entry = entry.key();
                    (!gate.may_bind(&entry)).then_some(entry)
                });
                let is_sent = !refused && withheld.is_none();
                let locked = entry.version.locked.then(|| Arc::new(entry.clone()));
                let networks = entry.networks.clone();
                *check.lock().unwrap_or_else(PoisonError::into_inner) = EntryCheck { locked, withheld, networks };
                !is_sent
            };
            let (answer, trace) = directory.authenticate(&credential, &refused_before, &*entries).await;
            let mut check = check.into_inner().unwrap_or_else(PoisonError::into_inner);
            let answer = answer.and_then(|identity| newest(identity, &entries));
            if let Ok(identity) = &answer {
                check.networks.clone_from(&identity.entry().networks);
            }
            let answer = answer.and_then(require_usable).map(Arc::new);
            let locked = check.locked_by_guesses(&answer);
            match &answer {
                // What is wrong with an entry may be mended without a change of what is tracked of it: it is looked
                // up again, and no earlier version of it comes back as stale.
                Ok(identity) if identity.entry().fault.is_some() => cache.forget_password(&credential),
                // A hold is short: a held user is looked up again.
                Ok(identity) if identity.entry().version.held => {
                    entries.record_login(&identity.shared_entry());
                }
                Ok(identity) => {
                    // If changes would not be noticed, each login is looked up.
                    if entries.record_login(&identity.shared_entry()) {
                        cache.right(&credential, Arc::clone(identity), since);
                    }
                }
                // A lagging server may not know of a change yet: perhaps of this very password.
                Err(
                    DirectoryError::InvalidCredentials { .. }
                    | DirectoryError::NoEntry
                    | DirectoryError::NoPassword { .. },
                ) if trace.behind => {}
                Err(DirectoryError::InvalidCredentials { dn, seen: Some(seen) }) => {
                    cache.wrong(&credential, dn, seen, since);
                }
                // The lock hides the result, which says nothing against the earlier correct one.
                Err(_) if locked.is_some_and(|entry| unchanged(&cache, &credential, entry).is_some()) => {}
                // A state is temporary, and may have hidden that the password is correct: not cached. But an
                // earlier correct one must not come back as stale.
                Err(
                    DirectoryError::InvalidCredentials { seen: None, .. }
                    | DirectoryError::Account { .. }
                    | DirectoryError::Held { .. }
                    | DirectoryError::NoEntry
                    | DirectoryError::NoPassword { .. }
                    | DirectoryError::SeveralEntries { .. }
                    | DirectoryError::UnusableEntry { .. }
                    | DirectoryError::WrongCertificate { .. }
                    | DirectoryError::OtherUser { .. },
                ) => cache.forget_password(&credential),
                Err(DirectoryError::PasswordNotAllowed { dn, key }) => cache.forget_passwords(key, dn),
                Err(DirectoryError::RefusedBefore { .. } | DirectoryError::Unavailable(_)) => {}
            }
            Arc::new((answer, trace, since, check))
        }
    }

    /// The decision for a client at this address: the answer may have been another client's.
    fn judge(&self, result: &FlightResult, client: IpAddr) -> AuthDecision {
        let (answer, trace, since, check) = result.as_ref();
        let by = match answer {
            Err(DirectoryError::RefusedBefore { .. }) if check.withheld.is_some() => DecidedBy::Usher,
            Err(DirectoryError::RefusedBefore { .. }) => DecidedBy::Negative,
            // A name that the template cannot hold: no server was asked.
            Err(DirectoryError::NoEntry) if trace.server.is_none() => DecidedBy::Usher,
            Ok(_) | Err(_) => DecidedBy::Directory,
        };
        let (mut other_dn, mut fault, mut unavailable) = (None, None, None);
        match answer {
            Ok(identity) => fault.clone_from(&identity.entry().fault),
            Err(DirectoryError::SeveralEntries { dns, .. }) => other_dn = dns.get(1).cloned(),
            Err(DirectoryError::UnusableEntry { fault: why, .. }) => fault = Some(why.clone()),
            Err(DirectoryError::Unavailable(cause)) => unavailable = Some(cause.to_string().into()),
            Err(_) => {}
        }
        let (result, dn) = match answer {
            Ok(identity) => {
                let (since, identity) = (*since, Arc::clone(identity));
                let proven = Proven { identity, token: None, since, acting_since: since };
                let entry = proven.identity.shared_entry();
                let permitted = networks::permit(entry.networks.as_deref(), client);
                (permitted.map(|()| proven), Some(Arc::clone(&entry.dn)))
            }
            Err(DirectoryError::InvalidCredentials { dn, .. } | DirectoryError::RefusedBefore { dn }) => {
                (Err(Refusal::WrongPassword), Some(Arc::clone(dn)))
            }
            Err(DirectoryError::Account { dn, state, proven }) => {
                (Err(Refusal::Account { state: *state, proven: *proven }), Some(Arc::clone(dn)))
            }
            Err(DirectoryError::Held { dn }) => (Err(Refusal::Hold), Some(Arc::clone(dn))),
            Err(DirectoryError::WrongCertificate { dn }) => (Err(Refusal::WrongCertificate), Some(Arc::clone(dn))),
            Err(DirectoryError::OtherUser { dn }) => (Err(Refusal::AuthzidNotAllowed), Some(Arc::clone(dn))),
            Err(DirectoryError::PasswordNotAllowed { dn, .. }) => {
                (Err(Refusal::PasswordNotAllowed), Some(Arc::clone(dn)))
            }
            Err(DirectoryError::NoEntry) => (Err(Refusal::UnknownUser), None),
            Err(DirectoryError::NoPassword { dn }) => (Err(Refusal::NoPassword), Some(Arc::clone(dn))),
            Err(DirectoryError::SeveralEntries { dns, proof }) => {
                (Err(Refusal::SeveralEntries(*proof)), dns.first().cloned())
            }
            Err(DirectoryError::UnusableEntry { dn, proof, .. }) => {
                (Err(Refusal::UnusableEntry(*proof)), Some(Arc::clone(dn)))
            }
            Err(DirectoryError::Unavailable(cause)) => {
                let server = trace.server.as_deref().unwrap_or("-");
                if let Some(suppressed) = self.repeats.allow("directory", server) {
                    warn!(directory = self.shown, reason = %cause, server, suppressed, "directory lookup failed");
                }
                (Err(Refusal::DirectoryUnavailable), trace.dn.clone())
            }
        };
        let seen = check.networks.as_deref();
        let result = result.map_err(|refusal| networks::refused(refusal, seen, client));
        if matches!(result, Err(Refusal::UnusableNetworks)) {
            fault = seen.and_then(Networks::fault).cloned().map(Box::new);
        }
        let (trace, withheld) = (trace.clone(), check.withheld.clone());
        let decision = AuthDecision::new(result, by);
        AuthDecision { dn, other_dn, fault, unavailable, trace, withheld, ..decision }
    }
}

/// The identity with the newest version of its entry: a replica that lags behind the watch is overridden.
fn newest(identity: Identity, entries: &TrackedEntries) -> Result<Identity, DirectoryError> {
    match entries.reconcile(identity.entry()) {
        Reconciled::AsReported => Ok(identity),
        // The newer version may no longer list the certificate.
        Reconciled::Replaced(entry) if identity.certificate().is_some_and(|certificate| !entry.lists(certificate)) => {
            Err(DirectoryError::WrongCertificate { dn: Arc::clone(&entry.dn) })
        }
        Reconciled::Replaced(entry) => Ok(identity.with_entry(entry)),
        Reconciled::Deleted => Err(DirectoryError::NoEntry),
        Reconciled::HeldElsewhere => Err(DirectoryError::Unavailable(UnavailableCause::HeldElsewhere)),
    }
}

/// The user cached with this password within `cache.stale`, if the entry shows that the password has not been
/// changed since.
fn unchanged(cache: &Cache, credential: &Credential, entry: &Entry) -> Option<Arc<Identity>> {
    let identity = cache.stale(credential)?;
    let cached = identity.entry();
    let is_open = entry.version.account_state(unix_now()).is_none();
    // Unknown if the entry does not expose the password's age.
    let is_aged = entry.version.shows_password_age() || cached.version.shows_password_age();
    (is_open && is_aged && cached.key() == entry.key() && !entry.version.password_differs(&cached.version))
        .then_some(identity)
}

/// The state that prevents a login now, according to the entry.
fn account_state(identity: &Identity) -> Option<AccountState> {
    identity.entry().version.account_state(unix_now())
}

/// Refuses an entry whose state prevents logins, although the server has accepted the bind.
fn require_usable(identity: Identity) -> Result<Identity, DirectoryError> {
    let Some(state) = account_state(&identity) else { return Ok(identity) };
    // After the bind: the client knows the password.
    Err(DirectoryError::Account { dn: Arc::clone(&identity.entry().dn), state, proven: true })
}

/// Refuses passwords that are never sent to a directory.
pub(super) fn unusable(credential: &Credential) -> Option<AuthDecision> {
    // Nothing else is sent to a directory.
    let CredentialSecret::Password(password) = credential.secret() else { return None };
    // RFC 4513 section 5.1.2: a bind with an empty password succeeds as anonymous.
    if password.is_empty() {
        return Some(AuthDecision::refused(Refusal::EmptyPassword, DecidedBy::Usher));
    }
    // NUL might truncate a password in another program. Bytes that are not UTF-8 are the directory's to judge: a
    // simple bind carries octets (RFC 4511 section 4.2), and older clients send Latin-1.
    let carried = !password.expose().contains(&0);
    (!carried).then(|| AuthDecision::refused(Refusal::InvalidPassword, DecidedBy::Usher))
}

#[cfg(test)]
mod tests;
