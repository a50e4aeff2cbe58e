//! Which servers SRV records lead to (RFC 2782), and in which order: pure.
//!
//! DNS is not signed, so that whoever changes an answer would choose who gets passwords (RFC 4513 section 3.1.3). A record
//! counts only if its target belongs to the domain that was asked for, or is allowed by name, and the server's certificate
//! is verified against that target. SRV-ID (RFC 4985) is not used: hardly an authority issues such names, and the domain
//! rule and the configured authority stand in for it (RFC 9525 section 6.1 leaves that to the application).

use std::fmt;

use rustls::pki_types::ServerName;

use crate::config::{DirectoryServer, LdapScheme, Srv, SrvTarget};
use crate::directory::SrvServer;
use crate::directory::ldap::dns::SrvRecord;

/// Servers of one name.
pub(crate) const MOST: usize = 64;

/// What records lead to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SrvServers {
    /// These servers, by priority, and records that lead to none.
    Listed(Vec<SrvServer>, Vec<Ignored>),
    /// The service is decidedly not available at this domain: the one target is the root.
    NotAvailable,
}

/// The record that a server is from.
pub(crate) fn record(SrvServer { server, priority, weight }: &SrvServer) -> SrvRecord {
    SrvRecord { priority: *priority, weight: *weight, port: server.port, target: server.host.clone() }
}

/// A record that leads to no server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ignored {
    /// Its target, bounded.
    pub(crate) target: String,
    pub(crate) reason: IgnoredReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IgnoredReason {
    Outside,
    NoHost,
    NoPort,
    TooMany,
}

impl fmt::Display for IgnoredReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outside => "not below the domain that was asked for, nor in directory.srv_targets",
            Self::NoHost => "not a host name",
            Self::NoPort => "its port is 0",
            Self::TooMany => "more than 64 servers",
        })
    }
}

/// The servers that `records` name for this entry of `directory.servers`.
pub(crate) fn servers(
    mut records: Vec<SrvRecord>,
    of: &DirectoryServer,
    srv: &Srv,
    allowed: &[SrvTarget],
) -> SrvServers {
    if records.iter().all(|record| record.target.is_empty()) {
        return SrvServers::NotAvailable;
    }
    let (mut listed, mut ignored): (Vec<SrvServer>, _) = (Vec::new(), Vec::new());
    records.sort_by_key(|record| record.priority);
    for SrvRecord { priority, weight, port, target } in records {
        let port = srv.port.unwrap_or(port);
        let reason = if !matches!(ServerName::try_from(target.as_str()), Ok(ServerName::DnsName(_))) {
            Some(IgnoredReason::NoHost)
        } else if !is_allowed(&target, srv, allowed) {
            Some(IgnoredReason::Outside)
        } else if port == 0 {
            Some(IgnoredReason::NoPort)
        } else if listed.iter().any(|one| one.server.host == target && one.server.port == port) {
            continue;
        } else if listed.len() >= MOST {
            Some(IgnoredReason::TooMany)
        } else {
            None
        };
        if let Some(reason) = reason {
            if ignored.len() < MOST {
                let shown = target.chars().filter(|character| character.is_ascii_graphic()).take(255).collect();
                ignored.push(Ignored { target: shown, reason });
            }
            continue;
        }
        let word = if of.scheme == LdapScheme::Ldaps { "ldaps" } else { "ldap" };
        let server =
            DirectoryServer { url: format!("{word}://{target}:{port}"), host: target, port, srv: None, ..of.clone() };
        listed.push(SrvServer { server, priority, weight });
    }
    SrvServers::Listed(listed, ignored)
}

/// Whether a host in lower case may get passwords because DNS names it.
fn is_allowed(host: &str, srv: &Srv, allowed: &[SrvTarget]) -> bool {
    // Any host would be below a domain of one label.
    let is_own = srv.domain.contains('.') && (host == srv.domain || SrvTarget::Below(srv.domain.clone()).is(host));
    is_own || allowed.iter().any(|target| target.is(host))
}

/// The place of a server among those of its priority, lowest first, by a number from 0 to 1 that is drawn for it. Sorted by it, the
/// order is that of RFC 2782: each place goes to one of the rest, with a chance in proportion to its weight.
pub(crate) fn place(weight: u16, drawn: f64) -> f64 {
    // Weight 0 has a very small chance beside others, and the same as others of weight 0.
    let weight = if weight == 0 { 0.01 } else { f64::from(weight) };
    -drawn.max(f64::MIN_POSITIVE).ln() / weight
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, port: u16, target: &str) -> SrvRecord {
        SrvRecord { priority, weight, port, target: target.to_owned() }
    }

    fn of(scheme: LdapScheme, port: Option<u16>) -> DirectoryServer {
        DirectoryServer {
            url: "srv:_ldap._tcp.dc._msdcs.corp.example.com".to_owned(),
            scheme,
            host: "_ldap._tcp.dc._msdcs.corp.example.com".to_owned(),
            port: 0,
            server_name: None,
            pin_sha256: Vec::new(),
            starttls: scheme == LdapScheme::Ldap,
            srv: Some(Srv { domain: "corp.example.com".to_owned(), port }),
        }
    }

    fn found(of: &DirectoryServer, records: Vec<SrvRecord>, allowed: &[SrvTarget]) -> (Vec<String>, Vec<Ignored>) {
        match servers(records, of, of.srv.as_ref().unwrap(), allowed) {
            SrvServers::Listed(listed, ignored) => {
                assert!(listed.iter().all(|one| one.server.srv.is_none() && one.server.starttls == of.starttls));
                (listed.into_iter().map(|one| one.server.url).collect(), ignored)
            }
            SrvServers::NotAvailable => panic!("not available"),
        }
    }

    #[test]
    fn priorities_and_ports_are_those_of_the_records() {
        let records = || vec![record(10, 0, 3389, "dc2.corp.example.com"), record(0, 5, 389, "dc1.corp.example.com")];
        let (urls, ignored) = found(&of(LdapScheme::Ldap, None), records(), &[]);
        assert_eq!(urls, ["ldap://dc1.corp.example.com:389", "ldap://dc2.corp.example.com:3389"]);
        assert_eq!(ignored, []);
        let (urls, _) = found(&of(LdapScheme::Ldaps, Some(636)), records(), &[]);
        assert_eq!(urls, ["ldaps://dc1.corp.example.com:636", "ldaps://dc2.corp.example.com:636"]);
        // One server, however often it is named.
        let twice = vec![record(5, 0, 389, "dc1.corp.example.com"), record(0, 0, 389, "dc1.corp.example.com")];
        assert_eq!(found(&of(LdapScheme::Ldap, None), twice, &[]).0.len(), 1);
    }

    #[test]
    fn targets_outside_the_domain_are_ignored() {
        let ldap = of(LdapScheme::Ldap, None);
        for (target, reason) in [
            ("evil.example.org", Some(IgnoredReason::Outside)),
            ("badcorp.example.com", Some(IgnoredReason::Outside)),
            ("corp.example.com.evil.org", Some(IgnoredReason::Outside)),
            ("example.com", Some(IgnoredReason::Outside)),
            ("dc1.corp.example.com", None),
            ("dc1.site.corp.example.com", None),
            ("corp.example.com", None),
            ("dc1.example.net", None),
            ("dc1.lan.example.net", Some(IgnoredReason::Outside)),
            ("dc1.example.edu", None),
            ("192.0.2.1", Some(IgnoredReason::NoHost)),
            ("\\\\200.corp.example.com", Some(IgnoredReason::NoHost)),
            ("a b.corp.example.com", Some(IgnoredReason::NoHost)),
            ("*.corp.example.com", Some(IgnoredReason::NoHost)),
            ("", Some(IgnoredReason::NoHost)),
        ] {
            let allowed = [SrvTarget::Host("dc1.example.net".to_owned()), SrvTarget::Below("example.edu".to_owned())];
            let records = vec![record(0, 0, 389, target), record(9, 0, 389, "last.corp.example.com")];
            let (urls, ignored) = found(&ldap, records, &allowed);
            assert_eq!(ignored.first().map(|one| one.reason), reason, "{target}");
            assert_eq!(urls.len(), 1 + usize::from(reason.is_none()), "{target}");
        }
        let (urls, ignored) = found(&ldap, vec![record(0, 0, 0, "dc1.corp.example.com")], &[]);
        assert_eq!((urls.len(), ignored[0].reason), (0, IgnoredReason::NoPort));
    }

    #[test]
    fn domain_of_one_label_has_no_hosts_of_its_own() {
        let wide =
            DirectoryServer { srv: Some(Srv { domain: "com".to_owned(), port: None }), ..of(LdapScheme::Ldap, None) };
        assert_eq!(found(&wide, vec![record(0, 0, 389, "evil.com")], &[]).0.len(), 0);
        let allowed = [SrvTarget::Host("dc1.com".to_owned())];
        assert_eq!(found(&wide, vec![record(0, 0, 389, "dc1.com")], &allowed).0.len(), 1);
    }

    #[test]
    fn root_alone_means_that_the_service_is_not_available() {
        let ldap = of(LdapScheme::Ldap, None);
        let srv = ldap.srv.clone().unwrap();
        assert_eq!(servers(vec![record(0, 0, 0, "")], &ldap, &srv, &[]), SrvServers::NotAvailable);
    }

    #[test]
    fn huge_answers_are_bounded() {
        let records = (0..3_000).map(|number| record(9, 0, 389, &format!("dc{number}.corp.example.com")));
        let records = records.chain([record(1, 0, 389, "best.corp.example.com")]).collect();
        let (urls, ignored) = found(&of(LdapScheme::Ldap, None), records, &[]);
        assert_eq!((urls.len(), urls[0].as_str()), (MOST, "ldap://best.corp.example.com:389"));
        assert!(ignored.len() == MOST && ignored.iter().all(|one| one.reason == IgnoredReason::TooMany));
    }

    #[test]
    fn weights_are_chances_of_the_first_place() {
        let mut first = [0_u32; 3];
        // Evenly spread numbers in place of random ones.
        for (a, b, c) in (0..40_u32).flat_map(|a| (0..40).flat_map(move |b| (0..40).map(move |c| (a, b, c)))) {
            let drawn = [a, b, c].map(|number| (f64::from(number) + 0.5) / 40.0);
            let places = [place(60, drawn[0]), place(20, drawn[1]), place(0, drawn[2])];
            let best = (0..3).min_by(|x: &usize, y: &usize| places[*x].total_cmp(&places[*y])).unwrap();
            first[best] += 1;
        }
        let share = |at: usize| f64::from(first[at]) / 64_000.0;
        assert!((0.70..0.80).contains(&share(0)) && (0.20..0.30).contains(&share(1)) && share(2) < 0.01, "{first:?}");
    }
}
