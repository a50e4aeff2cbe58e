//! A name that several directories may have, as after a merger: all are asked at once, and the one that has the entry
//! decides.
//!
//! An entry in more than one is a refusal, said as a wrong password is: which of them would be meant is not guessed. A
//! directory that is down hides nothing that another has, but without an answer of all a name is not unknown.

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use super::{RealmCore, Realms};
use crate::base::credential::{Credential, Login};
use crate::directory::{DirectoryError, DirectoryFuture, Entry, NameKind, Trace, UnavailableCause};
use crate::limits::BindGate;
use crate::login::authn::{self, AuthDecision, DecidedBy, LookupMode};
use crate::outcome::{Proof, Refusal};

/// What one directory has answered.
#[derive(Debug)]
struct Answer<'a> {
    realm: &'a RealmCore,
    found: Result<Entry, DirectoryError>,
    trace: Trace,
}

impl Answer<'_> {
    fn has_entry(&self) -> bool {
        !matches!(self.found, Err(DirectoryError::NoEntry | DirectoryError::Unavailable(_)))
    }

    fn failed(&self) -> bool {
        matches!(self.found, Err(DirectoryError::Unavailable(_)))
    }

    fn dn(&self) -> Option<Arc<str>> {
        self.found.as_ref().map_or_else(|_| self.trace.dn.clone(), |entry| Some(Arc::clone(&entry.dn)))
    }
}

/// What all of them have answered.
#[derive(Debug)]
pub(super) struct Answers<'a>(Vec<Answer<'a>>);

impl<'a> Answers<'a> {
    /// Asks all at once. Once one has the entry, the others have the time of one more operation.
    pub(super) async fn of<'f>(
        realms: &[&'a RealmCore],
        find: impl Fn(&'a RealmCore) -> DirectoryFuture<'f, Entry>,
    ) -> Self {
        let mut asked: FuturesUnordered<_> = realms
            .iter()
            .map(|realm| {
                let answer = find(realm);
                async move {
                    let (found, trace) = answer.await;
                    // A replica may not know of a deletion yet.
                    let in_force = |entry| realm.authn.entries().in_force(entry, trace.server.as_ref());
                    Answer { realm, found: found.and_then(in_force).map(Arc::unwrap_or_clone), trace }
                }
            })
            .collect();
        let patience = realms.iter().map(|realm| realm.settings.attempt_timeout).max().unwrap_or_default();
        let (mut answers, mut until) = (Vec::with_capacity(realms.len()), None);
        loop {
            let next = match until {
                Some(until) => timeout_at(until, asked.next()).await.unwrap_or_default(),
                None => asked.next().await,
            };
            let Some(answer) = next else { break };
            if answer.has_entry() {
                until.get_or_insert_with(|| Instant::now() + patience);
            }
            answers.push(answer);
        }
        let is_silent = |realm: &&&'a RealmCore| answers.iter().all(|answer| answer.realm.realm != realm.realm);
        let silent: Vec<_> = realms.iter().filter(is_silent).copied().collect();
        let late = |realm| {
            let found = Err(DirectoryError::Unavailable(UnavailableCause::Timeout));
            Answer { realm, found, trace: Trace::default() }
        };
        answers.extend(silent.into_iter().map(late));
        // Whatever came first, the order is that of the configuration.
        answers.sort_by_key(|answer| realms.iter().position(|realm| realm.realm == answer.realm.realm));
        Self(answers)
    }

    /// The answer of the one that has the entry.
    ///
    /// # Errors
    /// None or several have it, or one that may have it did not answer.
    pub(super) fn one(self) -> (Option<&'a RealmCore>, Result<Entry, DirectoryError>, Trace) {
        let mut with_entry: Vec<_> = self.0.iter().enumerate().filter(|(_, answer)| answer.has_entry()).collect();
        let place = match with_entry.as_slice() {
            [(at, _)] => Some(*at),
            [] => self.0.iter().position(Answer::failed),
            _ => {
                let dns = with_entry.drain(..).filter_map(|(_, answer)| answer.dn()).collect();
                let error = DirectoryError::SeveralEntries { dns, proof: Proof::Missing };
                return (None, Err(error), Trace::default());
            }
        };
        match place.and_then(|at| self.0.into_iter().nth(at)) {
            Some(answer) if answer.failed() => (None, answer.found, answer.trace),
            Some(Answer { realm, found, trace }) => (Some(realm), found, trace),
            None => (None, Err(DirectoryError::NoEntry), Trace::default()),
        }
    }

    fn with_entry(&self) -> impl Iterator<Item = &Answer<'a>> {
        self.0.iter().filter(|answer| answer.has_entry())
    }

    /// Whether each has the entry; `None`: it did not answer.
    pub(super) fn with_entry_or_not(&self) -> impl Iterator<Item = (&'a RealmCore, Option<bool>)> {
        self.0.iter().map(|answer| (answer.realm, (!answer.failed()).then_some(answer.has_entry())))
    }

    fn failed(&self) -> impl Iterator<Item = &'a RealmCore> {
        self.0.iter().filter(|answer| answer.failed()).map(|answer| answer.realm)
    }

    /// The directory that decides; otherwise the decision. `stale`: whether an earlier decision of a directory that does
    /// not answer would do.
    pub(super) fn deciding(self, stale: impl Fn(&RealmCore) -> bool) -> Result<&'a RealmCore, Box<AuthDecision>> {
        let (shown, other) = {
            let mut shown = self.with_entry().map(|answer| answer.realm.realm.shown(&answer.realm.settings));
            (shown.next().flatten(), shown.next().flatten())
        };
        if self.with_entry().next().is_none()
            && let Some(realm) = self.failed().find(|realm| stale(realm))
        {
            // It finds out again that its servers do not answer, which they are known not to.
            return Ok(realm);
        }
        let (realm, found, trace) = self.one();
        if let Some(realm) = realm {
            return Ok(realm);
        }
        let decision = match found {
            Err(DirectoryError::SeveralEntries { dns, proof }) => {
                let refused = AuthDecision::refused(Refusal::SeveralEntries(proof), DecidedBy::Directory);
                let mut dns = dns.into_iter();
                let (dn, other_dn) = (dns.next(), dns.next());
                AuthDecision { dn, other_dn, directory: shown, other_directory: other, ..refused }
            }
            Err(DirectoryError::Unavailable(cause)) => {
                let refused = AuthDecision::refused(Refusal::DirectoryUnavailable, DecidedBy::Directory);
                AuthDecision { unavailable: Some(cause.to_string().into()), ..refused }
            }
            Ok(_) | Err(_) => AuthDecision::refused(Refusal::UnknownUser, DecidedBy::Directory),
        };
        Err(Box::new(AuthDecision { trace, ..decision }))
    }
}

impl Realms {
    /// The cached answer of one of these directories.
    pub(super) fn recall_among(realms: &[&RealmCore], credential: &Credential, client: IpAddr) -> Option<AuthDecision> {
        if let Some(refused) = authn::unusable(credential) {
            return Some(refused);
        }
        let known = realms.iter().map(|realm| Some(realm.has_decided(realm.authn.recall(credential, client)?)));
        let known: Vec<_> = known.collect();
        let mut right = known.iter().flatten().filter(|decision| decision.result.is_ok());
        match (right.next(), right.next()) {
            (Some(one), None) => Some(one.clone()),
            // By now the entry is in both.
            (Some(_), Some(_)) => None,
            // What is wrong in one may be right in another.
            (None, _) => known.into_iter().collect::<Option<Vec<_>>>()?.into_iter().next(),
        }
    }

    /// Decides about a name that these directories may have.
    pub(super) async fn decide_among(
        realms: &[&RealmCore],
        credential: &Credential,
        client: IpAddr,
        (ask, gate): (LookupMode, Option<Arc<BindGate>>),
    ) -> AuthDecision {
        if ask == LookupMode::Cached
            && let Some(known) = Self::recall_among(realms, credential, client)
        {
            return known;
        }
        if let Some(refused) = authn::unusable(credential) {
            return refused;
        }
        let answers = Self::search_among(realms, credential.login()).await;
        let several = answers.with_entry().count() > 1;
        for answer in &answers.0 {
            // What was right is not, where the entry is gone, or is one of two.
            if !answer.failed() && (several || !answer.has_entry()) {
                answer.realm.authn.cache().forget_password(credential);
            }
        }
        let stale = |realm: &RealmCore| ask == LookupMode::Cached && realm.authn.cache().stale(credential).is_some();
        match (answers.deciding(stale), gate) {
            (Ok(realm), Some(gate)) => realm.has_decided(realm.authn.attempt(credential, client, Some(gate)).await),
            (Ok(realm), None) => realm.has_decided(realm.authn.decide(credential, client, ask).await),
            (Err(decision), _) => *decision,
        }
    }

    /// Looks a name up in these directories.
    pub(super) async fn search_among<'a>(realms: &[&'a RealmCore], name: &Login) -> Answers<'a> {
        Answers::of(realms, |realm| realm.directory().find(name, NameKind::Login)).await
    }
}
