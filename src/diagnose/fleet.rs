//! What an inspection of the fleet's store means.

use super::{Finding, State, Subject};
use crate::config;
use crate::fleet::{InspectedStore, StoreError, StoreFacts};
use crate::telemetry::log::Escaped;

/// A store, with what it answered.
pub(super) fn subject(settings: &config::Fleet, inspected: &InspectedStore) -> Subject {
    let findings = match &inspected.found {
        Ok(facts) => of_facts(settings, facts),
        Err(error) => {
            let found = Escaped(error.to_string().as_bytes()).to_string();
            vec![Finding::problem("connection", found, advice(error))]
        }
    };
    Subject { kind: "store", name: inspected.store.clone(), protocol: None, address: None, findings }
}

fn of_facts(settings: &config::Fleet, facts: &StoreFacts) -> Vec<Finding> {
    let took = format!("answers in {:.1} ms", facts.latency.as_secs_f64() * 1_000.0);
    let mut findings = vec![if facts.latency * 2 < settings.timeout {
        Finding::ok("latency", took)
    } else {
        Finding::new("latency", State::Warning, took).advised(format!(
            "a login waits {} ms at most: use a store in this network, or raise `fleet.timeout`",
            settings.timeout.as_millis()
        ))
    }];
    findings.push(if facts.missing.is_empty() {
        Finding::ok("rights", "its user has all rights that are needed")
    } else {
        Finding::problem(
            "rights",
            format!("missing: {}", facts.missing.join(", ")),
            "add them to the user by ACL SETUSER, as docs/ha.md says",
        )
    });
    findings.push(match facts.eviction.as_deref() {
        Some("noeviction") => Finding::ok("eviction", "maxmemory-policy noeviction"),
        Some(policy) => {
            let found = format!("maxmemory-policy {}", Escaped(policy.as_bytes()));
            Finding::new("eviction", State::Warning, found)
                .advised("a full store drops counts and marks without a sign: set maxmemory-policy noeviction")
        }
        None => Finding::new("eviction", State::Note, "maxmemory-policy cannot be read: the user lacks +info"),
    });
    findings
}

fn advice(error: &StoreError) -> &'static str {
    match error {
        StoreError::Dial(_) | StoreError::Late | StoreError::Lost | StoreError::Busy => {
            "check the URL and the firewall, and whether the store listens there with TLS (rediss://) or without"
        }
        StoreError::Tls(_) => "if its certificate is of an authority of your own, name that authority's file in `ca`",
        StoreError::Credentials => "check `fleet.user` and the content of `fleet.password_file`",
        StoreError::Rights => "give the user the rights that docs/ha.md lists",
        StoreError::Full => "raise maxmemory, or remove what else is in the store",
        StoreError::Replica => "name the primary in `fleet.store`",
        StoreError::PasswordNeeded
        | StoreError::Cluster
        | StoreError::TooOld
        | StoreError::Answer(_)
        | StoreError::Malformed => "",
    }
}
