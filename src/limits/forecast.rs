//! What the limits would do with a login that begins now. Charges nothing, counts nothing and logs nothing.
//!
//! Of a store that several processes share, what this process last heard counts: the store is not asked.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::Throttle;
use super::rules::Rules;
use super::store::enforced;
use crate::base::credential::Login;
use crate::config::{Limit, LimitRule, Mode};
use crate::directory::EntryKey;

/// What a limit would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forecast {
    /// It waits before the directory is asked.
    Waits(LimitRule, Duration),
    /// It is refused, as beyond a limit.
    Refused(LimitRule),
    /// The entry has too many wrong passwords, under other spellings: the password is not sent to the directory, and
    /// reported as wrong.
    Withheld,
}

impl Forecast {
    /// A refusal is longer than any delay.
    const fn length(&self) -> Duration {
        match self {
            Self::Waits(_, delay) => *delay,
            Self::Refused(_) | Self::Withheld => Duration::MAX,
        }
    }
}

impl Throttle {
    /// What an attempt of this user with a password that is not cached would meet, if anything. Without a client, that
    /// from a network without an earlier login of the user.
    pub(crate) fn forecast_attempt(&self, client: Option<IpAddr>, login: &Login, entry: &EntryKey) -> Option<Forecast> {
        let ledger = self.ledger.load();
        let Rules { failed_logins_per_user: user, failed_logins_per_prefix: prefix, password_spraying: names, .. } =
            &ledger.rules;
        if client.is_some_and(|client| ledger.rules.is_exempt(client)) {
            return None;
        }
        let (now, store) = (Instant::now(), &ledger.local);
        let (of_name, of_entry) = (ledger.keys.name(login), ledger.keys.entry(entry));
        let origin = client.map(|client| ledger.origin(client, login));
        if let Some(origin) = origin.filter(|origin| origin.known) {
            let delay = store.standing(ledger.account(origin), now, false, user).delay;
            return of_delay(LimitRule::FailedLoginsPerUser, user.mode, user.max_delay, delay);
        }
        let spelling = store.standing(of_name, now, false, user);
        if user.mode == Mode::Enforce && spelling.is_at_limit {
            return Some(Forecast::Refused(LimitRule::FailedLoginsPerUser));
        }
        let of_user = of_delay(LimitRule::FailedLoginsPerUser, user.mode, user.max_delay, spelling.delay);
        let of_network = origin.map(|origin| {
            let key = origin.prefix;
            let delay = store.prefix_delay(key, now, prefix);
            let by_names = store.names_delay(key, of_name, now, names);
            [
                of_delay(LimitRule::FailedLoginsPerPrefix, prefix.mode, prefix.max_delay, delay),
                of_delay(LimitRule::PasswordSpraying, names.mode, names.max_delay, by_names),
            ]
        });
        let all = [of_user].into_iter().chain(of_network.into_iter().flatten()).flatten();
        let longest = all.reduce(|one, other| if other.length() > one.length() { other } else { one });
        if matches!(longest, Some(Forecast::Refused(_))) {
            return longest;
        }
        let wait = longest.as_ref().map_or(Duration::ZERO, Forecast::length);
        let is_over = || store.standing(of_entry, now + wait, !wait.is_zero(), user).is_over;
        // Another spelling of a user that is known here.
        let is_known = origin.is_some_and(|origin| ledger.users.is_known_prefix(of_entry, origin.prefix));
        if user.mode == Mode::Enforce && !is_known && is_over() { Some(Forecast::Withheld) } else { longest }
    }

    /// Whether the user has logged in from this client's network before.
    pub(crate) fn is_known_network(&self, client: IpAddr, entry: &EntryKey) -> bool {
        let ledger = self.ledger.load();
        ledger.users.is_known_prefix(ledger.keys.entry(entry), ledger.prefix(client))
    }

    /// Whether the user has logged in from any network that is still known.
    pub(crate) fn has_known_network(&self, entry: &EntryKey) -> bool {
        let ledger = self.ledger.load();
        ledger.users.has_known_prefix(ledger.keys.entry(entry))
    }

    /// The rule that would refuse one more session of this user, if one would.
    pub(crate) fn forecast_session(&self, client: Option<IpAddr>, entry: &EntryKey) -> Option<LimitRule> {
        let ledger = self.ledger.load();
        let (rules, user) = (&ledger.rules, ledger.keys.entry(entry));
        let refuses = |rule: Limit, count: u32| rule.mode == Mode::Enforce && count >= rule.limit;
        let elsewhere = self.shared_sessions.get().map_or(0, |shared| shared.elsewhere(user));
        if refuses(rules.sessions_per_user, self.sessions.count(user).saturating_add(elsewhere)) {
            return Some(LimitRule::SessionsPerUser);
        }
        let here = client
            .filter(|client| !rules.is_exempt(*client))
            .map(|client| self.sessions_by_prefix.count(ledger.keys.user_at(user, ledger.prefix(client))));
        here.filter(|count| refuses(rules.sessions_per_user_and_prefix, *count))
            .map(|_| LimitRule::SessionsPerUserAndPrefix)
    }
}

fn of_delay(rule: LimitRule, mode: Mode, most: Duration, delay: Duration) -> Option<Forecast> {
    let delay = enforced(mode, delay);
    (!delay.is_zero()).then(|| if delay > most { Forecast::Refused(rule) } else { Forecast::Waits(rule, delay) })
}
