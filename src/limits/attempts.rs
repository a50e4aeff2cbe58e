//! One attempt that requires a directory lookup: charged on arrival, delayed, and settled by its outcome.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::gate::BindGate;
use super::ledger::{AttemptOrigin, Ledger};
use super::rules::{Enforcement, Limited};
use super::store::{Charge, Guess, enforced};
use crate::base::credential::{AttemptDigest, Credential};
use crate::config::{FailedLogins, LimitRule};
use crate::directory::EntryKey;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// The directory accepted the password of this entry.
    Right(EntryKey),
    /// The directory refused the password or found no entry, or it was not asked because the entry's delay had
    /// not passed.
    Wrong,
    /// It was not a wrong password, or the outcome is unknown.
    Inconclusive,
}

/// An attempt that may proceed after a delay. Its outcome settles its charges. Dropped without one before the
/// directory is asked, it is refunded; after that, it counts, because it may still be answered as wrong.
#[derive(Debug)]
#[must_use]
pub(crate) struct PendingAttempt<'a> {
    /// How long it has to wait.
    pub delay: Duration,
    /// The limit that requires the delay.
    pub by: Option<LimitRule>,
    enforcement: &'a Enforcement,
    gate: Option<Arc<BindGate>>,
    asked: bool,
}

impl<'a> PendingAttempt<'a> {
    /// Charges an attempt and computes its delay. Only a store outside of this process has to be awaited.
    ///
    /// # Errors
    /// It would have to wait longer than `max_delay`, or the user's limit is reached.
    pub(super) async fn begin(
        ledger: Arc<Ledger>,
        enforcement: &'a Enforcement,
        client: IpAddr,
        credential: &Credential,
    ) -> Result<Self, Limited> {
        let origin = ledger.origin(client, credential.charged());
        let rule = ledger.rules.failed_logins_per_user;
        Self::charge(ledger, enforcement, client, (origin, rule), credential.digest().narrow()).await
    }

    /// Charges a token to its prefix.
    ///
    /// # Errors
    /// It would have to wait longer than `max_delay`.
    pub(super) async fn begin_token(
        ledger: Arc<Ledger>,
        enforcement: &'a Enforcement,
        client: IpAddr,
        credential: &Credential,
    ) -> Result<Self, Limited> {
        let origin = ledger.token_origin(client);
        let rule = FailedLogins { free_failures: u32::MAX, limit: None, ..ledger.rules.failed_logins_per_user };
        Self::charge(ledger, enforcement, client, (origin, rule), credential.digest().narrow()).await
    }

    async fn charge(
        ledger: Arc<Ledger>,
        enforcement: &'a Enforcement,
        client: IpAddr,
        (origin, user_rule): (AttemptOrigin, FailedLogins),
        password: AttemptDigest,
    ) -> Result<Self, Limited> {
        if ledger.rules.is_exempt(client) {
            let gate = BindGate::exempt(ledger, origin, password);
            return Ok(Self::new(enforcement, gate, Duration::ZERO, None));
        }
        let guess = Guess { user_rule, ..guess(&ledger, origin, password) };
        let charge = match ledger.store.charge(&guess) {
            Ok(charge) => charge,
            Err(later) => later.await.unwrap_or_else(|error| {
                if let Some(suppressed) = enforcement.repeats.allow("counter store", "charge") {
                    warn!(%error, suppressed, "shared counters unavailable; counting in this process alone");
                }
                ledger.local.charge_now(&guess)
            }),
        };
        let (delay, by, receipts) = match charge {
            Charge::Repeated(delay) => (delay, None, None),
            Charge::Counted { at_limit, user, prefix, receipts } => {
                let rule = &guess.user_rule;
                if at_limit {
                    enforcement.limit_reached(LimitRule::FailedLoginsPerUser, rule.mode, client)?;
                }
                let user = wait(enforcement, LimitRule::FailedLoginsPerUser, rule, user, client)?;
                let prefix = wait(enforcement, LimitRule::FailedLoginsPerPrefix, &guess.prefix_rule, prefix, client)?;
                match user.max(prefix) {
                    Duration::ZERO => (Duration::ZERO, None, receipts),
                    delay if delay > user => (delay, Some(LimitRule::FailedLoginsPerPrefix), receipts),
                    delay => (delay, Some(LimitRule::FailedLoginsPerUser), receipts),
                }
            }
        };
        let gate = BindGate::charged(ledger, origin, password, !delay.is_zero(), receipts);
        Ok(Self::new(enforcement, gate, delay, by))
    }

    fn new(enforcement: &'a Enforcement, gate: BindGate, delay: Duration, by: Option<LimitRule>) -> Self {
        Self { delay, by, enforcement, gate: Some(Arc::new(gate)), asked: false }
    }

    /// The gate that the entry passes before the bind. The directory is asked from now on.
    pub(crate) fn begin_lookup(&mut self) -> Option<Arc<BindGate>> {
        self.asked = true;
        self.gate.clone()
    }

    /// Settles the charges.
    pub(crate) fn settle(mut self, outcome: AttemptOutcome) {
        let Some(gate) = self.gate.take() else { return };
        match outcome {
            AttemptOutcome::Right(entry) => {
                gate.refund();
                gate.ledger.succeeded(gate.origin, &entry);
            }
            AttemptOutcome::Wrong => gate.keep(),
            AttemptOutcome::Inconclusive => gate.refund(),
        }
    }

    /// Counts and logs that the entry's delay had not passed, if so.
    pub(crate) fn log_if_over_limit(&self, client: IpAddr) {
        if let Some(gate) = self.gate.as_ref().filter(|gate| gate.was_over_limit()) {
            let mode = gate.ledger.rules.failed_logins_per_user.mode;
            // The gate decides whether it is enforced.
            let _ = self.enforcement.limit_reached(LimitRule::FailedLoginsPerUser, mode, client);
        }
    }
}

impl Drop for PendingAttempt<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            if self.asked { gate.keep() } else { gate.refund() }
        }
    }
}

fn guess(ledger: &Ledger, origin: AttemptOrigin, password: AttemptDigest) -> Guess {
    Guess {
        account: ledger.account(origin),
        prefix: origin.prefix,
        password,
        known: origin.known,
        user_rule: ledger.rules.failed_logins_per_user,
        prefix_rule: ledger.rules.failed_logins_per_prefix,
    }
}

/// Applies a rule to a delay.
fn wait(
    enforcement: &Enforcement,
    rule: LimitRule,
    settings: &FailedLogins,
    delay: Duration,
    client: IpAddr,
) -> Result<Duration, Limited> {
    if delay > settings.max_delay {
        enforcement.limit_reached(rule, settings.mode, client)?;
    } else if !delay.is_zero() {
        enforcement.delayed(rule, settings.mode);
    }
    Ok(enforced(settings, delay))
}
