//! An attempt in which a user may act for another one's mailbox: what a decision about the user who acts means for it.

use std::sync::Arc;

use super::{AttemptedLogin, LoginAttempt, outcome};
use crate::base::credential::{Credential, CredentialKind, Login};
use crate::cache::CacheStamp;
use crate::directory::{Identity, Realm};
use crate::login::acting::{self, Acting, Actor, MailboxRight};
use crate::login::authn::{AuthDecision, DecidedBy, LookupMode, Proven};
use crate::login::event::LoginEvent;
use crate::outcome::{ActingFault, Refusal};

impl LoginAttempt<'_> {
    /// Decides again, whatever is cached.
    pub(super) async fn decide(&self, login: AttemptedLogin<'_>) -> AuthDecision {
        let AttemptedLogin { credential, acting } = login;
        if let Some(acting) = acting.filter(|_| credential.secret().kind() != CredentialKind::Password) {
            return Box::pin(self.decide_with_name(credential, acting, LookupMode::Directory)).await.0;
        }
        let decision = self.core.realms.decide(credential, self.client, LookupMode::Directory).await;
        self.act(acting, credential.login(), decision).await
    }

    /// The same because a backend has refused this cached decision. If the secret is wrong by now, or the entry is
    /// deleted, the cache forgets it; that a user may not act says nothing about its own entry.
    pub(crate) async fn decide_again(&self, login: AttemptedLogin<'_>, cached: &Proven) -> AuthDecision {
        let decision = self.decide(login).await;
        self.core.realms.decided_again(&decision, cached.identity.entry());
        decision
    }

    /// Decides about a token or a certificate with a name beside it: an ordinary login if that is a name of its user, or
    /// that user acts for the mailbox of this name. The name of the user is returned if it acts, or may not.
    pub(super) async fn decide_with_name(
        &self,
        credential: &Credential,
        acting: &Acting,
        ask: LookupMode,
    ) -> (AuthDecision, Option<Login>) {
        let realms = &self.core.realms;
        let decision = realms.decide(credential, self.client, ask).await;
        let is_another = match credential.secret().kind() {
            CredentialKind::Password => false,
            CredentialKind::Token => matches!(decision.result, Err(Refusal::AuthzidNotAllowed)),
            // With `match: certificate`, the name alone has led to the entry.
            CredentialKind::Certificate => matches!(
                decision.result,
                Err(Refusal::AuthzidNotAllowed
                    | Refusal::WrongCertificate
                    | Refusal::UnknownUser
                    | Refusal::SeveralEntries(_)
                    | Refusal::UnusableEntry(_))
            ),
        };
        if !is_another {
            return (decision, None);
        }
        let own = acting.own.clone().unwrap_or_else(|| credential.named(Login::absent()));
        let decision = realms.decide(&own, self.client, ask).await;
        let Ok(proven) = &decision.result else { return (decision, None) };
        let name = proven.shown_name(own.login());
        (self.act(Some(acting), &name, decision).await, Some(name))
    }

    /// The same for the first decision about a certificate, as far as it is not known: charged to the network and the
    /// certificate.
    pub(super) async fn authenticate_by_certificate(
        &self,
        credential: &Credential,
        acting: &Acting,
        event: &mut LoginEvent,
    ) -> Result<AuthDecision, Refusal> {
        if let Some(known) = self.core.realms.recall(credential, self.client).filter(|known| known.result.is_ok()) {
            return Ok(known);
        }
        let mut turn = self.turn(credential, event).await?;
        let _ = turn.begin_lookup();
        let (decision, actor) = self.decide_with_name(credential, acting, LookupMode::Cached).await;
        event.acting = actor.map(|actor| (actor, acting.target.clone()));
        turn.log_if_over_limit(self.client);
        turn.settle(outcome(&decision, credential));
        Ok(decision)
    }

    /// Whether an entry has this name.
    ///
    /// # Errors
    /// The directory does not answer.
    pub(super) async fn is_name(&self, name: &Login) -> Result<bool, Refusal> {
        match acting::target(&self.core.realms, name).await {
            // Several, or one that cannot be used: the name is one all the same.
            Ok(_) | Err(Refusal::ActingNotAllowed(ActingFault::AmbiguousTarget)) => Ok(true),
            Err(Refusal::ActingNotAllowed(_)) => Ok(false),
            Err(outage) => Err(outage),
        }
    }

    /// What a decision about the user who acts means for the mailbox. It is judged at each attempt, because neither the
    /// user's rights nor the mailbox are known from the cache.
    pub(super) async fn act(&self, acting: Option<&Acting>, actor: &Login, decision: AuthDecision) -> AuthDecision {
        let (Some(Acting { target, .. }), Ok(proven)) = (acting, &decision.result) else { return decision };
        // Kept apart, so that the future of an ordinary login is no larger.
        match Box::pin(self.on_behalf(proven, actor, target)).await {
            Ok(Some(acting)) => {
                let (realms, target) = (&self.core.realms, acting.identity.shared_entry());
                let (dn, realm) = (Some(Arc::clone(&target.dn)), Some(target.version.realm));
                let (result, by, directory) = (Ok(acting), DecidedBy::Impersonation, realms.shown(&target));
                AuthDecision { result, by, dn, realm, directory, ..decision }
            }
            // The user's own mailbox under another name.
            Ok(None) => decision,
            Err(refusal) => AuthDecision { result: Err(refusal), ..decision },
        }
    }

    /// The user of a mailbox that a proven user acts for; `None`: it is the same user.
    ///
    /// # Errors
    /// It may not.
    async fn on_behalf(&self, proven: &Proven, actor: &Login, name: &Login) -> Result<Option<Proven>, Refusal> {
        let (config, realms, identity) = (&self.core.config, &self.core.realms, &proven.identity);
        // Before the search: what is forgotten from now on counts.
        let stamps: Vec<_> = realms.all().iter().map(|realm| (realm.realm, realm.authn.cache().stamp())).collect();
        let target = acting::newest_target(realms, name).await?;
        let of_target = |(realm, _): &&(Realm, CacheStamp)| *realm == target.version.realm;
        let since = stamps.iter().find(of_target).map(|(_, since)| *since).ok_or(Refusal::Internal)?;
        let (client, protocol) = (Some(self.client), Some(self.protocol));
        let user = Actor { entry: identity.entry(), client, protocol };
        match acting::judge(config, realms, user, (name, &target)).await? {
            MailboxRight::Owner => Ok(None),
            MailboxRight::May(authority) => {
                // A change of the entry from now on is found at the session's listing.
                let realm = realms.of(&target).ok_or(Refusal::Internal)?;
                let _ = realm.authn.entries().record_login(&target);
                let identity = Identity::on_behalf(identity, actor.clone(), target, authority);
                Ok(Some(proven.with_identity(identity.ok_or(Refusal::Internal)?, since)))
            }
        }
    }
}
