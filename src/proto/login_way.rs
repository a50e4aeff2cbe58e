//! The ways to log in to a backend, and whether a reply is about the way or about the account.
//!
//! Not every server reads the initial response of SASL, although RFC 4954, 5034 and 5804 have it in the command:
//! some ignore it and send an empty challenge, some reject the command. The ways are tried in order, each once, and
//! only after a reply that says nothing about the password: what a server has refused is never sent again.

use std::collections::VecDeque;

use super::sasl::{Account, Mechanism};

/// A way to log in.
#[derive(Debug, Clone, Copy)]
pub(super) enum LoginWay {
    /// A mechanism whose message goes with the command.
    InitialResponse(&'static Mechanism),
    /// A mechanism: the command, then a response to each challenge.
    Exchange(&'static Mechanism),
    /// The protocol's own command: LOGIN, or USER and PASS.
    Command,
}

/// The ways that a backend offers, in order: a mechanism of one message, which can have an authzid; the protocol's
/// own command (`has_command`); a mechanism of several messages. `fits` is asked whether a mechanism's message may go
/// with the command.
pub(super) fn login_ways(
    account: &Account,
    offers: impl Fn(&str) -> bool,
    has_command: bool,
    fits: impl Fn(&'static Mechanism) -> bool,
) -> VecDeque<LoginWay> {
    let (single, several): (Vec<_>, Vec<_>) =
        Mechanism::for_backend(account, offers).partition(|mechanism| mechanism.has_one_response());
    let initial = |mechanism| fits(mechanism).then_some(LoginWay::InitialResponse(mechanism));
    let mut ways = VecDeque::with_capacity(4);
    for mechanism in single {
        ways.extend(initial(mechanism));
        ways.push_back(LoginWay::Exchange(mechanism));
    }
    // It has no authzid and takes no token: a service account would log in as itself.
    if has_command && account.service.is_none() && account.token.is_none() {
        ways.push_back(LoginWay::Command);
    }
    ways.extend(several.into_iter().map(LoginWay::Exchange));
    ways
}

/// Whether the text of a refusal without a response code is about the form of the command. POP3 and ManageSieve
/// have one word for a wrong password and for a command that is not understood, so only words decide; where both
/// kinds occur, it is a refusal, and so is one that is about the mailbox.
///
/// Exchange: `Protocol error. 17`, `Command is not valid in this state.`; Courier: `Invalid command.`; qpopper:
/// `Unknown command: "auth".`; UW: `Bad AUTHENTICATE command`, `Unknown AUTHENTICATE mechanism`; timsieved:
/// `Expected a command. Got something else.`
pub(super) fn is_about_form(text: &str) -> bool {
    const FORM: &[&str] = &[
        "argument",
        "command",
        "expected",
        "mechanism",
        "not implemented",
        "not supported",
        "parameter",
        "protocol error",
        "syntax",
        "unimplemented",
        "unrecogni",
        "unsupported",
    ];
    const ACCOUNT: &[&str] = &[
        "account",
        "bad login",
        "credential",
        "denied",
        "fail",
        "incorrect",
        "invalid login",
        "locked",
        "mailbox",
        "maildrop",
        "password",
        "quota",
    ];
    // Which says nothing about what was expected.
    let text = text.to_ascii_lowercase().replace("unexpected", "");
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    says(FORM) && !says(ACCOUNT)
}

/// Whether a refusal with this response code is about the credentials: without any it can only be about the mechanism.
pub(super) fn is_about_credentials(code: &str) -> bool {
    let word = code.split(' ').next().unwrap_or_default();
    ["AUTHENTICATIONFAILED", "AUTH", "535"].iter().any(|known| known.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_about_the_form_are_told_from_refusals() {
        for form in [
            "Protocol error. 17",
            "Protocol error. Connection is closed. 10",
            "Command is not valid in this state.",
            "Invalid command.",
            "Unknown command: \"auth\".",
            "Unknown AUTHENTICATE mechanism",
            "Expected a command. Got something else.",
            "SYNTAX",
            "Expected EOL",
            "Unexpected argument",
            "Too many arguments for command",
            "unrecognized authentication type",
        ] {
            assert!(is_about_form(form), "{form}");
        }
        for refusal in [
            "",
            "Authentication failed.",
            "Authentication Error",
            "Logon failure: unknown user name or bad password.",
            "Invalid login",
            "Invalid password command",
            "authentication failure: unsupported user",
            "Maximum POP sessions reached",
            "Unable to lock maildrop",
            "Unexpected error",
            "Mailbox format not supported",
            "Invalid quota parameter for this user",
        ] {
            assert!(!is_about_form(refusal), "{refusal}");
        }
    }
}
