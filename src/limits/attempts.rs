//! One attempt that requires a directory lookup: charged on arrival, delayed, and settled by its outcome.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::gate::BindGate;
use super::ledger::{AttemptOrigin, Ledger};
use super::rules::{Enforcement, Limited};
use super::store::{Charge, Delays, Guess, Subject, enforced};
use crate::base::credential::{Credential, CredentialSecret};
use crate::config::{FailedLogins, LimitRule, Mode, PasswordSpraying};
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
        let guess = guess(&ledger, origin, client, credential);
        Self::charge(ledger, enforcement, client, origin, guess).await
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
        let user_rule = FailedLogins { free_failures: u32::MAX, limit: None, ..ledger.rules.failed_logins_per_user };
        let guess = Guess { user_rule, ..guess(&ledger, origin, client, credential) };
        Self::charge(ledger, enforcement, client, origin, guess).await
    }

    async fn charge(
        ledger: Arc<Ledger>,
        enforcement: &'a Enforcement,
        client: IpAddr,
        mut origin: AttemptOrigin,
        guess: Guess,
    ) -> Result<Self, Limited> {
        if ledger.rules.is_exempt(client) {
            let gate = BindGate::exempt(ledger, origin, guess.subject, guess.password);
            return Ok(Self::new(enforcement, gate, Duration::ZERO, None));
        }
        let charge = match ledger.store.charge(&guess) {
            Ok(charge) => charge,
            Err(later) => later.await,
        };
        let (delay, by, receipts) = match charge {
            Charge::Repeated(delay) => (delay, None, None),
            Charge::Counted { known, at_limit, delays, receipts } => {
                origin.known |= known;
                if at_limit {
                    enforcement.limit_reached(LimitRule::FailedLoginsPerUser, guess.user_rule.mode, client)?;
                }
                let (delay, by) = wait(enforcement, &guess, &delays, client)?;
                (delay, by, receipts)
            }
        };
        let gate = BindGate::charged(ledger, origin, (guess.subject, guess.password), !delay.is_zero(), receipts);
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
            AttemptOutcome::Right(entry) => gate.succeed(&entry),
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

fn guess(ledger: &Ledger, origin: AttemptOrigin, client: IpAddr, credential: &Credential) -> Guess {
    let rules = &ledger.rules;
    // The name beside a token proves nothing.
    let is_token = matches!(credential.secret(), CredentialSecret::Token(_));
    let login = (!is_token).then(|| credential.charged().clone());
    // Only what may be a password tried under many names. A user that has logged in from here before does not count.
    let is_sprayable = matches!(credential.secret(), CredentialSecret::Password(_)) && !origin.known;
    Guess {
        account: ledger.account(origin),
        prefix: origin.prefix,
        password: credential.digest().narrow(),
        known: origin.known,
        user_rule: rules.failed_logins_per_user,
        prefix_rule: rules.failed_logins_per_prefix,
        name: is_sprayable.then_some((origin.name, rules.password_spraying)),
        subject: Subject { login, network: rules.prefix(client) },
        entry: origin.entry,
    }
}

/// Applies the rules to the delays of a guess: the longest one, and whose it is.
fn wait(
    enforcement: &Enforcement,
    guess: &Guess,
    delays: &Delays,
    client: IpAddr,
) -> Result<(Duration, Option<LimitRule>), Limited> {
    let Guess { user_rule, prefix_rule, .. } = guess;
    let mut longest = (Duration::ZERO, None);
    let mut apply = |rule, mode: Mode, most, delay: Duration| {
        if delay > most {
            enforcement.limit_reached(rule, mode, client)?;
        } else if !delay.is_zero() {
            enforcement.delayed(rule, mode, client);
        }
        let delay = enforced(mode, delay);
        if delay > longest.0 {
            longest = (delay, Some(rule));
        }
        Ok(())
    };
    apply(LimitRule::FailedLoginsPerUser, user_rule.mode, user_rule.max_delay, delays.user)?;
    apply(LimitRule::FailedLoginsPerPrefix, prefix_rule.mode, prefix_rule.max_delay, delays.prefix)?;
    if let Some((_, PasswordSpraying { mode, max_delay, .. })) = guess.name {
        apply(LimitRule::PasswordSpraying, mode, max_delay, delays.names)?;
    }
    Ok(longest)
}
