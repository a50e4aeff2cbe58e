//! The names under which the side port may be requested.
//!
//! A foreign web page can point its own name at this machine and so make a browser inside the
//! network read what is here (DNS rebinding): the browser then requests that name. Only names that are this
//! machine's are answered; others get 421 (RFC 9110 section 15.5.20).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, header};

use crate::base::sys;
use crate::process::Snapshot;

/// Names of this machine, lower case.
#[derive(Debug)]
pub(super) struct OwnNames(Vec<String>);

impl OwnNames {
    /// The machine's name, alone and in the domains in which its resolver searches.
    pub(super) fn read() -> Self {
        let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Self::of(&sys::host_name(), &resolver)
    }

    fn of(name: &str, resolver: &str) -> Self {
        let name = name.to_ascii_lowercase();
        let lines = resolver.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let domains = lines.filter_map(|words| match words.split_first() {
            Some((&("search" | "domain"), domains)) => Some(domains.to_vec()),
            _ => None,
        });
        let full = |domain: &str| format!("{name}.{}", domain.trim_matches('.').to_ascii_lowercase());
        let full: Vec<String> = domains.flatten().map(full).collect();
        Self(std::iter::once(name.clone()).chain(full).collect())
    }

    /// Whether a request with these headers names this machine. A request without a Host is not a browser's.
    pub(super) fn are_asked_for(&self, headers: &HeaderMap, snapshot: &Snapshot) -> bool {
        let is_own = |host: &str| {
            let served = || snapshot.tls.certificates().iter().flat_map(|served| &served.names);
            is_address(host)
                || host == "localhost"
                || host.ends_with(".localhost")
                || self.0.iter().chain(&snapshot.config.admin.hosts).any(|own| is_same(own, host))
                || is_same(&snapshot.host, host)
                || served().any(|name| is_covered(host, name))
        };
        let mut hosts = headers.get_all(header::HOST).iter();
        hosts.all(|host| host.to_str().is_ok_and(|host| is_own(&without_port(host).to_ascii_lowercase())))
    }
}

/// The number of foreign names that are logged, each once: an administrator whose monitoring uses an unknown
/// name finds it in the log, and a client with many names cannot fill it.
const MOST_LOGGED: usize = 16;
/// A longer name is no host's (RFC 1035 section 2.3.4).
const NAME: usize = 255;

/// The foreign names that were logged.
#[derive(Debug, Default)]
pub(super) struct ForeignHosts(Mutex<Vec<Box<[u8]>>>);

impl ForeignHosts {
    /// The first Host of a request, if it was not logged yet and there is room to remember it.
    pub(super) fn first_seen<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let host = headers.get(header::HOST)?.as_bytes();
        // The list is whole whatever panicked while holding it.
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if host.len() > NAME || logged.len() >= MOST_LOGGED || logged.iter().any(|one| one.eq_ignore_ascii_case(host)) {
            return None;
        }
        logged.push(host.into());
        Some(host)
    }
}

fn is_address(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.map_or_else(|| host.parse::<IpAddr>().is_ok(), |inner| inner.parse::<Ipv6Addr>().is_ok())
}

/// Whether a name that was configured, with a final dot or without, is that of a request, which has none.
fn is_same(own: &str, host: &str) -> bool {
    own.strip_suffix('.').unwrap_or(own).eq_ignore_ascii_case(host)
}

/// Whether a certificate's name stands for a host: itself, or by a wildcard for one label.
fn is_covered(host: &str, name: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => host == name,
    }
}

fn without_port(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_host_name_is_accepted_in_its_domains() {
        let resolver =
            "# domain no.example\nnameserver 192.0.2.1\nsearch one.example Two.Example.\ndomain three.example\n";
        let OwnNames(names) = OwnNames::of("Mail1", resolver);
        assert_eq!(names, ["mail1", "mail1.one.example", "mail1.two.example", "mail1.three.example"]);
        let OwnNames(names) = OwnNames::of("mail1.example.com", "");
        assert_eq!(names, ["mail1.example.com"]);
    }

    #[test]
    fn foreign_host_name_is_logged_once_and_their_number_is_bounded() {
        let (foreign, mut headers) = (ForeignHosts::default(), HeaderMap::new());
        assert_eq!(foreign.first_seen(&headers), None);
        let mut logged = |host: &str| {
            headers.insert(header::HOST, host.parse().unwrap());
            foreign.first_seen(&headers).is_some()
        };
        assert!(logged("usher.mail.svc:9930"));
        assert!(!logged("Usher.mail.svc:9930") && !logged(&"x".repeat(256)));
        assert_eq!((0..1_000).filter(|number| logged(&format!("{number}.example"))).count(), MOST_LOGGED - 1);
    }

    #[test]
    fn ports_and_final_dots_are_ignored() {
        for (host, name) in [
            ("a.example", "a.example"),
            ("a.example:9930", "a.example"),
            ("a.example.:9930", "a.example"),
            ("a.example:", "a.example"),
            ("[2001:db8::1]:9930", "[2001:db8::1]"),
            ("a:b", "a:b"),
        ] {
            assert_eq!(without_port(host), name, "{host}");
        }
        assert!(is_same("A.example.", "a.example") && is_same("a.example", "a.example") && !is_same("", "a.example"));
        assert!(
            is_address("192.0.2.1") && is_address("[2001:db8::1]") && !is_address("[x]") && !is_address("1.example")
        );
    }

    #[test]
    fn wildcard_matches_one_label() {
        assert!(is_covered("mail.example.com", "mail.example.com"));
        assert!(is_covered("mail.example.com", "*.example.com"));
        assert!(!is_covered("a.mail.example.com", "*.example.com"));
        assert!(!is_covered("example.com", "*.example.com"));
        assert!(!is_covered("evil.test", "*.example.com"));
    }
}
