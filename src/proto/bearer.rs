//! The messages of OAUTHBEARER (RFC 7628) and XOAUTH2, which carry a token (RFC 6750), and the challenges that report
//! a refused one: both sides.
//!
//! Nothing of a message but its name and its token is used: `host` and `port` are the client's claims. Whether the
//! token is any good is not known here.

use serde_json::{Map, Value};

use super::wire::first_word;
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::TokenChallenge;

/// What separates the parts of a message.
const SEPARATOR: u8 = 1;

/// The most of a backend's challenge that is looked at.
const CHALLENGE: usize = 2_048;

/// What a client may need for another token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenHints {
    /// The scopes that it must have, separated by blanks; empty: none in particular.
    pub scope: String,
    /// The URL of the issuer's discovery document.
    pub discovery: Option<String>,
}

/// A message: the user that the client names, or nothing, and its token. An empty token asks for a challenge (RFC 7628
/// section 4.3).
pub(super) type TokenMessage = (Vec<u8>, Secret);

/// Reads a message of OAUTHBEARER (RFC 7628 section 3.1): a GS2 header (RFC 5801 section 4), then pairs.
pub(super) fn read_oauthbearer(message: &[u8]) -> Option<TokenMessage> {
    let end = message.iter().position(|byte| *byte == SEPARATOR)?;
    let (header, pairs) = message.split_at_checked(end)?;
    let name = gs2_name(header)?;
    Some((name, bearer(pairs, b"auth")?))
}

/// Reads a message of XOAUTH2: `user=` and `auth=`.
pub(super) fn read_xoauth2(message: &[u8]) -> Option<TokenMessage> {
    let name = value_of(message, b"user")?.unwrap_or_default().to_vec();
    Some((name, bearer(message, b"auth")?))
}

/// The authzid of a header. Channel binding is not offered, so that none is accepted.
fn gs2_name(header: &[u8]) -> Option<Vec<u8>> {
    let rest = header.strip_prefix(b"n,").or_else(|| header.strip_prefix(b"y,"))?.strip_suffix(b",")?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let mut coded = rest.strip_prefix(b"a=")?.iter();
    let mut name = Vec::with_capacity(coded.len());
    while let Some(byte) = coded.next() {
        name.push(match byte {
            b'=' => match [*coded.next()?, *coded.next()?] {
                [b'2', b'C'] => b',',
                [b'3', b'D'] => b'=',
                _ => return None,
            },
            b',' => return None,
            other => *other,
        });
    }
    (!name.is_empty()).then_some(name)
}

/// The token in the pair of this name, with its scheme.
fn bearer(pairs: &[u8], name: &[u8]) -> Option<Secret> {
    let (scheme, token) = first_word(value_of(pairs, name)??.trim_ascii());
    let token = token.trim_ascii_start();
    let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer") || scheme.is_empty();
    (is_bearer && is_token(token)).then(|| Secret::copy_of(token))
}

/// The value of the pair of this name, at most one of which may be there; `None`: a message that is no list of pairs.
fn value_of<'a>(pairs: &'a [u8], name: &[u8]) -> Option<Option<&'a [u8]>> {
    let mut value = None;
    for pair in pairs.split(|byte| *byte == SEPARATOR).filter(|pair| !pair.is_empty()) {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (key, text) = pair.split_at_checked(at)?;
        if key.is_empty() || !key.iter().all(u8::is_ascii_alphabetic) {
            return None;
        }
        // Of two, another server might read the other one.
        if key.eq_ignore_ascii_case(name) && value.replace(text.get(1..)?).is_some() {
            return None;
        }
    }
    Some(value)
}

/// Whether these are the characters of a token (RFC 6750 section 2.1).
fn is_token(text: &[u8]) -> bool {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let rest = text.get(..text.len() - padding).unwrap_or_default();
    rest.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
        && (padding == 0 || !rest.is_empty())
}

/// Writes a message of OAUTHBEARER. The name is always there: Dovecot refuses a message without.
pub(super) fn write_oauthbearer(name: &[u8], token: &Secret, out: &mut SecretBuf) {
    out.extend(b"n,a=");
    for byte in name {
        match byte {
            b',' => out.extend(b"=2C"),
            b'=' => out.extend(b"=3D"),
            other => out.extend(&[*other]),
        }
    }
    out.extend(b",");
    write_bearer(token, out);
}

/// Writes a message of XOAUTH2.
pub(super) fn write_xoauth2(name: &[u8], token: &Secret, out: &mut SecretBuf) {
    out.extend(b"user=");
    out.extend(name);
    write_bearer(token, out);
}

fn write_bearer(token: &Secret, out: &mut SecretBuf) {
    out.extend(b"\x01auth=Bearer ");
    out.extend(token.expose());
    out.extend(b"\x01\x01");
}

/// The challenge of OAUTHBEARER that reports an error (RFC 7628 section 3.2.2).
pub(super) fn oauthbearer_challenge(error: TokenChallenge, hints: &TokenHints) -> String {
    object([
        ("status", error.error()),
        ("scope", &hints.scope),
        ("openid-configuration", hints.discovery.as_deref().unwrap_or_default()),
    ])
}

/// The challenge of XOAUTH2 that reports an error.
pub(super) fn xoauth2_challenge(error: TokenChallenge, hints: &TokenHints) -> String {
    object([("status", error.status()), ("schemes", "bearer"), ("scope", &hints.scope)])
}

/// A JSON object of these members, without those that are empty.
fn object(members: [(&str, &str); 3]) -> String {
    let members = members.into_iter().filter(|(_, value)| !value.is_empty());
    let members = members.map(|(name, value)| (name.to_owned(), Value::from(value)));
    Value::Object(members.collect::<Map<_, _>>()).to_string()
}

/// The error that a backend's challenge reports, however it puts it: whatever it is, the token was not accepted.
pub(super) fn reported_error(challenge: &[u8]) -> TokenChallenge {
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    let object = challenge.get(..challenge.len().min(CHALLENGE)).and_then(read);
    let status = object.as_ref().and_then(|object| object.get("status")?.as_str());
    match status {
        Some("insufficient_scope" | "403") => TokenChallenge::InsufficientScope,
        Some("invalid_request" | "400") => TokenChallenge::InvalidRequest,
        Some(_) | None => TokenChallenge::InvalidToken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(message: Option<TokenMessage>) -> Option<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        message.map(|(name, token)| (text(&name), text(token.expose())))
    }

    fn some(name: &str, token: &str) -> Option<(String, String)> {
        Some((name.to_owned(), token.to_owned()))
    }

    #[test]
    fn oauthbearer_has_a_header_and_pairs() {
        let read = |text: &str| parts(read_oauthbearer(text.as_bytes()));
        // RFC 7628 section 4.1, and what curl sends.
        let rfc = "n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer vF9dft4qmT==\x01\x01";
        assert_eq!(read(rfc), some("user@example.com", "vF9dft4qmT=="));
        assert_eq!(read("n,,\x01auth=Bearer a.b-c_d~e+f/g\x01\x01"), some("", "a.b-c_d~e+f/g"));
        assert_eq!(read("y,a=a=2Cb=3Dc,\x01auth=bearer  t\x01\x01"), some("a,b=c", "t"));
        // Section 4.3: the client asks which issuer it needs.
        assert_eq!(read("n,,\x01host=server.example.com\x01port=143\x01auth=\x01\x01"), some("", ""));
        assert_eq!(read("n,,\x01auth=Bearer t\x01"), some("", "t"), "the second separator is missed by no reader");
        for wrong in [
            "",
            "\x01",
            "n,,",
            "n,,\x01\x01",
            "n\x01auth=Bearer t\x01\x01",
            "n,\x01auth=Bearer t\x01\x01",
            "p=tls-exporter,,\x01auth=Bearer t\x01\x01",
            "F,n,,\x01auth=Bearer t\x01\x01",
            "n,a=,\x01auth=Bearer t\x01\x01",
            "n,a=a,b,\x01auth=Bearer t\x01\x01",
            "n,a=a=2Xb,\x01auth=Bearer t\x01\x01",
            "n,a=a=2,\x01auth=Bearer t\x01\x01",
            "n,user=a,\x01auth=Bearer t\x01\x01",
            "n,,\x01auth=Basic dDp0\x01\x01",
            "n,,\x01auth=Bearer a b\x01\x01",
            "n,,\x01auth=Bearer =\x01\x01",
            "n,,\x01auth=Bearer a=b\x01\x01",
            "n,,\x01auth=Bearer a\\\x01\x01",
            "n,,\x01auth=Bearer a\x01auth=Bearer b\x01\x01",
            "n,,\x01auth=Bearer a\x01AUTH=Bearer b\x01\x01",
            "n,,\x01nopair\x01auth=Bearer t\x01\x01",
            "n,,\x01=x\x01auth=Bearer t\x01\x01",
            "user=alice\x01auth=Bearer t\x01\x01",
        ] {
            assert_eq!(read(wrong), None, "{}", wrong.escape_debug());
        }
    }

    #[test]
    fn xoauth2_has_pairs() {
        let read = |text: &str| parts(read_xoauth2(text.as_bytes()));
        assert_eq!(read("user=a@b\x01auth=Bearer t\x01\x01"), some("a@b", "t"));
        assert_eq!(read("auth=Bearer t\x01user=a=b\x01\x01"), some("a=b", "t"));
        assert_eq!(read("user=\x01auth=Bearer t\x01\x01"), some("", "t"));
        assert_eq!(read("auth=Bearer t\x01"), some("", "t"));
        for wrong in [
            "",
            "user=a",
            "user=a\x01auth=t\x01\x01",
            "user=a\x01user=b\x01auth=Bearer t\x01\x01",
            "n,a=a,\x01auth=Bearer t\x01\x01",
            "user=a\x01auth=Bearer t\0u\x01\x01",
        ] {
            assert_eq!(read(wrong), None, "{}", wrong.escape_debug());
        }
    }

    #[test]
    fn written_message_is_read_back() {
        let token = Secret::copy_of(b"eyJ.a-_.b==");
        for name in ["alice", "a,b=c@example.com", "\u{e4}"] {
            let (mut one, mut other) = (SecretBuf::new(), SecretBuf::new());
            write_oauthbearer(name.as_bytes(), &token, &mut one);
            write_xoauth2(name.as_bytes(), &token, &mut other);
            let read = [read_oauthbearer(one.as_slice()), read_xoauth2(other.as_slice())];
            assert_eq!(read.map(parts), [some(name, "eyJ.a-_.b=="), some(name, "eyJ.a-_.b==")]);
        }
    }

    #[test]
    fn challenges_report_the_error_and_what_is_needed() {
        let hints = TokenHints { scope: "mail \"x\"".to_owned(), discovery: Some("https://idp/d".to_owned()) };
        let challenge = oauthbearer_challenge(TokenChallenge::InsufficientScope, &hints);
        let parsed: Value = serde_json::from_str(&challenge).unwrap();
        assert_eq!(parsed["status"], "insufficient_scope");
        assert_eq!(
            (&parsed["scope"], &parsed["openid-configuration"]),
            (&"mail \"x\"".into(), &"https://idp/d".into())
        );
        let challenge = xoauth2_challenge(TokenChallenge::InvalidToken, &TokenHints::default());
        let parsed: Value = serde_json::from_str(&challenge).unwrap();
        assert_eq!(parsed, serde_json::json!({"status": "401", "schemes": "bearer"}));
        for error in [TokenChallenge::InvalidRequest, TokenChallenge::InvalidToken, TokenChallenge::InsufficientScope] {
            assert_eq!(reported_error(oauthbearer_challenge(error, &hints).as_bytes()), error);
            assert_eq!(reported_error(xoauth2_challenge(error, &hints).as_bytes()), error);
        }
        for other in [&b""[..], b"{}", b"[1]", b"{\"status\":403}", &[b'['; 9_000]] {
            assert_eq!(reported_error(other), TokenChallenge::InvalidToken);
        }
    }
}
