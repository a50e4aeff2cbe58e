//! What an inspection of a token issuer means.

use super::certificate_advice::url_advice;
use super::{Finding, State, Subject};
use crate::base::labels::Label as _;
use crate::telemetry::log::Escaped;
use crate::token::{FetchError, InspectedIssuer, SkippedKey};

/// An issuer, with what its servers answered.
pub(super) fn subject(inspected: &InspectedIssuer) -> Subject {
    let InspectedIssuer { issuer, keys, introspection } = inspected;
    let mut findings = Vec::new();
    match keys {
        Some(Ok((usable, skipped))) => findings.extend(of_keys(*usable, skipped)),
        Some(Err(error)) => findings.push(fault("keys", error)),
        None => {}
    }
    match introspection {
        Some(Ok(())) => {
            findings.push(Finding::ok("introspection", "answers that a token which was made up is not active"));
        }
        Some(Err(error)) => findings.push(fault("introspection", error)),
        None => {}
    }
    Subject { kind: "issuer", name: issuer.clone(), protocol: None, address: None, findings }
}

fn of_keys(usable: usize, skipped: &[SkippedKey]) -> Vec<Finding> {
    let keys = if usable == 1 { "1 usable key".to_owned() } else { format!("{usable} usable keys") };
    let mut findings = vec![Finding::ok("keys", keys)];
    for reason in SkippedKey::ALL {
        let number = skipped.iter().filter(|skipped| *skipped == reason).count();
        if number == 0 {
            continue;
        }
        let found = format!("{number} not used: {}", reason.label());
        findings.push(match reason {
            SkippedKey::Private => Finding::new("keys", State::Warning, found).advised(
                "the issuer publishes the private half of a key: whoever reads it can sign tokens; withdraw the key",
            ),
            SkippedKey::Kind
            | SkippedKey::Purpose
            | SkippedKey::Algorithm
            | SkippedKey::Curve
            | SkippedKey::Value
            | SkippedKey::TooMany => Finding::new("keys", State::Note, found),
        });
    }
    findings
}

fn fault(check: &'static str, error: &FetchError) -> Finding {
    let advice = match error {
        FetchError::Resolve(_) | FetchError::Connect(_) | FetchError::Timeout => {
            "check the URL and the firewall; where only a proxy leads out, set `proxy`"
        }
        FetchError::Tls(error) => url_advice(error),
        FetchError::Proxy(_) => "the proxy must allow CONNECT to this host and port, and ask for no password",
        FetchError::NotLoopback => "write https://",
        FetchError::Redirect(_) => "",
        FetchError::Status(401 | 403) if check == "introspection" => {
            "the issuer refuses `client_id` or its secret, or this client may not introspect"
        }
        FetchError::AnotherIssuer(_) => {
            "write `issuer` exactly so if this is your provider (a slash at the end counts), or its URL as `discovery`"
        }
        FetchError::Status(404) => "check the path of the URL",
        FetchError::Status(_) | FetchError::Http(_) | FetchError::TooLarge | FetchError::Content(_) => {
            "open the URL from this machine, with curl for example, and compare"
        }
    };
    Finding::problem(check, Escaped(error.to_string().as_bytes()).to_string(), advice)
}
