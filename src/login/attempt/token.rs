//! An attempt with a token: what it costs.

use tokio::time::Instant;

use super::{AttemptedLogin, LoginAttempt};
use crate::base::clock::wait_until;
use crate::base::credential::{BearerToken, Credential};
use crate::limits::{AttemptOutcome, PendingAttempt};
use crate::login::authn::{AuthDecision, LookupMode};
use crate::login::event::LoginEvent;
use crate::outcome::Refusal;

impl LoginAttempt<'_> {
    /// The same with a token. The name beside it proves nothing, so that no user is charged: a token that belongs to no
    /// known issuer's counts against the client's prefix, and delays no client with a good one.
    pub(super) async fn authenticate_by_token(
        &self,
        AttemptedLogin { credential, acting }: AttemptedLogin<'_>,
        bearer: &BearerToken,
        event: &mut LoginEvent,
    ) -> Result<AuthDecision, Refusal> {
        let realms = &self.core.realms;
        // A question to the issuer costs a request, whatever the token is: it waits for its turn.
        let mut turn = None;
        if realms.asks_issuer(bearer) {
            let mut waited = self.token_turn(credential, event).await?;
            let _ = waited.begin_lookup();
            turn = Some(waited);
        }
        let decision = match acting {
            Some(acting) => {
                let (decision, actor) = self.decide_with_name(credential, acting, LookupMode::Cached).await;
                event.acting = actor.map(|actor| (actor, acting.target.clone()));
                decision
            }
            None => realms.decide(credential, self.client, LookupMode::Cached).await,
        };
        // A token that comes from where its user may not log in may be a stolen one, and so may one that opens another
        // mailbox. A name that is not the user's is a guess at who exists.
        let is_guess = match &decision.result {
            Err(Refusal::Token(error)) => error.is_guess(),
            Err(
                Refusal::NetworkNotAllowed
                | Refusal::UnusableNetworks
                | Refusal::ActingNotAllowed(_)
                | Refusal::AuthzidNotAllowed,
            ) => true,
            Ok(_) | Err(_) => false,
        };
        if !is_guess || bearer.token.is_empty() {
            if let Some(turn) = turn {
                turn.settle(AttemptOutcome::Inconclusive);
            }
            return Ok(decision);
        }
        let turn = match turn {
            Some(turn) => turn,
            None => self.token_turn(credential, event).await?,
        };
        turn.settle(AttemptOutcome::Wrong);
        Ok(decision)
    }

    /// Charges a token to the client's prefix, and waits for the delay.
    async fn token_turn(&self, credential: &Credential, event: &mut LoginEvent) -> Result<PendingAttempt<'_>, Refusal> {
        let turn = self.context.limits.token_attempt(self.client, credential).await;
        let turn = turn.map_err(|limited| event.limited(limited))?;
        (event.limited_by, event.delay) = (turn.by, turn.delay);
        event.delayed();
        wait_until(Instant::now() + turn.delay).await;
        Ok(turn)
    }
}
