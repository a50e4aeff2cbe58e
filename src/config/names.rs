//! Names and addresses in the configuration: hosts, ports, URLs, pins, cipher suites.
//!
//! Pure functions from text to a checked value. Their errors say what to write instead and never
//! repeat the text: a URL may contain a password.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::base::net::percent_decoded;
use crate::base::sys::sockets::mapped;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use rustls::pki_types::ServerName;

use super::model::{DirectoryServer, DomainPattern, Group, LdapScheme};
use crate::proto::ldap::dn::is_descr;

/// A Unix socket's path must fit `sun_path` with its NUL.
pub(super) const SOCKET_PATH: usize = 107;

/// The longest capability that is advertised.
const CAPABILITY: usize = 1000;

/// Why a text is not the name that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    #[error("write an IP address and a port, such as \"[::]:993\" (all of IPv6 and IPv4) or \"192.0.2.1:993\"")]
    SocketAddress,
    #[error("write an IP address, such as \"192.0.2.3\"; the port has a key of its own")]
    IpAddress,
    #[error("write a host and a port, such as \"server3.example.com:993\" or \"[2001:db8::3]:993\"")]
    HostPort,
    #[error("write an IPv6 address in brackets: \"[2001:db8::3]:993\"")]
    Brackets,
    #[error("the port must be a number from 1 to 65535")]
    Port,
    #[error("not a host name or IP address")]
    Host,
    #[error("write a host name, such as mail.example.com")]
    OwnName,
    #[error(
        "write a capability with its value, such as \"SIZE 52428800\": printable words, single spaces, at most 1000 \
         bytes"
    )]
    Capability,
    #[error("write ldap://host, ldaps://host or ldapi://%2Fpath%2Fof%2Fsocket, with :port if it is not 389 or 636")]
    Url,
    #[error("name and password are not allowed in the URL: use `bind_dn` and `bind_password_file`")]
    UserInfo,
    #[error("nothing may follow the host and port: the base DN goes into `base`, the filter into `filter`")]
    UrlTail,
    #[error("the socket's path must be absolute, with each / written %2F, and at most 107 bytes long")]
    LdapiPath,
    #[error("write an attribute name of letters, digits and hyphens, such as mailHost")]
    Attribute,
    #[error("write 1 to 64 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit: it becomes a metric label")]
    BackendName,
    #[error("write 1 to 32 of a-z, 0-9, `_`, `-`: it becomes a metric label")]
    DirectoryName,
    #[error(
        "write a domain such as example.com, \"*.example.org\" for all below one, or \"\" for names without a domain; \
         an internationalized domain as its A-label (xn--...)"
    )]
    DomainPattern,
    #[error("write a mailHost value as it is in the directory: ASCII without blanks, at most 255 bytes")]
    MailHost,
    #[error("write the base64 form of a SHA-256 (44 characters): config.example.yaml has the command that prints it")]
    Pin,
    #[error("write 1 to 64 letters, digits, `_`, `-`, `.`, as FileDescriptorName= in the socket unit has it")]
    SocketName,
    #[error("write a user name of letters, digits, `_`, `-`, `.`, `@`")]
    UnixUser,
    #[error("write a group name of letters, digits, `_`, `-`, `.`, `@`")]
    UnixGroup,
    #[error("the name is empty")]
    ServiceLogin,
    #[error(
        "write an address or a network, such as \"192.0.2.0/24\" or \"2001:db8::/32\", with no bit set behind the \
         prefix"
    )]
    Network,
    #[error("write an IP address of this machine, such as \"192.0.2.31\" or \"2001:db8::31\"")]
    Source,
}

/// `address:port` of a listening socket; port 0 lets the system choose.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, NameError> {
    text.parse().map(mapped).map_err(|_| NameError::SocketAddress)
}

/// An IP address.
pub(super) fn ip_address(text: &str) -> Result<IpAddr, NameError> {
    text.parse().map_err(|_| NameError::IpAddress)
}

/// The name that systemd gives a socket (systemd.socket(5), FileDescriptorName=).
pub(super) fn socket_name(text: &str) -> Result<String, NameError> {
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"_-.".contains(&c);
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err(NameError::SocketName)
    }
}

/// An address, or a network as `address/bits`.
pub(super) fn network(text: &str) -> Result<IpNet, NameError> {
    let network = text.parse().or_else(|_| text.parse().map(IpAddr::into)).map_err(|_| NameError::Network)?;
    let address = IpNet::addr(&network);
    // A bit behind the prefix is a slip of the pen: was the address or the length meant?
    if network.network() != address || address.to_canonical() != address {
        return Err(NameError::Network);
    }
    Ok(network)
}

/// An address to connect from.
pub(super) fn source(text: &str) -> Result<IpAddr, NameError> {
    let address: IpAddr = text.parse().map_err(|_| NameError::Source)?;
    // An IPv4 address in IPv6's clothes would be bound as one and connect to nothing.
    let usable = !address.is_unspecified() && !address.is_multicast() && address.to_canonical() == address;
    if usable { Ok(address) } else { Err(NameError::Source) }
}

/// `host:port` to connect to; gives the host without brackets.
pub(super) fn host_port(text: &str) -> Result<(String, u16), NameError> {
    let (host, port) = split_port(text)?;
    Ok((host, port.ok_or(NameError::HostPort)?))
}

/// A host name or IP address that a certificate can be checked against.
pub(super) fn host(text: &str) -> Result<String, NameError> {
    ServerName::try_from(text).map(|_| text.to_owned()).map_err(|_| NameError::Host)
}

/// usher's own name: a domain, as a greeting of SMTP has it (RFC 5321 section 4.1.2).
pub(super) fn own_name(text: &str) -> Result<String, NameError> {
    match ServerName::try_from(text) {
        Ok(ServerName::DnsName(_)) => Ok(text.to_owned()),
        Ok(_) | Err(_) => Err(NameError::OwnName),
    }
}

/// Whether a host is this machine by its spelling alone.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// An LDAP URL (RFC 4516) of a server alone.
pub(super) fn ldap_url(url: &str) -> Result<DirectoryServer, NameError> {
    let (scheme, rest) = url.split_once("://").ok_or(NameError::Url)?;
    let (scheme, standard_port) = match scheme.to_ascii_lowercase().as_str() {
        "ldap" => (LdapScheme::Ldap, 389),
        "ldaps" => (LdapScheme::Ldaps, 636),
        "ldapi" => (LdapScheme::Ldapi, 0),
        _ => return Err(NameError::Url),
    };
    if rest.contains('@') {
        return Err(NameError::UserInfo);
    }
    if rest.contains(['/', '?', '#']) {
        return Err(NameError::UrlTail);
    }
    let (host, port) = match scheme {
        LdapScheme::Ldapi => (socket_path(rest)?, 0),
        LdapScheme::Ldap | LdapScheme::Ldaps => {
            let (host, port) = split_port(rest)?;
            (host, port.unwrap_or(standard_port))
        }
    };
    Ok(DirectoryServer {
        url: url.to_owned(),
        scheme,
        host,
        port,
        server_name: None,
        pin_sha256: Vec::new(),
        starttls: false,
        srv: None,
    })
}

/// The percent-encoded socket path of an ldapi URL.
fn socket_path(text: &str) -> Result<String, NameError> {
    let bytes = percent_decoded(text.as_bytes()).ok_or(NameError::LdapiPath)?;
    let path = String::from_utf8(bytes).map_err(|_| NameError::LdapiPath)?;
    let sound = path.starts_with('/') && path.len() <= SOCKET_PATH && !path.contains('\0');
    if sound { Ok(path) } else { Err(NameError::LdapiPath) }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; port 0 is nowhere to connect to.
pub(super) fn split_port(text: &str) -> Result<(String, Option<u16>), NameError> {
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, behind) = rest.split_once(']').ok_or(NameError::Brackets)?;
        address.parse::<Ipv6Addr>().map_err(|_| NameError::Host)?;
        match behind {
            "" => (address, None),
            behind => (address, Some(behind.strip_prefix(':').ok_or(NameError::Port)?)),
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(NameError::Brackets),
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        // `parse` alone would take "+993".
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port != 0).ok_or(NameError::Port)?)
        }
        Some(_) => return Err(NameError::Port),
        None => None,
    };
    Ok((host(name)?, port))
}

/// The name of an attribute (RFC 4512 section 1.4, `descr`). No OID and no option: servers answer
/// with the name, and answers are matched by it.
pub(super) fn attribute(text: &str) -> Result<String, NameError> {
    if is_descr(text) { Ok(text.to_owned()) } else { Err(NameError::Attribute) }
}

/// A backend's name.
pub(super) fn backend_name(text: &str) -> Result<String, NameError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let sound =
        text.len() <= 64 && text.starts_with(plain) && text.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-'));
    if sound { Ok(text.to_owned()) } else { Err(NameError::BackendName) }
}

/// The name of a directory.
pub(super) fn directory_name(text: &str) -> Result<String, NameError> {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let sound = (1..=32).contains(&text.len()) && text.bytes().all(is_part);
    if sound { Ok(text.to_owned()) } else { Err(NameError::DirectoryName) }
}

/// A domain of login names.
pub(super) fn domain_pattern(text: &str) -> Result<DomainPattern, NameError> {
    let domain = |text: &str| match own_name(text) {
        Ok(name) if !name.ends_with('.') => Ok(name.to_ascii_lowercase()),
        Ok(_) | Err(_) => Err(NameError::DomainPattern),
    };
    match text.strip_prefix("*.") {
        _ if text.is_empty() => Ok(DomainPattern::None),
        Some(suffix) => domain(suffix).map(DomainPattern::Suffix),
        None => domain(text).map(DomainPattern::Exact),
    }
}

/// A `hosts` entry in the form in which it is compared.
pub(super) fn mail_host(text: &str) -> Result<String, NameError> {
    let key = host_key(text);
    let sound = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if sound { Ok(key) } else { Err(NameError::MailHost) }
}

/// The form in which mailHost values are compared: lower case, without one trailing dot.
#[must_use]
pub(crate) fn host_key(value: &str) -> String {
    value.strip_suffix('.').unwrap_or(value).to_ascii_lowercase()
}

/// The SHA-256 of a public key info, in base64.
pub(super) fn pin(text: &str) -> Result<[u8; 32], NameError> {
    STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(NameError::Pin)
}

/// The name of a service account at a backend: whatever that backend calls it.
pub(super) fn service_login(text: &str) -> Result<String, NameError> {
    if text.is_empty() { Err(NameError::ServiceLogin) } else { Ok(text.to_owned()) }
}

/// A user as the system names it.
pub(super) fn unix_user(text: &str) -> Result<String, NameError> {
    if is_unix_name(text) { Ok(text.to_owned()) } else { Err(NameError::UnixUser) }
}

/// A group as the system names it, or its number.
pub(super) fn unix_group(text: &str) -> Result<String, NameError> {
    if is_unix_name(text) { Ok(text.to_owned()) } else { Err(NameError::UnixGroup) }
}

/// Names of `/etc/passwd`, and those with a domain that sssd and winbind have.
fn is_unix_name(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'@');
    (1..=255).contains(&text.len()) && !text.starts_with(['-', '@']) && text.bytes().all(is_letter)
}

/// Key exchange groups by their IANA names and what else they are called, the default order first.
pub(super) const GROUPS: &[(&str, Group)] = &[
    ("X25519MLKEM768", Group::X25519MlKem768),
    ("x25519", Group::X25519),
    ("secp256r1", Group::Secp256r1),
    ("secp384r1", Group::Secp384r1),
    ("P-256", Group::Secp256r1),
    ("P-384", Group::Secp384r1),
    ("prime256v1", Group::Secp256r1),
];

/// The cipher suite with this IANA name, such as `TLS_AES_256_GCM_SHA384`.
#[must_use]
pub(crate) fn cipher_suite(name: &str) -> Option<SupportedCipherSuite> {
    ALL_CIPHER_SUITES.iter().copied().find(|suite| suite_name(*suite) == name)
}

/// A suite's IANA name: rustls writes `TLS13_` where IANA has `TLS_`.
pub(super) fn suite_name(suite: SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)
}

/// All suites that [`cipher_suite`] knows, for a message.
pub(super) fn suite_names() -> String {
    ALL_CIPHER_SUITES.iter().map(|suite| suite_name(*suite)).collect::<Vec<_>>().join(", ")
}

/// A capability as it is advertised to clients: printable words with single spaces.
pub(super) fn capability(text: &str) -> Result<String, NameError> {
    let sound = text.len() <= CAPABILITY
        && text.split(' ').all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic()));
    if sound { Ok(text.to_owned()) } else { Err(NameError::Capability) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_parsed() {
        let at = |host: &str, port| Ok((host.to_owned(), port));
        assert_eq!(host_port("server3.example.com:993"), at("server3.example.com", 993));
        assert_eq!(host_port("192.0.2.1:143"), at("192.0.2.1", 143));
        assert_eq!(host_port("[2001:db8::3]:993"), at("2001:db8::3", 993));
        assert_eq!(host_port("server3"), Err(NameError::HostPort));
        assert_eq!(host_port("2001:db8::3:993"), Err(NameError::Brackets));
        assert_eq!(host_port("[2001:db8::3"), Err(NameError::Brackets));
        assert_eq!(host_port("[server3]:993"), Err(NameError::Host));
        assert_eq!(host_port("ser ver3:993"), Err(NameError::Host));
        assert_eq!(host_port(":993"), Err(NameError::Host));
        for port in ["0", "65536", "", "+993", "imaps", "-1"] {
            assert_eq!(host_port(&format!("server3:{port}")), Err(NameError::Port), "{port}");
        }
    }

    #[test]
    fn ldap_urls_are_parsed() {
        let parts = |url: &str| ldap_url(url).map(|server| (server.scheme, server.host, server.port));
        assert_eq!(parts("ldap://ldap1.example.com"), Ok((LdapScheme::Ldap, "ldap1.example.com".into(), 389)));
        assert_eq!(parts("LDAPS://ldap1:1636"), Ok((LdapScheme::Ldaps, "ldap1".into(), 1636)));
        assert_eq!(parts("ldaps://[2001:db8::1]"), Ok((LdapScheme::Ldaps, "2001:db8::1".into(), 636)));
        assert_eq!(parts("ldapi://%2Frun%2fslapd"), Ok((LdapScheme::Ldapi, "/run/slapd".into(), 0)));
        assert_eq!(ldap_url("ldaps://ldap1:1636").unwrap().url, "ldaps://ldap1:1636");
        for (url, error) in [
            ("ldap1.example.com", NameError::Url),
            ("https://ldap1", NameError::Url),
            ("ldaps://", NameError::Host),
            ("ldaps://ldap1/", NameError::UrlTail),
            ("ldaps://ldap1/dc=example,dc=com?uid", NameError::UrlTail),
            ("ldaps://ldap1?x", NameError::UrlTail),
            ("ldaps://cn=usher:secret@ldap1", NameError::UserInfo),
            ("ldaps://2001:db8::1", NameError::Brackets),
            ("ldaps://ldap1:0", NameError::Port),
            ("ldapi://", NameError::LdapiPath),
            ("ldapi://run", NameError::LdapiPath),
            ("ldapi://%2", NameError::LdapiPath),
            ("ldapi://%2Fa%00", NameError::LdapiPath),
            ("ldapi:///run/slapd", NameError::UrlTail),
        ] {
            assert_eq!(ldap_url(url), Err(error), "{url}");
        }
    }

    #[test]
    fn loopback_is_recognized_by_spelling() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["ldap1", "localhost.example.com", "192.0.2.1", "::", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn plain_names_are_checked() {
        assert!(attribute("mailHost").is_ok() && attribute("msExch-1").is_ok());
        for text in ["", "1a", "mail host", "mail;lang-en", "2.5.4.3", "maíl", "a=b"] {
            assert_eq!(attribute(text), Err(NameError::Attribute), "{text}");
        }
        assert!(backend_name("server3").is_ok() && backend_name("3.example_x-y").is_ok());
        for text in ["", "Server3", ".x", "a b", "a\"b", &"x".repeat(65)] {
            assert_eq!(backend_name(text), Err(NameError::BackendName), "{text}");
        }
        assert_eq!(mail_host("Server3.Example.COM."), Ok("server3.example.com".into()));
        for text in ["", ".", "server 3", "sérver"] {
            assert_eq!(mail_host(text), Err(NameError::MailHost), "{text}");
        }
        assert!(unix_group("usher").is_ok() && unix_group("-x").is_err() && unix_group("").is_err());
        assert!(unix_user("usher@example.com").is_ok());
        for name in ["", "-x", "@x", "a b", "a:b", "a/b", &"u".repeat(256)] {
            assert_eq!(unix_user(name), Err(NameError::UnixUser), "{name}");
        }
    }

    #[test]
    fn pins_are_32_bytes() {
        let zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(pin(zeros), Ok([0; 32]));
        for text in ["", "AAAA", "sha256//AAAA", &zeros[1..], &zeros.replace('=', "")] {
            assert_eq!(pin(text), Err(NameError::Pin), "{text}");
        }
    }

    #[test]
    fn cipher_suites_are_named_as_by_iana() {
        for name in ["TLS_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"] {
            assert_eq!(cipher_suite(name).map(suite_name).as_deref(), Some(name));
            assert!(suite_names().contains(name));
        }
        assert!(cipher_suite("TLS_RSA_WITH_AES_128_CBC_SHA").is_none());
    }
}
