//! The client half of an exchange: usher logs in to a backend.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Mechanism, bearer, fits_plain};
use crate::base::credential::TokenForm;
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::TokenChallenge;

/// What usher logs in to a backend with.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// The user's name: authcid of a login of its own, authzid of a login by a service account.
    pub(crate) login: Vec<u8>,
    /// The user's password or token, or the service account's password.
    pub(crate) password: Secret,
    /// How a token is sent; `None`: it is a password.
    pub(crate) token: Option<TokenForm>,
    /// The service account (authcid), if one logs in for the user.
    pub(crate) service: Option<Vec<u8>>,
}

impl Account {
    /// The name, the service account's or nothing, and the password.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        [&self.login, self.service.as_deref().unwrap_or_default(), self.password.expose()]
    }

    /// Whether a message whose parts are separated by NUL can carry it.
    #[must_use]
    pub(crate) fn has_no_nul(&self) -> bool {
        self.parts().into_iter().all(fits_plain)
    }
}

/// usher's own exchange with a backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientExchange {
    mechanism: &'static Mechanism,
    /// How many responses were written.
    written: usize,
    initial: InitialResponse,
    /// The error that the backend has reported by a challenge.
    reported: Option<TokenChallenge>,
}

/// What became of the response that went with the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InitialResponse {
    /// None did.
    Absent,
    /// It was sent.
    Sent,
    /// It was sent again after an empty challenge.
    Repeated,
}

impl ClientExchange {
    /// Starts an exchange.
    #[must_use]
    pub(crate) const fn new(mechanism: &'static Mechanism) -> Self {
        Self { mechanism, written: 0, initial: InitialResponse::Absent, reported: None }
    }

    /// Starts an exchange with an initial response, which is written in base64.
    #[must_use]
    pub(crate) fn with_initial(mechanism: &'static Mechanism, account: &Account, out: &mut SecretBuf) -> Self {
        (mechanism.write)(account, 0, out);
        Self { mechanism, written: 1, initial: InitialResponse::Sent, reported: None }
    }

    /// Writes the response to a challenge in base64: the next one, or, after an empty challenge, once more the
    /// initial response, which the backend has not read. A challenge that reports a refusal gets the mechanism's
    /// answer. `None`: the backend sent one challenge too many.
    pub(crate) fn respond(&mut self, challenge: &[u8], account: &Account, out: &mut SecretBuf) -> Option<()> {
        if self.awaits_challenge() {
            (self.mechanism.write)(account, self.written, out);
            self.written += 1;
            return Some(());
        }
        if let Some(refusal) = self.mechanism.refusal.as_ref().filter(|_| self.reported.is_none()) {
            let challenge = STANDARD.decode(challenge).unwrap_or_default();
            self.reported = Some(bearer::reported_error(&challenge));
            out.extend(refusal.answer);
            return Some(());
        }
        let unread =
            self.initial == InitialResponse::Sent && challenge.is_empty() && self.mechanism.may_repeat_initial();
        unread.then(|| {
            (self.mechanism.write)(account, 0, out);
            self.initial = InitialResponse::Repeated;
        })
    }

    /// Whether the backend has to send another challenge before it can decide.
    #[must_use]
    pub(crate) fn awaits_challenge(&self) -> bool {
        self.mechanism.challenges.get(self.written).is_some()
    }

    /// Whether nothing of the account was sent yet.
    #[must_use]
    pub(crate) const fn has_sent_nothing(&self) -> bool {
        self.written == 0
    }

    /// Whether no challenge was answered yet: a reply may be about the form of the command.
    #[must_use]
    pub(crate) fn is_command_only(&self) -> bool {
        self.reported.is_none() && (self.written == 0 || self.initial == InitialResponse::Sent)
    }

    /// The error that the backend has reported by a challenge: it has read the message and refuses it.
    #[must_use]
    pub(crate) const fn reported(&self) -> Option<TokenChallenge> {
        self.reported
    }

    /// Whether the backend has not read the initial response with the command.
    #[must_use]
    pub(crate) fn was_repeated(&self) -> bool {
        self.initial == InitialResponse::Repeated
    }
}
