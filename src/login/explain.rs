//! Where a login leads, or why nowhere, with words for an operator.
//!
//! Asks [`route`], as a session does: what is said here is what `run` does. `running` adds what only the running process
//! knows.

pub(crate) mod running;

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::clock::unix_now;
use crate::base::credential::Login;
use crate::config::{Config, Directory, DirectoryServer, LdapScheme};
use crate::directory::{DirectoryError, Entry, EntryFault, EntryVersion, Networks, ServerResult, UnavailableCause};
use crate::login::networks;
use crate::outcome::{AccountState, Proof, Refusal, Reply};
use crate::proto::PROTOCOLS;
use crate::proto::ldap::result::{CONFIDENTIALITY_REQUIRED, STRONGER_AUTH_REQUIRED};
use crate::proto::ldap::vendor::{self, Meaning};
use crate::routing;

/// Why an entry that does not match `password_filter` is not bound.
pub(crate) const NO_PASSWORD_LOGIN: &str =
    "the entry does not match password_filter: its user cannot log in with a password, whatever the password";

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The entry.
    pub dn: Option<String>,
    /// The values of `mail_host_attribute`.
    pub mail_hosts: Vec<String>,
    /// Whether the directory holds the user: then logins wait.
    pub held: bool,
    /// The networks that the entry permits; `None`: all.
    pub networks: Option<Arc<Networks>>,
    /// The protocols that the entry may use.
    pub may_use: Vec<&'static str>,
    /// Where it leads, or why nowhere.
    pub goal: Result<Goal, Refusal>,
    /// The same in words.
    pub words: String,
}

/// Where a login leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Goal {
    /// The backend's name.
    pub backend: String,
    /// Whether it is `routing.default`.
    pub by_default: bool,
    /// The name there.
    pub login: String,
}

impl Verdict {
    /// A refusal with its words.
    #[must_use]
    pub(crate) fn refused(refusal: Refusal, words: impl Into<String>) -> Self {
        let (dn, held, networks) = (None, false, None);
        let (mail_hosts, may_use) = Default::default();
        Self { dn, mail_hosts, held, networks, may_use, goal: Err(refusal), words: words.into() }
    }

    /// The same for a client at this address.
    #[must_use]
    pub(crate) fn for_client(self, client: IpAddr) -> Self {
        match networks::permit(self.networks.as_deref(), client) {
            Err(refusal @ Refusal::NetworkNotAllowed) => {
                let words = format!("the entry does not permit logins from {client}");
                Self { goal: Err(refusal), words, ..self }
            }
            // Unusable ones are a refusal from everywhere.
            Ok(()) | Err(_) => self,
        }
    }

    /// The same for an account in this state: locked, disabled, expired, or on hold. `is_new`: the entry was read for this
    /// verdict, so that a login would ask the directory, too.
    #[must_use]
    pub(crate) fn for_account(self, version: &EntryVersion, is_new: bool) -> Self {
        let is_elsewhere = matches!(self.goal, Err(Refusal::NetworkNotAllowed | Refusal::UnusableNetworks));
        let (refusal, words) = if let Some(state) = version.account_state(unix_now()) {
            (Refusal::Account { state, proven: true }, format!("the entry says {}", state.label()))
        } else if version.locked && is_new {
            let words = "the entry is locked after wrong passwords, now or until recently: the directory decides at the next login";
            (Refusal::Account { state: AccountState::Locked, proven: true }, words.to_owned())
        } else if version.held && !is_elsewhere {
            // Before the route, as most likely the mailbox is being moved.
            let words = "the directory holds this user: logins wait until it releases the hold";
            (Refusal::Hold, words.to_owned())
        } else {
            return self;
        };
        Self { goal: Err(refusal), words, ..self }
    }

    /// What is no login name.
    #[must_use]
    pub(crate) fn no_login() -> Self {
        Self::refused(Refusal::InvalidUsername, "invalid login name: empty, too long or with a control character")
    }

    /// Of what the directory answered.
    #[must_use]
    pub(crate) fn of(
        config: &Config,
        directory: &Directory,
        answer: Result<Entry, DirectoryError>,
        login: &Login,
    ) -> Self {
        match answer {
            Ok(entry) => Self::of_entry(config, directory, &entry, login),
            Err(error) => Self::of_error(directory, &error),
        }
    }

    /// Of a name that no directory, or more than one, has.
    #[must_use]
    pub(crate) fn of_unlocated(error: &DirectoryError) -> Self {
        if let DirectoryError::SeveralEntries { proof, .. } = error {
            let words = format!("{error}, in several directories; make the names unique");
            Self::refused(Refusal::SeveralEntries(*proof), words)
        } else if matches!(error, DirectoryError::Unavailable(_)) {
            Self::refused(Refusal::DirectoryUnavailable, error.to_string())
        } else {
            Self::refused(Refusal::UnknownUser, "no directory has an entry with this name")
        }
    }

    /// Of an entry that cannot be used, whatever its login names.
    #[must_use]
    pub(crate) fn of_unusable(entry: &Entry) -> Self {
        let words = entry.fault.as_ref().map_or_else(String::new, |fault| unusable(fault));
        Self::refused(routing::usable(entry).err().unwrap_or(Refusal::UnusableEntry(Proof::Given)), words)
    }

    /// Of an entry.
    #[must_use]
    pub(crate) fn of_entry(config: &Config, directory: &Directory, entry: &Entry, login: &Login) -> Self {
        let allowed = PROTOCOLS.iter().filter(|protocol| routing::allowed(&directory.allow, entry, protocol).is_ok());
        let may_use: Vec<_> = allowed.map(|protocol| protocol.name).collect();
        let (goal, words) = if let Some(fault) = entry.networks.as_deref().and_then(Networks::fault) {
            let words = format!("no login from anywhere: {fault}; write an address or a network as address/bits");
            (Err(Refusal::UnusableNetworks), words)
        } else if let Some(fault) = &entry.fault {
            (Err(routing::usable(entry).err().unwrap_or(Refusal::UnusableEntry(Proof::Given))), unusable(fault))
        } else if may_use.is_empty() {
            let words = match &directory.allow.attribute {
                _ if !entry.in_group => "the entry does not match allow_filter".to_owned(),
                Some(attribute) => format!("no value of {attribute} allows any protocol"),
                None => "no protocol is allowed".to_owned(),
            };
            (Err(Refusal::NotAllowed), words)
        } else {
            goal(config, directory, entry, login)
        };
        let (dn, mail_hosts) = (Some(entry.dn.to_string()), entry.mail_hosts.clone());
        Self { dn, mail_hosts, held: entry.version.held, networks: entry.networks.clone(), may_use, goal, words }
    }

    fn of_error(directory: &Directory, error: &DirectoryError) -> Self {
        match error {
            DirectoryError::NoEntry => Self::refused(Refusal::UnknownUser, "the directory has no such entry"),
            DirectoryError::NoPassword { dn } => Self {
                dn: Some(dn.to_string()),
                ..Self::refused(Refusal::NoPassword, "the entry has no password that a bind could be compared with")
            },
            DirectoryError::SeveralEntries { proof, .. } => {
                Self::refused(Refusal::SeveralEntries(*proof), format!("{error}; make the filter or the names unique"))
            }
            DirectoryError::UnusableEntry { dn, fault, proof } => {
                let words = unusable(fault);
                Self { dn: Some(dn.to_string()), ..Self::refused(Refusal::UnusableEntry(*proof), words) }
            }
            DirectoryError::InvalidCredentials { dn, .. } | DirectoryError::RefusedBefore { dn } => Self {
                dn: (!dn.is_empty()).then(|| dn.to_string()),
                ..Self::refused(Refusal::WrongPassword, "directory refused the password")
            },
            DirectoryError::WrongCertificate { dn } => Self {
                dn: Some(dn.to_string()),
                ..Self::refused(
                    Refusal::WrongCertificate,
                    "userCertificate of the entry, as the service account can read it, does not have this certificate",
                )
            },
            DirectoryError::OtherUser { dn } => {
                Self { dn: Some(dn.to_string()), ..Self::refused(Refusal::AuthzidNotAllowed, error.to_string()) }
            }
            DirectoryError::PasswordNotAllowed { dn, .. } => {
                Self { dn: Some(dn.to_string()), ..Self::refused(Refusal::PasswordNotAllowed, NO_PASSWORD_LOGIN) }
            }
            DirectoryError::Account { dn, state, proven } => {
                let hint =
                    if *proven { "" } else { " (reported before the password is checked: it may be right or wrong)" };
                let refusal = Refusal::Account { state: *state, proven: *proven };
                Self { dn: Some(dn.to_string()), ..Self::refused(refusal, format!("{error}{hint}")) }
            }
            DirectoryError::Held { dn } => {
                Self { dn: Some(dn.to_string()), ..Self::refused(Refusal::Hold, "the directory holds this user") }
            }
            DirectoryError::Unavailable(cause) => {
                let hint = match cause {
                    UnavailableCause::NoServiceAccount => {
                        "; with user_dn only the user may read the entry: give bind_dn a service account, or use \
                         --password-stdin"
                    }
                    UnavailableCause::ServiceBind { result, .. } | UnavailableCause::Result { result, .. } => {
                        &result_advice(directory, result)
                    }
                    UnavailableCause::Connection { .. }
                    | UnavailableCause::Timeout
                    | UnavailableCause::Busy
                    | UnavailableCause::NoServer { .. }
                    | UnavailableCause::Malformed { .. }
                    | UnavailableCause::Canary { .. }
                    | UnavailableCause::Behind { .. }
                    | UnavailableCause::Hidden { .. }
                    | UnavailableCause::HeldElsewhere => "",
                };
                Self::refused(Refusal::DirectoryUnavailable, format!("{error}{hint}"))
            }
        }
    }

    /// `routed`, or the reason of refusal as in the log and the metrics.
    #[must_use]
    pub(crate) fn label(&self) -> &'static str {
        self.goal.as_ref().map_or_else(Refusal::label, |_| "routed")
    }

    /// What a client would get, if it is refused; `reveal`: whether it may hear of the account's state.
    #[must_use]
    pub(crate) fn reply(&self, reveal: bool) -> Option<Reply> {
        self.goal.as_ref().err().map(|refusal| refusal.reply(reveal))
    }

    /// The backend's name, if it leads to one.
    #[must_use]
    pub(crate) fn backend(&self) -> Option<&str> {
        self.goal.as_ref().ok().map(|goal| goal.backend.as_str())
    }
}

/// Why an entry cannot be used, and what can be done.
fn unusable(fault: &EntryFault) -> String {
    let advice = match fault {
        EntryFault::TooManyValues(_) | EntryFault::LongValue(_) => {
            "; that is the limit: remove values from the entry, or use another attribute"
        }
        EntryFault::TooLarge(_) => "; ask the directory instead: allow_filter has no such limit",
        EntryFault::Alias(_) => {
            "; log in with a name of the entry itself, or keep aliases out of the filter with (!(objectClass=alias))"
        }
        EntryFault::NoNetwork { .. } | EntryFault::LongDn | EntryFault::Ended(_) => "",
    };
    format!("the entry cannot be used: {fault}{advice}")
}

/// What servers mean by a result, and what to do; empty if nothing is known.
fn result_advice(directory: &Directory, result: &ServerResult) -> String {
    let meant = vendor::words(result.code, result.message.as_deref().unwrap_or_default());
    let meant = meant.map(|words| format!("; that means at {words}")).unwrap_or_default();
    let advice = tls_advice(directory, result).or_else(|| account_advice(result));
    advice.map_or(meant.clone(), |advice| format!("{meant}; {advice}"))
}

/// What the server's text says beside its code.
fn by_text(result: &ServerResult) -> Option<Meaning> {
    vendor::of(result.code, result.message.as_deref().unwrap_or_default()).map(|row| row.meaning)
}

/// What to do about a server that wants a protected connection; `None` if the result does not say so.
#[must_use]
pub(crate) fn tls_advice(directory: &Directory, result: &ServerResult) -> Option<&'static str> {
    let is_wanted = match by_text(result) {
        Some(meaning) => meaning == Meaning::Tls,
        None => matches!(result.code, STRONGER_AUTH_REQUIRED | CONFIDENTIALITY_REQUIRED),
    };
    let in_clear = |server: &DirectoryServer| server.scheme == LdapScheme::Ldap && !server.has_tls(directory.starttls);
    if !is_wanted {
        return None;
    }
    Some(if directory.servers.iter().any(in_clear) {
        "the server accepts passwords only over TLS: write ldaps:// into directory.servers, or set \
         directory.starttls to true (StartTLS)"
    } else {
        "the server accepts no simple bind although the connection has TLS: check what its settings demand \
         (signing, channel binding, SASL, a minimum strength of the cipher)"
    })
}

/// What to do about a server that wants a bind before a search; `None` if the result does not say so.
#[must_use]
pub(crate) fn account_advice(result: &ServerResult) -> Option<&'static str> {
    (by_text(result) == Some(Meaning::ServiceAccount))
        .then_some("the server refuses anonymous searches: set directory.bind_dn and bind_password_file")
}

fn goal(config: &Config, directory: &Directory, entry: &Entry, login: &Login) -> (Result<Goal, Refusal>, String) {
    let attribute = &directory.mail_host_attribute;
    let route = match routing::route(&config.routing, entry) {
        Ok(route) => route,
        Err(refusal) => {
            let words = if refusal == Refusal::NoMailHost {
                format!("the entry has no {attribute}, and no routing.default is configured")
            } else if refusal == Refusal::SeveralMailHosts {
                format!("the values of {attribute} name different backends")
            } else {
                format!("no backend has this {attribute} among its hosts")
            };
            return (Err(refusal), words);
        }
    };
    let login_attribute = directory.login_attribute.as_deref();
    let login = match routing::backend_login(login_attribute, entry, login) {
        Ok(login) => login.as_str().to_owned(),
        Err(refusal) => {
            let words = format!("the entry has no usable {}, or several", login_attribute.unwrap_or_default());
            return (Err(refusal), words);
        }
    };
    let why = if route.by_default { format!("no {attribute}, so routing.default") } else { format!("its {attribute}") };
    let words = format!("would be routed to {} ({why})", route.backend);
    let goal = Goal { backend: route.backend.to_owned(), by_default: route.by_default, login };
    (Ok(goal), words)
}
