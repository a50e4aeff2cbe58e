//! The `impersonation` section: administrators that may act for another user's mailbox.

use super::directories::{self, AllFacts};
use super::model::{Administrators, Backend, Impersonation, Routing};
use super::raw::{Node, Section, Unique};
use super::section::{distinct, networks};
use crate::proto::ldap::{SyntaxError, dn, filter};
use crate::proto::{PROTOCOLS, Protocol};

/// What may stand between two names: punctuation that is no part of mail addresses and Windows names.
const SEPARATORS: &str = "*%!#$&/=?^|~:;,";

/// Keys that mean nothing without administrators.
const OF_ADMINISTRATORS: [&str; 6] =
    ["networks", "target_filter", "protocols", "include_disabled", "directory", "target_directories"];

/// Reads the section.
pub(super) fn read(section: &Section<'_>, directory: &AllFacts, directories: &[String]) -> Option<Impersonation> {
    let separator = match section.get("separator") {
        Some(node) => separator(&node),
        None => Some(Some(Impersonation::SEPARATOR)),
    };
    let (dns, filter) =
        (section.get("admins").map(|node| names(&node)), section.get("admin_filter").map(|node| fixed(&node)));
    let networks = section.get("networks").map(|node| networks(&node));
    let target_filter = section.get("target_filter").map(|node| fixed(&node));
    let protocols = match section.get("protocols") {
        Some(node) => self::protocols(&node),
        None => Some(PROTOCOLS.iter().filter(|protocol| protocol.name == "imap").collect()),
    };
    let include_disabled = section.flag("include_disabled", false);
    let targets = section.get("target_directories").map(|node| targets(&node, directories));
    let directory_node = section.get("directory");
    if dns.is_none() && filter.is_none() {
        let idle = OF_ADMINISTRATORS.into_iter().any(|key| section.get(key).is_some());
        if idle || directory.with_grants.is_none() {
            section.problem("", "needs `admins` (a list of DNs) or `admin_filter`: which users may act for a mailbox");
        }
        return Some(Impersonation { administrators: None, separator: separator? });
    }
    if let Some(key) = &directory.without_reading {
        let message = format!(
            "with `{key}.user_dn`, only a service account can look up the mailbox: give `{key}.bind_dn` one, or remove \
             this"
        );
        section.problem("", message);
    }

    let own = own(section, directory_node.as_ref(), directories);
    match &networks {
        None => section.problem("networks", "missing: list the networks from which administrators may act"),
        Some(Some(list)) if list.iter().any(|network| network.prefix_len() == 0) => {
            section.warn("networks", "administrators may act for a mailbox from everywhere");
        }
        Some(_) => {}
    }
    let administrators = Administrators {
        directory: own?,
        target_directories: flat(targets)?,
        dns: dns.unwrap_or_else(|| Some(Vec::new()))?,
        filter: flat(filter)?,
        networks: networks??,
        target_filter: flat(target_filter)?,
        protocols: protocols?,
        include_disabled: include_disabled?,
    };
    Some(Impersonation { administrators: Some(administrators), separator: separator? })
}

/// The directory that has the administrators: a DN means another entry in each.
fn own(section: &Section<'_>, node: Option<&Node<'_>>, names: &[String]) -> Option<String> {
    match (node, names) {
        (Some(node), _) => directories::named(node, names),
        (None, [only]) => Some(only.clone()),
        (None, _) => {
            section.problem("directory", format!("missing: which directory has them, of {}", names.join(", ")));
            None
        }
    }
}

fn targets(node: &Node<'_>, names: &[String]) -> Option<Vec<String>> {
    let items = node.one_or_more()?;
    let mut unique = Unique::default();
    let one = |item: &Node<'_>| {
        let name = directories::named(item, names)?;
        unique.check(&name, item);
        Some(name)
    };
    let all: Vec<_> = items.iter().map(one).collect();
    all.into_iter().collect()
}

/// Checks that a mailbox can be acted for: its name at the backend is the directory's, and usher may log in for it.
pub(super) fn reachable(root: &Section<'_>, key: &str, without_login: Option<&str>, backends: &[Backend]) {
    if let Some(lacking) = without_login {
        let message = format!(
            "needs `{lacking}.login_attribute`: with the name as typed, a mail alias that equals the name of another \
             user at the backend would open that user's mailbox"
        );
        root.problem(key, message);
    }
    let takes = |backend: &&Backend| backend.acting_account().is_some();
    let without: Vec<_> =
        backends.iter().filter(|backend| !takes(backend)).map(|backend| backend.name.as_str()).collect();
    if without.len() == backends.len() {
        root.problem(
            key,
            "no backend has `impersonation_service` or `service`, by which usher logs in as the mailbox's user: add \
             one to a backend, or remove this",
        );
    } else if !without.is_empty() {
        let names = without.join(", ");
        root.warn(
            key,
            format!("has no effect for mailboxes at {names}, without `impersonation_service` and `service`"),
        );
    }
}

/// Warns of accounts that nothing uses.
pub(super) fn unused(root: &Section<'_>, routing: &Routing) {
    for (index, backend) in routing.backends.iter().enumerate() {
        if backend.impersonation_service.is_some() {
            root.warn(
                &format!("routing.backends[{index}].impersonation_service"),
                "without effect: neither `impersonation` nor `directory.grant_attribute` is there; remove it",
            );
        }
    }
}

fn separator(node: &Node<'_>) -> Option<Option<char>> {
    let text = node.text()?;
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (None, _) => Some(None),
        (Some(one), None) if SEPARATORS.contains(one) => Some(Some(one)),
        (Some(_), _) => {
            node.problem(format!(
                "write one of {SEPARATORS} in quotes, or \"\" if only SASL's authzid names the mailbox"
            ));
            None
        }
    }
}

fn names(node: &Node<'_>) -> Option<Vec<String>> {
    let items = node.one_or_more()?;
    let mut unique = Unique::default();
    let one = |item: &Node<'_>| {
        let name = item.parsed(|text| if dn::is_dn(text) { Ok(text.to_owned()) } else { Err(SyntaxError::NotADn) })?;
        unique.check(&name.to_lowercase(), item);
        Some(name)
    };
    let names: Vec<_> = items.iter().filter_map(one).collect();
    (names.len() == items.len()).then_some(names)
}

fn fixed(node: &Node<'_>) -> Option<String> {
    node.parsed(filter::fixed)
}

fn protocols(node: &Node<'_>) -> Option<Vec<&'static Protocol>> {
    let words: Vec<_> = PROTOCOLS.iter().map(|protocol| (protocol.name, protocol)).collect();
    let read = distinct(node, |item| item.word(&words).map(|protocol| (protocol.name.to_owned(), protocol)))?;
    (!read.is_empty()).then_some(read)
}

/// Absent is sound; a value that could not be read is not.
fn flat<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(None) => None,
        Some(value) => Some(value),
        None => Some(None),
    }
}
