//! `directory.servers`: where the servers are, and what their certificates are verified by.
//!
//! Each is a URL, or a mapping where more is to be said of one. A key that could not be read is a mistake of its own and
//! makes none in another.

use super::model::{DirectoryServer, LdapScheme};
use super::names;
use super::raw::{Node, Section, Unique};
use super::section::pins;

/// Reads the list.
pub(super) fn read(
    directory: &Section<'_>,
    starttls: Option<bool>,
    plaintext: Option<bool>,
) -> Option<Vec<DirectoryServer>> {
    let hint = "name at least one, such as [\"ldaps://ldap1.example.com\"]";
    let items = directory.required("servers", hint)?.one_or_more()?;
    let mut unique = Unique::default();
    let mut in_clear = false;
    let mut servers = Vec::new();
    for item in &items {
        let Some((node, server)) = server(item, starttls) else { continue };
        unique.check(&format!("{}:{}", server.host.to_ascii_lowercase(), server.port), &node);
        let clear = server.scheme == LdapScheme::Ldap && starttls == Some(false) && !names::is_loopback(&server.host);
        if clear && plaintext == Some(false) {
            node.problem(
                "passwords would cross the network in clear: write ldaps://, or set `starttls: true`, or say \
                 `plaintext: true` if that is what you want",
            );
        }
        if starttls == Some(true) && server.scheme == LdapScheme::Ldaps {
            node.problem(
                "ldaps:// is TLS from the first byte: write ldap:// with `starttls: true`, or remove `starttls`",
            );
        }
        in_clear |= clear;
        servers.push(server);
    }
    if plaintext == Some(true) {
        let message = if in_clear {
            "passwords cross the network to the directory in clear"
        } else {
            "without effect: no server is ldap:// without StartTLS off this machine; remove it"
        };
        directory.warn("plaintext", message);
    }
    let is_pinned = |server: &DirectoryServer| !server.pin_sha256.is_empty();
    if servers.len() == items.len() && servers.iter().all(is_pinned) && directory.get("ca").is_some() {
        directory.warn("ca", "without effect: `pin_sha256` of each server takes the place of the chain; remove one");
    }
    Some(servers)
}

/// A URL, or `{url, server_name, pin_sha256}`; with the value that the URL is.
fn server<'a>(item: &Node<'a>, starttls: Option<bool>) -> Option<(Node<'a>, DirectoryServer)> {
    if !item.is_mapping() {
        return Some((item.clone(), item.parsed(names::ldap_url)?));
    }
    let read = |section: &Section<'a>| {
        let url = section.required("url", "write the server's URL, such as \"ldaps://ldap1.example.com\"");
        let server = url.as_ref().and_then(|node| node.parsed(names::ldap_url));
        let server_name = section.get("server_name").map(|node| node.parsed(names::host));
        let pin_sha256 = pins(section);
        let server = server?;
        if starttls.is_some_and(|starttls| !server.has_tls(starttls)) {
            for key in ["server_name", "pin_sha256"].into_iter().filter(|key| section.get(key).is_some()) {
                section.problem(key, "this server is reached without TLS, and shows no certificate: remove it");
            }
        }
        let (server_name, pin_sha256) = (server_name.flatten(), pin_sha256.unwrap_or_default());
        Some((url?, DirectoryServer { server_name, pin_sha256, ..server }))
    };
    item.section(read).flatten()
}
