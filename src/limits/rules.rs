//! The rules of a configuration, compiled at start and at each reload, and what happens when a limit is reached.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ipnet::IpNet;
use thiserror::Error;
use tracing::warn;

use crate::base::net;
use crate::config::{self, FailedLogins, Limit, LimitRule, Mode, PasswordSpraying};
use crate::telemetry::client_address::Client;
use crate::telemetry::held_back::{Beginning, HeldBackUsers, Reason, Who};
use crate::telemetry::labels::ThrottleEffect;
use crate::telemetry::log::Repeats;
use crate::telemetry::metrics::Metrics;

/// A limit refuses the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("throttle.{}: limit reached", .0.label())]
pub(crate) struct Limited(pub LimitRule);

/// The rules in force.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    ipv4_prefix: u8,
    ipv6_prefix: u8,
    /// Without overlaps.
    exempt: Vec<IpNet>,
    pub(super) memory: config::Memory,
    pub(super) failed_logins_per_prefix: FailedLogins,
    pub(super) failed_logins_per_user: FailedLogins,
    pub(super) password_spraying: PasswordSpraying,
    pub(super) connections_per_prefix: Limit,
    pub(super) handshakes: Limit,
    pub(super) handshakes_per_prefix: Limit,
    pub(super) sessions_per_user: Limit,
    pub(super) sessions_per_user_and_prefix: Limit,
    pub(super) logins_per_second: Limit,
}

impl Rules {
    pub(super) fn compile(settings: &config::Throttle) -> Self {
        Self {
            ipv4_prefix: settings.ipv4_prefix,
            ipv6_prefix: settings.ipv6_prefix,
            exempt: IpNet::aggregate(&settings.exempt),
            memory: settings.memory.clone(),
            failed_logins_per_prefix: settings.failed_logins_per_prefix,
            failed_logins_per_user: settings.failed_logins_per_user,
            password_spraying: settings.password_spraying,
            connections_per_prefix: settings.connections_per_prefix,
            handshakes: settings.handshakes,
            handshakes_per_prefix: settings.handshakes_per_prefix,
            sessions_per_user: settings.sessions_per_user,
            sessions_per_user_and_prefix: settings.sessions_per_user_and_prefix,
            logins_per_second: settings.logins_per_second,
        }
    }

    /// The prefix of a client.
    pub(super) fn prefix(&self, client: IpAddr) -> IpNet {
        net::network_of(client, if client.is_ipv4() { self.ipv4_prefix } else { self.ipv6_prefix })
    }

    /// Whether no rule about prefixes or wrong passwords applies to a client.
    pub(super) fn is_exempt(&self, client: IpAddr) -> bool {
        self.exempt.iter().any(|network| network.contains(&client))
    }
}

/// The limit, enforced whatever its mode if `must`.
pub(super) const fn acting(rule: Limit, must: bool) -> Limit {
    if must { Limit { mode: Mode::Enforce, ..rule } } else { rule }
}

/// Counts and logs what the rules do.
#[derive(Debug)]
pub(super) struct Enforcement {
    pub(super) metrics: Arc<Metrics>,
    pub(super) repeats: Repeats,
    pub(super) held_back: Arc<HeldBackUsers>,
    /// The prefix lengths of IPv4 and IPv6 in force.
    pub(super) prefixes: [AtomicU8; 2],
}

impl Enforcement {
    pub(super) fn within(&self, rule: LimitRule, limit: Limit, count: u32, client: IpAddr) -> Result<(), Limited> {
        if count > limit.limit { self.limit_reached(rule, limit.mode, client) } else { Ok(()) }
    }

    /// A limit is reached: counted and logged in either mode, and refused if it is enforced.
    pub(super) fn limit_reached(&self, rule: LimitRule, mode: Mode, client: IpAddr) -> Result<(), Limited> {
        self.metrics.throttled(rule, ThrottleEffect::Refused, mode).inc();
        let (word, mode_word) = (rule.label(), mode.label());
        if let Some(suppressed) = self.repeats.allow(word, mode_word) {
            warn!(rule = word, mode = mode_word, client = %Client::Address(client), suppressed, "login rate limit reached");
        }
        match mode {
            Mode::Enforce => {
                self.hold_back(rule, client);
                Err(Limited(rule))
            }
            Mode::DryRun => Ok(()),
        }
    }

    /// Applies other prefix lengths.
    pub(super) fn count_by(&self, rules: &Rules) {
        let lengths = [rules.ipv4_prefix, rules.ipv6_prefix];
        self.prefixes.iter().zip(lengths).for_each(|(now, length)| now.store(length, Ordering::Relaxed));
    }

    /// Lists the network whose attempts a limit holds back; users are listed by their attempts.
    fn hold_back(&self, rule: LimitRule, client: IpAddr) {
        if rule.is_of_prefix() {
            let [ipv4, ipv6] = &self.prefixes;
            let length = if client.is_ipv4() { ipv4 } else { ipv6 }.load(Ordering::Relaxed);
            let network = Who::Network(net::network_of(client, length).into());
            self.held_back.begin(Reason::Limit(rule), network, Beginning::of_limit());
        }
    }

    /// An attempt waits, or would wait. Of password spraying the network is logged in either mode, because no other
    /// line shows that its failures belong together.
    pub(super) fn delayed(&self, rule: LimitRule, mode: Mode, client: IpAddr) {
        self.metrics.throttled(rule, ThrottleEffect::Delayed, mode).inc();
        if mode == Mode::Enforce {
            self.hold_back(rule, client);
        }
        if rule == LimitRule::PasswordSpraying
            && let Some(suppressed) = self.repeats.allow("many names refused", &client.to_string())
        {
            let mode = mode.label();
            warn!(rule = rule.label(), mode, client = %Client::Address(client), suppressed, "many names of one network refused within a minute");
        }
    }
}
