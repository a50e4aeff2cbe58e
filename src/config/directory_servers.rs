//! `directory.servers`: where the servers are, and what their certificates are verified by; and `srv_targets` and
//! `resolver`, for servers that DNS names.
//!
//! Each is a URL or the name of SRV records (RFC 2782), or a mapping where more is to be said of one. A key that could not
//! be read is a mistake of its own and makes none in another.

use std::net::{IpAddr, SocketAddr};

use super::model::{DirectoryServer, LdapScheme, Srv, SrvTarget};
use super::names::{self, NameError};
use super::raw::{Node, Section, Unique};
use super::section::pins;

/// The port of DNS.
const DNS: u16 = 53;
/// The port of ldaps, which SRV records do not name.
const LDAPS: u16 = 636;
/// More names than an answer may have servers.
const TARGETS: usize = 64;
/// More DNS servers than a look-up has time to ask.
const RESOLVERS: usize = 8;

/// Why a text is not where servers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum ServerError {
    #[error(transparent)]
    Url(NameError),
    #[error("write the name of SRV records, such as srv:_ldap._tcp.example.com: a service, `_tcp`, and the domain")]
    SrvName,
    #[error("the records name the port: remove it, or write `ldaps+srv:` for TLS from the first byte")]
    SrvPort,
    #[error(transparent)]
    Port(NameError),
}

/// Why a text is no host of `srv_targets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a host such as dc1.example.net, or \"*.example.net\" for all hosts below a domain")]
struct TargetError;

/// Why a text is no DNS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write the IP address of a DNS server, such as \"192.0.2.53\", with :port if it is not 53")]
struct ResolverError;

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
        match &server.srv {
            Some(_) => unique.check(&server.url.to_ascii_lowercase(), &node),
            None => unique.check(&format!("{}:{}", server.host.to_ascii_lowercase(), server.port), &node),
        }
        let clear = starttls.is_some_and(|starttls| !server.has_tls(starttls))
            && server.scheme == LdapScheme::Ldap
            && !names::is_loopback(&server.host);
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
        servers.push((node, server));
    }
    if plaintext == Some(true) {
        let message = if in_clear {
            "passwords cross the network to the directory in clear"
        } else {
            "without effect: no server is ldap:// without StartTLS off this machine; remove it"
        };
        directory.warn("plaintext", message);
    }
    by_records(directory, &servers);
    let is_pinned = |(_, server): &(Node<'_>, DirectoryServer)| !server.pin_sha256.is_empty();
    if servers.len() == items.len() && servers.iter().all(is_pinned) && directory.get("ca").is_some() {
        directory.warn("ca", "without effect: `pin_sha256` of each server takes the place of the chain; remove one");
    }
    Some(servers.into_iter().map(|(_, server)| server).collect())
}

/// What servers that DNS names need besides.
fn by_records(directory: &Section<'_>, servers: &[(Node<'_>, DirectoryServer)]) {
    let mut named = servers.iter().filter(|(_, server)| server.srv.is_some()).peekable();
    if named.peek().is_none() {
        if directory.get("srv_targets").is_some() && !servers.is_empty() {
            directory.warn("srv_targets", "without effect: no server is named by SRV records; remove it");
        }
        return;
    }
    for (node, server) in named.clone() {
        let is_wide = server.srv.as_ref().is_some_and(|srv| !srv.domain.contains('.'));
        if is_wide && directory.get("srv_targets").is_none() {
            node.problem("a domain of one label is too wide: list the servers' names in `srv_targets`");
        }
    }
    if named.any(|(_, server)| server.pin_sha256.is_empty()) && directory.get("ca").is_none() {
        directory.problem(
            "ca",
            "missing: DNS, which nothing signs, names the servers that get passwords, and the system's authorities would \
             vouch for any host; name the authority of the servers' certificates",
        );
    }
}

/// A URL or a name, or `{url, server_name, pin_sha256}`; with the value that the URL is.
fn server<'a>(item: &Node<'a>, starttls: Option<bool>) -> Option<(Node<'a>, DirectoryServer)> {
    if !item.is_mapping() {
        return Some((item.clone(), item.parsed(place)?));
    }
    let read = |section: &Section<'a>| {
        let url = section.required("url", "write the server's URL, such as \"ldaps://ldap1.example.com\"");
        let server = url.as_ref().and_then(|node| node.parsed(place));
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

/// A URL, or the name of SRV records.
fn place(text: &str) -> Result<DirectoryServer, ServerError> {
    let Some((scheme, rest)) = text.split_once(':') else { return Err(ServerError::Url(NameError::Url)) };
    let (scheme, name, port) = match scheme.to_ascii_lowercase().as_str() {
        "srv" if rest.contains(':') => return Err(ServerError::SrvPort),
        "srv" => (LdapScheme::Ldap, rest, None),
        "ldaps+srv" => {
            let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
            let port = port.map_or(Ok(LDAPS), |port| match port.parse() {
                Ok(port) if port > 0 => Ok(port),
                Ok(_) | Err(_) => Err(ServerError::Port(NameError::Port)),
            });
            (LdapScheme::Ldaps, name, Some(port?))
        }
        _ => return names::ldap_url(text).map_err(ServerError::Url),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let domain = domain(&name).ok_or(ServerError::SrvName)?.to_owned();
    Ok(DirectoryServer {
        url: text.to_owned(),
        scheme,
        host: name,
        port: 0,
        server_name: None,
        pin_sha256: Vec::new(),
        starttls: scheme == LdapScheme::Ldap,
        srv: Some(Srv { domain, port }),
    })
}

/// The domain that a name of SRV records is about: what follows the last label with an underscore, so that `_msdcs` and
/// `_sites` of Active Directory are no part of it.
fn domain(name: &str) -> Option<&str> {
    let is_label = |label: &str| {
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(is_sound)
    };
    let mut labels = name.split('.');
    let begins = labels.next().is_some_and(|label| label.starts_with('_')) && labels.next() == Some("_tcp");
    if !begins || name.len() > 253 || !name.split('.').all(is_label) {
        return None;
    }
    let last = name.rfind("._")?;
    let (_, domain) = name.get(last + 1..)?.split_once('.')?;
    Some(domain)
}

/// `srv_targets`: hosts beside those of the domain.
pub(super) fn srv_targets(directory: &Section<'_>) -> Option<Vec<SrvTarget>> {
    let Some(node) = directory.get("srv_targets") else { return Some(Vec::new()) };
    let parse = |text: &str| {
        let (below, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match names::own_name(&name) {
            Ok(name) if below && name.contains('.') => Ok(SrvTarget::Below(name)),
            Ok(name) if !below => Ok(SrvTarget::Host(name)),
            Ok(_) | Err(_) => Err(TargetError),
        }
    };
    bounded(&node, TARGETS, |item| item.parsed(parse))
}

/// `resolver`: the DNS servers.
pub(super) fn resolver(directory: &Section<'_>) -> Option<Vec<SocketAddr>> {
    let Some(node) = directory.get("resolver") else { return Some(Vec::new()) };
    let parse = |text: &str| {
        let address = text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS)));
        address.ok().filter(|address| address.port() > 0 && !address.ip().is_unspecified()).ok_or(ResolverError)
    };
    bounded(&node, RESOLVERS, |item| item.parsed(parse))
}

/// A list with a limit of items, or one item.
fn bounded<T>(node: &Node<'_>, most: usize, read: impl Fn(&Node<'_>) -> Option<T>) -> Option<Vec<T>> {
    let items = node.one_or_more()?;
    if items.len() > most {
        node.problem(format!("more than {most}: remove some"));
    }
    let values: Vec<_> = items.iter().filter_map(read).collect();
    (values.len() == items.len()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_records_are_parsed() {
        let parts = |text: &str| {
            place(text).map(|server| {
                let srv = server.srv.unwrap();
                (server.scheme, server.host, srv.domain, srv.port, server.starttls)
            })
        };
        let (ldap, ldaps) = (LdapScheme::Ldap, LdapScheme::Ldaps);
        for (text, scheme, name, domain, port) in [
            ("srv:_ldap._tcp.example.com", ldap, "_ldap._tcp.example.com", "example.com", None),
            ("SRV:_LDAP._tcp.Example.com.", ldap, "_ldap._tcp.example.com", "example.com", None),
            (
                "srv:_ldap._tcp.dc._msdcs.corp.example.com",
                ldap,
                "_ldap._tcp.dc._msdcs.corp.example.com",
                "corp.example.com",
                None,
            ),
            (
                "ldaps+srv:_ldap._tcp.Berlin._sites.dc._msdcs.corp.example.com",
                ldaps,
                "_ldap._tcp.berlin._sites.dc._msdcs.corp.example.com",
                "corp.example.com",
                Some(636),
            ),
            ("ldaps+srv:_gc._tcp.corp:3269", ldaps, "_gc._tcp.corp", "corp", Some(3269)),
        ] {
            let expected = (scheme, name.to_owned(), domain.to_owned(), port, scheme == ldap);
            assert_eq!(parts(text), Ok(expected), "{text}");
        }
        for (text, error) in [
            ("srv:example.com", ServerError::SrvName),
            ("srv://_ldap._tcp.example.com", ServerError::SrvName),
            ("srv:_ldap._udp.example.com", ServerError::SrvName),
            ("srv:_ldap._tcp", ServerError::SrvName),
            ("srv:_ldap._tcp.", ServerError::SrvName),
            ("srv:_ldap._tcp.dc._msdcs", ServerError::SrvName),
            ("srv:_ldap._tcp..example.com", ServerError::SrvName),
            ("srv:_ldap._tcp.exa mple.com", ServerError::SrvName),
            ("srv:", ServerError::SrvName),
            ("srv:_ldap._tcp.example.com:389", ServerError::SrvPort),
            ("ldaps+srv:_ldap._tcp.example.com:0", ServerError::Port(NameError::Port)),
            ("ldaps+srv:_ldap._tcp.example.com:x", ServerError::Port(NameError::Port)),
            ("ldap1.example.com", ServerError::Url(NameError::Url)),
        ] {
            assert_eq!(place(text), Err(error), "{text}");
        }
        assert_eq!(domain(&format!("_ldap._tcp.{}.com", "a".repeat(64))), None);
        assert_eq!(domain(&format!("_ldap._tcp.{}com", "a.".repeat(130))), None);
    }

    #[test]
    fn targets_are_hosts_or_all_below_a_domain() {
        let below = SrvTarget::Below("example.net".to_owned());
        for (host, is) in [
            ("dc1.example.net", true),
            ("dc1.site.example.net", true),
            ("example.net", false),
            (".example.net", false),
            ("badexample.net", false),
            ("dc1.example.net.evil.org", false),
        ] {
            assert_eq!(below.is(host), is, "{host}");
        }
        assert!(SrvTarget::Host("dc1.example.net".to_owned()).is("dc1.example.net"));
    }
}
