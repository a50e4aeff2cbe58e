//! The directories of one configuration, each with its own servers, cache and tracked entries, and which of them decides
//! about a login.
//!
//! The domain of the name chooses. A name that no directory has is an unknown user like any other. What is decided is
//! known by its entry from then on, which says itself of which directory it is: two entries with the same DN never meet.

mod several;
mod token;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::base::credential::{Credential, CredentialSecret, Login};
use crate::cache::Cache;
use crate::config::{self, Config, Routing};
use crate::directory::{Directory, DirectoryError, Entry, EntryKey, NameKind, Realm, Trace};
use crate::limits::BindGate;
use crate::login::authn::{self, AuthDecision, Authenticator, DecidedBy, LookupMode, Proven};
use crate::outcome::Refusal;
use crate::routing::{Candidates, Domains};
use crate::token::Tokens;
use crate::tracking::{TrackedEntries, TrackingContext};

/// A user logged in by a cached decision was tracked when it was cached, and is until the session is listed.
const RETENTION: Duration = Duration::from_secs(60);

/// One directory, with what decides about its users. Nothing of it is shared with another: an outage or a brake of one
/// harms no user of another.
#[derive(Debug)]
pub(crate) struct RealmCore {
    /// Which one it is.
    pub realm: Realm,
    /// How it is configured.
    pub settings: config::Directory,
    /// The decision, with its directory and cache.
    pub authn: Authenticator,
}

impl RealmCore {
    /// Caches and tracked entries of `previous` are kept if they are still valid.
    fn new(
        settings: &config::Directory,
        config: &Config,
        directory: Arc<dyn Directory>,
        previous: Option<&Self>,
    ) -> Self {
        let realm = Realm::named(&settings.name);
        let valid = previous.filter(|old| old.settings.answers_like(settings));
        let cache = || Arc::new(Cache::new(&config.cache).of_realm(realm));
        let cache = valid.map_or_else(cache, |old| Arc::clone(old.authn.cache()));
        let tracked = || Arc::new(tracked(config).of_realm(realm));
        let tracked = valid.map_or_else(tracked, |old| Arc::clone(old.authn.entries()));
        let authn = Authenticator::new(directory, cache, tracked, config.limits.connections);
        Self { realm, settings: settings.clone(), authn: authn.shown_as(realm.shown(settings)) }
    }

    /// The directory.
    #[must_use]
    pub(crate) fn directory(&self) -> &dyn Directory {
        self.authn.directory()
    }

    /// The request for the entry of a login name, in words.
    #[must_use]
    pub(crate) fn describe_lookup(&self, name: &Login) -> String {
        self.directory().diagnose().map(|diagnosis| diagnosis.describe_lookup(name)).unwrap_or_default()
    }

    /// By what its changes are judged.
    #[must_use]
    pub(crate) fn setting<'a>(&'a self, routing: &'a Routing) -> TrackingContext<'a> {
        TrackingContext {
            realm: self.realm,
            shown: self.realm.shown(&self.settings),
            cache: self.authn.cache(),
            entries: self.authn.entries(),
            routing,
            watch: &self.settings.watch,
        }
    }

    /// A decision of this directory.
    fn has_decided(&self, decision: AuthDecision) -> AuthDecision {
        AuthDecision { realm: Some(self.realm), directory: self.realm.shown(&self.settings), ..decision }
    }
}

/// Capacity for every user with a cached decision or a session.
fn tracked(config: &Config) -> TrackedEntries {
    let decisions = usize::try_from(config.cache.capacity).unwrap_or(usize::MAX);
    // As many again for addresses: mail takes no room from logins.
    let decisions = decisions.saturating_mul(1 + usize::from(config.socketmap.is_some()));
    TrackedEntries::new(
        decisions.saturating_add(config.limits.connections),
        config.cache.ttl.max(config.cache.stale) + RETENTION,
    )
}

/// The directories, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct Realms {
    all: Vec<RealmCore>,
    domains: Domains,
    /// The issuers of tokens, if there are any.
    tokens: Option<Arc<Tokens>>,
}

impl Realms {
    /// These directories, in the order of the configuration. Caches and tracked entries of `previous` are kept, by the
    /// directories' names, if they are still valid.
    #[must_use]
    pub(crate) fn new(config: &Config, directories: Vec<Arc<dyn Directory>>, previous: Option<&Self>) -> Self {
        let all = config.directories.iter().zip(directories).map(|(settings, directory)| {
            let previous = previous.and_then(|old| old.get(Realm::named(&settings.name)));
            RealmCore::new(settings, config, directory, previous)
        });
        Self { all: all.collect(), domains: Domains::new(&config.directories), tokens: None }
    }

    /// The same with the issuers of tokens.
    #[must_use]
    pub(crate) fn with_tokens(self, tokens: Arc<Tokens>) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// All of them, in the order of the configuration.
    #[must_use]
    pub(crate) fn all(&self) -> &[RealmCore] {
        &self.all
    }

    /// This one; `None`: it is not configured.
    #[must_use]
    pub(crate) fn get(&self, realm: Realm) -> Option<&RealmCore> {
        self.all.iter().find(|one| one.realm == realm)
    }

    /// That of an entry.
    #[must_use]
    pub(crate) fn of(&self, entry: &Entry) -> Option<&RealmCore> {
        self.get(entry.version.realm)
    }

    /// The name of an entry's directory, where there are several.
    #[must_use]
    pub(crate) fn shown(&self, entry: &Entry) -> Option<&'static str> {
        self.of(entry).and_then(|realm| realm.realm.shown(&realm.settings))
    }

    /// Those that may have this name.
    pub(super) fn candidates(&self, name: &Login) -> Candidates<'_, RealmCore> {
        self.domains.candidates(name.as_str(), &self.all)
    }

    /// Those that may have the user of a credential: a certificate may be for the users of one alone.
    fn candidates_for(&self, credential: &Credential) -> Candidates<'_, RealmCore> {
        if let CredentialSecret::ClientCertificate(certificate) = credential.secret()
            && let Some(name) = certificate.directory()
        {
            return self.named(name);
        }
        self.candidates(credential.login())
    }

    /// Whether the name that a client gives itself beside a certificate is of another directory than its user's.
    fn claims_foreign_name(&self, realm: &RealmCore, credential: &Credential) -> bool {
        let CredentialSecret::ClientCertificate(certificate) = credential.secret() else { return false };
        certificate.authzid().is_some_and(|name| !self.may_have(realm, name))
    }

    /// The directory with this name.
    fn named(&self, name: &str) -> Candidates<'_, RealmCore> {
        self.all.iter().find(|realm| realm.settings.name == name).map_or(Candidates::None, Candidates::One)
    }

    /// Whether a directory may have this name.
    #[must_use]
    pub(crate) fn may_have(&self, realm: &RealmCore, name: &Login) -> bool {
        match self.candidates(name) {
            Candidates::One(one) => one.realm == realm.realm,
            Candidates::None => false,
            Candidates::Several(several) => several.iter().any(|one| one.realm == realm.realm),
        }
    }

    /// Whether more than one directory may have this name.
    #[must_use]
    pub(crate) fn is_shared(&self, name: &Login) -> bool {
        matches!(self.candidates(name), Candidates::Several(_))
    }

    /// The directory that has this name; of several that may have it, the one that a search finds the entry in.
    ///
    /// # Errors
    /// No directory has it, or several have, or one that may does not answer.
    pub(crate) async fn locate(&self, name: &Login) -> Result<&RealmCore, DirectoryError> {
        match self.candidates(name) {
            Candidates::One(one) => Ok(one),
            Candidates::None => Err(DirectoryError::NoEntry),
            Candidates::Several(several) => {
                let (realm, found, _) = Self::search_among(&several, name).await.one();
                realm.ok_or_else(|| found.err().unwrap_or(DirectoryError::NoEntry))
            }
        }
    }

    /// The entries that are cached under this name: directory, key and DN.
    pub(crate) fn cached(&self, name: &Login) -> impl Iterator<Item = (&RealmCore, EntryKey, Arc<str>)> {
        self.all.iter().filter_map(|realm| realm.authn.cache().entry_of(name).map(|(key, dn)| (realm, key, dn)))
    }

    /// Decides without a lookup: a password that must not be sent, and cached answers. `None`: a directory
    /// lookup is needed, which counts as a guess.
    #[must_use]
    pub(crate) fn recall(&self, credential: &Credential, client: IpAddr) -> Option<AuthDecision> {
        match self.candidates_for(credential) {
            Candidates::One(realm) if self.claims_foreign_name(realm, credential) => None,
            Candidates::One(realm) => realm.authn.recall(credential, client).map(|known| realm.has_decided(known)),
            Candidates::None => authn::unusable(credential),
            Candidates::Several(several) => Self::recall_among(&several, credential, client),
        }
    }

    /// Decides about an attempt whose delay has passed. The gate is checked before the entry is bound.
    pub(crate) async fn attempt(
        &self,
        credential: &Credential,
        client: IpAddr,
        gate: Option<Arc<BindGate>>,
    ) -> AuthDecision {
        match self.candidates_for(credential) {
            Candidates::One(realm) if self.claims_foreign_name(realm, credential) => foreign_name(),
            Candidates::One(realm) => realm.has_decided(realm.authn.attempt(credential, client, gate).await),
            Candidates::None => unknown(credential),
            // Kept apart, so that the future of a login in one directory is no larger.
            Candidates::Several(several) => {
                Box::pin(Self::decide_among(&several, credential, client, (LookupMode::Cached, gate))).await
            }
        }
    }

    /// Decides, within the directory's `timeout`, plus the time of a probe for a cached user.
    pub(crate) async fn decide(&self, credential: &Credential, client: IpAddr, ask: LookupMode) -> AuthDecision {
        if let CredentialSecret::Token(bearer) = credential.secret() {
            // Kept apart, so that the future of a login by password is no larger.
            return Box::pin(self.decide_by_token(credential, bearer, client, ask)).await;
        }
        match self.candidates_for(credential) {
            Candidates::One(realm) if self.claims_foreign_name(realm, credential) => foreign_name(),
            Candidates::One(realm) => realm.has_decided(realm.authn.decide(credential, client, ask).await),
            Candidates::None => unknown(credential),
            Candidates::Several(several) => {
                Box::pin(Self::decide_among(&several, credential, client, (ask, None))).await
            }
        }
    }

    /// Takes note of a decision that was made although the entry was cached.
    pub(super) fn decided_again(&self, decision: &AuthDecision, cached: &Entry) {
        if let Some(realm) = self.of(cached) {
            realm.authn.decided_again(decision, cached);
        }
    }

    /// Whether nothing about this user was forgotten since the decision: checked again just before the client
    /// gets OK.
    #[must_use]
    pub(crate) fn is_current(&self, proven: &Proven) -> bool {
        let holds = |entry: &Entry, since| self.of(entry).is_some_and(|realm| realm.authn.cache().holds(entry, since));
        holds(proven.identity.entry(), proven.since)
            && proven.identity.acting().is_none_or(|acting| holds(&acting.entry, proven.acting_since))
    }

    /// Whether the caches of this user's entries are still in use by `newest`.
    #[must_use]
    pub(crate) fn are_kept(&self, newest: &Self, proven: &Proven) -> bool {
        let is_kept = |entry: &Entry| match (self.of(entry), newest.of(entry)) {
            (Some(old), Some(new)) => Arc::ptr_eq(old.authn.cache(), new.authn.cache()),
            (_, _) => false,
        };
        is_kept(proven.identity.entry()) && proven.identity.acting().is_none_or(|acting| is_kept(&acting.entry))
    }

    /// Finds the entry of a name, without evidence.
    ///
    /// # Errors
    /// As of a directory.
    pub(crate) async fn find(&self, name: &Login) -> (Result<Entry, DirectoryError>, Trace) {
        match self.candidates(name) {
            Candidates::One(realm) => realm.directory().find(name, NameKind::Login).await,
            Candidates::None => (Err(DirectoryError::NoEntry), Trace::default()),
            Candidates::Several(several) => {
                let (_, found, trace) = Self::search_among(&several, name).await.one();
                (found, trace)
            }
        }
    }
}

/// What is decided about a name beside a credential that is of another directory: no entry is meant by both.
fn foreign_name() -> AuthDecision {
    AuthDecision::refused(Refusal::AuthzidNotAllowed, DecidedBy::Usher)
}

/// What is decided about a name that no directory has: an unknown user, whatever the password.
fn unknown(credential: &Credential) -> AuthDecision {
    authn::unusable(credential).unwrap_or_else(|| AuthDecision::refused(Refusal::UnknownUser, DecidedBy::Usher))
}

#[cfg(test)]
mod tests;
