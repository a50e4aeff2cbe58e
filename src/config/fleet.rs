//! The `fleet` section: the store that several ushers share.

use super::model::{Fleet, StoreAddress};
use super::names::{self, NameError};
use super::raw::{Node, Section, Unique};
use super::units::SECOND;
use crate::base::sys;

/// The port of Redis and Valkey, with TLS or without.
const PORT: u16 = 6379;
/// The longest name of a fleet, which is a part of every key.
const LONGEST_NAME: usize = 32;
/// The longest name of a node.
const LONGEST_NODE: usize = 64;
/// The most stores.
const MOST_STORES: usize = 8;

/// Reads `fleet`.
pub(super) fn read(fleet: &Section<'_>) -> Option<Fleet> {
    let name = fleet.required("name", "write a name that all its ushers have in common, such as mail");
    let name = name.and_then(|node| node.parsed(fleet_name));
    let node = match fleet.get("node") {
        Some(node) => node.parsed(node_name),
        None => node_name(&sys::host_name()).map_err(|_| fleet.problem("node", UNUSABLE_HOST_NAME)).ok(),
    };
    let plaintext = fleet.flag("plaintext", false);
    let stores = fleet.required("store", "write the URL of the store, such as \"rediss://store.example.com\"");
    let stores = stores.and_then(|node| stores_of(&node, plaintext.unwrap_or(true)));
    let user = fleet.get("user").map(|node| node.parsed(user_name));
    let password_file = fleet.get("password_file").map(|node| node.path());
    if user.is_some() && password_file.is_none() {
        fleet.problem("password_file", "missing: name the file with the password of `user`");
    }
    let ca = fleet.get("ca").map(|node| node.path());
    let secret_file = fleet.required("secret_file", "name the file with the secret that all its ushers have in common");
    let secret_file = secret_file.and_then(|node| node.path());
    let timeout = fleet.duration("timeout", 20, 5..=SECOND);
    if let Some(stores) = &stores {
        if ca.is_some() && !stores.iter().any(|store| store.encrypted) {
            fleet.warn("ca", "without effect: no store is reached by rediss://; remove it");
        }
        if fleet.get("plaintext").is_some() && stores.iter().all(|store| store.encrypted) {
            fleet.warn("plaintext", "without effect: every store is reached by rediss://; remove it");
        }
        if stores.iter().any(|store| !store.encrypted && !store.local) {
            fleet.warn("plaintext", "the password of the store, if it has one, crosses the network in clear");
        }
    }
    plaintext?;
    Some(Fleet {
        name: name?,
        node: node?,
        stores: stores?,
        user: given(user)?,
        password_file: given(password_file)?,
        ca: given(ca)?,
        secret_file: secret_file?,
        timeout: timeout?,
    })
}

const UNUSABLE_HOST_NAME: &str = "missing: the host name of this machine cannot be used; write 1 to 64 letters, \
                                  digits, `.`, `-` and `_`";

/// Absent is sound; a value that could not be read is not.
fn given<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(value) => value.map(Some),
        None => Some(None),
    }
}

fn stores_of(node: &Node<'_>, plaintext: bool) -> Option<Vec<StoreAddress>> {
    let items = node.one_or_more()?;
    if items.len() > MOST_STORES {
        node.problem(format!("more than {MOST_STORES} stores"));
        return None;
    }
    let mut unique = Unique::default();
    let read = |item: &Node<'_>| {
        let store = item.parsed(|text| store(text, plaintext))?;
        unique.check(&store.to_string(), item);
        Some(store)
    };
    let stores: Vec<_> = items.iter().map(read).collect();
    stores.into_iter().collect()
}

/// Why a URL does not name a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum StoreError {
    /// Another form.
    #[error("write a URL such as rediss://store.example.com or rediss://192.0.2.1:6380, without a path")]
    Form,
    /// A cluster.
    #[error("a cluster is not supported: one small Redis or Valkey is enough, since losing it costs nothing")]
    Cluster,
    /// A name or a password in it.
    #[error("name and password are not allowed in the URL: write `user` and `password_file`")]
    UserInfo,
    /// The host or the port.
    #[error(transparent)]
    Host(NameError),
    /// Not encrypted.
    #[error(
        "the store's password would cross the network in clear: write rediss://, or `plaintext: true` if the network \
         is protected otherwise"
    )]
    Clear,
}

fn store(text: &str, plaintext: bool) -> Result<StoreAddress, StoreError> {
    let (scheme, rest) = text.split_once("://").ok_or(StoreError::Form)?;
    let encrypted = match scheme.to_ascii_lowercase().as_str() {
        "rediss" | "valkeys" => true,
        "redis" | "valkey" => false,
        "redis-cluster" | "rediss-cluster" | "redis+cluster" | "rediss+cluster" => return Err(StoreError::Cluster),
        _ => return Err(StoreError::Form),
    };
    if rest.contains('@') {
        return Err(StoreError::UserInfo);
    }
    if rest.contains(',') {
        return Err(StoreError::Cluster);
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(StoreError::Form);
    }
    let (host, port) = names::split_port(authority).map_err(StoreError::Host)?;
    let local = names::is_loopback(&host);
    if !encrypted && !local && !plaintext {
        return Err(StoreError::Clear);
    }
    Ok(StoreAddress { encrypted, local: local && !encrypted, host, port: port.unwrap_or(PORT) })
}

/// Why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum WordError {
    #[error("write 1 to {LONGEST_NAME} lower-case letters, digits, `-` and `_`")]
    Fleet,
    #[error("write 1 to {LONGEST_NODE} letters, digits, `.`, `-` and `_`")]
    Node,
    #[error("write 1 to 128 visible ASCII characters, as the store has the name")]
    User,
}

fn fleet_name(text: &str) -> Result<String, WordError> {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let is_name = !text.is_empty() && text.len() <= LONGEST_NAME && text.bytes().all(is_part);
    is_name.then(|| text.to_owned()).ok_or(WordError::Fleet)
}

fn node_name(text: &str) -> Result<String, WordError> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_name = !text.is_empty() && text.len() <= LONGEST_NODE && text.bytes().all(is_part);
    is_name.then(|| text.to_owned()).ok_or(WordError::Node)
}

fn user_name(text: &str) -> Result<String, WordError> {
    let is_name = !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_name.then(|| text.to_owned()).ok_or(WordError::User)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_read() {
        let read = |text: &str| store(text, false).map(|store| store.to_string());
        let sound = |text: &str| Ok(text.to_owned());
        assert_eq!(read("rediss://store.example.com"), sound("rediss://store.example.com:6379"));
        assert_eq!(read("REDISS://[2001:db8::1]:6380/"), sound("rediss://[2001:db8::1]:6380"));
        assert_eq!(read("valkeys://store.example.com"), sound("rediss://store.example.com:6379"));
        assert_eq!(read("redis://127.0.0.1"), sound("redis://127.0.0.1:6379"));
        assert_eq!(read("valkey://[::1]:1"), sound("redis://[::1]:1"));
        for (text, error) in [
            ("store.example.com", StoreError::Form),
            ("https://store.example.com", StoreError::Form),
            ("rediss://store.example.com/3", StoreError::Form),
            ("rediss://store.example.com?db=1", StoreError::Form),
            ("rediss://user:secret@store.example.com", StoreError::UserInfo),
            ("rediss://a.example.com,b.example.com", StoreError::Cluster),
            ("redis-cluster://store.example.com", StoreError::Cluster),
            ("redis://store.example.com", StoreError::Clear),
            ("redis://localhost.example.com", StoreError::Clear),
            ("rediss://", StoreError::Host(NameError::Host)),
            ("rediss://store:0", StoreError::Host(NameError::Port)),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
        assert!(store("redis://store.example.com", true).is_ok_and(|store| !store.local && !store.encrypted));
        assert!(store("redis://localhost", true).is_ok_and(|store| store.local));
    }

    #[test]
    fn names_are_read() {
        assert!(fleet_name("mail-1_a").is_ok() && node_name("mx1.Example.com").is_ok() && user_name("usher").is_ok());
        for text in ["", "Mail", "a b", "a:b", "a*", &"x".repeat(33)] {
            assert_eq!(fleet_name(text), Err(WordError::Fleet), "{text}");
        }
        for text in ["", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert_eq!(node_name(text), Err(WordError::Node), "{text}");
            assert!(!text.contains([' ', '\n', 'ä']) || user_name(text).is_err());
        }
    }
}
