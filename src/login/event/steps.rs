//! The steps of a login as sentences, for `usher trace`: what directory or cache answered, where the user is
//! routed, and what became of the attempt.

use std::time::Duration;

use super::super::authn::{AuthDecision, DecidedBy};
use super::milliseconds;
use crate::base::credential::{CredentialKind, Login};
use crate::directory::Trace;
use crate::outcome::Refusal;

/// What was asked (cache or directory), and its answer.
pub(super) fn source(decision: &AuthDecision, kind: CredentialKind) -> String {
    let kept = match kind {
        CredentialKind::Password => "password from a bind",
        CredentialKind::Token => "claim's entry from a lookup",
        CredentialKind::Certificate => "certificate from a lookup",
    };
    let answer = match decision.by {
        DecidedBy::Directory => return asked(decision),
        DecidedBy::Usher if matches!(decision.result, Err(Refusal::Token(_) | Refusal::TokenUnavailable(_))) => {
            "the token is judged by its issuer's keys or answer; the directory is not asked"
        }
        DecidedBy::Cache => &*format!("the cache has this {kept} within cache.ttl; the directory is not asked"),
        DecidedBy::Negative => "the cache has this password as a wrong one; it is not sent to the directory",
        DecidedBy::Stale => &*format!(
            "the cache has this {kept} within cache.stale, which counts while no directory server is \
             available, or the account is locked by wrong guesses"
        ),
        DecidedBy::Impersonation => "the user who acts is proven, and may act for this mailbox",
        DecidedBy::Usher if decision.withheld.is_some() => {
            "too many wrong passwords for this entry: the password is not sent to the directory"
        }
        DecidedBy::Usher => "such a name or password is not sent to the directory",
    };
    match decision.trace.server {
        Some(_) => format!("{}; {answer}", asked(decision)),
        None => answer.to_owned(),
    }
}

fn asked(decision: &AuthDecision) -> String {
    let Trace { server, diagnostic, search, bind, .. } = &decision.trace;
    let mut parts = vec![format!("asked {}", server.as_deref().unwrap_or("no server"))];
    parts.extend(search.map(|time| format!("search {}", took(time))));
    if let Some(time) = bind {
        let dn = decision.dn.as_deref().unwrap_or("the user");
        parts.push(format!("bind as {dn} {}", took(*time)));
    }
    parts.extend(diagnostic.map(|diagnostic| diagnostic.to_string()));
    parts.extend(decision.trace.result().map(|result| format!("LDAP {result}")));
    parts.join(", ")
}

fn took(time: Duration) -> String {
    format!("({} ms)", milliseconds(time))
}

/// What follows from the answer.
pub(super) fn result(decision: &AuthDecision, kind: CredentialKind) -> String {
    let dn = decision.dn.as_deref().unwrap_or("none");
    match &decision.result {
        Ok(proven) => {
            let entry = proven.identity.entry();
            let held = if entry.version.held { "; the entry is held: waiting for its release" } else { "" };
            let hosts = entry.mail_hosts.join(", ");
            let hosts = if hosts.is_empty() { "none" } else { &hosts };
            let accepted = match &decision.token {
                _ if proven.identity.acting().is_some() => "the mailbox".to_owned(),
                Some(token) => {
                    format!("token of {} accepted: {} {}", token.issuer(), token.claim_name(), token.claim().as_str())
                }
                None => format!("{} accepted", kind.label()),
            };
            format!("{accepted}: entry {dn}, mail host {hosts}{held}")
        }
        Err(refusal) => {
            if let Some(cause) = &decision.unavailable {
                return format!("no verdict on the password: {cause}");
            }
            let other = decision.other_dn.as_ref().map_or_else(String::new, |other| format!(" and {other}"));
            let fault = decision.fault.as_ref().map_or_else(String::new, |fault| format!(": {fault}"));
            let why = refusal.token_error().map_or_else(String::new, |error| format!(" ({})", error.label()));
            format!("not accepted: {refusal}{why}, entry {dn}{other}{fault}")
        }
    }
}

/// Who acts for whom, or why not.
pub(super) fn acting(actor: &Login, target: &Login, decision: &AuthDecision) -> String {
    let (actor, target) = (actor.as_str(), target.as_str());
    match &decision.result {
        Ok(proven) => match proven.identity.acting() {
            Some(user) => {
                let (dn, right) = (&user.entry.dn, user.authority.label());
                format!("{actor} ({dn}) acts for {target}, permitted by: {right}")
            }
            None => format!("{target} is a name of {actor} itself: an ordinary login"),
        },
        Err(Refusal::ActingNotAllowed(fault)) => {
            format!("{actor} may not act for {target}: {}", fault.text())
        }
        Err(refusal) => format!("{actor} does not act for {target}: {refusal}"),
    }
}

/// Where the user is routed.
pub(super) fn route(backend: &str, login: &Login, by_default: bool) -> String {
    let default = if by_default { " (by routing.default)" } else { "" };
    format!("routed to the backend {backend}{default}, login there {}", login.as_str())
}

/// What became of the attempt.
pub(super) fn outcome(refusal: Option<&Refusal>) -> String {
    match refusal {
        None => "login accepted".to_owned(),
        Some(refusal) => format!("login refused: {refusal}, side: {}", refusal.side().label()),
    }
}
