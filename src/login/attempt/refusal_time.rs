//! When a refusal is sent: at a time that shows neither the reason nor whether the answer was known.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::LoginAttempt;
use crate::directory::Realm;
use crate::login::authn::{AuthDecision, DecidedBy};
use crate::outcome::{Refusal, Reply};

/// No refusal is held back for longer than this after its attempt began.
const LATEST_REFUSAL: Duration = Duration::from_secs(8);

impl LoginAttempt<'_> {
    /// The reply to the client, returned when the reply is due. `realm`: the directory that has decided; `delay`: the
    /// throttle's.
    pub(super) async fn reply(&self, refusal: &Refusal, realm: Option<Realm>, delay: Duration) -> Reply {
        let config = &self.core.config;
        let directory = realm.and_then(|realm| self.core.realms.get(realm));
        let reply = refusal.reply(directory.is_some_and(|realm| realm.settings.reveal_account_state));
        let is_guess = matches!(refusal, Refusal::Token(error) if error.is_guess());
        let is_failure = matches!(reply, Reply::AuthenticationFailed | Reply::AuthzidNotAllowed);
        if is_guess || is_failure || matches!(reply, Reply::Limit) || refusal.is_without_route() {
            // Indistinguishable replies must take the same time (CWE-208); a limit, or a login without a route,
            // must not invite an immediate retry.
            let mut taken = self.began.elapsed();
            if is_failure {
                // A known wrong password takes no lookup, but a right one that is refused does.
                taken = taken.max(delay + self.context.limits.lookups.longest(config.cache.negative_ttl_max));
            }
            sleep_until(self.began + next_refusal_tick(taken, config.limits.refusal_delay)).await;
        }
        reply
    }

    /// Records how long a lookup has taken that began at this time, unless it failed.
    pub(super) fn note_lookup(&self, began: Instant, decision: &AuthDecision) {
        let failed = matches!(decision.result, Err(Refusal::DirectoryUnavailable));
        if !failed && matches!(decision.by, DecidedBy::Directory | DecidedBy::Impersonation | DecidedBy::Cache) {
            self.context.limits.lookups.record(began.elapsed(), self.core.config.cache.negative_ttl_max);
        }
    }
}

/// When to reply to an attempt that has taken this long: at the next multiple of the delay. The throttle's
/// delay is part of the time taken, not added to it.
fn next_refusal_tick(taken: Duration, delay: Duration) -> Duration {
    let beats = u32::try_from(taken.as_nanos() / delay.as_nanos().max(1) + 1).unwrap_or(u32::MAX);
    delay.saturating_mul(beats).min(LATEST_REFUSAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_sent_at_the_refusal_tick() {
        let ms = Duration::from_millis;
        for (taken, answered) in
            [(0, 2_000), (1, 2_000), (1_999, 2_000), (2_000, 4_000), (5_001, 6_000), (7_999, 8_000)]
        {
            assert_eq!(next_refusal_tick(ms(taken), ms(2_000)), ms(answered), "{taken}");
        }
        assert_eq!(next_refusal_tick(ms(7_000), ms(5_000)), ms(8_000), "no later than this");
        assert_eq!(next_refusal_tick(ms(9_000), ms(2_000)), ms(8_000), "which is over: at once");
        assert_eq!(next_refusal_tick(ms(70), Duration::ZERO), Duration::ZERO);
    }
}
