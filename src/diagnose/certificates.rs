//! What certificates say, and how long they still do.

use super::{Finding, State};
use crate::base::clock::{date, unix_now};
use crate::diagnose::table::Shown;
use crate::tls::HandshakeError;
use crate::tls::certificate::CertificateInfo;
use crate::tls::server::ServerTls;

/// Days before its end at which a certificate is reported: enough time to renew it by hand.
const NEAR: i64 = 14;
const DAY: i64 = 24 * 60 * 60;
/// The number of names that are shown.
const NAMES: usize = 4;

/// What to do about a peer without a TLS version of usher's; `None` for every other failure.
pub(super) fn version_advice(error: &HandshakeError) -> Option<&'static str> {
    // The peer says so by an alert, or by a version that is not offered: `tls::reason` has one text for both.
    let is_version = error.to_string().contains("no common TLS version");
    is_version.then_some(
        "the server has no TLS 1.2 or 1.3, and usher speaks nothing older: enable TLS 1.2 there, or update the server \
         or its TLS library",
    )
}

/// usher's own certificates that are over, or nearly.
#[must_use]
pub(crate) fn served(tls: &ServerTls) -> Vec<Finding> {
    let now = now();
    let near = tls.certificates().iter().filter(|served| served.expired || days(served.not_after, now) < NEAR);
    let told = near.map(|served| {
        let chain = served.chain.display();
        let (found, what) = if served.expired {
            (format!("{chain} has expired; it would be served all the same"), State::Warning)
        } else {
            (format!("{chain} ends {}", until(served.not_after, now)), State::Warning)
        };
        Finding::new("certificate", what, found).advised("replace the files; usher reloads them automatically")
    });
    told.collect()
}

/// A server's certificates (its own first, DER): names, issuer, end. With a pin their dates do not count.
pub(super) fn shown(check: &'static str, before: &str, chain: &[Vec<u8>], pinned: bool) -> Finding {
    let now = now();
    let Some(Ok(own)) = chain.first().map(|der| CertificateInfo::read(der)) else {
        return Finding::ok(check, before);
    };
    let ends = chain.iter().filter_map(|der| CertificateInfo::read(der).ok()).map(|facts| facts.not_after).min();
    let end = ends.unwrap_or(own.not_after);
    let mut names: Vec<String> = own.names.iter().take(NAMES).map(|name| Shown(name).to_string()).collect();
    if own.names.len() > NAMES {
        names.push(format!("{} more", own.names.len() - NAMES));
    }
    let names = if names.is_empty() { "no DNS name".to_owned() } else { names.join(", ") };
    let of_chain = if end < own.not_after { "; a certificate of its chain ends" } else { "," };
    let found = format!("{before}, certificate for {names} from {}{of_chain} {}", Shown(&own.issuer), until(end, now));
    if pinned {
        return Finding::ok(check, format!("{found}; verified by its pin alone"));
    }
    if days(end, now) >= NEAR {
        return Finding::ok(check, found);
    }
    Finding::new(check, State::Warning, found).advised("renew it on that server: after its end all logins fail")
}

fn days(end: i64, now: i64) -> i64 {
    (end - now).div_euclid(DAY)
}

/// `until 2026-12-24 (28 days)`.
fn until(end: i64, now: i64) -> String {
    let date = date(end);
    match days(end, now) {
        1 => format!("until {date} (1 day)"),
        days => format!("until {date} ({days} days)"),
    }
}

fn now() -> i64 {
    i64::try_from(unix_now()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_shown_as_a_date_and_days() {
        let now = 1_795_000_000; // 2026-11-18T11:06:40Z
        assert_eq!(until(now + 28 * DAY, now), "until 2026-12-16 (28 days)");
        assert_eq!(until(now + DAY, now), "until 2026-11-19 (1 day)");
        assert_eq!(until(now - 1, now), "until 2026-11-18 (-1 days)");
    }
}
