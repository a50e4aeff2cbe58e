//! The diagnostics of a bind result: why an account may not log in, or that its password expires soon.
//!
//! Three dialects: the password-policy control (draft-behera-ldap-password-policy-10 section 6.2, supported by
//! OpenLDAP, 389-DS and most others on request), the older Netscape controls (draft-vchu-ldap-pwd-policy-00),
//! and the diagnostic text of some vendors (`proto/ldap/vendor.rs`). What cannot be parsed is ignored, and the
//! result code stands alone. Parsing never panics, whatever bytes a server sends.

use crate::directory::ldap::frames::LdapMessage;
use crate::directory::{BindDiagnostic, ServerResult};
use crate::outcome::AccountState;
use crate::proto::ldap::ber::{number as whole_number, tagged};
use crate::proto::ldap::result::{INVALID_CREDENTIALS, SUCCESS, UNWILLING_TO_PERFORM};
use crate::proto::ldap::vendor::{self, Meaning};

/// The password-policy control, in request and response.
pub(crate) const PASSWORD_POLICY: &str = "1.3.6.1.4.1.42.2.27.8.5.1";
/// Netscape: the password has expired, or must be changed.
const NETSCAPE_EXPIRED: &str = "2.16.840.1.113730.3.4.4";
/// Netscape: the password expires in this many seconds.
const NETSCAPE_EXPIRING: &str = "2.16.840.1.113730.3.4.5";

/// The result of a bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BindResponse {
    /// The result.
    pub(crate) result: ServerResult,
    /// The diagnostic beside it.
    pub(crate) diagnostic: Option<BindDiagnostic>,
}

impl BindResponse {
    /// Parses the reply to a bind with this password; `None` if it has no result.
    pub(crate) fn read(message: &LdapMessage<'_>, password: &[u8]) -> Option<Self> {
        let outcome = message.outcome()?;
        let (code, value) = (outcome.code, |oid: &str| message.control(oid));
        // A server that sends both says more in the newer control: a grace login, where the Netscape control
        // only says "expired".
        let said = value(PASSWORD_POLICY).and_then(|value| password_policy(code, value));
        let said = said.or_else(|| value(NETSCAPE_EXPIRED).map(|_| netscape_expired(code)));
        let said = said.or_else(|| value(NETSCAPE_EXPIRING).and_then(|value| netscape_expiring(code, value)));
        let diagnostic = said.or_else(|| by_text(code, outcome.text));
        Some(Self { result: ServerResult::answering(password, code, outcome.text), diagnostic })
    }
}

/// The value of a password-policy response.
fn password_policy(code: u32, value: &[u8]) -> Option<BindDiagnostic> {
    let (mut left, mut warning, mut error) = (tagged(value, 0x30)?.0, None, None);
    if let Some((choice, rest)) = tagged(left, 0xa0) {
        left = rest;
        let seconds = tagged(choice, 0x80).and_then(|(seconds, _)| number(seconds));
        let grace = tagged(choice, 0x81).and_then(|(logins, _)| number(logins));
        warning = seconds.map(BindDiagnostic::Expiring).or(grace.map(BindDiagnostic::Grace));
    }
    if let Some((bytes, _)) = tagged(left, 0x81) {
        error = number(bytes);
    }
    let state = match error {
        Some(0) => Some((AccountState::PasswordExpired, true)),
        // Reported before the password is checked. 389-DS also sends it for accounts disabled by an
        // administrator, with another result code.
        Some(1) if code == UNWILLING_TO_PERFORM => Some((AccountState::Disabled, false)),
        Some(1) => Some((AccountState::Locked, false)),
        Some(2) => Some((AccountState::PasswordMustChange, true)),
        // The others concern a new password.
        Some(_) | None => None,
    };
    let state = state.map(|(state, proven)| BindDiagnostic::State { state, proven });
    // A grace login is allowed by the policy in spite of the password's age.
    match warning {
        Some(BindDiagnostic::Grace(_)) if code == SUCCESS => warning,
        _ if code == SUCCESS => state.or(warning),
        _ => state,
    }
}

/// Beside success it means that only a password change is allowed.
const fn netscape_expired(code: u32) -> BindDiagnostic {
    let state = if code == SUCCESS { AccountState::PasswordMustChange } else { AccountState::PasswordExpired };
    BindDiagnostic::State { state, proven: true }
}

/// Seconds as decimal text.
fn netscape_expiring(code: u32, value: &[u8]) -> Option<BindDiagnostic> {
    let seconds = std::str::from_utf8(value).ok()?.parse().ok()?;
    (code == SUCCESS).then_some(BindDiagnostic::Expiring(seconds))
}

/// What the text says of the account.
fn by_text(code: u32, text: &str) -> Option<BindDiagnostic> {
    match vendor::of(code, text).map(|row| row.meaning) {
        Some(Meaning::Account(state, proven)) => Some(BindDiagnostic::State { state, proven }),
        Some(Meaning::NoAccount) => Some(BindDiagnostic::NoAccount),
        Some(Meaning::AsCode | Meaning::Tls | Meaning::ServiceAccount) => None,
        None if code == INVALID_CREDENTIALS => vendor::sub_code(text).map(BindDiagnostic::SubCode),
        None => None,
    }
}

/// A whole number of up to four bytes that is not negative.
fn number(bytes: &[u8]) -> Option<u32> {
    whole_number(bytes).filter(|_| bytes.first().is_some_and(|first| *first < 0x80))
}

/// The invariants of any reply: no account state where the server sent none, and no warning beside a refusal.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn invariants(code: u32, control: &[u8], text: &str) {
    use crate::directory::ldap::frames::{BIND_RESPONSE, Frames};
    use crate::proto::ldap::ber::{digits, wrapped};

    let said = [password_policy(code, control), netscape_expiring(code, control), by_text(code, text)];
    for said in said.iter().flatten() {
        assert!(said.warning().is_none() || code == SUCCESS, "{said} beside {code}");
        assert!(said.to_string().chars().all(|c| c.is_ascii_graphic() || c == ' '), "{said:?}");
    }
    // The same within a complete reply; and the bytes alone, as one.
    let control = wrapped(0x30, &[&wrapped(0x04, &[PASSWORD_POLICY.as_bytes()]), &wrapped(0x04, &[control])]);
    let result = [wrapped(0x0a, &[&digits(code)]), wrapped(0x04, &[]), wrapped(0x04, &[text.as_bytes()])].concat();
    let parts = [wrapped(0x02, &[&[1]]), wrapped(BIND_RESPONSE, &[&result]), wrapped(0xa0, &[&control])].concat();
    let bound = |bytes: &[u8]| {
        let mut frames = Frames::new(1 << 20);
        frames.push(bytes);
        let (message, _) = frames.message().filter(|(message, _)| message.tag == BIND_RESPONSE)?;
        BindResponse::read(&message, b"")
    };
    let by_policy = said.first().copied().flatten();
    let by_words = said.last().copied().flatten();
    assert_eq!(
        bound(&wrapped(0x30, &[&parts])),
        Some(BindResponse { result: ServerResult::new(code, text), diagnostic: by_policy.or(by_words) }),
        "{parts:x?}"
    );
    let _ = (bound(&control), bound(text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::ldap::frames::Frames;
    use crate::proto::ldap::ber::{digits, wrapped};

    const EXPIRED: Option<BindDiagnostic> =
        Some(BindDiagnostic::State { state: AccountState::PasswordExpired, proven: true });
    const DISABLED: Option<BindDiagnostic> =
        Some(BindDiagnostic::State { state: AccountState::Disabled, proven: false });
    const LOCKED: Option<BindDiagnostic> = Some(BindDiagnostic::State { state: AccountState::Locked, proven: false });
    const MUST_CHANGE: Option<BindDiagnostic> =
        Some(BindDiagnostic::State { state: AccountState::PasswordMustChange, proven: true });

    /// What is read of an answer, as it comes over the wire.
    fn bound(code: u32, text: &str, controls: Controls<'_>) -> BindResponse {
        let control = |(oid, value): &(&str, Option<&[u8]>)| {
            let value = value.map(|value| wrapped(0x04, &[value])).unwrap_or_default();
            wrapped(0x30, &[&wrapped(0x04, &[oid.as_bytes()]), &value])
        };
        let controls: Vec<u8> = controls.iter().flat_map(control).collect();
        let result = [wrapped(0x0a, &[&digits(code)]), wrapped(0x04, &[]), wrapped(0x04, &[text.as_bytes()])].concat();
        let parts = [wrapped(0x02, &[&[1]]), wrapped(0x61, &[&result]), wrapped(0xa0, &[&controls])].concat();
        let mut frames = Frames::new(10_000);
        frames.push(&wrapped(0x30, &[&parts]));
        BindResponse::read(&frames.message().unwrap().0, b"").unwrap()
    }

    #[test]
    fn password_policy_control_is_read() {
        let cases: [(u32, &[u8], Option<BindDiagnostic>); 12] = [
            (49, b"\x30\x00", None),
            (49, b"\x30\x03\x81\x01\x01", LOCKED),
            (19, b"\x30\x03\x81\x01\x01", LOCKED),
            (53, b"\x30\x03\x81\x01\x01", DISABLED),
            (49, b"\x30\x03\x81\x01\x00", EXPIRED),
            (0, b"\x30\x03\x81\x01\x02", MUST_CHANGE),
            (0, b"\x30\x03\x81\x01\x00", EXPIRED),
            // Beside success a grace login counts more than the age that makes it one.
            (0, b"\x30\x08\xa0\x03\x81\x01\x02\x81\x01\x00", Some(BindDiagnostic::Grace(2))),
            (0, b"\x30\x05\xa0\x03\x81\x01\x00", Some(BindDiagnostic::Grace(0))),
            (0, b"\x30\x06\xa0\x04\x80\x02\x0e\x10", Some(BindDiagnostic::Expiring(3600))),
            (49, b"\x30\x06\xa0\x04\x80\x02\x0e\x10", None),
            (0, b"\x30\x03\x81\x01\x06", None),
        ];
        for (code, value, said) in cases {
            let bound = bound(code, "", &[(PASSWORD_POLICY, Some(value))]);
            assert_eq!(
                bound,
                BindResponse { result: code.into(), diagnostic: said },
                "{code} {}",
                value.escape_ascii()
            );
        }
        // The longer forms of the same lengths; the second is what 389-DS sends.
        assert_eq!(password_policy(49, b"\x30\x84\x00\x00\x00\x03\x81\x01\x01"), LOCKED);
        assert_eq!(password_policy(0, b"\x30\x81\x05\x81\x82\x00\x01\x02"), MUST_CHANGE);
    }

    #[test]
    fn malformed_control_yields_no_state() {
        let whole = b"\x30\x08\xa0\x03\x81\x01\x02\x81\x01\x00";
        for length in 0..whole.len() {
            invariants(0, &whole[..length], "");
            assert_eq!(password_policy(49, &whole[..length]), None, "{length}");
        }
        let spoilt: [&[u8]; 6] = [
            b"\x30\x03\x81\x01\x81",
            b"\x30\x07\x81\x05\x01\x01\x01\x01\x01",
            b"\x30\x84\xff\xff\xff\xff\x81\x01\x01",
            b"\x31\x03\x81\x01\x01",
            b"\x30\x80\x81\x01\x01\x00\x00",
            b"\x30\x02\x81\x00",
        ];
        for value in spoilt {
            assert_eq!(password_policy(49, value), None, "{}", value.escape_ascii());
        }
        let without = bound(49, "", &[(PASSWORD_POLICY, None), ("1.2.3", Some(b"\x30\x03\x81\x01\x01"))]);
        assert_eq!(without.diagnostic, None);
    }

    type Controls<'a> = &'a [(&'a str, Option<&'a [u8]>)];

    #[test]
    fn netscape_controls_are_read_and_the_newer_control_takes_precedence() {
        let grace: &[u8] = b"\x30\x05\xa0\x03\x81\x01\x01";
        let zero: Option<&[u8]> = Some(b"0");
        let cases: [(u32, Controls<'_>, Option<BindDiagnostic>); 7] = [
            (49, &[(NETSCAPE_EXPIRED, zero)], EXPIRED),
            (49, &[(NETSCAPE_EXPIRED, None)], EXPIRED),
            (0, &[(NETSCAPE_EXPIRED, zero)], MUST_CHANGE),
            (0, &[(NETSCAPE_EXPIRED, zero), (PASSWORD_POLICY, Some(grace))], Some(BindDiagnostic::Grace(1))),
            (0, &[(NETSCAPE_EXPIRING, Some(b"86400"))], Some(BindDiagnostic::Expiring(86_400))),
            (0, &[(NETSCAPE_EXPIRING, Some(b"-1"))], None),
            (49, &[(NETSCAPE_EXPIRING, Some(b"1"))], None),
        ];
        for (code, controls, said) in cases {
            assert_eq!(bound(code, "", controls).diagnostic, said, "{code} {controls:?}");
        }
    }

    #[test]
    fn sub_codes_are_read_with_invalid_credentials_only() {
        let state = |state, proven| Some(BindDiagnostic::State { state, proven });
        let cases = [
            ("52e", None),
            ("525", Some(BindDiagnostic::NoAccount)),
            ("530", state(AccountState::OutsideLogonHours, true)),
            ("531", state(AccountState::WrongWorkstation, true)),
            ("532", state(AccountState::PasswordExpired, true)),
            ("533", state(AccountState::Disabled, true)),
            ("701", state(AccountState::AccountExpired, true)),
            ("773", state(AccountState::PasswordMustChange, true)),
            ("775", state(AccountState::Locked, false)),
            ("52f", Some(BindDiagnostic::SubCode(0x52f))),
            ("", None),
            ("fffffffff", None),
        ];
        for (code, said) in cases {
            let text =
                format!("80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data {code}, v4563\0");
            assert_eq!(bound(49, &text, &[]).diagnostic, said, "{code}");
            assert_eq!(bound(52, &text, &[]).diagnostic, None, "{code}");
        }
        for text in ["", "data 775", "AcceptSecurityContext error, data é"] {
            assert_eq!(bound(49, text, &[]).diagnostic, None, "{text}");
        }
    }

    #[test]
    fn states_of_other_vendors_are_read_by_their_texts() {
        let state = |state| Some(BindDiagnostic::State { state, proven: false });
        for code in [49, 53] {
            for (text, said) in [
                ("NDS error: login lockout (-197)", LOCKED),
                ("NDS error: log account expired (-220)", DISABLED),
                ("NDS error: bad login time or Q halted (-218)", state(AccountState::OutsideLogonHours)),
                ("NDS error: bad password (-222)", state(AccountState::PasswordExpired)),
                ("NDS error: maximum logins exceeded or Q stn not server (-217)", None),
                ("NDS error: something new (-999)", None),
            ] {
                assert_eq!(bound(code, text, &[]).diagnostic, said, "{code} {text}");
            }
        }
        assert_eq!(bound(49, "NDS error: failed authentication (-669)", &[]).diagnostic, None);
        assert_eq!(bound(19, "Exceed password retry limit. Please try later.", &[]).diagnostic, LOCKED);
        assert_eq!(bound(53, "Account inactivated. Contact system administrator.", &[]).diagnostic, DISABLED);
        assert_eq!(bound(0, "NDS error: login lockout (-197)", &[]).diagnostic, None, "not beside success");
        // The control says more than a text.
        let expired: &[u8] = b"\x30\x03\x81\x01\x00";
        let with_both = bound(49, "NDS error: login lockout (-197)", &[(PASSWORD_POLICY, Some(expired))]);
        assert_eq!(with_both.diagnostic, EXPIRED);
    }

    #[test]
    fn policy_state_is_readable_in_the_log() {
        let shown = [
            BindDiagnostic::SubCode(0x52f),
            BindDiagnostic::Grace(2),
            BindDiagnostic::Expiring(60),
            BindDiagnostic::NoAccount,
        ]
        .map(|said| said.to_string());
        let expected =
            ["data 52f", "password expired, 2 grace logins left", "password expires in 60 s", "no such account"];
        assert_eq!(shown, expected);
    }
}
