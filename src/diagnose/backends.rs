//! What an inspection of a mail server means.

use super::{Finding, State, Subject, backend_advice, certificates};
use crate::backend::diagnose::{AddressInspection, OtherHeader, ProtocolInspection};
use crate::backend::{Awaited, BackendError};
use crate::config;
use crate::process::Snapshot;
use crate::proto::{BackFault, BackTls, Protocol, capabilities};
use crate::telemetry::log::Escaped;

/// A subject for each address of a backend's protocol.
pub(super) fn subjects(
    config: &config::Config,
    settings: &config::Backend,
    logs_in: bool,
    inspected: &ProtocolInspection,
) -> Vec<Subject> {
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
        Err(error) => {
            let advice = backend_advice::of(error, endpoint);
            return vec![subject(None, vec![Finding::problem("name", error.to_string(), advice)])];
        }
    };
    let advertised = |one: &AddressInspection| -> Vec<String> {
        one.observed.listed.iter().filter(|one| (protocol.advertised)(capabilities::name(one))).cloned().collect()
    };
    let lists: Vec<Vec<String>> = addresses.iter().map(&advertised).collect();
    let listing: Vec<&[String]> = lists.iter().map(Vec::as_slice).filter(|list| !list.is_empty()).collect();
    let common = capabilities::common(&listing);
    let all = addresses.iter().zip(&lists).map(|(inspection, list)| {
        let mut findings = address(config, settings, endpoint, logs_in, inspection);
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
    config: &config::Config,
    settings: &config::Backend,
    endpoint: &config::Endpoint,
    logs_in: bool,
    inspection: &AddressInspection,
) -> Vec<Finding> {
    let AddressInspection { observed: sight, result, took, .. } = inspection;
    let milliseconds = took.as_millis();
    let patience = backend_advice::Patience::of(config, settings);
    let mut findings = Vec::new();
    if sight.connected.is_some() {
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
        findings.push(patience.greeting(Escaped(greeting).to_string(), sight.greeted_after));
    }
    if !sight.listed.is_empty() {
        let (mechanisms, can): (Vec<_>, Vec<_>) = sight.listed.iter().partition(|one| is_mechanism(one));
        let mechanisms: Vec<&str> = mechanisms.iter().flat_map(|one| mechanism(one)).collect();
        if !mechanisms.is_empty() {
            findings.push(Finding::ok("mechanisms", escaped(&mechanisms.join(" "))));
        }
        let can: Vec<&str> = can.iter().map(|one| one.as_str()).collect();
        let can = if can.is_empty() { "none".to_owned() } else { escaped(&can.join(", ")) };
        findings.push(Finding::ok("capabilities", can));
    }
    if sight.watched {
        let found = "the server takes UNAUTHENTICATE, after which a client could log in past usher: \
                     a session in which a client says it is ended";
        findings.push(Finding::new("unauthenticate", State::Note, found));
    }
    findings.extend(backend_advice::of_dovecot(settings, endpoint, sight));
    match result {
        Ok(())
            if patience.is_exceeded(*took) && !sight.greeted_after.is_some_and(|after| patience.is_exceeded(after)) =>
        {
            findings.push(patience.too_slow("login", &format!("ready to send after {milliseconds} ms"), *took));
        }
        Ok(()) if logs_in => {
            findings.push(Finding::ok("login", format!("the probe account logged in within {milliseconds} ms")))
        }
        Ok(()) => findings.push(Finding::ok("login", format!("ready to send after {milliseconds} ms"))),
        Err(error) => {
            let problem =
                |error: &BackendError, advice: String| Finding::problem(stage(error, inspection), words(error), advice);
            match &inspection.other_header {
                OtherHeader::Works => findings.push(backend_advice::header(endpoint, &words(error), "it greets")),
                OtherHeader::InTls(next) => {
                    findings.push(backend_advice::header(endpoint, &words(error), "it answers in TLS"));
                    findings.push(problem(next, backend_advice::of(next, endpoint)));
                }
                OtherHeader::Fails => {
                    let advice = backend_advice::long_hello(error, settings, endpoint);
                    findings
                        .push(problem(error, advice.unwrap_or_else(|| backend_advice::either_header(error, endpoint))));
                }
                OtherHeader::NotTried => {
                    let advice = backend_advice::long_hello(error, settings, endpoint);
                    findings.push(problem(error, advice.unwrap_or_else(|| backend_advice::of(error, endpoint))));
                }
            }
        }
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
        BackendError::Tls { .. }
        | BackendError::LostInTls { .. }
        | BackendError::Timeout { awaited: Awaited::Tls, .. }
        | BackendError::Fault(BackFault::NoStartTls | BackFault::Injection) => "tls",
        BackendError::Fault(BackFault::NoMechanism) => "mechanisms",
        BackendError::Fault(BackFault::ForwardingRefused) => "forward",
        BackendError::Refused(_) => "login",
        BackendError::Down { .. }
        | BackendError::Refusing { .. }
        | BackendError::Full
        | BackendError::SlowStart
        | BackendError::NoServiceLogin
        | BackendError::TokenTooLong(_)
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
            if sight.connected.is_none() {
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
        BackendError::LostInTls { reason } => reason.clone(),
        BackendError::Refused(words) => format!("the probe account is refused: {}", escaped(&words.text)),
        BackendError::NotServed
        | BackendError::Resolve { .. }
        | BackendError::Loop { .. }
        | BackendError::NoSource { .. }
        | BackendError::Source { .. }
        | BackendError::Down { .. }
        | BackendError::Refusing { .. }
        | BackendError::Full
        | BackendError::SlowStart
        | BackendError::NoServiceLogin
        | BackendError::TokenTooLong(_)
        | BackendError::Broken { .. }
        | BackendError::Closed
        | BackendError::Timeout { .. }
        | BackendError::Fault(_) => error.to_string(),
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
