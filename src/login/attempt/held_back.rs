//! Lists users that attempts show to be held back: by a limit, or by a directory whose changes are not reported.

use crate::base::credential::{Credential, CredentialSecret};
use crate::login::core::LoginContext;
use crate::login::event::LoginEvent;
use crate::outcome::{AccountState, Refusal};
use crate::telemetry::held_back::{Beginning, Reason, Who};
use crate::tracking::{HOLD_LASTS, LOCK_LASTS, held_over};

/// Notes what an attempt shows, once it is decided.
pub(super) fn note(
    context: LoginContext<'_>,
    event: &LoginEvent,
    credential: Option<&Credential>,
    refusal: Option<&Refusal>,
) {
    if let Some(rule) = event.limited_by.filter(|rule| rule.is_of_user()) {
        // The name beside a token proves nothing.
        let name = credential
            .filter(|credential| !matches!(credential.secret(), CredentialSecret::Token(_)))
            .map(Credential::charged);
        // Names that lead to no entry are counted, not listed.
        let known = name.filter(|name| context.limits.leads_to_entry(name));
        let user = known.map_or(Who::UnknownNames, |name| Who::User(name.as_str()));
        context.limits.held_back.begin(Reason::Limit(rule), user, Beginning::of_limit());
    }
    let (held, Some(dn)) = (context.tracking.held_back(), &event.dn) else { return };
    let met = match refusal {
        Some(Refusal::Hold) => Some((Reason::Hold, HOLD_LASTS)),
        Some(Refusal::Account { state: AccountState::Locked, .. }) => Some((Reason::Locked, LOCK_LASTS)),
        Some(_) => None,
        None => {
            if !held.is_empty() && event.acting_dn.is_none() {
                held_over(held, dn, event.directory, None);
            }
            None
        }
    };
    if let Some((reason, lasts)) = met {
        held.begin_unless_open(
            reason,
            Who::User(dn),
            Beginning { directory: event.directory, lasts: Some(lasts), ..Beginning::default() },
        );
    }
}
