//! Opaque tokens: their issuer says whether each is valid, and whose it is (RFC 7662).
//!
//! An answer is remembered under a keyed digest of the token, a yes for 5 minutes and never beyond `exp`, a no for 30
//! seconds: so long a revoked token is accepted, and a new one refused that was asked about too early. Connections that
//! bring the same token at once share one request.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::claims::{self, LEEWAY, Source};
use super::fetch::{Client, FetchError};
use super::strict;
use super::verified::VerifiedToken;
use crate::base::clock::unix_now;
use crate::base::credential::{AnswerDigest, Digest};
use crate::base::flights::{FlightError, Flights};
use crate::base::secret::Secret;
use crate::config::{self, TokenIssuer};
use crate::outcome::TokenError;
use crate::telemetry::labels::IntrospectionResult;
use crate::telemetry::log::{Bounded, Repeats};
use crate::telemetry::metrics::Metrics;

/// Requests in progress.
const IN_FLIGHT: usize = 16;
/// How long a yes counts.
const YES: Duration = Duration::from_secs(5 * 60);
/// How long a no counts.
const NO: Duration = Duration::from_secs(30);
/// How long a token is known to have been valid once: when it has expired, it is no guess.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// The most memory that answers take, in bytes, about.
const CAPACITY: u64 = 16 << 20;
/// What an answer takes besides its claims, in bytes, about.
const OVERHEAD: usize = 256;
/// The largest answer, in bytes.
const LARGEST_ANSWER: usize = 64 * 1024;

/// What is remembered of answers, and the requests in progress: kept over a reload.
pub(super) struct Answers {
    cache: Cache<AnswerDigest, Answer>,
    /// Counts how often all answers were forgotten: one of an earlier count, and one in progress then, does not count.
    forgotten: AtomicU64,
    /// By token, and by [`Answers::forgotten`] when it was asked for.
    in_progress: Flights<(AnswerDigest, u64), Judged>,
    repeats: Repeats,
}

/// What an answer says of a token.
type Judged = Result<VerifiedToken, TokenError>;

#[derive(Debug, Clone)]
struct Answer {
    at: Instant,
    /// [`Answers::forgotten`] when it was asked for.
    since: u64,
    result: Judged,
    /// Whether it was valid once.
    was_valid: bool,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("remembered", &self.cache.entry_count()).finish_non_exhaustive()
    }
}

impl Default for Answers {
    fn default() -> Self {
        let weigh = |_: &AnswerDigest, answer: &Answer| {
            let claims = answer.result.as_ref().map_or(0, VerifiedToken::size);
            u32::try_from(claims + OVERHEAD).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder().weigher(weigh).max_capacity(CAPACITY).time_to_live(REMEMBERED).build();
        let forgotten = AtomicU64::new(0);
        Self { cache, forgotten, in_progress: Flights::new(IN_FLIGHT), repeats: Repeats::default() }
    }
}

impl Answers {
    /// Forgets all answers. That a token was valid once is remembered: its owner makes no guesses.
    pub(super) fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
    }

    fn since(&self) -> u64 {
        self.forgotten.load(Ordering::SeqCst)
    }
}

/// The issuer that is asked.
#[derive(Debug)]
pub(super) struct Introspector {
    /// The issuer.
    pub(super) issuer: Arc<TokenIssuer>,
    /// Where it is asked.
    pub(super) settings: config::Introspection,
    /// The secret of usher's name there.
    pub(super) secret: Secret,
    /// How to get there.
    pub(super) client: Client,
    /// What is remembered.
    pub(super) answers: Arc<Answers>,
}

impl Introspector {
    /// What is remembered of a token; `None`: its issuer is to be asked.
    pub(super) fn remembered(&self, token: &Secret) -> Option<Judged> {
        let answer = self.answers.cache.get(&digest(token)).filter(|answer| answer.since == self.answers.since());
        let Answer { at, result, .. } = answer?;
        match result {
            Ok(verified) if is_past(verified.expires()) => Some(Err(TokenError::Expired)),
            Ok(verified) => (at.elapsed() < YES).then_some(Ok(verified)),
            Err(error) => (at.elapsed() < NO).then_some(Err(error)),
        }
    }

    /// Asks the issuer, unless it is being asked already. `own` are the claims of a token that is a JWT: an answer need
    /// not repeat that it is no access token.
    ///
    /// # Errors
    /// The token is refused, or there is no answer.
    pub(super) async fn ask(
        self: &Arc<Self>,
        token: &Secret,
        own: Option<Map<String, Value>>,
        metrics: &Arc<Metrics>,
        until: Instant,
    ) -> Judged {
        let flight = (digest(token), self.answers.since());
        let ask = || {
            let (asked, token, metrics) = (Arc::clone(self), token.clone(), Arc::clone(metrics));
            async move {
                // Another request may have ended since.
                let remembered = asked.remembered(&token);
                match remembered {
                    Some(judged) => judged,
                    None => asked.answer(&token, own, flight, &metrics, until).await,
                }
            }
        };
        match self.answers.in_progress.join(flight, ask).await {
            Ok(judged) => judged,
            Err(FlightError::TooMany) => {
                metrics.introspections.of(IntrospectionResult::Busy).inc();
                Err(TokenError::Busy)
            }
            Err(FlightError::Lost) => Err(TokenError::Unavailable),
        }
    }

    /// The issuer's answer about this token, which is remembered.
    async fn answer(
        &self,
        token: &Secret,
        own: Option<Map<String, Value>>,
        (digest, since): (AnswerDigest, u64),
        metrics: &Metrics,
        until: Instant,
    ) -> Judged {
        let claims = match self.request(token, until).await {
            Ok(claims) => claims,
            Err(error) => {
                metrics.introspections.of(IntrospectionResult::Unavailable).inc();
                self.log(&error);
                return Err(TokenError::Unavailable);
            }
        };
        let was_valid = self.answers.cache.get(&digest).is_some_and(|answer| answer.was_valid);
        let (counted, result) = match claims {
            Some(claims) => {
                let kind = own.as_ref().map_or(Ok(()), claims::kind);
                (IntrospectionResult::Active, kind.and_then(|()| self.judge(claims)))
            }
            // It cannot be distinguished from a guess, unless it was valid before.
            None if was_valid => (IntrospectionResult::Inactive, Err(TokenError::Expired)),
            None => (IntrospectionResult::Inactive, Err(TokenError::Inactive)),
        };
        metrics.introspections.of(counted).inc();
        let was_valid = was_valid || counted == IntrospectionResult::Active;
        self.answers.cache.insert(digest, Answer { at: Instant::now(), since, result: result.clone(), was_valid });
        result
    }

    /// The claims of an active token; `None`: it is not active.
    async fn request(&self, token: &Secret, until: Instant) -> Result<Option<Map<String, Value>>, FetchError> {
        let Self { settings, client, secret, .. } = self;
        let request = client.post(&settings.url, (&settings.client_id, secret), ("token", token), LARGEST_ANSWER);
        read(&timeout_at(until, request).await.unwrap_or(Err(FetchError::Timeout))?)
    }

    /// Asks about a token that was made up.
    pub(super) async fn inspect(&self, until: Instant) -> Result<(), FetchError> {
        match self.request(&Secret::copy_of(b"made-up-by-usher-check"), until).await? {
            None => Ok(()),
            Some(_) => Err(FetchError::Content("it says that a token which was made up is active".to_owned())),
        }
    }

    fn judge(&self, claims: Map<String, Value>) -> Result<VerifiedToken, TokenError> {
        // The answer is the configured issuer's; one that names another is about another's token.
        if claims.get("iss").is_some_and(|issuer| issuer.as_str() != Some(&self.issuer.issuer)) {
            return Err(TokenError::Claims);
        }
        let now = unix_now();
        claims::judge(&self.issuer, claims, Source::Introspection { until: now.saturating_add(YES.as_secs()) }, now)
    }

    fn log(&self, error: &FetchError) {
        if let Some(suppressed) = self.answers.repeats.allow("introspection", &self.issuer.issuer) {
            let reason = error.to_string();
            let (issuer, reason) = (&self.issuer.issuer, Bounded(reason.as_bytes()));
            if matches!(error, FetchError::Status(401 | 403)) {
                warn!(issuer, %reason, suppressed, "introspection refuses client_id or its secret");
            } else {
                warn!(issuer, %reason, suppressed, "introspection of a token failed");
            }
        }
    }
}

fn is_past(expires: u64) -> bool {
    expires.saturating_add(LEEWAY) <= unix_now()
}

fn digest(token: &Secret) -> AnswerDigest {
    Digest::of_token(token).narrow()
}

/// The claims of an active token; `None`: it is not active.
fn read(answer: &[u8]) -> Result<Option<Map<String, Value>>, FetchError> {
    let claims = strict::object(answer);
    let claims =
        claims.ok_or_else(|| FetchError::Content("the answer is no JSON object, or has a name twice".into()))?;
    match claims.get("active") {
        Some(Value::Bool(true)) => Ok(Some(claims)),
        Some(Value::Bool(false)) => Ok(None),
        Some(_) | None => Err(FetchError::Content("the answer has no `active` (RFC 7662 section 2.2)".into())),
    }
}
