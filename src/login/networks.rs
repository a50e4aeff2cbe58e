//! Whether a client is at an address that its user's entry permits (`directory.networks_attribute`).
//!
//! Every decision passes here after cache or directory has answered, once for each client: the answer may be shared by
//! several. The judgement is not stored, and a client that is refused learns neither that the password is right nor
//! anything of the account.

use std::net::IpAddr;

use crate::directory::Networks;
use crate::outcome::Refusal;

/// Why a client at this address is refused although the password is right.
///
/// # Errors
/// [`Refusal::NetworkNotAllowed`], or [`Refusal::UnusableNetworks`] if no address can be permitted.
pub(super) fn permit(networks: Option<&Networks>, client: IpAddr) -> Result<(), Refusal> {
    match networks {
        None => Ok(()),
        Some(networks) if networks.permit(client) => Ok(()),
        Some(networks) if networks.fault().is_some() => Err(Refusal::UnusableNetworks),
        Some(_) => Err(Refusal::NetworkNotAllowed),
    }
}

/// The refusal as it concerns a client at this address. `networks` are those of the entry as it was found before the
/// bind.
pub(super) fn refused(refusal: Refusal, networks: Option<&Networks>, client: IpAddr) -> Refusal {
    if !refusal.is_proven() {
        return refusal;
    }
    match networks {
        // Where the client may be is unknown: it learns no more than an attacker.
        Some(Networks::Unread) => refusal.unproven(),
        Some(Networks::Only(_) | Networks::Unusable(_)) | None => permit(networks, client).err().unwrap_or(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Entry;
    use crate::outcome::{AccountState, Proof, Reply};

    #[test]
    fn refusal_after_the_right_password_is_hidden_elsewhere() {
        let networks = |values: &[&str]| Entry::for_tests("uid=a", &[]).permitting(values).networks;
        let (home, away) = ("192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap());
        let (known, spoiled) = (networks(&["192.0.2.0/24"]), networks(&["local"]));
        let expired = || Refusal::Account { state: AccountState::PasswordExpired, proven: true };
        for refusal in [expired(), Refusal::SeveralEntries(Proof::Given), Refusal::UnusableEntry(Proof::Given)] {
            let at = |networks, client| refused(refusal.clone(), networks, client);
            assert_eq!(at(None, away), refusal, "permitted from everywhere");
            assert_eq!(at(known.as_deref(), home), refusal);
            assert_eq!(at(known.as_deref(), away), Refusal::NetworkNotAllowed);
            assert_eq!(at(spoiled.as_deref(), home), Refusal::UnusableNetworks);
            assert_eq!(at(Some(&Networks::Unread), home).reply(true), Reply::AuthenticationFailed);
            assert!(!at(Some(&Networks::Unread), home).is_proven());
        }
        assert_eq!(refused(Refusal::UnknownUser, known.as_deref(), away), Refusal::UnknownUser);
        assert_eq!(Refusal::NetworkNotAllowed.reply(true), Refusal::WrongPassword.reply(true));
        assert_eq!(Refusal::UnusableNetworks.reply(true), Refusal::WrongPassword.reply(true));
    }
}
