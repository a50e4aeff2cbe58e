//! What the answer to a bind says beside its result code: why an account may not log in, or that its
//! password will soon be too old.
//!
//! Three dialects: the password-policy control (draft-behera-ldap-password-policy-10 section 6.2,
//! which OpenLDAP, 389-DS and most others speak, once it is asked for), the older Netscape controls
//! (draft-vchu-ldap-pwd-policy-00), and the sub-codes in Active Directory's diagnostic text. Nothing
//! here judges: what cannot be read says nothing, and the result code stands alone. It never panics,
//! whatever bytes a server sends.

use std::fmt;

use ldap3::LdapResult;
use ldap3::controls::RawControl;

use crate::outcome::AccountState;

/// The password-policy control, in request and response.
const PASSWORD_POLICY: &str = "1.3.6.1.4.1.42.2.27.8.5.1";
/// Netscape: the password has expired, or must be changed.
const NETSCAPE_EXPIRED: &str = "2.16.840.1.113730.3.4.4";
/// Netscape: the password will expire in so many seconds.
const NETSCAPE_EXPIRING: &str = "2.16.840.1.113730.3.4.5";
/// What Active Directory (and Samba) writes before a sub-code.
const SUB_CODE: &str = "AcceptSecurityContext error, data ";

/// Success.
const SUCCESS: u32 = 0;
/// unwillingToPerform.
const UNWILLING_TO_PERFORM: u32 = 53;
/// invalidCredentials.
const INVALID_CREDENTIALS: u32 = 49;

/// Asks a server to say with its answer what its password policy thinks. Not critical: a server that
/// does not know the control answers as ever.
pub(super) fn request() -> RawControl {
    RawControl { ctype: PASSWORD_POLICY.to_owned(), crit: false, val: None }
}

/// The answer to a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    /// The result code.
    pub(super) code: u32,
    /// What else was said.
    pub(super) said: Option<Said>,
}

/// What a server said about the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It may not log in.
    State {
        /// Why.
        state: AccountState,
        /// Whether only who knows the password hears it.
        proven: bool,
    },
    /// There is no such account.
    NoAccount,
    /// A sub-code of which nothing is known but that it stands beside invalidCredentials.
    SubCode(u32),
    /// The password has expired; it will do for so many more logins.
    Grace(u32),
    /// The password will expire in so many seconds.
    Expiring(u32),
}

impl Said {
    /// The metric label of a warning beside a good bind.
    pub(super) const fn warning(self) -> Option<&'static str> {
        match self {
            Self::Grace(_) => Some("grace"),
            Self::Expiring(_) => Some("expiring"),
            Self::State { .. } | Self::NoAccount | Self::SubCode(_) => None,
        }
    }
}

/// For the log: the server's own number where it is one.
impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State { state, .. } => f.write_str(state.label()),
            Self::NoAccount => f.write_str("no such account"),
            Self::SubCode(code) => write!(f, "data {code:x}"),
            Self::Grace(left) => write!(f, "password expired, {left} grace logins left"),
            Self::Expiring(seconds) => write!(f, "password expires in {seconds} s"),
        }
    }
}

impl Bound {
    /// Reads an answer.
    pub(super) fn read(result: &LdapResult) -> Self {
        let value = |oid: &str| {
            let control = result.ctrls.iter().map(|control| &control.1).find(|control| control.ctype == oid)?;
            Some(control.val.as_deref().unwrap_or_default())
        };
        let code = result.rc;
        // A server of both kinds tells more in the newer control: a grace login is there, where the
        // Netscape control says no more than "expired".
        let said = value(PASSWORD_POLICY).and_then(|value| password_policy(code, value));
        let said = said.or_else(|| value(NETSCAPE_EXPIRED).map(|_| netscape_expired(code)));
        let said = said.or_else(|| value(NETSCAPE_EXPIRING).and_then(|value| netscape_expiring(code, value)));
        Self { code, said: said.or_else(|| (code == INVALID_CREDENTIALS).then(|| sub_code(&result.text))?) }
    }
}

/// The value of a password-policy response.
fn password_policy(code: u32, value: &[u8]) -> Option<Said> {
    let (mut left, mut warning, mut error) = (element(value, 0x30)?.0, None, None);
    if let Some((choice, rest)) = element(left, 0xa0) {
        left = rest;
        let seconds = element(choice, 0x80).and_then(|(seconds, _)| number(seconds));
        let grace = element(choice, 0x81).and_then(|(logins, _)| number(logins));
        warning = seconds.map(Said::Expiring).or(grace.map(Said::Grace));
    }
    if let Some((bytes, _)) = element(left, 0x81) {
        error = number(bytes);
    }
    let state = match error {
        Some(0) => Some((AccountState::PasswordExpired, true)),
        // Said to everybody, before the password is looked at. 389-DS says it of accounts that an
        // administrator has switched off as well, then with another result.
        Some(1) if code == UNWILLING_TO_PERFORM => Some((AccountState::Disabled, false)),
        Some(1) => Some((AccountState::Locked, false)),
        Some(2) => Some((AccountState::PasswordMustChange, true)),
        // The others are about a new password.
        Some(_) | None => None,
    };
    let state = state.map(|(state, proven)| Said::State { state, proven });
    // A grace login is what the policy grants in spite of the password's age.
    match warning {
        Some(Said::Grace(_)) if code == SUCCESS => warning,
        _ if code == SUCCESS => state.or(warning),
        _ => state,
    }
}

/// Beside success it means that nothing but a change of the password is allowed.
const fn netscape_expired(code: u32) -> Said {
    let state = if code == SUCCESS { AccountState::PasswordMustChange } else { AccountState::PasswordExpired };
    Said::State { state, proven: true }
}

/// Seconds as decimal text.
fn netscape_expiring(code: u32, value: &[u8]) -> Option<Said> {
    let seconds = std::str::from_utf8(value).ok()?.parse().ok()?;
    (code == SUCCESS).then_some(Said::Expiring(seconds))
}

/// The Windows error of a refused logon (winerror.h). All but the first two and the last are told to
/// who has shown the right password only.
fn sub_code(text: &str) -> Option<Said> {
    let (_, behind) = text.split_once(SUB_CODE)?;
    let digits = behind.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    let (state, proven) = match u32::from_str_radix(digits, 16).ok()? {
        0x52e => return None,
        0x525 => return Some(Said::NoAccount),
        0x530 => (AccountState::NotNow, true),
        0x531 => (AccountState::NotHere, true),
        0x532 => (AccountState::PasswordExpired, true),
        0x533 => (AccountState::Disabled, true),
        0x701 => (AccountState::AccountExpired, true),
        0x773 => (AccountState::PasswordMustChange, true),
        0x775 => (AccountState::Locked, false),
        other => return Some(Said::SubCode(other)),
    };
    Some(Said::State { state, proven })
}

/// The content of the BER element with this tag that stands at the beginning, and what follows it.
/// X.690 section 8.1.3: a length of one byte, or of up to four behind their number; 389-DS writes four.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (_, rest) = bytes.split_first().filter(|(first, _)| **first == tag)?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// A whole number of up to four bytes that is not negative.
fn number(bytes: &[u8]) -> Option<u32> {
    let (first, fits) = (bytes.first()?, bytes.len() <= 4);
    (fits && *first < 0x80).then(|| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// What must hold for any answer: a state never stands where the server said none, and a warning
/// never beside a refusal.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn trial(code: u32, control: &[u8], text: &str) {
    let said = [
        password_policy(code, control),
        netscape_expiring(code, control),
        (code == INVALID_CREDENTIALS).then(|| sub_code(text)).flatten(),
    ];
    for said in said.into_iter().flatten() {
        assert!(said.warning().is_none() || code == SUCCESS, "{said} beside {code}");
        assert!(said.to_string().chars().all(|c| c.is_ascii_graphic() || c == ' '), "{said:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRED: Option<Said> = Some(Said::State { state: AccountState::PasswordExpired, proven: true });
    const DISABLED: Option<Said> = Some(Said::State { state: AccountState::Disabled, proven: false });
    const LOCKED: Option<Said> = Some(Said::State { state: AccountState::Locked, proven: false });
    const MUST_CHANGE: Option<Said> = Some(Said::State { state: AccountState::PasswordMustChange, proven: true });

    fn answer(code: u32, text: &str, controls: Controls<'_>) -> LdapResult {
        let control = |(oid, value): &(&str, Option<&[u8]>)| {
            let raw = RawControl { ctype: (*oid).to_owned(), crit: false, val: value.map(<[u8]>::to_vec) };
            ldap3::controls::Control(None, raw)
        };
        LdapResult {
            rc: code,
            matched: String::new(),
            text: text.to_owned(),
            refs: Vec::new(),
            ctrls: controls.iter().map(control).collect(),
        }
    }

    #[test]
    fn the_password_policy_control_is_read() {
        let cases: [(u32, &[u8], Option<Said>); 12] = [
            (49, b"\x30\x00", None),
            (49, b"\x30\x03\x81\x01\x01", LOCKED),
            (19, b"\x30\x03\x81\x01\x01", LOCKED),
            (53, b"\x30\x03\x81\x01\x01", DISABLED),
            (49, b"\x30\x03\x81\x01\x00", EXPIRED),
            (0, b"\x30\x03\x81\x01\x02", MUST_CHANGE),
            (0, b"\x30\x03\x81\x01\x00", EXPIRED),
            // Beside success a grace login counts more than the age that makes it one.
            (0, b"\x30\x08\xa0\x03\x81\x01\x02\x81\x01\x00", Some(Said::Grace(2))),
            (0, b"\x30\x05\xa0\x03\x81\x01\x00", Some(Said::Grace(0))),
            (0, b"\x30\x06\xa0\x04\x80\x02\x0e\x10", Some(Said::Expiring(3600))),
            (49, b"\x30\x06\xa0\x04\x80\x02\x0e\x10", None),
            (0, b"\x30\x03\x81\x01\x06", None),
        ];
        for (code, value, said) in cases {
            let bound = Bound::read(&answer(code, "", &[(PASSWORD_POLICY, Some(value))]));
            assert_eq!(bound, Bound { code, said }, "{code} {}", value.escape_ascii());
        }
        // The longer forms of the same lengths; the second is what 389-DS sends.
        assert_eq!(password_policy(49, b"\x30\x84\x00\x00\x00\x03\x81\x01\x01"), LOCKED);
        assert_eq!(password_policy(0, b"\x30\x81\x05\x81\x82\x00\x01\x02"), MUST_CHANGE);
    }

    #[test]
    fn what_is_cut_short_or_spoilt_says_nothing() {
        let whole = b"\x30\x08\xa0\x03\x81\x01\x02\x81\x01\x00";
        for length in 0..whole.len() {
            trial(0, &whole[..length], "");
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
        let without =
            Bound::read(&answer(49, "", &[(PASSWORD_POLICY, None), ("1.2.3", Some(b"\x30\x03\x81\x01\x01"))]));
        assert_eq!(without.said, None);
    }

    type Controls<'a> = &'a [(&'a str, Option<&'a [u8]>)];

    #[test]
    fn netscape_controls_are_read_and_the_newer_one_counts_more() {
        let grace: &[u8] = b"\x30\x05\xa0\x03\x81\x01\x01";
        let zero: Option<&[u8]> = Some(b"0");
        let cases: [(u32, Controls<'_>, Option<Said>); 7] = [
            (49, &[(NETSCAPE_EXPIRED, zero)], EXPIRED),
            (49, &[(NETSCAPE_EXPIRED, None)], EXPIRED),
            (0, &[(NETSCAPE_EXPIRED, zero)], MUST_CHANGE),
            (0, &[(NETSCAPE_EXPIRED, zero), (PASSWORD_POLICY, Some(grace))], Some(Said::Grace(1))),
            (0, &[(NETSCAPE_EXPIRING, Some(b"86400"))], Some(Said::Expiring(86_400))),
            (0, &[(NETSCAPE_EXPIRING, Some(b"-1"))], None),
            (49, &[(NETSCAPE_EXPIRING, Some(b"1"))], None),
        ];
        for (code, controls, said) in cases {
            assert_eq!(Bound::read(&answer(code, "", controls)).said, said, "{code} {controls:?}");
        }
    }

    #[test]
    fn sub_codes_are_read_beside_invalid_credentials_only() {
        let state = |state, proven| Some(Said::State { state, proven });
        let cases = [
            ("52e", None),
            ("525", Some(Said::NoAccount)),
            ("530", state(AccountState::NotNow, true)),
            ("531", state(AccountState::NotHere, true)),
            ("532", state(AccountState::PasswordExpired, true)),
            ("533", state(AccountState::Disabled, true)),
            ("701", state(AccountState::AccountExpired, true)),
            ("773", state(AccountState::PasswordMustChange, true)),
            ("775", state(AccountState::Locked, false)),
            ("52f", Some(Said::SubCode(0x52f))),
            ("", None),
            ("fffffffff", None),
        ];
        for (code, said) in cases {
            let text =
                format!("80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data {code}, v4563\0");
            assert_eq!(Bound::read(&answer(49, &text, &[])).said, said, "{code}");
            assert_eq!(Bound::read(&answer(52, &text, &[])).said, None, "{code}");
        }
        for text in ["", "data 775", "AcceptSecurityContext error, data é"] {
            assert_eq!(Bound::read(&answer(49, text, &[])).said, None, "{text}");
        }
    }

    #[test]
    fn what_is_said_can_be_read_in_the_log() {
        let shown =
            [Said::SubCode(0x52f), Said::Grace(2), Said::Expiring(60), Said::NoAccount].map(|said| said.to_string());
        let expected =
            ["data 52f", "password expired, 2 grace logins left", "password expires in 60 s", "no such account"];
        assert_eq!(shown, expected);
    }
}
