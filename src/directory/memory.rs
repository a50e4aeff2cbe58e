//! A directory in memory, for unit tests: users with their entries and passwords, outages, changes. It is proof that
//! nothing above the seam needs LDAP.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::entry::{Entry, EntryVersion};
use super::identity::{AcceptedBind, AcceptedCertificate};
use super::{
    Availability, BoxFuture, Change, ChangeHandler, ChangeSource, Directory, DirectoryError, DirectoryFuture, Floor,
    Freshness, Identity, ListedUser, NameKind, Refresh, RefusedBefore, ReportedEntry, Trace, UnavailableCause,
    UserListing,
};
use crate::base::credential::{Credential, CredentialSecret, Login};
use crate::outcome::{AccountState, Proof};

/// The URL of its only server.
pub(crate) const URL: &str = "memory:";
/// How long an authentication takes.
const BIND_TIME: Duration = Duration::from_millis(10);

/// A user of the directory.
#[derive(Debug, Clone)]
struct User {
    login: String,
    mail: Option<String>,
    password: String,
    entry: Entry,
    /// Reported instead of a verdict on the password, and whether only after a correct one.
    state: Option<(AccountState, bool)>,
    fault: Option<MemoryFault>,
    /// The entry does not match `password_filter`.
    refuses_passwords: bool,
}

/// What happens instead of a reply.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MemoryFault {
    /// The directory module panics.
    Panic,
    /// No reply.
    Silence,
    /// The reply takes so much longer.
    Slow(Duration),
}

#[derive(Debug, Default)]
struct Inner {
    users: Vec<User>,
    /// The number of passwords received, answered or not.
    binds: usize,
    /// The number of searches besides those of an authentication.
    searches: usize,
    outage: Option<UnavailableCause>,
    /// Filters, each with the DN of an entry that matches it.
    matching: Vec<(String, Arc<str>)>,
    availability: Option<Availability>,
    /// Everything that the watch reports, in order.
    changes: Vec<Change>,
}

/// A directory in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    inner: Mutex<Inner>,
    changed: watch::Sender<usize>,
}

impl Memory {
    /// Without users.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: watch::Sender::new(0) })
    }

    /// With one user.
    pub(crate) fn with_user(login: &str, password: &str, entry: Entry) -> Arc<Self> {
        let memory = Self::new();
        memory.add(login, password, entry);
        memory
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Adds a user.
    pub(crate) fn add(&self, login: &str, password: &str, entry: Entry) {
        let (login, password) = (login.to_owned(), password.to_owned());
        self.report(Change::Entry(Box::new(reported(&entry))));
        self.inner().users.push(User {
            login,
            mail: None,
            password,
            entry,
            state: None,
            fault: None,
            refuses_passwords: false,
        });
    }

    /// Modifies the entry of a user.
    pub(crate) fn modify(&self, login: &str, change: impl FnOnce(&mut Entry)) {
        let entry = self.with(login, |user| {
            change(&mut user.entry);
            user.entry.clone()
        });
        self.report(Change::Entry(Box::new(reported(&entry))));
    }

    /// Sets the version of the entry of a user.
    pub(crate) fn set_version(&self, login: &str, version: EntryVersion) {
        self.modify(login, |entry| entry.version = version);
    }

    /// Sets the password of a user.
    pub(crate) fn set_password(&self, login: &str, password: &str) {
        self.with(login, |user| password.clone_into(&mut user.password));
    }

    /// Sets the mail address of a user.
    pub(crate) fn set_mail(&self, login: &str, mail: &str) {
        self.with(login, |user| user.mail = Some(mail.to_owned()));
    }

    /// Has the directory report this account state, after a correct password only or for any.
    pub(crate) fn set_state(&self, login: &str, state: AccountState, proven: bool) {
        self.with(login, |user| user.state = Some((state, proven)));
    }

    /// Has the directory not reply to a login of this user.
    pub(crate) fn set_fault(&self, login: &str, fault: MemoryFault) {
        self.with(login, |user| user.fault = Some(fault));
    }

    /// Has an entry match a filter.
    pub(crate) fn set_match(&self, filter: &str, dn: &str) {
        self.inner().matching.push((filter.to_owned(), dn.into()));
    }

    /// No entry matches any filter.
    pub(crate) fn clear_matches(&self) {
        self.inner().matching.clear();
    }

    /// Has the entry of a user match `password_filter` or not.
    pub(crate) fn refuse_passwords(&self, login: &str, refuses: bool) {
        self.with(login, |user| user.refuses_passwords = refuses);
    }

    /// Deletes a user.
    pub(crate) fn remove(&self, login: &str) {
        let entry = self.with(login, |user| user.entry.clone());
        self.inner().users.retain(|user| user.login != login);
        self.report(Change::Deleted { id: entry.version.id, dn: Some(entry.dn) });
    }

    /// Begins or ends an outage: no request is answered.
    pub(crate) fn set_outage(&self, outage: bool) {
        self.inner().outage = outage.then_some(UnavailableCause::Timeout);
    }

    /// Sets what probes have found.
    pub(crate) fn set_availability(&self, availability: Availability) {
        self.inner().availability = Some(availability);
    }

    /// How many passwords it has received.
    pub(crate) fn binds(&self) -> usize {
        self.inner().binds
    }

    /// How often it has searched for an entry without a password.
    pub(crate) fn searches(&self) -> usize {
        self.inner().searches
    }

    fn with<T>(&self, login: &str, change: impl FnOnce(&mut User) -> T) -> T {
        change(self.inner().users.iter_mut().find(|user| user.login == login).expect("a user of this directory"))
    }

    fn report(&self, change: Change) {
        let mut inner = self.inner();
        inner.changes.push(change);
        self.changed.send_replace(inner.changes.len());
    }

    fn lookup(&self, name: &Login, kind: NameKind) -> Result<User, DirectoryError> {
        let inner = self.inner();
        if let Some(cause) = &inner.outage {
            return Err(DirectoryError::Unavailable(cause.clone()));
        }
        let has_name = |user: &&User| match kind {
            NameKind::Login => user.login == name.as_str(),
            NameKind::Mail => user.mail.as_deref() == Some(name.as_str()),
        };
        let mut found = inner.users.iter().filter(has_name);
        match (found.next(), found.next()) {
            (None, _) => Err(DirectoryError::NoEntry),
            (Some(user), None) => Ok(user.clone()),
            (Some(one), Some(other)) => {
                let dns = [one, other].map(|user| Arc::clone(&user.entry.dn)).to_vec();
                Err(DirectoryError::SeveralEntries { dns, proof: Proof::Missing })
            }
        }
    }

    async fn verdict(
        &self,
        credential: &Credential,
        refused_before: RefusedBefore<'_>,
        floor: &dyn Floor,
    ) -> Result<Identity, DirectoryError> {
        let found = self.lookup(credential.login(), NameKind::Login);
        if matches!(found, Err(DirectoryError::Unavailable(_))) {
            // The failing attempt counts, and takes its time.
            self.inner().binds += 1;
            tokio::time::sleep(BIND_TIME).await;
        }
        let User { entry, password, state, fault, refuses_passwords, .. } = found?;
        match fault {
            Some(MemoryFault::Panic) => panic!("a defect of the directory module"),
            Some(MemoryFault::Silence) => std::future::pending().await,
            Some(MemoryFault::Slow(more)) => tokio::time::sleep(more).await,
            None => {}
        }
        let (entry, dn) = match floor.freshness(&entry, URL) {
            Freshness::CaughtUp => (entry.clone(), Arc::clone(&entry.dn)),
            Freshness::Deleted => return Err(DirectoryError::NoEntry),
            Freshness::Behind(_) | Freshness::Hidden(_) => {
                return Err(DirectoryError::Unavailable(UnavailableCause::Behind { server: URL.into() }));
            }
        };
        let guess = match credential.secret() {
            CredentialSecret::Password(guess) => guess,
            CredentialSecret::Token(_) => return Err(DirectoryError::NoEntry),
            CredentialSecret::ClientCertificate(certificate) => {
                return AcceptedCertificate::compare(certificate, &entry)
                    .map(|accepted| Identity::from_certificate(accepted, entry))
                    .ok_or(DirectoryError::WrongCertificate { dn });
            }
        };
        if refused_before(&entry) {
            return Err(DirectoryError::RefusedBefore { dn });
        }
        if refuses_passwords {
            return Err(DirectoryError::PasswordNotAllowed { dn, key: entry.key() });
        }
        let is_right = guess.expose() == password.as_bytes();
        self.inner().binds += 1;
        tokio::time::sleep(BIND_TIME).await;
        match state {
            Some((state, proven)) if is_right || !proven => Err(DirectoryError::Account { dn, state, proven }),
            _ if is_right => Ok(Identity::from_bind(AcceptedBind::new(), entry)),
            _ => {
                let seen = (!entry.version.locked).then(|| Box::new(entry.version));
                Err(DirectoryError::InvalidCredentials { dn, seen })
            }
        }
    }
}

fn reported(entry: &Entry) -> ReportedEntry {
    ReportedEntry { entry: entry.clone(), modified: None, modified_by: None }
}

fn traced() -> Trace {
    Trace { server: Some(URL.into()), ..Trace::default() }
}

impl Directory for Memory {
    fn authenticate<'a>(
        &'a self,
        credential: &'a Credential,
        refused_before: RefusedBefore<'a>,
        floor: &'a dyn Floor,
    ) -> DirectoryFuture<'a, Identity> {
        Box::pin(async move { (self.verdict(credential, refused_before, floor).await, traced()) })
    }

    fn find<'a>(&'a self, name: &'a Login, kind: NameKind) -> DirectoryFuture<'a, Entry> {
        self.inner().searches += 1;
        Box::pin(async move { (self.lookup(name, kind).map(|user| user.entry), traced()) })
    }

    /// Understands `(attribute=value)`, whose value is a name of either kind.
    fn find_by<'a>(&'a self, filter: &'a str) -> DirectoryFuture<'a, Entry> {
        self.inner().searches += 1;
        let value = filter.split_once('=').and_then(|(_, value)| value.strip_suffix(')')).unwrap_or_default();
        Box::pin(async move {
            let Some(name) = Login::parse(value.as_bytes()) else { return (Err(DirectoryError::NoEntry), traced()) };
            let by = |kind| self.lookup(&name, kind).map(|user| user.entry);
            let found = match by(NameKind::Mail) {
                Err(DirectoryError::NoEntry) => by(NameKind::Login),
                found => found,
            };
            (found, traced())
        })
    }

    fn matches<'a>(&'a self, dn: &'a str, filter: &'a str) -> DirectoryFuture<'a, bool> {
        Box::pin(async move {
            let inner = self.inner();
            let is_match = || inner.matching.iter().any(|(known, entry)| known == filter && **entry == *dn);
            (
                inner.outage.clone().map_or_else(|| Ok(is_match()), |cause| Err(DirectoryError::Unavailable(cause))),
                traced(),
            )
        })
    }

    fn availability(&self) -> Availability {
        self.inner().availability.unwrap_or(Availability::Available)
    }

    fn changes(&self) -> Option<&dyn ChangeSource> {
        Some(self)
    }

    fn users(&self) -> Option<&dyn UserListing> {
        Some(self)
    }
}

impl ChangeSource for Memory {
    fn watch<'a>(&'a self, report: ChangeHandler<'a>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut changed = self.changed.subscribe();
            let (mut next, users) = {
                let inner = self.inner();
                (inner.changes.len(), inner.users.clone())
            };
            report(Change::RefreshStarted(Refresh { server: URL.into(), whole: true, local_timestamps: false }));
            users.iter().for_each(|user| report(Change::Entry(Box::new(reported(&user.entry)))));
            report(Change::RestDeleted);
            report(Change::Complete);
            loop {
                let new: Vec<Change> = self.inner().changes.iter().skip(next).cloned().collect();
                next += new.len();
                new.into_iter().for_each(report);
                // Its sender lives in `self`.
                let _ = changed.wait_for(|count| *count > next).await;
            }
        })
    }
}

impl UserListing for Memory {
    fn determines_names(&self) -> bool {
        true
    }

    fn list<'a>(
        &'a self,
        _: Option<&'a str>,
        receiver: mpsc::Sender<ListedUser>,
    ) -> BoxFuture<'a, Result<(), UnavailableCause>> {
        Box::pin(async move {
            let users = self.inner().users.clone();
            for User { login, entry, .. } in users {
                let listed = ListedUser { dn: entry.dn.to_string(), entry, names: vec![login] };
                if receiver.send(listed).await.is_err() {
                    break;
                }
            }
            self.inner().outage.clone().map_or(Ok(()), Err)
        })
    }
}
