//! Where mail for an address goes, for Postfix: the route of the entry that has the address, as of a login's.
//!
//! A look-up proves no user and gives no login. What is uncertain is TEMP, and never a guess, another server, or an
//! unknown address: Postfix keeps the message and asks again. Only addresses of `socketmap.domains` are looked up at
//! all, the whole address first and then without its extension.

mod recent;

use std::sync::Arc;

use futures_util::future::join_all;

use crate::base::clock::unix_now;
use crate::base::credential::Login;
use crate::config::{Config, DeliveryWhenDisabled, Socketmap};
use crate::directory::{DirectoryError, Entry};
use crate::login::authn::{DecidedBy, FoundAddress};
use crate::login::realms::{RealmCore, Realms};
use crate::outcome::{Proof, Refusal};
use crate::proto::socketmap::SocketmapAnswer;
use crate::routing::{self, Candidates};
use crate::telemetry::labels::{SocketmapMap, SocketmapResult};

pub(crate) use recent::RecentAnswers;

/// What the maps are answered from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// How Postfix is answered.
    pub settings: &'a Socketmap,
    /// The directories.
    pub realms: &'a Realms,
}

/// What is known of a key.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    /// The address that led to it: the key in small letters, or that without its extension.
    pub address: Option<Login>,
    /// What the key means.
    pub meaning: Meaning,
    /// Where the last answer is from.
    pub by: DecidedBy,
    /// The directories that it is about, where there are several.
    pub directories: Vec<&'static str>,
}

impl Located {
    /// Without a look-up.
    #[must_use]
    pub(crate) const fn unasked() -> Self {
        Self {
            address: None,
            meaning: Meaning::Foreign("there is no such map"),
            by: DecidedBy::Usher,
            directories: Vec::new(),
        }
    }

    /// For the log: the names of its directories.
    #[must_use]
    pub(crate) fn directory(&self) -> Option<String> {
        (!self.directories.is_empty()).then(|| self.directories.join(","))
    }

    /// For the log: the DNs that it is about, and why the directory gave no answer.
    #[must_use]
    pub(crate) fn fault(&self) -> (Option<String>, Option<String>) {
        match &self.meaning {
            Meaning::Foreign(_) | Meaning::Unknown => (None, None),
            Meaning::Entry(entry) => (Some(entry.dn.to_string()), entry.fault.as_ref().map(ToString::to_string)),
            Meaning::Undecided(error) => (None, Some(error.to_string())),
        }
    }
}

/// What a key means.
#[derive(Debug, Clone)]
pub(crate) enum Meaning {
    /// The directory was not asked, for this reason.
    Foreign(&'static str),
    /// The entry.
    Entry(Arc<Entry>),
    /// No entry has the address.
    Unknown,
    /// That is not known now.
    Undecided(DirectoryError),
}

/// An answer, and why.
#[derive(Debug, Clone)]
pub(crate) struct MapAnswer {
    /// The answer.
    pub answer: SocketmapAnswer,
    /// What an administrator would ask.
    pub reason: String,
    /// The backend of an answer that names it.
    pub backend: Option<String>,
}

impl MapAnswer {
    fn new(answer: SocketmapAnswer, reason: impl Into<String>) -> Self {
        Self { answer, reason: reason.into(), backend: None }
    }

    fn temp(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::new(SocketmapAnswer::Temp(reason.clone()), reason)
    }

    /// What it counts as.
    #[must_use]
    pub(crate) const fn result(&self) -> SocketmapResult {
        match self.answer {
            SocketmapAnswer::Ok(_) => SocketmapResult::Ok,
            SocketmapAnswer::NotFound => SocketmapResult::NotFound,
            SocketmapAnswer::Temp(_) => SocketmapResult::Temp,
        }
    }
}

/// The map with this name.
#[must_use]
pub(crate) fn map(name: &[u8]) -> SocketmapMap {
    match name {
        b"transport" => SocketmapMap::Transport,
        b"recipient" => SocketmapMap::Recipient,
        _ => SocketmapMap::Other,
    }
}

impl<'a> Delivery<'a> {
    /// By this configuration; `None`: Postfix asks nothing here.
    #[must_use]
    pub(crate) fn of(config: &'a Config, realms: &'a Realms) -> Option<Self> {
        config.socketmap.as_ref().map(|settings| Self { config, settings, realms })
    }

    /// Finds out what a key means.
    pub(crate) async fn locate(self, key: &[u8]) -> Located {
        let foreign = |reason| Located { meaning: Meaning::Foreign(reason), ..Located::unasked() };
        let address = match self.address(key) {
            Ok(address) => address,
            Err(reason) => return foreign(reason),
        };
        let found = self.find(address.clone()).await;
        let plain = match (&found.meaning, without_extension(&self.settings.recipient_delimiter, address.as_str())) {
            (Meaning::Unknown, Some(plain)) => plain,
            (_, _) => return found,
        };
        match Login::parse(plain.as_bytes()) {
            Some(plain) => self.find(plain).await,
            None => found,
        }
    }

    /// The address of a key in small letters, or why it is not one of ours.
    fn address(self, key: &[u8]) -> Result<Login, &'static str> {
        const NO_ADDRESS: &str = "this is no mail address";
        let text = std::str::from_utf8(key).map_err(|_| NO_ADDRESS)?;
        let (local, domain) = text.rsplit_once('@').ok_or(NO_ADDRESS)?;
        // A domain has only ASCII letters: another letter that Unicode folds to one (KELVIN SIGN) is another domain.
        let (local, domain) = (local.to_lowercase(), domain.to_ascii_lowercase());
        let text = format!("{local}@{domain}");
        if local.is_empty() || domain.is_empty() {
            return Err(NO_ADDRESS);
        }
        if !self.settings.domains.iter().any(|known| known.has(&domain)) {
            return Err("its domain is not in socketmap.domains");
        }
        // A name without the white space around it is another address.
        let address = Login::parse(text.as_bytes()).filter(|address| address.as_str() == text);
        address.ok_or(NO_ADDRESS)
    }

    /// The entry of an address.
    async fn find(self, address: Login) -> Located {
        let shown = |realm: &RealmCore| realm.realm.shown(&realm.settings);
        let (found, by, asked) = match self.realms.candidates(&address) {
            Candidates::One(realm) => {
                let (found, by) = realm.authn.find_address(&address).await;
                (found, by, shown(realm).into_iter().collect())
            }
            Candidates::None => (Err(DirectoryError::NoEntry), DecidedBy::Usher, Vec::new()),
            Candidates::Several(several) => {
                let answers = join_all(several.iter().map(|realm| realm.authn.find_address(&address))).await;
                // Those that have no such entry are not what an administrator has to look at.
                let without = |answer: &(FoundAddress, _)| matches!(answer.0, Err(DirectoryError::NoEntry));
                let concerned = several.iter().zip(&answers).filter(|(_, answer)| !without(answer));
                let concerned = concerned.filter_map(|(realm, _)| shown(realm)).collect();
                let (found, by) = one(answers);
                (found, by, concerned)
            }
        };
        let (meaning, directories) = match found {
            Ok(entry) => {
                let directories = self.realms.shown(&entry).into_iter().collect();
                (Meaning::Entry(entry), directories)
            }
            Err(DirectoryError::NoEntry) => (Meaning::Unknown, Vec::new()),
            Err(error) => (Meaning::Undecided(error), asked),
        };
        Located { address: Some(address), meaning, by, directories }
    }

    /// The answer of a map.
    #[must_use]
    pub(crate) fn answer(self, map: SocketmapMap, located: &Located) -> MapAnswer {
        let entry = match (&located.meaning, map) {
            (_, SocketmapMap::Other) => {
                return MapAnswer::temp("there is no such map: transport and recipient are known");
            }
            (Meaning::Foreign(reason), _) => return MapAnswer::new(SocketmapAnswer::NotFound, *reason),
            (Meaning::Unknown, _) => return MapAnswer::new(SocketmapAnswer::NotFound, "no entry has this address"),
            (Meaning::Undecided(error), _) => return MapAnswer::temp(undecided(error)),
            (Meaning::Entry(entry), _) => entry,
        };
        let state = entry.version.account_state(unix_now());
        let is_rejected = state.is_some() && self.settings.when_disabled == DeliveryWhenDisabled::Reject;
        // A mailbox that is being moved gets its mail later, whatever else its entry says meanwhile. What was not read
        // of an entry may be what counts.
        let is_certain = !entry.version.held && entry.fault.is_none();
        if is_certain && is_rejected {
            let reason = state.map_or_else(String::new, |state| {
                format!("the account is not usable ({}), and delivery_when_disabled is reject", state.label())
            });
            return MapAnswer::new(SocketmapAnswer::NotFound, reason);
        }
        match map {
            SocketmapMap::Recipient => {
                let value = located.address.as_ref().map_or_else(String::new, |address| address.as_str().to_owned());
                MapAnswer::new(SocketmapAnswer::Ok(value), "the entry exists")
            }
            SocketmapMap::Transport | SocketmapMap::Other => self.route(entry),
        }
    }

    /// Where mail for this entry goes.
    fn route(self, entry: &Entry) -> MapAnswer {
        if entry.version.held {
            return MapAnswer::temp("the mailbox is held: it is being moved");
        }
        let route = routing::usable(entry).and_then(|()| routing::route(&self.config.routing, entry));
        let route = match route {
            Ok(route) => route,
            Err(refusal) => return MapAnswer::temp(without_route(&refusal)),
        };
        let backend = self.config.routing.backends.iter().find(|backend| backend.name == route.backend);
        let Some(delivery) = backend.and_then(|backend| backend.delivery.clone()) else {
            return MapAnswer::temp("its server has no delivery configured");
        };
        let reason = if route.by_default { "the entry has no mail host: routing.default" } else { "by its mail host" };
        let answer = MapAnswer::new(SocketmapAnswer::Ok(delivery), reason);
        MapAnswer { backend: Some(route.backend.to_owned()), ..answer }
    }
}

/// The entry of an address that several directories may have: the only one. A directory that does not answer harms no
/// user of another.
fn one(answers: Vec<(FoundAddress, DecidedBy)>) -> (FoundAddress, DecidedBy) {
    let (mut entries, mut uncertain, mut unavailable) = (Vec::new(), None, None);
    for (found, by) in answers {
        match found {
            Ok(entry) => entries.push((entry, by)),
            Err(DirectoryError::NoEntry) => {}
            Err(error @ DirectoryError::Unavailable(_)) => unavailable = Some((error, by)),
            Err(error) => uncertain = Some((error, by)),
        }
    }
    match (entries.len(), uncertain.or(unavailable.filter(|_| entries.is_empty()))) {
        (_, Some((error, by))) => (Err(error), by),
        (2.., None) => {
            let dns = entries.iter().map(|(entry, _)| Arc::clone(&entry.dn)).collect();
            (Err(DirectoryError::SeveralEntries { dns, proof: Proof::Missing }), DecidedBy::Directory)
        }
        (_, None) => {
            entries.pop().map_or((Err(DirectoryError::NoEntry), DecidedBy::Directory), |(entry, by)| (Ok(entry), by))
        }
    }
}

/// Why the directory does not say what an address means, for Postfix's log.
fn undecided(error: &DirectoryError) -> &'static str {
    match error {
        DirectoryError::SeveralEntries { .. } => "several entries have this address",
        DirectoryError::UnusableEntry { .. } => "its entry cannot be used",
        DirectoryError::Unavailable(_)
        | DirectoryError::NoEntry
        | DirectoryError::NoPassword { .. }
        | DirectoryError::InvalidCredentials { .. }
        | DirectoryError::RefusedBefore { .. }
        | DirectoryError::Account { .. }
        | DirectoryError::WrongCertificate { .. }
        | DirectoryError::OtherUser { .. }
        | DirectoryError::Held { .. }
        | DirectoryError::PasswordNotAllowed { .. } => "the directory is not available",
    }
}

/// Why an entry has no route.
fn without_route(refusal: &Refusal) -> &'static str {
    if *refusal == Refusal::NoMailHost {
        "its entry has no mail host"
    } else if *refusal == Refusal::SeveralMailHosts {
        "its entry has several mail hosts"
    } else if *refusal == Refusal::UnknownMailHost {
        "its mail host is not that of a configured backend"
    } else {
        "its entry cannot be used"
    }
}

/// The address without its extension, as Postfix splits it: at the first delimiter behind the first character.
/// Postfix's special names are not split (`owner_request_special`).
fn without_extension(delimiters: &str, address: &str) -> Option<String> {
    let (local, domain) = address.rsplit_once('@')?;
    if matches!(local, "mailer-daemon" | "postmaster" | "double-bounce") {
        return None;
    }
    if delimiters.contains('-') && (local.starts_with("owner-") || local.ends_with("-request")) {
        return None;
    }
    let at = local.find(|letter| delimiters.contains(letter)).filter(|at| *at > 0)?;
    Some(format!("{}@{domain}", local.get(..at)?))
}

#[cfg(test)]
mod tests;
