//! The compact form of a signed token (RFC 7515 section 7.1), and what its header may say.
//!
//! Nothing here is verified: the header chooses a key and an algorithm among those of the issuer, the payload an
//! issuer among those of the configuration. `jku`, `x5u`, `jwk` and `x5c`, by which a token would bring a key of its
//! own, are never read (RFC 8725 sections 3.1 and 3.10).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::strict;
use crate::outcome::TokenError;

/// The longest token, in bytes: what an AUTH line of 12,288 octets can hold.
pub(super) const LONGEST: usize = 9_216;

/// A signature algorithm (RFC 7518 section 3.1, RFC 8037). HMAC and `none` are not among them: the key of the one
/// would be public, and the other has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    /// The algorithm of this name. Names are compared by case (RFC 7515 section 4.1.1).
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            // RFC 9864 section 2.2 gives the second name to the only curve that is supported.
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// The parts of a signed token.
pub(super) struct Jwt<'a> {
    /// How it is signed.
    pub(super) algorithm: Algorithm,
    /// The name of the key.
    pub(super) kid: Option<String>,
    /// What is signed.
    pub(super) signed: &'a [u8],
    /// The signature.
    pub(super) signature: Vec<u8>,
    /// The claims.
    pub(super) claims: Map<String, Value>,
}

/// What a token is.
pub(super) enum Form<'a> {
    /// A signed JWT.
    Jwt(Jwt<'a>),
    /// Another text, which only its issuer can read.
    Opaque,
}

/// Reads a token.
///
/// # Errors
/// It is no token, or a JWT that is never accepted.
pub(super) fn read(token: &[u8]) -> Result<Form<'_>, TokenError> {
    if token.len() > LONGEST || !is_bearer(token) {
        return Err(TokenError::Malformed);
    }
    let parts: Vec<&[u8]> = token.split(|byte| *byte == b'.').collect();
    match (header(&parts), parts.as_slice()) {
        (Some(head), [_, payload, signature]) => {
            let end = token.len() - signature.len() - 1;
            let signed = token.get(..end).unwrap_or_default();
            jwt(&head, signed, payload, signature).map(Form::Jwt)
        }
        // Encrypted (RFC 7516 section 7.1).
        (Some(_), [_, _, _, _, _]) => Err(TokenError::Header),
        (Some(_), _) => Err(TokenError::Malformed),
        (None, _) => Ok(Form::Opaque),
    }
}

/// The header, if the text is meant to be a JWT. One opaque token in 256 is random bytes that begin with a brace.
fn header(parts: &[&[u8]]) -> Option<Zeroizing<Vec<u8>>> {
    let [head, _, ..] = parts else { return None };
    decode(head).filter(|head| head.trim_ascii_start().starts_with(b"{") && std::str::from_utf8(head).is_ok())
}

fn jwt<'a>(head: &[u8], signed: &'a [u8], payload: &[u8], signature: &[u8]) -> Result<Jwt<'a>, TokenError> {
    let head = strict::object(head).ok_or(TokenError::Malformed)?;
    // No extension is understood, so that each one that must be is a reason to refuse (RFC 7515 section 4.1.11);
    // `b64` changes what is signed (RFC 7797), `enc` and `zip` belong to encrypted tokens.
    if ["crit", "b64", "enc", "zip"].iter().any(|name| head.contains_key(*name)) {
        return Err(TokenError::Header);
    }
    let algorithm = head.get("alg").and_then(Value::as_str).and_then(Algorithm::named).ok_or(TokenError::Algorithm)?;
    if !head.get("typ").is_none_or(|kind| kind.as_str().is_some_and(is_access_token)) {
        return Err(TokenError::Header);
    }
    let kid = match head.get("kid") {
        None => None,
        Some(Value::String(kid)) => Some(kid.clone()),
        Some(_) => return Err(TokenError::Header),
    };
    let claims = decode(payload).and_then(|payload| strict::object(&payload)).ok_or(TokenError::Malformed)?;
    let signature = decode(signature).filter(|signature| !signature.is_empty()).ok_or(TokenError::Malformed)?;
    Ok(Jwt { algorithm, kid, signed, signature: signature.to_vec(), claims })
}

/// Whether `typ` is that of an access token (RFC 9068 section 2.1); a media type without its `application/`
/// (RFC 7515 section 4.1.9).
fn is_access_token(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt")
}

/// `b64token` of RFC 6750 section 2.1.
fn is_bearer(token: &[u8]) -> bool {
    let end = token.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let text = token.get(..end).unwrap_or_default();
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

/// Base64url without padding (RFC 7515 section 2), in its one canonical form.
pub(super) fn decode(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    URL_SAFE_NO_PAD.decode(text).ok().map(Zeroizing::new)
}
