//! Routing: from an entry's `mailHost` to the name of a backend.
//!
//! An unknown value never falls to the default, and several values never to one of them at random:
//! only a user *without* the attribute may be sent to `routing.default`. Which directory a login name belongs to is in
//! `domains`. Does no I/O.

mod domains;

use crate::base::credential::Login;
use crate::config::{Allow, Routing, host_key};
use crate::directory::{Entry, EntryFault};
use crate::outcome::{Proof, Refusal};
use crate::proto::Protocol;
pub(crate) use domains::{Candidates, Domains};

/// The backend of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route<'a> {
    /// The backend's name.
    pub backend: &'a str,
    /// Whether it was chosen by `routing.default`.
    pub by_default: bool,
}

/// Whether an entry can be used at all.
///
/// # Errors
/// [`Refusal::UnusableEntry`]: some of its values were not read, and they could be the ones that count.
/// [`Refusal::NotAllowed`]: those are values of the allow attribute.
pub(crate) fn usable(entry: &Entry) -> Result<(), Refusal> {
    match entry.fault.as_deref() {
        None => Ok(()),
        Some(EntryFault::TooLarge(_)) => Err(Refusal::NotAllowed),
        // Only entries of authenticated users are routed.
        Some(_) => Err(Refusal::UnusableEntry(Proof::Given)),
    }
}

/// Whether an entry may use a protocol.
///
/// # Errors
/// [`Refusal::NotAllowed`]: it has none of the values that allow it, or it does not match the filter.
pub(crate) fn allowed(allow: &Allow, entry: &Entry, protocol: &Protocol) -> Result<(), Refusal> {
    let is_value = |value: &String| {
        let value = value.trim().to_lowercase();
        allow.values.get(protocol.name).is_some_and(|values| values.contains(&value))
    };
    let has_value = allow.attribute.is_none() || entry.allowed.iter().any(is_value);
    if has_value && entry.in_group { Ok(()) } else { Err(Refusal::NotAllowed) }
}

/// The backend of an entry.
///
/// # Errors
/// [`Refusal::NoMailHost`], [`Refusal::UnknownMailHost`] or [`Refusal::SeveralMailHosts`].
pub(crate) fn route<'a>(routing: &'a Routing, entry: &Entry) -> Result<Route<'a>, Refusal> {
    let mut targets = entry.mail_hosts.iter().map(|value| backend_of(routing, value));
    let (backend, by_default) = match targets.next() {
        None => (routing.default.as_deref().ok_or(Refusal::NoMailHost)?, true),
        // Two spellings of one backend count as one value; several backends, or an unknown one, do not.
        Some(first) if targets.any(|other| other != first) => return Err(Refusal::SeveralMailHosts),
        Some(first) => (first.ok_or(Refusal::UnknownMailHost)?, false),
    };
    Ok(Route { backend, by_default })
}

/// The name of the backend that serves this mail host, in any spelling.
#[must_use]
pub(crate) fn backend_of<'a>(routing: &'a Routing, mail_host: &str) -> Option<&'a str> {
    let host = host_key(mail_host.trim());
    let backend = routing.backends.iter().find(|backend| backend.hosts.contains(&host))?;
    Some(&backend.name)
}

/// The name to log in with at the backend: the typed one, or the value of `login_attribute`.
///
/// # Errors
/// [`Refusal::NoBackendLogin`] if the attribute is configured and has no usable value, or several.
pub(crate) fn backend_login(login_attribute: Option<&str>, entry: &Entry, typed: &Login) -> Result<Login, Refusal> {
    match (login_attribute, entry.logins.as_slice()) {
        (None, _) => Ok(typed.clone()),
        (Some(_), [one]) => Login::parse(one.as_bytes()).ok_or(Refusal::NoBackendLogin),
        (Some(_), _) => Err(Refusal::NoBackendLogin),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Backend, Health, Probe};
    use crate::directory::Realm;

    fn backend(name: &str, hosts: &[&str]) -> Backend {
        Backend {
            name: name.to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ca: None,
            client_certificate: None,
            pin_sha256: Vec::new(),
            groups: Vec::new(),
            service: None,
            token: crate::config::TokenLogin::Service,
            impersonation_service: None,
            source: Vec::new(),
            timeout: Duration::from_secs(4),
            pass_refusals: true,
            health: Health {
                probe: Probe::Off,
                probe_interval: Duration::from_secs(10),
                failures: 3,
                slow_start: Duration::ZERO,
            },
            logins_in_flight: 200,
            delivery: None,
            endpoints: Vec::new(),
        }
    }

    fn routing(default: Option<&str>) -> Routing {
        Routing {
            default: default.map(str::to_owned),
            backends: vec![backend("server3", &["server3", "server3.example.com"]), backend("server4", &["server4"])],
        }
    }

    fn entry(mail_hosts: &[&str], logins: &[&str]) -> Entry {
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        Entry { logins: owned(logins), ..Entry::for_tests("uid=x", mail_hosts) }
    }

    fn chosen(default: Option<&str>, mail_hosts: &[&str]) -> Result<(String, bool), Refusal> {
        let routing = routing(default);
        route(&routing, &entry(mail_hosts, &[])).map(|route| (route.backend.to_owned(), route.by_default))
    }

    #[test]
    fn value_names_a_backend_in_any_spelling() {
        for value in ["server3", "SERVER3", "server3.example.com", "Server3.Example.com.", " server3 "] {
            assert_eq!(chosen(None, &[value]), Ok(("server3".to_owned(), false)), "{value}");
        }
        assert_eq!(chosen(None, &["server3", "server3.example.com"]), Ok(("server3".to_owned(), false)));
    }

    #[test]
    fn default_applies_only_to_a_missing_attribute() {
        assert_eq!(chosen(None, &[]), Err(Refusal::NoMailHost));
        assert_eq!(chosen(Some("server4"), &[]), Ok(("server4".to_owned(), true)));
        for value in ["server9", "", "server3.example.org", "server33"] {
            assert_eq!(chosen(Some("server4"), &[value]), Err(Refusal::UnknownMailHost), "{value}");
        }
        assert_eq!(chosen(Some("server4"), &["server3", "server4"]), Err(Refusal::SeveralMailHosts));
        assert_eq!(chosen(Some("server4"), &["server3", "server9"]), Err(Refusal::SeveralMailHosts));
        assert_eq!(chosen(Some("server4"), &["server8", "server9"]), Err(Refusal::UnknownMailHost));
    }

    #[test]
    fn mail_host_names_one_backend_or_none() {
        let routing = routing(Some("server4"));
        assert_eq!(backend_of(&routing, " SERVER3.example.com."), Some("server3"));
        assert_eq!(backend_of(&routing, "server4"), Some("server4"));
        assert_eq!(backend_of(&routing, "server9"), None, "an unknown host has no default");
    }

    #[test]
    fn backend_receives_the_typed_name_or_the_single_value() {
        let typed = Login::parse(b"Alice@example.com").unwrap();
        assert_eq!(backend_login(None, &entry(&[], &["alice"]), &typed).unwrap().as_str(), "Alice@example.com");
        assert_eq!(backend_login(Some("uid"), &entry(&[], &["alice"]), &typed).unwrap().as_str(), "alice");
        for bad in [&[][..], &["alice", "alicia"], &[""], &["a\0b"], &["a\r\nb"]] {
            assert_eq!(backend_login(Some("uid"), &entry(&[], bad), &typed), Err(Refusal::NoBackendLogin));
        }
    }

    #[test]
    fn protocol_is_allowed_by_value_and_filter() {
        let values = [("imap", vec!["imap".to_owned(), "all".to_owned()])].into();
        let allow = Allow { attribute: Some("mailAccess".to_owned()), values, filter: None };
        let entry = |allowed: &[&str], in_group| {
            let allowed = allowed.iter().map(|value| (*value).to_owned()).collect();
            Entry { allowed, in_group, ..Entry::unread(Realm::DEFAULT, "uid=x".into()) }
        };
        let protocol = crate::proto::by_name("imap").unwrap();
        for (values, in_group, expected) in [
            (&["IMAP "][..], true, Ok(())),
            (&["pop3", "all"], true, Ok(())),
            (&["pop3"], true, Err(Refusal::NotAllowed)),
            (&[], true, Err(Refusal::NotAllowed)),
            (&["imap"], false, Err(Refusal::NotAllowed)),
        ] {
            assert_eq!(allowed(&allow, &entry(values, in_group), protocol), expected, "{values:?} {in_group}");
        }
        assert_eq!(allowed(&Allow::default(), &entry(&[], true), protocol), Ok(()));
        assert_eq!(allowed(&Allow::default(), &entry(&[], false), protocol), Err(Refusal::NotAllowed));
    }
}
