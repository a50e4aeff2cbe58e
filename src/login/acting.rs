//! Acting for another user's mailbox: what the names of a login mean, and whether one user may act for another.
//!
//! The user who acts proves itself by its own bind, token or certificate (`authn`); the mailbox's entry is looked up by usher's own account at
//! each attempt, and nothing about it is cached. Both are judged before a backend is asked. A refusal is answered as a
//! wrong password is, whoever the user is: neither an administrator nor a mailbox shows by it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::clock::unix_now;
use crate::base::credential::{Credential, Login};
use crate::config::{Administrators, Config, WindowsDomain};
use crate::directory::{Authority, DirectoryError, Entry, NameKind};
use crate::login::realms::{RealmCore, Realms};
use crate::outcome::{ActingFault, Refusal};
use crate::proto::Protocol;
use crate::proto::ldap::dn;
use crate::routing;

/// A login for another user's mailbox, as its names say.
#[derive(Debug, Clone)]
pub(crate) struct Acting {
    /// The mailbox's name.
    pub target: Login,
    /// The name as typed, if it holds both: an entry with this very name is that user's own.
    pub whole: Option<Login>,
    /// What proves the user who acts by a certificate, without the mailbox's name.
    pub own: Option<Credential>,
}

/// What the names of a login mean: the name of the user whose secret it has, and for whom it acts, if for another one.
///
/// # Errors
/// A name that cannot be one, or an authzid where no user may act for another.
pub(crate) fn names(config: &Config, login: &[u8], authzid: &[u8]) -> Result<(Login, Option<Acting>), Refusal> {
    let own = Login::parse(login).ok_or(Refusal::InvalidUsername)?;
    if !authzid.is_empty() && authzid != login {
        if !config.permits_acting() {
            return Err(Refusal::AuthzidNotAllowed);
        }
        let target = Login::parse(authzid).ok_or(Refusal::InvalidUsername)?;
        // White space at the ends is no part of a name.
        let acting = (target != own).then_some(Acting { target, whole: None, own: None });
        return Ok((own, acting));
    }
    let split = config.impersonation.separator.filter(|_| config.permits_acting() && authzid.is_empty());
    // The last one: a mailbox's name may have the separator in it.
    let parts = split.and_then(|separator| own.as_str().rsplit_once(separator));
    let parts =
        parts.and_then(|(target, actor)| Some((Login::parse(target.as_bytes())?, Login::parse(actor.as_bytes())?)));
    match parts {
        Some((target, actor)) => Ok((actor, Some(Acting { target, whole: Some(own), own: None }))),
        None => Ok((own, None)),
    }
}

/// What the name beside a token means: the token says whose it is, so that another name is the mailbox's. It is never
/// split: with a token, its user need not be named.
///
/// # Errors
/// A name that cannot be one.
pub(crate) fn names_beside_token(config: &Config, name: &[u8]) -> Result<(Login, Option<Acting>), Refusal> {
    if name.is_empty() {
        return Ok((Login::absent(), None));
    }
    let name = Login::parse(name).ok_or(Refusal::InvalidUsername)?;
    let acting = config.permits_acting().then(|| Acting { target: name.clone(), whole: None, own: None });
    Ok((name, acting))
}

/// The user who wants to act.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Actor<'a> {
    /// Its entry.
    pub entry: &'a Entry,
    /// The client's address; `None`: any.
    pub client: Option<IpAddr>,
    /// The protocol; `None`: any.
    pub protocol: Option<&'static Protocol>,
}

/// What a user is to a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MailboxRight {
    /// The mailbox is its own, under another name.
    Owner,
    /// It may act for the mailbox.
    May(Authority),
}

/// The entry of a mailbox that a user wants to act for, as a server has just returned it.
///
/// # Errors
/// No entry, or the directory does not answer.
pub(crate) async fn target(realms: &Realms, name: &Login) -> Result<Entry, Refusal> {
    realms.find(name).await.0.map_err(|error| refusal(&error))
}

/// The same in the version that is in force.
///
/// # Errors
/// No entry, or the directory does not answer.
pub(super) async fn newest_target(realms: &Realms, name: &Login) -> Result<Arc<Entry>, Refusal> {
    let (found, trace) = realms.find(name).await;
    let in_force = |entry: Entry| {
        let entries = realms.of(&entry).ok_or(DirectoryError::NoEntry)?.authn.entries();
        entries.in_force(entry, trace.server.as_ref())
    };
    let found = found.and_then(in_force);
    found.map_err(|error| refusal(&error))
}

/// Why there is no mailbox to act for.
const fn refusal(error: &DirectoryError) -> Refusal {
    match error {
        DirectoryError::Unavailable(_) => Refusal::DirectoryUnavailable,
        DirectoryError::SeveralEntries { .. } | DirectoryError::UnusableEntry { .. } => {
            Refusal::ActingNotAllowed(ActingFault::AmbiguousTarget)
        }
        DirectoryError::NoEntry
        | DirectoryError::NoPassword { .. }
        | DirectoryError::InvalidCredentials { .. }
        | DirectoryError::RefusedBefore { .. }
        | DirectoryError::Account { .. }
        | DirectoryError::WrongCertificate { .. }
        | DirectoryError::OtherUser { .. }
        | DirectoryError::Held { .. }
        | DirectoryError::PasswordNotAllowed { .. } => Refusal::ActingNotAllowed(ActingFault::UnknownTarget),
    }
}

/// Judges whether a user may act for a mailbox.
///
/// # Errors
/// Why not, or the directory does not answer.
pub(crate) async fn judge(
    config: &Config,
    realms: &Realms,
    actor: Actor<'_>,
    (name, target): (&Login, &Entry),
) -> Result<MailboxRight, Refusal> {
    let [of_actor, of_target] = [actor.entry, target].map(|entry| realms.of(entry).ok_or(Refusal::Internal));
    let (of_actor, of_target) = (of_actor?, of_target?);
    let is_same_directory = of_actor.realm == of_target.realm;
    if is_same_directory && (target.key() == actor.entry.key() || dn::is_same(&target.dn, &actor.entry.dn)) {
        return Ok(MailboxRight::Owner);
    }
    let administrators = config.impersonation.administrators.as_ref();
    let refused = |fault| Err(Refusal::ActingNotAllowed(fault));
    let by_office = match administrators {
        Some(settings) => administrator(settings, (of_actor, of_target), actor, target).await?,
        None => Err(ActingFault::NotPermitted),
    };
    let authority = match by_office {
        Ok(()) => Authority::Administrator,
        Err(fault) => match grant(realms, (of_actor, of_target), actor, target).await? {
            Some(value) => Authority::Grant(value.into()),
            None => return refused(fault),
        },
    };
    if let Some(settings) = administrators
        && is_administrator(settings, of_target, target).await?
    {
        return refused(ActingFault::Administrator);
    }
    if is_system_account(config, of_target, name, target).await? {
        return refused(ActingFault::SystemAccount);
    }
    let with_disabled = administrators.is_some_and(|settings| settings.include_disabled);
    let is_closed = target.version.account_state(unix_now()).is_some();
    if is_closed && !(with_disabled && authority == Authority::Administrator) {
        return refused(ActingFault::Disabled);
    }
    Ok(MailboxRight::May(authority))
}

/// Whether a user may act as an administrator.
async fn administrator(
    settings: &Administrators,
    (of_actor, of_target): (&RealmCore, &RealmCore),
    actor: Actor<'_>,
    target: &Entry,
) -> Result<Result<(), ActingFault>, Refusal> {
    if !is_administrator(settings, of_actor, actor.entry).await? {
        return Ok(Err(ActingFault::NotPermitted));
    }
    // Users of another directory are another's to administer, unless the configuration says so.
    let may_reach = match &settings.target_directories {
        Some(names) => names.contains(&of_target.settings.name),
        None => of_target.realm == of_actor.realm,
    };
    if !may_reach {
        return Ok(Err(ActingFault::TargetDirectory));
    }
    if actor.client.is_some_and(|client| !settings.networks.iter().any(|network| network.contains(&client))) {
        return Ok(Err(ActingFault::Network));
    }
    if actor.protocol.is_some_and(|protocol| !settings.protocols.contains(&protocol)) {
        return Ok(Err(ActingFault::Protocol));
    }
    match &settings.target_filter {
        Some(filter) if !matches(of_target, target, filter).await? => Ok(Err(ActingFault::TargetFilter)),
        Some(_) | None => Ok(Ok(())),
    }
}

async fn is_administrator(settings: &Administrators, realm: &RealmCore, entry: &Entry) -> Result<bool, Refusal> {
    // A DN, and a filter, mean another entry in each directory.
    if realm.settings.name != settings.directory {
        return Ok(false);
    }
    if settings.dns.iter().any(|name| dn::is_same(name, &entry.dn)) {
        return Ok(true);
    }
    match &settings.filter {
        Some(filter) => matches(realm, entry, filter).await,
        None => Ok(false),
    }
}

async fn matches(realm: &RealmCore, entry: &Entry, filter: &str) -> Result<bool, Refusal> {
    realm.directory().matches(&entry.dn, filter).await.0.map_err(|_| Refusal::DirectoryUnavailable)
}

/// The value of `grant_attribute` by which a mailbox's entry names this user. A user that may not use the protocol
/// itself does not act in it.
async fn grant(
    realms: &Realms,
    (of_actor, of_target): (&RealmCore, &RealmCore),
    actor: Actor<'_>,
    target: &Entry,
) -> Result<Option<String>, Refusal> {
    // A DN means an entry of the mailbox's own directory.
    if of_actor.realm != of_target.realm {
        return Ok(None);
    }
    let allow = &of_actor.settings.allow;
    let may_use = actor.protocol.is_none_or(|protocol| routing::allowed(allow, actor.entry, protocol).is_ok());
    if of_target.settings.grant_attribute.is_none() || !may_use || actor.entry.fault.is_some() {
        return Ok(None);
    }
    let is_dn = |value: &&String| dn::is_dn(value);
    let named = |value: &&String| is_dn(value) && dn::is_same(value, &actor.entry.dn);
    if let Some(value) = target.grants.iter().find(named) {
        return Ok(Some(value.clone()));
    }
    // A login name means whom a login by it would mean, whichever name the user has typed.
    for value in target.grants.iter().filter(|value| !is_dn(value)) {
        let Some(name) = Login::parse(value.as_bytes()) else { continue };
        match realms.find(&name).await.0 {
            Ok(found) if found.key() == actor.entry.key() => return Ok(Some(value.clone())),
            Err(DirectoryError::Unavailable(_)) => return Err(Refusal::DirectoryUnavailable),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}

/// Whether the entry is an account of usher's own: such a login would be the account's, not a user's.
async fn is_system_account(config: &Config, realm: &RealmCore, name: &Login, target: &Entry) -> Result<bool, Refusal> {
    let service = realm.settings.find.service();
    if service.is_some_and(|account| dn::is_same(&account.dn, &target.dn)) {
        return Ok(true);
    }
    let mut accounts: Vec<&str> = realm.settings.canary.iter().map(|canary| canary.login.as_str()).collect();
    for backend in &config.routing.backends {
        let of_backend = backend.service.iter().chain(&backend.impersonation_service);
        accounts.extend(of_backend.chain(backend.health.probe.account()).map(|account| account.login.as_str()));
    }
    // At the service account's own name in Active Directory, too.
    let named = service.map(|account| account.dn.as_str()).filter(|dn| !dn.contains('='));
    accounts.extend(
        named.into_iter().flat_map(|name| [Some(name), WindowsDomain::split(name).map(|(_, own)| own)]).flatten(),
    );
    accounts.sort_unstable();
    accounts.dedup();
    let is_named = |account: &&str| {
        let is_account = |name: &str| name.to_lowercase() == account.to_lowercase();
        is_account(name.as_str()) || target.logins.iter().any(|login| is_account(login.trim()))
    };
    if accounts.iter().any(is_named) {
        return Ok(true);
    }
    // All of them, however many backends there are: an account that is left out could be entered by another name.
    for account in accounts {
        let Some(account) = Login::parse(account.as_bytes()) else { continue };
        if is_name_of(realm, &account, target).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a login by this name is one of this entry.
async fn is_name_of(realm: &RealmCore, name: &Login, entry: &Entry) -> Result<bool, Refusal> {
    match realm.directory().find(name, NameKind::Login).await.0 {
        Ok(found) => Ok(found.key() == entry.key()),
        Err(DirectoryError::Unavailable(_)) => Err(Refusal::DirectoryUnavailable),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests;
