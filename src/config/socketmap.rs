//! The section `socketmap`: where Postfix asks which server a mailbox is on, and `delivery` of the backends.

use super::model::{
    Backend, DeliveryWhenDisabled, Directory, DomainPattern, Find, Socketmap, SocketmapPlace, UnixPlace,
};
use super::names;
use super::raw::{Node, Section, Unique};
use super::section::{Addresses, networks};
use crate::proto::ldap::template;

/// The filter, unless the config says otherwise.
const MAIL_FILTER: &str = "(mail={login})";
/// The networks that may connect, unless the config says otherwise.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// The longest `delivery`: a transport, a host name and a port.
const LONGEST_DELIVERY: usize = 300;

/// Why a text is not what a key needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum DeliveryError {
    #[error("write a transport and a next hop of Postfix without blanks, such as \"lmtp:inet:server3.example.com:24\"")]
    Delivery,
    #[error("write the delimiters as in Postfix: punctuation other than `@`, `.` and quotes, each once, such as \"+\"")]
    Delimiter,
    #[error("write an octal mode for its users, such as \"0660\" or \"0666\"")]
    Mode,
}

/// Reads `socketmap`.
pub(super) fn read(
    socketmap: &Section<'_>,
    addresses: &mut Addresses,
    directories: Option<&[Directory]>,
) -> Option<Socketmap> {
    let place = place(socketmap, addresses);
    let allow = socketmap.get("allow").map(|node| networks(&node));
    if let (Some(_), Some(SocketmapPlace::Unix(_))) = (&allow, &place) {
        socketmap.warn("allow", "without effect: `group` and `mode` say which users may use a Unix socket; remove it");
    }
    if allow.iter().flatten().flatten().any(|network| network.prefix_len() == 0) {
        socketmap.warn("allow", "any host may ask which addresses exist, and on which server a mailbox is");
    }
    let allow = allow.unwrap_or_else(|| Some(LOOPBACK.iter().filter_map(|network| network.parse().ok()).collect()));
    let hint = "name the domains of your users, such as [example.com, \"*.example.org\"]: Postfix asks about every \
                address in the world";
    let domains = match (socketmap.get("domains"), directories.and_then(of_directories)) {
        (Some(node), _) => domains(&node),
        (None, Some(domains)) => Some(domains),
        // What could not be read of the directories is a mistake of its own.
        (None, None) if directories.is_none() => None,
        (None, None) => socketmap.required("domains", hint).and_then(|node| self::domains(&node)),
    };
    let mail_filter = match socketmap.get("mail_filter") {
        Some(node) => node.parsed(template::parse_filter),
        None => template::parse_filter(MAIL_FILTER).ok(),
    };
    let recipient_delimiter =
        socketmap.get("recipient_delimiter").map_or(Some(String::new()), |node| node.parsed(delimiter));
    let words = [("keep", DeliveryWhenDisabled::Keep), ("reject", DeliveryWhenDisabled::Reject)];
    let when_disabled =
        socketmap.get("delivery_when_disabled").map_or(Some(DeliveryWhenDisabled::Keep), |node| node.word(&words));
    let max_connections = socketmap.integer("max_connections", 1_000, 1..=10_000);
    Some(Socketmap {
        place: place?,
        allow: allow?,
        domains: domains?,
        mail_filter: mail_filter?,
        recipient_delimiter: recipient_delimiter?,
        when_disabled: when_disabled?,
        max_connections: max_connections?,
    })
}

/// `address`, or `path` with `group` and `mode`.
fn place(socketmap: &Section<'_>, addresses: &mut Addresses) -> Option<SocketmapPlace> {
    let address = socketmap.get("address").map(|node| addresses.read(&node));
    let path = socketmap.get("path");
    let group = socketmap.get("group").map(|node| node.parsed(names::unix_group));
    let mode = socketmap.get("mode").map(|node| node.parsed(mode));
    if path.is_none() {
        for key in ["group", "mode"] {
            if let Some(node) = socketmap.get(key) {
                node.problem("needs `path`: a port has neither group nor mode");
            }
        }
    }
    let node = match (address, path) {
        (Some(_), Some(path)) => {
            path.problem("replaces `address`: keep either this or that");
            return None;
        }
        (Some(address), None) => return address.map(SocketmapPlace::Address),
        (None, None) => {
            let message = "missing: write an IP address and a port, such as \"127.0.0.1:9950\", or `path` for a Unix \
                           socket";
            socketmap.problem("address", message);
            return None;
        }
        (None, Some(path)) => path,
    };
    let path = node.path();
    if path.as_ref().is_some_and(|path| path.as_os_str().len() > names::SOCKET_PATH) {
        node.problem(format!("longer than {} bytes, which Unix sockets do not allow", names::SOCKET_PATH));
        return None;
    }
    if group.is_none() && mode.is_none() {
        let message = "needs `group` (a group that Postfix's user is in), or `mode: \"0666\"`: Postfix runs as \
                       another user";
        node.problem(message);
        return None;
    }
    let group = match group {
        Some(group) => Some(group?),
        None => None,
    };
    Some(SocketmapPlace::Unix(UnixPlace { path: path?, group, mode: mode.unwrap_or(Some(0o660))? }))
}

fn mode(text: &str) -> Result<u32, DeliveryError> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| is_octal).ok_or(DeliveryError::Mode)?;
    // Connecting needs the right to write, and usher's own user must keep it.
    if mode & !0o666 == 0 && mode & 0o600 == 0o600 { Ok(mode) } else { Err(DeliveryError::Mode) }
}

/// The domains of the directories, if each has some.
fn of_directories(directories: &[Directory]) -> Option<Vec<DomainPattern>> {
    let all = directories.iter().flat_map(|one| &one.domains).filter(|domain| **domain != DomainPattern::None);
    let all: Vec<DomainPattern> = all.cloned().collect();
    (!all.is_empty() && directories.iter().all(Directory::is_one_of_several)).then_some(all)
}

fn domains(node: &Node<'_>) -> Option<Vec<DomainPattern>> {
    let items = node.one_or_more()?;
    let mut unique = Unique::default();
    let read = |item: &Node<'_>| {
        let domain = item.parsed(names::domain_pattern)?;
        if domain == DomainPattern::None {
            item.problem("an address has a domain: write it, such as example.com, or \"*.example.org\"");
            return None;
        }
        unique.check(&format!("{domain:?}"), item);
        Some(domain)
    };
    let domains: Vec<_> = items.iter().map(read).collect();
    domains.into_iter().collect()
}

/// The delimiters of extensions.
fn delimiter(text: &str) -> Result<String, DeliveryError> {
    let is_fit = |letter: char| letter.is_ascii_punctuation() && !"@.\"'\\".contains(letter);
    let is_new = |(at, letter): (usize, char)| !text.get(..at).is_some_and(|before| before.contains(letter));
    let sound = text.chars().all(is_fit) && text.char_indices().all(is_new);
    if sound { Ok(text.to_owned()) } else { Err(DeliveryError::Delimiter) }
}

/// `delivery` of a backend: what Postfix's transport(5) has at the right.
pub(super) fn delivery(node: &Node<'_>) -> Option<String> {
    node.parsed(transport)
}

fn transport(text: &str) -> Result<String, DeliveryError> {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    };
    let is_named = text.split_once(':').is_some_and(|(transport, _)| is_word(transport));
    let sound = is_named && text.len() <= LONGEST_DELIVERY && text.bytes().all(|byte| byte.is_ascii_graphic());
    if sound { Ok(text.to_owned()) } else { Err(DeliveryError::Delivery) }
}

/// Requires what a look-up needs of the directory.
pub(super) fn searchable(root: &Section<'_>, directory: &Directory) {
    let key = &directory.key;
    let message = match &directory.find {
        Find::Search { .. } => return,
        Find::UserDn { service: None, .. } | Find::Principal { service: None, .. } => {
            format!("needs `{key}.bind_dn`: only a service account finds the entry of an address")
        }
        Find::UserDn { template, .. } if template::base_of(template).is_empty() => format!(
            "needs `{key}.base` and `{key}.filter`: `user_dn` names no entry below which addresses could be searched"
        ),
        Find::UserDn { .. } | Find::Principal { .. } => return,
    };
    root.problem("socketmap.mail_filter", message);
}

/// Requires that every backend says where mail for its users goes, if Postfix asks.
pub(super) fn delivered(root: &Section<'_>, has_socketmap: bool, backends: &[Backend]) {
    for (index, backend) in backends.iter().enumerate() {
        let key = format!("routing.backends[{index}].delivery");
        match (&backend.delivery, has_socketmap) {
            (None, true) => root.problem(
                &key,
                "missing: `socketmap` answers with it for users of this backend; write Postfix's transport and next \
                 hop, such as \"lmtp:inet:server3.example.com:24\"",
            ),
            (Some(_), false) => root.warn(&key, "without effect: there is no `socketmap` that Postfix asks"),
            (None, false) | (Some(_), true) => {}
        }
    }
}
