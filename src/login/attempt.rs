//! One login attempt for every frontend, top to bottom: authenticate, hold, allow, route, limits, then what the
//! frontend does at the backend, the event and the time of the reply.
//!
//! Shared by sessions and nginx's `auth_http`, so that guesses cost the same and users are routed alike in
//! both. It uses no socket: the frontend replies to the client and goes to the backend.

mod acting;
mod held_back;
mod refusal_time;
mod token;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::backend::{Backend, LoginProof};
use crate::base::clock::wait_until;
use crate::base::credential::{Credential, CredentialKind, CredentialSecret, Login};
use crate::limits::{AttemptOutcome, ConnectionPermit, Limited, PendingAttempt, SessionPermit};
use crate::login::acting::Acting;
use crate::login::authn::{AuthDecision, DecidedBy, Proven};
use crate::login::core::{LoginContext, LoginCore};
use crate::login::event::{ConnectionInfo, LoginEvent};
use crate::outcome::{ActingFault, Proof, Refusal, Reply};
use crate::proto::{ClientId, Protocol};
use crate::routing;
use crate::telemetry::labels::BackendResult;
use crate::tracking::Reconciled;

/// Every attempt is answered within this time, whatever the directory and the backend do: `check` verifies that
/// their deadlines fit.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the directory is polled about a held user, without change notification.
const HOLD_POLL: Duration = Duration::from_secs(1);
/// How often a login is decided again because its entry changes meanwhile: each costs a bind.
const MAX_REDECISIONS: u32 = 3;

/// What a client sent, as its frontend has understood it.
#[derive(Debug)]
pub(crate) struct LoginRequest<'a> {
    /// The client and its connection.
    pub info: &'a ConnectionInfo,
    /// What the client says about itself, for the event.
    pub client_id: Option<&'a ClientId>,
    /// The client's protocol.
    pub protocol: &'static Protocol,
    /// A connection that counts until the decision, if it has no other count.
    pub connection: Option<ConnectionPermit>,
    /// The credential, or why it is not used.
    pub credential: Result<Credential, Refusal>,
    /// The mailbox that its user wants to act for.
    pub acting: Option<Acting>,
    /// The event, with what the frontend knows.
    pub event: LoginEvent,
}

/// A frontend: what it does with a login that has a route.
pub(crate) trait Frontend: Sync {
    /// What an accepted login gives.
    type Accepted: Send;

    /// Completes the login at its backend.
    ///
    /// # Errors
    /// Why the login fails.
    fn complete(
        &self,
        attempt: &LoginAttempt<'_>,
        login: AttemptedLogin<'_>,
        routed: RoutedLogin,
        event: &mut LoginEvent,
    ) -> impl Future<Output = Result<Completion<Self::Accepted>, Refusal>> + Send;
}

/// How a login with a route ended.
#[derive(Debug)]
pub(crate) enum Completion<T> {
    /// The client gets OK.
    Accepted(T),
    /// The entry has changed meanwhile: the directory is asked again.
    Outdated,
    /// The directory was asked again already.
    Redecided(Box<AuthDecision>),
    /// A reload has replaced the cache: the login is decided again by the core in force.
    Reloaded,
}

/// A refused login.
#[derive(Debug)]
pub(crate) struct RefusedLogin {
    /// The true reason.
    pub refusal: Refusal,
    /// What the client may hear of it.
    pub reply: Reply,
}

/// Decides about one login, and writes one `login` event with the true reason. Returns when the reply is due.
///
/// # Errors
/// The refusal and its reply.
pub(crate) async fn attempt<F: Frontend>(
    context: LoginContext<'_>,
    request: &mut LoginRequest<'_>,
    frontend: &F,
) -> Result<F::Accepted, RefusedLogin> {
    // By reference: moved, it would be stored a second time in the session's future.
    let LoginRequest { info, client_id, protocol, connection, credential, acting, event } = request;
    let began = Instant::now();
    loop {
        // The core in force now, not the one at accept: only the current one receives changes.
        let core = context.in_force.core();
        let attempt = LoginAttempt { context, core: &core, client: info.client, protocol, began };
        let outcome = {
            let run = pin!(attempt.run(credential.as_ref(), acting.as_ref(), frontend, event));
            attempt.bounded(run).await
        };
        let outcome = match outcome {
            Ok(Some(accepted)) => Ok(accepted),
            Ok(None) => continue,
            Err(refusal) => Err(refusal),
        };
        *connection = None;
        event.emit(info, *client_id, outcome.as_ref().err(), context.metrics);
        held_back::note(context, event, credential.as_ref().ok(), outcome.as_ref().err());
        return match outcome {
            Ok(accepted) => {
                context.history.note(event, info, *client_id, None);
                Ok(accepted)
            }
            Err(refusal) => {
                let is_token =
                    credential.as_ref().is_ok_and(|credential| credential.secret().kind() == CredentialKind::Token);
                let reply = attempt.reply(&refusal, event.realm, event.delay).await;
                let reply = if is_token { reply.for_token() } else { reply };
                context.history.note(event, info, *client_id, Some((&refusal, &reply)));
                Err(RefusedLogin { refusal, reply })
            }
        };
    }
}

/// An attempt that is being decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoginAttempt<'a> {
    /// What the process lends to a login.
    pub context: LoginContext<'a>,
    /// The core that decides.
    pub core: &'a LoginCore,
    /// The client's address.
    pub client: IpAddr,
    /// The client's protocol.
    pub protocol: &'static Protocol,
    /// When the attempt began.
    began: Instant,
}

/// Whose secret a login has, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttemptedLogin<'a> {
    /// What proves the user.
    pub credential: &'a Credential,
    /// The mailbox that the user wants to act for.
    pub acting: Option<&'a Acting>,
}

impl<'a> AttemptedLogin<'a> {
    /// The name of the mailbox.
    #[must_use]
    pub(crate) fn name(self) -> &'a Login {
        self.acting.map_or(self.credential.login(), |acting| &acting.target)
    }

    /// What a login at the backend is based on.
    #[must_use]
    pub(crate) fn proof(self, proven: &Proven) -> LoginProof<'a> {
        match proven.identity.acting() {
            Some(_) => LoginProof::Acting,
            None => LoginProof::Own(self.credential),
        }
    }
}

/// An authenticated user with a route.
#[derive(Debug)]
pub(crate) struct RoutedLogin {
    /// The authenticated user.
    pub proven: Proven,
    /// What decided: cache or directory.
    pub by: DecidedBy,
    /// The user's session slot, taken before the backend login and kept to the end.
    pub place: SessionPermit,
    /// The route.
    pub target: Target,
}

/// A backend and the name to log in with.
#[derive(Debug)]
pub(crate) struct Target {
    /// The backend.
    pub backend: Arc<Backend>,
    /// The name at the backend.
    pub login: Login,
    by_default: bool,
}

impl Target {
    /// Whether it is the same name at the same backend.
    #[must_use]
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.backend.name == other.backend.name && self.login == other.login
    }
}

impl LoginAttempt<'_> {
    /// The whole attempt. `None`: a reload meanwhile requires another decision.
    async fn run<F: Frontend>(
        &self,
        credential: Result<&Credential, &Refusal>,
        acting: Option<&Acting>,
        frontend: &F,
        event: &mut LoginEvent,
    ) -> Result<Option<F::Accepted>, Refusal> {
        let credential = credential.map_err(Clone::clone)?;
        let whole = acting.and_then(|acting| Some(credential.named(acting.whole.clone()?)));
        let mut login = AttemptedLogin { credential, acting };
        // Tokens and certificates say themselves which user acts, if another one does.
        let names = acting.filter(|_| credential.secret().kind() == CredentialKind::Password);
        event.acting = names.map(|acting| (credential.login().clone(), acting.target.clone()));
        let mut decision = match (self.authenticate(login, whole.as_ref(), event).await?, &whole) {
            (Some(decision), _) => decision,
            (None, Some(whole)) => {
                (login, event.acting) = (AttemptedLogin { credential: whole, acting: None }, None);
                self.authenticate(login, None, event).await?.ok_or(Refusal::Internal)?
            }
            (None, None) => return Err(Refusal::Internal),
        };
        let mut redecisions = 0;
        loop {
            let routed = self.find(login, decision, event).await?;
            decision = match frontend.complete(self, login, routed, event).await? {
                Completion::Accepted(accepted) => return Ok(Some(accepted)),
                Completion::Reloaded => return Ok(None),
                Completion::Redecided(decision) => *decision,
                Completion::Outdated if redecisions == MAX_REDECISIONS => return Err(Refusal::DirectoryUnavailable),
                Completion::Outdated => {
                    redecisions += 1;
                    self.decide(login).await
                }
            };
        }
    }

    /// Bounds an attempt by its deadline. A panic fails only this attempt. The future is pinned in place: by
    /// value it would be stored twice.
    ///
    /// # Errors
    /// Its own refusal, [`Refusal::Deadline`] or [`Refusal::Internal`].
    async fn bounded<T>(&self, admit: Pin<&mut impl Future<Output = Result<T, Refusal>>>) -> Result<T, Refusal> {
        match timeout_at(self.began + ATTEMPT_TIMEOUT, AssertUnwindSafe(admit).catch_unwind()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Refusal::Internal),
            Err(_) => Err(Refusal::Deadline),
        }
    }

    /// The first decision of an attempt. A cached correct password costs nothing; any other attempt is subject
    /// to the throttle, and so is one that is refused although the password is correct. `None`: `whole`, the name as
    /// typed, is a name of its own and not those of a mailbox and of the user who acts for it.
    ///
    /// # Errors
    /// The throttle's refusal, and an outage of the directory before the user was decided about.
    async fn authenticate(
        &self,
        login: AttemptedLogin<'_>,
        whole: Option<&Credential>,
        event: &mut LoginEvent,
    ) -> Result<Option<AuthDecision>, Refusal> {
        let AttemptedLogin { credential, acting } = login;
        match (credential.secret(), acting) {
            (CredentialSecret::Token(bearer), _) => {
                return Box::pin(self.authenticate_by_token(login, bearer, event)).await.map(Some);
            }
            (CredentialSecret::ClientCertificate(_), Some(acting)) => {
                return Box::pin(self.authenticate_by_certificate(credential, acting, event)).await.map(Some);
            }
            (CredentialSecret::Password(_) | CredentialSecret::ClientCertificate(_), _) => {}
        }
        let (throttle, client) = (self.context.limits, self.client);
        let realms = &self.core.realms;
        if whole.and_then(|whole| realms.recall(whole, client)).is_some_and(|decision| decision.result.is_ok()) {
            return Ok(None);
        }
        let mut whole = whole;
        let recalled = match realms.recall(credential, client) {
            Some(decision) if decision.by == DecidedBy::Usher => return Ok(Some(decision)),
            Some(decision) if decision.result.is_ok() => {
                if let Some(whole) = whole.take()
                    && Box::pin(self.is_name(whole.login())).await?
                {
                    return Ok(None);
                }
                let asked = Instant::now();
                let decision = self.act(acting, credential.login(), decision).await;
                match &decision.result {
                    Ok(proven) => {
                        if credential.is_guessable() {
                            let key = proven.identity.proven_entry().key();
                            throttle.cached_success(client, credential.login(), &key);
                        }
                        return Ok(Some(decision));
                    }
                    // Free of charge, it would show that the password is correct.
                    Err(Refusal::ActingNotAllowed(_)) => {
                        self.note_lookup(asked, &decision);
                        Some(decision)
                    }
                    Err(_) => return Ok(Some(decision)),
                }
            }
            recalled => recalled,
        };
        // A cached wrong password is charged like one of an unknown name; a repetition of either is free.
        let mut turn = self.turn(credential, event).await?;
        if let Some(whole) = whole
            && Box::pin(self.is_name(whole.login())).await?
        {
            turn.settle(AttemptOutcome::Inconclusive);
            return Ok(None);
        }
        let decision = match recalled {
            Some(known) => known,
            None => {
                let (gate, asked) = (turn.begin_lookup(), Instant::now());
                let decision = realms.attempt(credential, client, gate).await;
                let decision = self.act(acting, credential.login(), decision).await;
                self.note_lookup(asked, &decision);
                decision
            }
        };
        turn.log_if_over_limit(client);
        if decision.withheld.is_some() {
            event.withhold();
        }
        turn.settle(outcome(&decision, credential));
        Ok(Some(decision))
    }

    /// Charges an attempt, and waits for the delay.
    async fn turn(&self, credential: &Credential, event: &mut LoginEvent) -> Result<PendingAttempt<'_>, Refusal> {
        let turn = self.context.limits.attempt(self.client, credential).await;
        let turn = turn.map_err(|limited| event.limited(limited))?;
        (event.limited_by, event.delay) = (turn.by, turn.delay);
        event.delayed();
        wait_until(Instant::now() + turn.delay).await;
        Ok(turn)
    }

    /// Applies a decision: waits while the user is held, routes, takes a session slot.
    ///
    /// # Errors
    /// Why the user is not logged in.
    async fn find(
        &self,
        login: AttemptedLogin<'_>,
        mut decision: AuthDecision,
        event: &mut LoginEvent,
    ) -> Result<RoutedLogin, Refusal> {
        loop {
            event.decided(&decision, self.context.metrics);
            let proven = decision.result?;
            if proven.identity.entry().version.held {
                self.wait_for_release(login.name(), &proven).await?;
                // Most likely the mailbox has moved meanwhile.
                decision = self.decide(login).await;
                continue;
            }
            // Routed first: a login without a route takes no session slot and no part of the rate.
            let target = self.target(&proven, login.name())?;
            let proof = login.proof(&proven);
            if !target.backend.takes(proof) {
                event.backend = Some(Arc::clone(&target.backend.name));
                return Err(match proof {
                    LoginProof::Own(_) => Refusal::NoServiceLogin,
                    LoginProof::Acting => Refusal::ActingNotAllowed(ActingFault::NoServiceLogin),
                });
            }
            let place = self.place(&proven).map_err(|limited| event.limited(limited))?;
            event.routed(&target.backend.name, &target.login, target.by_default, self.context.metrics);
            if self.context.maintenance.drained(&target.backend.name).is_some() {
                self.count_backend(&target.backend, BackendResult::Draining);
                return Err(Refusal::BackendDraining);
            }
            return Ok(RoutedLogin { proven, by: decision.by, place, target });
        }
    }

    /// The backend of an entry, and the name there.
    ///
    /// # Errors
    /// Why no backend was found.
    pub(crate) fn target(&self, proven: &Proven, name: &Login) -> Result<Target, Refusal> {
        let (config, entry) = (&self.core.config, proven.identity.entry());
        let directory = &self.core.realms.of(entry).ok_or(Refusal::Internal)?.settings;
        routing::usable(entry)?;
        routing::allowed(&directory.allow, entry, self.protocol)?;
        let route = routing::route(&config.routing, entry)?;
        let backend = self.core.backends.get(route.backend).ok_or(Refusal::Internal)?;
        let claimed = proven.token.as_ref().and_then(|token| backend.token_name(token));
        let login = match claimed {
            Some(name) => name?,
            None => {
                let attribute = directory.login_attribute.as_deref();
                routing::backend_login(attribute, entry, proven.name(name))?
            }
        };
        Ok(Target { backend: Arc::clone(backend), login, by_default: route.by_default })
    }

    /// Counts the result of a backend login.
    pub(crate) fn count_backend(&self, backend: &Backend, result: BackendResult) {
        self.context.metrics.backend_logins.at(&backend.name, result).inc();
    }

    /// Waits until the directory no longer holds this user, by change notification or by polling. The timeout
    /// runs from the beginning of the attempt, because the backend needs time too.
    async fn wait_for_release(&self, name: &Login, proven: &Proven) -> Result<(), Refusal> {
        let held = proven.identity.entry();
        let realm = self.core.realms.of(held).ok_or(Refusal::Internal)?;
        let (authn, until) = (&realm.authn, self.began + realm.settings.watch.hold_timeout);
        let mut next_poll = Instant::now() + HOLD_POLL;
        loop {
            let changed = authn.entries().changed();
            match authn.entries().reconcile(held) {
                Reconciled::Replaced(newer) if !newer.version.held => return Ok(()),
                // The next decision says so.
                Reconciled::Deleted | Reconciled::HeldElsewhere => return Ok(()),
                Reconciled::Replaced(_) | Reconciled::AsReported => {}
            }
            tokio::select! {
                () = sleep_until(until) => return Err(Refusal::Hold),
                () = changed => {}
                () = sleep_until(next_poll) => {
                    if timeout_at(until, authn.is_held(name, proven, realm.settings.find.filter())).await == Ok(Some(false)) {
                        return Ok(());
                    }
                    next_poll = Instant::now() + HOLD_POLL;
                }
            }
        }
    }

    /// A session slot of this user: of the one who acts, so that no user is kept out of a mailbox by others.
    fn place(&self, proven: &Proven) -> Result<SessionPermit, Limited> {
        self.context.limits.session(self.client, &proven.identity.proven_entry().key())
    }
}

/// What a decision costs.
fn outcome(decision: &AuthDecision, credential: &Credential) -> AttemptOutcome {
    match (&decision.result, decision.by) {
        // It says nothing about the guesses of others, and is charged to no name that they could use.
        (Ok(_), _) if !credential.is_guessable() => AttemptOutcome::Inconclusive,
        (Ok(proven), _) => AttemptOutcome::Right(proven.identity.proven_entry().key()),
        // The password is correct, but only as a wrong one would it show nothing.
        (Err(Refusal::ActingNotAllowed(_)), _) => AttemptOutcome::Wrong,
        // What is reported as a wrong password costs as much, or the delay of the next guess would reveal that
        // the name exists, or that this guess was correct.
        (
            Err(
                Refusal::WrongPassword
                | Refusal::UnknownUser
                | Refusal::NoPassword
                | Refusal::NetworkNotAllowed
                | Refusal::UnusableNetworks
                | Refusal::WrongCertificate
                | Refusal::AuthzidNotAllowed
                | Refusal::PasswordNotAllowed
                | Refusal::SeveralEntries(Proof::Missing)
                | Refusal::UnusableEntry(Proof::Missing)
                | Refusal::Account { .. },
            ),
            DecidedBy::Directory | DecidedBy::Negative | DecidedBy::Usher,
        ) => AttemptOutcome::Wrong,
        // Undecided, or a password that was accepted before the entry turned out to lead nowhere: the charge is
        // refunded.
        (Err(_), _) => AttemptOutcome::Inconclusive,
    }
}

#[cfg(test)]
mod tests;
