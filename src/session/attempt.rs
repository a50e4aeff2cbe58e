//! One attempt, wherever it came in: who is it, and where does he belong?
//!
//! What a session and nginx's `auth_http` have in common, so that a guess costs the same and a user
//! goes to the same place at either door. It knows no socket: who asks answers the client and logs in.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::authn::{AuthDecision, DecidedBy, LookupMode, Proven};
use crate::backend::Backend;
use crate::clock::wait_until;
use crate::directory::{Entry, Login};
use crate::known::Reconciled;
use crate::outcome::Refusal;
use crate::proto::Protocol;
use crate::report::LoginEvent;
use crate::route;
use crate::secret::Secret;
use crate::snapshot::{Shared, Snapshot};
use crate::throttle::{Limited, SessionPermit};

/// Every attempt is answered within this time, whatever the directory and the backend do: `check`
/// sees to it that their deadlines fit in.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// No refusal is held back for longer than this after its attempt began.
const LATEST_REFUSAL: Duration = Duration::from_secs(8);
/// How often the directory is asked about a user that it holds, if it does not tell.
const HOLD_POLL: Duration = Duration::from_secs(1);

/// What an attempt is decided with.
#[derive(Debug, Clone, Copy)]
pub struct LoginAttempt<'a> {
    /// What all of usher shares.
    pub shared: &'a Shared,
    /// What the config in force means.
    pub snapshot: &'a Snapshot,
    /// The client's address.
    pub client: IpAddr,
    /// What the client speaks.
    pub protocol: &'static Protocol,
    /// When the attempt began.
    pub began: Instant,
}

/// Somebody who may be logged in, and where.
#[derive(Debug)]
pub struct RoutedLogin<'a> {
    /// Who.
    pub proven: Proven,
    /// Who decided.
    pub by: DecidedBy,
    /// His place among the sessions, from before the backend is asked to the end.
    pub place: SessionPermit,
    /// Where.
    pub target: Target<'a>,
}

/// Where somebody is to be logged in.
#[derive(Debug)]
pub struct Target<'a> {
    /// The backend.
    pub backend: &'a Backend,
    /// The name there.
    pub login: Login,
    by_default: bool,
}

impl Target<'_> {
    /// Whether it is the same name at the same backend.
    #[must_use]
    pub fn is(&self, other: &Target<'_>) -> bool {
        self.backend.name == other.backend.name && self.login == other.login
    }
}

impl<'a> LoginAttempt<'a> {
    /// Lets an attempt take its time and no more. A defect behind it costs this attempt alone. The attempt
    /// is pinned where it is: a future by value would be held twice.
    ///
    /// # Errors
    /// Its own refusal, [`Refusal::Deadline`] or [`Refusal::Internal`].
    pub async fn bounded<T>(&self, admit: Pin<&mut impl Future<Output = Result<T, Refusal>>>) -> Result<T, Refusal> {
        match timeout_at(self.began + ATTEMPT_TIMEOUT, AssertUnwindSafe(admit).catch_unwind()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Refusal::Internal),
            Err(_) => Err(Refusal::Deadline),
        }
    }

    /// What the client may hear of a refusal, at the time when it may.
    pub async fn reply(&self, refusal: Refusal) -> Refusal {
        let config = &self.snapshot.config;
        let refusal = refusal.disclosed(config.directory.reveal_account_state).clone();
        if is_about_credentials(&refusal) || refusal == Refusal::Limit || refusal.is_without_route() {
            // What must sound alike must take alike (CWE-208); and a limit, or a login that leads nowhere,
            // must not invite the next attempt at once.
            sleep_until(self.began + next_refusal_tick(self.began.elapsed(), config.limits.refusal_delay)).await;
        }
        refusal
    }

    /// The first decision of an attempt. A right password that is known costs nothing; a guess waits for
    /// its turn.
    ///
    /// # Errors
    /// The throttle's refusal: the directory was not asked.
    pub async fn decide(
        &self,
        login: &Login,
        password: &Secret,
        report: &mut LoginEvent,
    ) -> Result<AuthDecision, Refusal> {
        let settings = &self.snapshot.config.throttle;
        let (throttle, client) = (&self.shared.throttle, self.client);
        let authn = &self.snapshot.authn;
        let recalled = match authn.recall(login, password) {
            Some(decision) if decision.result.is_ok() || decision.by == DecidedBy::Usher => {
                if let Ok(proven) = &decision.result {
                    throttle.cached_success(settings, client, login.as_str(), &proven.identity.entry().dn);
                }
                return Ok(decision);
            }
            recalled => recalled,
        };
        // A password that is known to be wrong takes its turn like one of a name that nobody has, where it
        // is known of nothing: the same one again waits for nothing at either.
        let turn = throttle.attempt(settings, client, login.as_str(), password);
        let mut turn = turn.map_err(|limited| report.limited(limited))?;
        (report.limited_by, report.delay) = (turn.by, turn.delay);
        wait_until(Instant::now() + turn.delay).await;
        let decision = match recalled {
            Some(known) => known,
            None => authn.attempt(login, password, turn.begin_lookup()).await,
        };
        turn.log_if_over_limit(client);
        if decision.withheld {
            report.withhold();
        }
        match (&decision.result, decision.by) {
            (Ok(proven), _) => turn.right(&proven.identity.entry().dn),
            // A state that is told as a wrong password costs as much, or the next guess would show
            // by its time that this one was right.
            (
                Err(Refusal::WrongPassword | Refusal::UnknownUser | Refusal::Account { .. }),
                DecidedBy::Directory | DecidedBy::Negative | DecidedBy::Usher,
            ) => turn.wrong(),
            // Nobody could tell: what was charged is given back.
            (Err(_), _) => turn.inconclusive(),
        }
        Ok(decision)
    }

    /// What follows from a decision: waits while the user is held, takes a place, finds the backend.
    ///
    /// # Errors
    /// Why he is not to be logged in.
    pub async fn find(
        &self,
        login: &Login,
        password: &Secret,
        mut decision: AuthDecision,
        report: &mut LoginEvent,
    ) -> Result<RoutedLogin<'a>, Refusal> {
        loop {
            report.decided(&decision, &self.shared.metrics);
            let proven = decision.result?;
            if proven.identity.entry().version.held {
                self.wait_for_release(login, &proven).await?;
                // Moved meanwhile, most likely.
                decision = self.snapshot.authn.decide(login, password, LookupMode::Directory).await;
                continue;
            }
            // Found first: a login that leads nowhere takes no place and no part of the rate.
            let target = self.target(proven.identity.entry(), login)?;
            let place = self.place(&proven).map_err(|limited| report.limited(limited))?;
            report.routed(&target.backend.name, &target.login, target.by_default, &self.shared.metrics);
            if self.shared.steer.drained(&target.backend.name).is_some() {
                self.count_backend(target.backend, "draining");
                return Err(Refusal::BackendDraining);
            }
            return Ok(RoutedLogin { proven, by: decision.by, place, target });
        }
    }

    /// Where an entry leads, and under which name.
    ///
    /// # Errors
    /// Why nowhere.
    pub fn target(&self, entry: &Entry, typed: &Login) -> Result<Target<'a>, Refusal> {
        let config = &self.snapshot.config;
        route::allowed(&config.directory.allow, entry, self.protocol)?;
        let route = route::route(&config.routing, entry)?;
        let login = route::backend_login(config.directory.login_attribute.as_deref(), entry, typed)?;
        let backend = self.snapshot.backends.get(route.index).ok_or(Refusal::Internal)?;
        Ok(Target { backend, login, by_default: route.by_default })
    }

    /// Counts how a backend was found.
    pub fn count_backend(&self, backend: &Backend, result: &str) {
        self.shared.metrics.backend_logins.with_label_values(&[&*backend.name, result]).inc();
    }

    /// Waits until the directory holds this user no more: told by the watch, or asked for. Measured from
    /// the beginning of the attempt, of which the backend needs some as well.
    async fn wait_for_release(&self, login: &Login, proven: &Proven) -> Result<(), Refusal> {
        let (authn, held) = (&self.snapshot.authn, proven.identity.entry());
        let until = self.began + self.snapshot.config.directory.watch.hold_timeout;
        let mut look = Instant::now() + HOLD_POLL;
        loop {
            let changed = authn.entries().changed();
            match authn.entries().reconcile(held) {
                Reconciled::Replaced(newer) if !newer.version.held => return Ok(()),
                Reconciled::Gone => return Ok(()),
                Reconciled::Replaced(_) | Reconciled::AsReported => {}
            }
            tokio::select! {
                () = sleep_until(until) => return Err(Refusal::Hold),
                () = changed => {}
                () = sleep_until(look) => {
                    if timeout_at(until, authn.is_held(login)).await == Ok(Some(false)) {
                        return Ok(());
                    }
                    look = Instant::now() + HOLD_POLL;
                }
            }
        }
    }

    /// A place among the sessions of this user.
    fn place(&self, proven: &Proven) -> Result<SessionPermit, Limited> {
        let settings = &self.snapshot.config.throttle;
        self.shared.throttle.session(settings, self.client, &proven.identity.entry().dn)
    }
}

/// When an attempt is answered that has taken so long: at the next whole multiple of the delay. What
/// the throttle made it wait is in what it has taken, and not added to it.
pub(super) fn next_refusal_tick(taken: Duration, delay: Duration) -> Duration {
    let beats = u32::try_from(taken.as_nanos() / delay.as_nanos().max(1) + 1).unwrap_or(u32::MAX);
    delay.saturating_mul(beats).min(LATEST_REFUSAL)
}

/// Whether the answer would tell, by its time, if the name exists.
fn is_about_credentials(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::WrongPassword
            | Refusal::UnknownUser
            | Refusal::EmptyPassword
            | Refusal::InvalidUsername
            | Refusal::InvalidPassword
    )
}
