//! The `login` and `end` events and their counters. One event for each attempt and session, all external text
//! escaped, no password.

mod steps;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::backend::{BackendError, Phases};
use crate::base::credential::{CredentialKind, Login, TokenForm};
use crate::config::LimitRule;
use crate::directory::{Realm, Trace};
use crate::limits::Limited;
use crate::login::authn::{AuthDecision, DecidedBy};
use crate::outcome::{BackendReply, Refusal, Side, TokenError};
use crate::proto::ClientId;
use crate::proto::transcript::Leg;
use crate::sessions::id::SessionId;
use crate::sessions::registry::{EntryRef, Session};
use crate::sessions::relay::RelayOutcome;
use crate::telemetry::client_address::{Client, masked};
use crate::telemetry::labels::{DecisionBasis, LoginPhase, SessionEnd};
use crate::telemetry::log::Bounded;
use crate::telemetry::metrics::Metrics;
use crate::token::VerifiedToken;
use crate::trace::{Fact, SessionTrace};

/// The client of a connection, the same for all of its attempts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionInfo {
    /// The session id.
    pub session: SessionId,
    /// The client's address, canonical.
    pub client: IpAddr,
    /// The webmail server or nginx that connected for it, if any.
    pub via: Option<IpAddr>,
    /// The protocol's name.
    pub protocol: &'static str,
}

/// The log event of one login attempt, filled in step by step.
#[derive(Debug, Default)]
pub(crate) struct LoginEvent {
    /// The user of this machine that has asked for the attempt (`usher try`).
    pub tried_by_uid: Option<u32>,
    /// The name as typed.
    pub typed: Vec<u8>,
    /// The mechanism of a token.
    pub mechanism: Option<TokenForm>,
    /// The token, if one was verified.
    pub token: Option<Arc<VerifiedToken>>,
    /// The name of the user who acts, and that of the mailbox.
    pub acting: Option<(Login, Login)>,
    /// The DN of the entry of the user who acts.
    pub acting_dn: Option<Arc<str>>,
    /// The name of that entry's directory, where there are several.
    pub acting_directory: Option<&'static str>,
    /// By what right it acts.
    pub acting_by: Option<&'static str>,
    /// The name given to the backend.
    pub backend_login: Option<String>,
    /// The entry's DN.
    pub dn: Option<Arc<str>>,
    /// The DN of another entry that matches the name.
    pub other_dn: Option<Arc<str>>,
    /// Why the entry cannot be used.
    pub entry_fault: Option<String>,
    /// The entry's mailHost values.
    pub mail_host: Vec<String>,
    /// The backend's name.
    pub backend: Option<Arc<str>>,
    /// Whether `routing.default` chose it.
    pub by_default: bool,
    /// What decided: cache or directory.
    pub by: Option<DecidedBy>,
    /// The directory that has decided.
    pub realm: Option<Realm>,
    /// Its name, where there are several.
    pub directory: Option<&'static str>,
    /// The name of another one that has an entry with this name.
    pub other_directory: Option<&'static str>,
    /// How the directory request went.
    pub trace: Trace,
    /// The client's certificate, if the login is by it: subject and fingerprint.
    pub certificate: Option<String>,
    /// The throttle rule that delayed or refused it.
    pub limited_by: Option<LimitRule>,
    /// The password was not sent: too many were tried for the entry, under any spelling. The client gets the
    /// reply for an unknown name; here it is a limit.
    pub withheld: bool,
    /// The throttle's delay.
    pub delay: Duration,
    /// The TLS handshake before this attempt.
    pub tls: Option<Duration>,
    /// How long the backend took.
    pub phases: Phases,
    /// The backend's reply or error.
    pub reply: Option<String>,
    /// The same, step by step, for an administrator who follows the session.
    pub steps: SessionTrace,
}

impl LoginEvent {
    /// Records a decision.
    pub(crate) fn decided(&mut self, decision: &AuthDecision, metrics: &Metrics) {
        if let Some(basis) = decision.by.basis() {
            metrics.decisions.of(basis).inc();
        }
        (self.by, self.realm) = (Some(decision.by), decision.realm);
        (self.directory, self.other_directory) = (decision.directory, decision.other_directory);
        self.trace.clone_from(&decision.trace);
        self.token.clone_from(&decision.token);
        self.dn.clone_from(&decision.dn);
        self.other_dn.clone_from(&decision.other_dn);
        self.entry_fault = decision.fault.as_ref().map(ToString::to_string);
        if let Ok(proven) = &decision.result {
            self.mail_host.clone_from(&proven.identity.entry().mail_hosts);
        }
        if let Ok(proven) = &decision.result
            && let Some(user) = proven.identity.acting()
        {
            (self.acting_dn, self.acting_by) = (Some(Arc::clone(&user.entry.dn)), Some(user.authority.label()));
            self.acting_directory = decision.directory.map(|_| user.entry.version.realm.name());
            self.steps.learn(|| Some(Fact::Login(user.name.as_str().into())));
            self.steps.learn(|| Some(Fact::Entry(EntryRef::new(self.acting_directory, &user.entry.dn))));
        }
        if let Some((actor, target)) = &self.acting {
            self.steps.note(Leg::Usher, || steps::acting(actor, target, decision));
        }
        let entry = || decision.dn.as_ref().map(|dn| EntryRef::new(decision.directory, dn));
        self.steps.learn(|| entry().map(Fact::Entry));
        let kind = self.kind();
        self.steps.note(Leg::Directory, || steps::source(decision, kind));
        self.steps.note(Leg::Directory, || steps::result(decision, kind));
    }

    /// Whether one user acts for another, or tries to.
    #[must_use]
    pub(crate) const fn is_acting(&self) -> bool {
        self.acting.is_some() || self.acting_dn.is_some()
    }

    /// The backend's reply or error, as the log has it: it may name the client that was forwarded to the server.
    #[must_use]
    pub(crate) fn reply_shown(&self, client: IpAddr) -> Option<Cow<'_, str>> {
        self.reply.as_deref().map(|words| if self.is_acting() { words.into() } else { masked(words, client) })
    }

    /// What the user logs in with.
    const fn kind(&self) -> CredentialKind {
        match (&self.mechanism, &self.certificate) {
            (Some(TokenForm::OAuthBearer | TokenForm::XOAuth2), _) => CredentialKind::Token,
            (None, Some(_)) => CredentialKind::Certificate,
            (None, None) => CredentialKind::Password,
        }
    }

    /// Records a refusal by the throttle.
    pub(crate) fn limited(&mut self, limited: Limited) -> Refusal {
        self.limited_by = Some(limited.0);
        self.steps.note(Leg::Usher, || format!("refused by the limit {}", limited.0.label()));
        Refusal::Limit
    }

    /// Reports a delay by the throttle to an administrator who follows the session.
    pub(crate) fn delayed(&self) {
        if let Some(rule) = self.limited_by {
            self.steps.note(Leg::Usher, || format!("delayed by the limit {} for {:?}", rule.label(), self.delay));
        }
    }

    /// Records that the throttle withheld the password from the directory.
    pub(crate) fn withhold(&mut self) {
        (self.limited_by, self.withheld) = (Some(LimitRule::FailedLoginsPerUser), true);
    }

    /// Records the route.
    pub(crate) fn routed(&mut self, backend: &Arc<str>, login: &Login, by_default: bool, metrics: &Metrics) {
        if by_default {
            metrics.decisions.of(DecisionBasis::Default).inc();
        }
        self.backend = Some(Arc::clone(backend));
        self.backend_login = Some(login.as_str().to_owned());
        self.by_default = by_default;
        self.steps.learn(|| Some(Fact::BackendLogin(login.as_str().into())));
        self.steps.learn(|| Some(Fact::Backend(Arc::clone(backend))));
        self.steps.note(Leg::Usher, || steps::route(backend, login, by_default));
    }

    /// Records a backend's error.
    pub(crate) fn failed(&mut self, error: &BackendError) {
        self.steps.note(Leg::Backend, || format!("login fails: {error}"));
        if let BackendError::Refused(words) = error {
            self.backend_reply(words);
        } else {
            self.reply = Some(error.to_string());
        }
    }

    /// Records a backend's reply.
    pub(crate) fn backend_reply(&mut self, words: &BackendReply) {
        let BackendReply { code, text, .. } = words;
        self.reply = Some(if code.is_empty() { text.clone() } else { format!("[{code}] {text}") });
    }

    /// Writes the event and counts, once per attempt.
    pub(crate) fn emit(
        &self,
        info: &ConnectionInfo,
        client_id: Option<&ClientId>,
        refusal: Option<&Refusal>,
        metrics: &Metrics,
    ) {
        let refusal = if self.withheld { Some(&Refusal::Limit) } else { refusal };
        let result = refusal.map_or("ok", Refusal::label);
        self.steps.note(Leg::Usher, || steps::outcome(refusal));
        metrics.logins.with_label_values(&[info.protocol, result]).inc();
        let phases = [
            (LoginPhase::Tls, self.tls),
            (LoginPhase::Search, self.trace.search),
            (LoginPhase::Bind, self.trace.bind),
            (LoginPhase::BackendConnect, self.phases.connect),
            (LoginPhase::BackendLogin, self.phases.login),
        ];
        for (phase, took) in phases {
            if let Some(took) = took {
                metrics.login_phase.at(info.protocol, phase).observe(took.as_secs_f64());
            }
        }
        let (client_name, client_version) =
            client_id.map(|id| (id.name.as_str(), id.version.as_str())).unwrap_or_default();
        let mail_host = self.mail_host.join(",");
        let token_error = refusal.and_then(Refusal::token_error).map(TokenError::label);
        let token = self.token.as_deref();
        let claim = token.map(|token| format!("{}={}", token.claim_name(), token.claim().as_str()));
        let directory_result = self.trace.result().filter(|result| result.code != 0).and_then(|result| result.name());
        // What usher reads in the answer to a bind, and the server's own text.
        let parts =
            [self.trace.diagnostic.map(|said| said.to_string()), self.trace.message.as_deref().map(str::to_owned)];
        let directory_message = parts.into_iter().flatten().reduce(|said, text| format!("{said}: {text}"));
        let (acting, acting_for) =
            self.acting.as_ref().map(|(actor, target)| (actor.as_str(), target.as_str())).unzip();
        let acting_refused =
            refusal.and_then(
                |refusal| if let Refusal::ActingNotAllowed(fault) = refusal { Some(fault.label()) } else { None },
            );
        let client = Client::of(info.client, self.is_acting());
        let reply = self.reply_shown(info.client);
        // One list of fields at three levels: a level is part of the event's static description.
        macro_rules! event {
            ($level:ident) => {
                $level!(
                    session = %info.session,
                    client = %client,
                    via = info.via.map(tracing::field::display),
                    protocol = info.protocol,
                    result,
                    tried_by_uid = self.tried_by_uid,
                    login = %Bounded(&self.typed),
                    mechanism = self.mechanism.map(TokenForm::label),
                    issuer = token.map(|token| tracing::field::display(Bounded(token.issuer().as_bytes()))),
                    claim = claim.as_deref().map(|claim| tracing::field::display(Bounded(claim.as_bytes()))),
                    token_error,
                    acting = acting.map(|name| tracing::field::display(Bounded(name.as_bytes()))),
                    acting_for = acting_for.map(|name| tracing::field::display(Bounded(name.as_bytes()))),
                    acting_dn = self.acting_dn.as_deref().map(|dn| tracing::field::display(Bounded(dn.as_bytes()))),
                    acting_directory = self.acting_directory,
                    acting_by = self.acting_by,
                    acting_refused,
                    login_backend = self.backend_login.as_deref().map(|name| tracing::field::display(Bounded(name.as_bytes()))),
                    dn = self.dn.as_deref().map(|dn| tracing::field::display(Bounded(dn.as_bytes()))),
                    other_dn = self.other_dn.as_deref().map(|dn| tracing::field::display(Bounded(dn.as_bytes()))),
                    entry_fault = self.entry_fault.as_deref().map(|fault| tracing::field::display(Bounded(fault.as_bytes()))),
                    mail_host = (!mail_host.is_empty()).then(|| tracing::field::display(Bounded(mail_host.as_bytes()))),
                    backend = self.backend.as_deref(),
                    by = self.by.map(DecidedBy::label),
                    by_default = self.by_default.then_some(true),
                    directory = self.directory,
                    other_directory = self.other_directory,
                    directory_server = self.trace.server.as_deref(),
                    directory_code = self.trace.code,
                    directory_result,
                    directory_message = directory_message.as_deref().map(|text| tracing::field::display(Bounded(text.as_bytes()))),
                    certificate = self.certificate.as_deref().map(|shown| tracing::field::display(Bounded(shown.as_bytes()))),
                    limited_by = self.limited_by.map(LimitRule::label),
                    delay_ms = (!self.delay.is_zero()).then(|| milliseconds(self.delay)),
                    backend_reply = reply.as_deref().map(|words| tracing::field::display(Bounded(words.as_bytes()))),
                    client_name = (!client_name.is_empty()).then(|| tracing::field::display(Bounded(client_name.as_bytes()))),
                    client_version = (!client_version.is_empty()).then(|| tracing::field::display(Bounded(client_version.as_bytes()))),
                    tls_ms = self.tls.map(milliseconds),
                    search_ms = self.trace.search.map(milliseconds),
                    bind_ms = self.trace.bind.map(milliseconds),
                    backend_connect_ms = self.phases.connect.map(milliseconds),
                    backend_login_ms = self.phases.login.map(milliseconds),
                    "login"
                )
            };
        }
        match refusal.map(Refusal::side) {
            None | Some(Side::Client) => event!(info),
            Some(Side::Directory | Side::Backend) => event!(warn),
            Some(Side::Usher) => event!(error),
        }
    }
}

/// Writes the event of a session's end and counts it.
pub(crate) fn ended(
    (info, session): (&ConnectionInfo, Option<&Session>),
    cause: SessionEnd,
    ended: Option<&RelayOutcome>,
    lasted: Duration,
    metrics: &Metrics,
) {
    metrics.sessions_ended.of(cause).inc();
    let client = Client::of(info.client, session.is_some_and(|session| session.acting.is_some()));
    info!(
        session = %info.session,
        client = %client,
        protocol = info.protocol,
        cause = cause.label(),
        login = session.map(|session| tracing::field::display(Bounded(session.login.as_bytes()))),
        dn = session.map(|session| tracing::field::display(Bounded(session.dn.as_bytes()))),
        backend = session.map(|session| &*session.backend),
        duration_ms = milliseconds(lasted),
        bytes_in = ended.map(|ended| ended.bytes_in),
        bytes_out = ended.map(|ended| ended.bytes_out),
        "end"
    );
}

/// Milliseconds with three decimals: microseconds matter in a cached login.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}
