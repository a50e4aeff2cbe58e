//! What an inspection of the fleet's store means.

use std::collections::BTreeMap;

use super::certificate_advice::url_advice;
use super::{Finding, State, Subject};
use crate::config;
use crate::fleet::{InspectedStore, Member, StoreError, StoreFacts, StoreMemory};
use crate::telemetry::log::Escaped;
use crate::tls::HandshakeFailure;

/// What a fleet's user may do at the store, beside its keys and channels; docs/ha.md has the same.
const RIGHTS: &str = "-@all +eval +evalsha +script|load +ping +publish +subscribe +info +time +@string +@hash +@sortedset \
                      +@set +del +exists +pexpire +pexpireat +pttl";

/// A store, with what it answered.
pub(super) fn subject(config: &config::Config, settings: &config::Fleet, inspected: &InspectedStore) -> Subject {
    let findings = match &inspected.found {
        Ok(facts) => of_facts(config, settings, facts),
        Err(error) => {
            let found = Escaped(error.to_string().as_bytes()).to_string();
            vec![Finding::problem("connection", found, advice(settings, error))]
        }
    };
    Subject { kind: "store", name: inspected.store.clone(), protocol: None, address: None, findings }
}

fn of_facts(config: &config::Config, settings: &config::Fleet, facts: &StoreFacts) -> Vec<Finding> {
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
        Finding::problem("rights", format!("missing: {}", facts.missing.join(", ")), rights(settings))
    });
    findings.extend(of_memory(&facts.memory));
    if facts.missing.is_empty() {
        findings.extend(of_members(config, settings, facts));
    }
    findings
}

/// The command that gives the user of this fleet its rights.
fn rights(settings: &config::Fleet) -> String {
    let Some(user) = &settings.user else {
        return "give the fleet a user of its own (`fleet.user`), with the rights in docs/ha.md".to_owned();
    };
    let name = &settings.name;
    format!(
        "run at the store: ACL SETUSER {user} ~usher:{name}:* &usher:{name}:* {RIGHTS}   (or correct `fleet.name`, if the \
         rights are for another)"
    )
}

fn of_memory(memory: &StoreMemory) -> Vec<Finding> {
    let mut findings = vec![match memory.eviction.as_deref() {
        Some("noeviction") => Finding::ok("eviction", "maxmemory-policy noeviction"),
        Some(policy) => {
            let found = format!("maxmemory-policy {}", Escaped(policy.as_bytes()));
            Finding::new("eviction", State::Warning, found)
                .advised("a full store drops counts and marks without a sign: set maxmemory-policy noeviction")
        }
        None => Finding::new("eviction", State::Note, "maxmemory-policy cannot be read: the user lacks +info"),
    }];
    if memory.most > 0 && memory.used >= memory.most / 10 * 9 {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let found = format!("{} of {} MiB in use (maxmemory)", mib(memory.used), mib(memory.most));
        findings.push(
            Finding::new("memory", State::Warning, found)
                .advised("a full store takes no counts and marks: raise maxmemory, or remove what else is in it"),
        );
    }
    findings
}

/// Who lives in the store under this name, and whether this usher would understand them.
fn of_members(config: &config::Config, settings: &config::Fleet, facts: &StoreFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for member in &facts.members {
        *nodes.entry(&member.node).or_default() += 1;
    }
    let shown = |(node, processes): (&&str, &usize)| match processes {
        1 => (*node).to_owned(),
        more => format!("{node} ({more} processes)"),
    };
    if !nodes.is_empty() {
        let found = format!("living: {}", nodes.iter().map(shown).collect::<Vec<_>>().join(", "));
        findings.push(if nodes.values().any(|processes| *processes > 1) {
            Finding::new("members", State::Note, found).advised(
                "a node has two processes for a while after an upgrade; otherwise two machines have the same `fleet.node`",
            )
        } else {
            Finding::ok("members", found)
        });
    } else if facts.under_another_secret == 0 {
        findings.push(
            Finding::new("members", State::Note, format!("no usher lives in the fleet `{}`", settings.name)).advised(
                "so it is before the first one starts; otherwise compare `fleet.name` and `fleet.store` with the others",
            ),
        );
    }
    if facts.under_another_secret > 0 {
        findings.push(Finding::problem(
            "secret",
            format!("{} living members have another secret", facts.under_another_secret),
            "copy the file of `fleet.secret_file` from one of them; if it is another installation, choose another `fleet.name`",
        ));
    }
    // This shell may have fewer open files than the running usher, and so another limit in force.
    if config.warnings.iter().any(|warning| warning.key == "limits.connections") {
        return findings;
    }
    let digest = config.fleet_digest();
    let differs = |member: &&Member| &*member.version == env!("CARGO_PKG_VERSION") && member.config != digest;
    let mut others: Vec<_> = facts.members.iter().filter(differs).map(|member| &*member.node).collect();
    others.sort_unstable();
    others.dedup();
    if !others.is_empty() {
        let found = format!("another configuration is in force at {}", others.join(", "));
        findings
            .push(Finding::new("configuration", State::Note, found).advised(
                "reload each usher after a change; names, addresses and certificates of a machine may differ",
            ));
    }
    findings
}

fn advice(settings: &config::Fleet, error: &StoreError) -> String {
    let advice = match error {
        StoreError::Dial(_) | StoreError::Late | StoreError::Busy => {
            "check the URL and the firewall, and whether the store listens there with TLS (rediss://) or without"
        }
        // With TLS 1.3 a store refuses a client without a certificate after the handshake, and says nothing.
        StoreError::Lost => {
            "does the store listen there with TLS (rediss://) or without? With TLS, Redis asks clients for a certificate \
             unless its configuration has `tls-auth-clients no`"
        }
        StoreError::Tls(error) if error.failure == HandshakeFailure::Alert => {
            "with TLS, Redis asks clients for a certificate unless its configuration has `tls-auth-clients no`; its log \
             has the reason"
        }
        StoreError::Tls(error) => url_advice(error),
        StoreError::Credentials => "check `fleet.user` and the content of `fleet.password_file`",
        StoreError::Rights => return rights(settings),
        StoreError::Full => "raise maxmemory, or remove what else is in the store",
        StoreError::Replica => "name the primary in `fleet.store`",
        StoreError::Clock => "set the clock of the store's machine",
        StoreError::PasswordNeeded
        | StoreError::Cluster
        | StoreError::TooOld
        | StoreError::Answer(_)
        | StoreError::Malformed => "",
    };
    advice.to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::fleet::MemberId;

    #[test]
    fn members_show_a_foreign_secret_two_of_one_name_and_another_configuration() {
        let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing: {backends: [{name: one, imap: {address: '192.0.2.3:993', tls: implicit}}]}
fleet: {name: mail, node: mx1, store: 'rediss://store', user: usher, password_file: p, secret_file: s}
";
        let config = config::parse(Path::new("/c.yaml"), text).unwrap();
        let settings = config.fleet.as_ref().unwrap();
        let member = |id, node: &str, config| Member {
            id: MemberId(id),
            node: node.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            config,
            counts: std::collections::BTreeMap::new(),
        };
        let found = |members: Vec<Member>, under_another_secret| {
            let facts = StoreFacts {
                latency: Duration::ZERO,
                memory: StoreMemory { eviction: None, used: 95, most: 100 },
                missing: Vec::new(),
                members,
                under_another_secret,
            };
            of_facts(&config, settings, &facts)
        };
        let states =
            |findings: &[Finding]| findings.iter().map(|finding| (finding.check, finding.state)).collect::<Vec<_>>();
        let head =
            [("latency", State::Ok), ("rights", State::Ok), ("eviction", State::Note), ("memory", State::Warning)];
        let with = |more: &[(&'static str, State)]| [&head, more].concat();
        assert_eq!(states(&found(Vec::new(), 0)), with(&[("members", State::Note)]));
        assert_eq!(states(&found(Vec::new(), 2)), with(&[("secret", State::Problem)]));
        let same = config.fleet_digest();
        let two = found(vec![member(1, "mx1", same), member(2, "mx2", same)], 0);
        assert_eq!(states(&two), with(&[("members", State::Ok)]));
        assert_eq!(two[4].found, "living: mx1, mx2");
        let three = found(vec![member(1, "mx1", same), member(2, "mx2", 7), member(3, "mx2", 7)], 0);
        assert_eq!(states(&three), with(&[("members", State::Note), ("configuration", State::Note)]));
        assert_eq!(three[4].found, "living: mx1, mx2 (2 processes)");
        assert!(three[5].found.ends_with("at mx2"), "{three:#?}");
        let command = "ACL SETUSER usher ~usher:mail:* &usher:mail:* -@all +eval";
        assert!(rights(settings).contains(command), "{}", rights(settings));
    }

    #[test]
    fn rights_are_those_of_the_documentation() {
        let page = include_str!("../../docs/ha.md");
        let documented = format!("~usher:mail:* &usher:mail:* {RIGHTS}");
        assert_eq!(page.matches(&documented).count(), 2, "the command and the line of a file of users");
    }
}
