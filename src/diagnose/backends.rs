//! What an inspection of a mail server means.

use super::{Finding, State, Subject, certificates};
use crate::backend::BackendError;
use crate::backend::diagnose::{AddressInspection, ProtocolInspection};
use crate::config;
use crate::process::Snapshot;
use crate::proto::{BackFault, BackTls, Protocol, capabilities};
use crate::telemetry::log::Escaped;
use crate::tls::HandshakeFailure;

/// A subject for each address of a backend's protocol.
pub(super) fn subjects(settings: &config::Backend, logs_in: bool, inspected: &ProtocolInspection) -> Vec<Subject> {
    let protocol = inspected.protocol;
    let subject = |address: Option<String>, findings| Subject {
        kind: "backend",
        name: settings.name.clone(),
        protocol: Some(protocol.name),
        address,
        findings,
    };
    let Some(endpoint) = settings.endpoints.iter().find(|endpoint| endpoint.protocol == protocol) else {
        return Vec::new();
    };
    let addresses = match &inspected.addresses {
        Ok(addresses) => addresses,
        Err(error) => return vec![subject(None, vec![Finding::problem("name", error.to_string(), advice(error))])],
    };
    let advertised = |one: &AddressInspection| -> Vec<String> {
        one.observed.listed.iter().filter(|one| (protocol.advertised)(capabilities::name(one))).cloned().collect()
    };
    let lists: Vec<Vec<String>> = addresses.iter().map(&advertised).collect();
    let listing: Vec<&[String]> = lists.iter().map(Vec::as_slice).filter(|list| !list.is_empty()).collect();
    let common = capabilities::common(&listing);
    let all = addresses.iter().zip(&lists).map(|(inspection, list)| {
        let mut findings = address(settings, endpoint, logs_in, inspection);
        let beyond = capabilities::beyond(list, &common);
        if !beyond.is_empty() {
            let found = format!("other addresses of {} lack {}", settings.name, escaped(&beyond.join(", ")));
            findings.push(Finding::new("differs", State::Note, found));
        }
        subject(Some(inspection.address.to_string()), findings)
    });
    all.collect()
}

fn escaped(text: &str) -> String {
    Escaped(text.as_bytes()).to_string()
}

/// What was seen of one address, and then what was wrong.
fn address(
    settings: &config::Backend,
    endpoint: &config::Endpoint,
    logs_in: bool,
    inspection: &AddressInspection,
) -> Vec<Finding> {
    let AddressInspection { observed: sight, result, milliseconds, .. } = inspection;
    let mut findings = Vec::new();
    if sight.connected {
        findings.push(Finding::ok("tcp", "connected"));
    }
    if let Some(agreed) = sight.agreed {
        let before = format!("{} as {}", agreed.version.replace("TLSv1_", "TLS 1."), endpoint.server_name);
        findings.push(certificates::shown("tls", &before, &sight.certificates, !settings.pin_sha256.is_empty()));
    } else if endpoint.tls == BackTls::Plaintext && sight.greeting.is_some() {
        let near = inspection.address.ip().is_loopback();
        let state = if near { State::Note } else { State::Warning };
        findings.push(Finding::new("tls", state, "none, as configured: passwords and mail are readable on the way"));
    }
    if let Some(greeting) = &sight.greeting {
        findings.push(Finding::ok("greeting", Escaped(greeting).to_string()));
    }
    if !sight.listed.is_empty() {
        let (mechanisms, can): (Vec<_>, Vec<_>) = sight.listed.iter().partition(|one| is_mechanism(one));
        let mechanisms: Vec<&str> = mechanisms.iter().flat_map(|one| mechanism(one)).collect();
        if !mechanisms.is_empty() {
            findings.push(Finding::ok("mechanisms", escaped(&mechanisms.join(" "))));
        }
        let can: Vec<&str> = can.iter().map(|one| one.as_str()).collect();
        findings.push(Finding::ok("capabilities", can.iter().map(|one| escaped(one)).collect::<Vec<_>>().join(", ")));
    }
    if sight.watched {
        let found = "the server takes UNAUTHENTICATE, after which a client could log in past usher: \
                     a session in which a client says it is ended";
        findings.push(Finding::new("unauthenticate", State::Note, found));
    }
    match result {
        Ok(()) if logs_in => {
            findings.push(Finding::ok("login", format!("the probe account logged in within {milliseconds} ms")))
        }
        Ok(()) => findings.push(Finding::ok("login", format!("ready to send after {milliseconds} ms"))),
        Err(error) => findings.push(Finding::problem(stage(error, inspection), words(error), advice(error))),
    }
    findings
}

/// Whether it lists mechanisms: `AUTH=PLAIN`, `AUTH PLAIN LOGIN`, `SASL PLAIN`.
fn is_mechanism(capability: &str) -> bool {
    let name = capabilities::name(capability);
    let prefixed = name.get(..5).is_some_and(|prefix| prefix.eq_ignore_ascii_case("AUTH="));
    prefixed || name.eq_ignore_ascii_case("AUTH") || name.eq_ignore_ascii_case("SASL")
}

fn mechanism(capability: &str) -> Vec<&str> {
    match capability.get(5..) {
        Some(rest) => rest.split(' ').filter(|word| !word.is_empty()).collect(),
        None => Vec::new(),
    }
}

/// What was come to when this went wrong.
const fn stage(error: &BackendError, inspection: &AddressInspection) -> &'static str {
    match error {
        BackendError::NotServed | BackendError::Resolve { .. } | BackendError::Loop { .. } => "name",
        BackendError::Connect { .. } | BackendError::NoSource { .. } | BackendError::Source { .. } => "tcp",
        BackendError::Tls { .. } | BackendError::Fault(BackFault::NoStartTls | BackFault::Injection) => "tls",
        BackendError::Fault(BackFault::NoMechanism) => "mechanisms",
        BackendError::Fault(BackFault::ForwardingRefused) => "forward",
        BackendError::Refused(_) => "login",
        BackendError::Down { .. }
        | BackendError::Full
        | BackendError::SlowStart
        | BackendError::Broken { .. }
        | BackendError::Closed
        | BackendError::Timeout { .. }
        | BackendError::Fault(
            BackFault::Bye
            | BackFault::Preauth
            | BackFault::Bad
            | BackFault::Referral
            | BackFault::TooLarge
            | BackFault::ProtocolViolation,
        ) => {
            let sight = &inspection.observed;
            if !sight.connected {
                "tcp"
            } else if sight.greeting.is_none() {
                "greeting"
            } else {
                "login"
            }
        }
    }
}

fn words(error: &BackendError) -> String {
    match error {
        BackendError::Connect { source, .. } => source.to_string(),
        BackendError::Tls { reason } => reason.to_string(),
        BackendError::Refused(words) => format!("the probe account is refused: {}", escaped(&words.text)),
        BackendError::NotServed
        | BackendError::Resolve { .. }
        | BackendError::Loop { .. }
        | BackendError::NoSource { .. }
        | BackendError::Source { .. }
        | BackendError::Down { .. }
        | BackendError::Full
        | BackendError::SlowStart
        | BackendError::Broken { .. }
        | BackendError::Closed
        | BackendError::Timeout { .. }
        | BackendError::Fault(_) => error.to_string(),
    }
}

fn advice(error: &BackendError) -> &'static str {
    match error {
        BackendError::Resolve { .. } => "check the backend's `address` and this machine's resolver",
        BackendError::NoSource { .. } | BackendError::Source { .. } => {
            "set `source` to addresses that `ip address` lists"
        }
        BackendError::Loop { .. } => "write the mail server's own address: this one is usher's",
        BackendError::Connect { .. } => {
            "is the mail server running and listening on this port, does a firewall block the connection?"
        }
        BackendError::Tls { reason } => match reason.failure {
            HandshakeFailure::Expired => "renew the certificate on that server, or set pin_sha256 if it never will be",
            HandshakeFailure::UnknownIssuer => {
                "the backend's `ca` must name who issued the certificate; without it the system's authorities count"
            }
            HandshakeFailure::WrongName => "set `server_name` to a name that is in the certificate",
            HandshakeFailure::NotTls => "this port wants `tls: starttls`, or is another service's",
            HandshakeFailure::NotYetValid
            | HandshakeFailure::BadSignature
            | HandshakeFailure::Certificate
            | HandshakeFailure::Alert
            | HandshakeFailure::Incompatible
            | HandshakeFailure::Other => "",
        },
        BackendError::Timeout { .. } => {
            "a firewall in between, or a server that is too slow for the backend's `timeout`"
        }
        BackendError::Closed | BackendError::Broken { .. } => {
            "the server closed the connection: check its log; it may expect a PROXY header (`forward`) or refuse \
             this machine"
        }
        BackendError::Refused(_) => "check probe_account and its password file; logins of users are not affected",
        BackendError::Fault(fault) => match fault {
            BackFault::Bye => "the server closes connections with a goodbye: check its log",
            BackFault::Preauth => "servers that require no password are not used",
            BackFault::NoStartTls => "let the server offer STARTTLS, or use its TLS port with `tls: implicit`",
            BackFault::Injection => "a device between usher and the server writes into the connection",
            BackFault::NoMechanism => "let the server offer PLAIN (a `service` needs it), or LOGIN, under TLS",
            BackFault::ForwardingRefused => "add usher to the server's trusted networks, or write `forward: none`",
            BackFault::Bad | BackFault::ProtocolViolation => "is this the port of this protocol?",
            BackFault::Referral => "write the server that it refers to as `address`",
            BackFault::TooLarge => "see limits.max_backend_greeting",
        },
        BackendError::NotServed | BackendError::Down { .. } | BackendError::Full | BackendError::SlowStart => "",
    }
}

/// What a backend lists in this protocol, at all of its addresses that were reached.
fn listed(inspected: &[ProtocolInspection], protocol: &Protocol) -> Option<Vec<String>> {
    let addresses = inspected.iter().find(|one| one.protocol == protocol)?.addresses.as_ref().ok()?;
    let lists = addresses.iter().map(|one| one.observed.listed.as_slice()).filter(|list| !list.is_empty());
    let lists: Vec<&[String]> = lists.collect();
    (!lists.is_empty()).then(|| capabilities::common(&lists))
}

/// What would be advertised to clients of a protocol, and which backends have more.
pub(super) fn advertised(
    snapshot: &Snapshot,
    inspected: &[(&str, Vec<ProtocolInspection>)],
    protocol: &'static Protocol,
) -> Option<Subject> {
    let backends = &snapshot.config.routing.backends;
    let serves = |backend: &config::Backend| backend.endpoints.iter().any(|endpoint| endpoint.protocol == protocol);
    if !backends.iter().any(serves) {
        return None;
    }
    let offered = match protocol.usual {
        // Nothing here depends on the backends.
        [] => "usher's own capabilities, independent of the backends".to_owned(),
        _ => escaped(&snapshot.offers.of(protocol).join(", ")),
    };
    let mut findings = vec![Finding::ok("advertised", offered)];
    let differences = snapshot.offers.differences(protocol);
    if !differences.is_empty() {
        let found = format!("only some backends have these capabilities: {}", escaped(&differences));
        let advice = "only what all backends have is advertised; configure the servers alike, or fix the list with \
                      `capabilities`";
        findings.push(Finding::new("differs", State::Warning, found).advised(advice));
    }
    let lists: Vec<(&str, Vec<String>)> =
        inspected.iter().filter_map(|(backend, inspected)| Some((*backend, listed(inspected, protocol)?))).collect();
    let common = capabilities::common(&lists.iter().map(|(_, list)| list.as_slice()).collect::<Vec<_>>());
    for (name, list) in &lists {
        let beyond = capabilities::beyond(list, &common);
        if !beyond.is_empty() {
            let found = format!("{name} alone, or more than others, before the login: {}", beyond.join(", "));
            findings.push(Finding::new("differs", State::Note, escaped(&found)));
        }
    }
    Some(Subject { kind: "protocol", name: protocol.name.to_owned(), protocol: None, address: None, findings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mechanisms_are_found_in_the_form_of_each_protocol() {
        for (capability, mechanisms) in [
            ("AUTH=PLAIN", vec!["PLAIN"]),
            ("auth=login", vec!["login"]),
            ("AUTH PLAIN LOGIN", vec!["PLAIN", "LOGIN"]),
            ("SASL PLAIN", vec!["PLAIN"]),
        ] {
            assert!(is_mechanism(capability), "{capability}");
            assert_eq!(mechanism(capability), mechanisms);
        }
        for capability in ["IDLE", "AUTHOR", "SASL-IR", "SIZE 100", "AU"] {
            assert!(!is_mechanism(capability), "{capability}");
        }
    }
}
