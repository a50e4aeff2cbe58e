//! The public keys of an issuer: a JSON Web Key Set (RFC 7517), read key by key.
//!
//! A key that cannot be used is skipped, and the others are used (RFC 7517 section 5): sets hold keys of encryption
//! and of algorithms to come. Each usable key has a verifier for each algorithm that fits its type, so that a token
//! can never choose another use of it (RFC 8725 section 3.2).

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
};
use serde_json::{Map, Value};

use super::jwt::{self, Algorithm, Jwt};
use super::strict;
use crate::base::labels::labels;
use crate::outcome::TokenError;

/// The largest set, in bytes.
pub(crate) const LARGEST_SET: usize = 256 * 1024;
/// The most keys of a set that are read.
const MOST_KEYS: usize = 100;
/// The most keys that a token without a `kid` is tried with.
const MOST_TRIALS: usize = 4;

const RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::Rs256, &RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::Rs384, &RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::Rs512, &RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::Ps256, &RSA_PSS_2048_8192_SHA256),
    (Algorithm::Ps384, &RSA_PSS_2048_8192_SHA384),
    (Algorithm::Ps512, &RSA_PSS_2048_8192_SHA512),
];

labels! {
    /// Why a key of a set is not used.
    pub(crate) enum SkippedKey {
        /// `kty` is not RSA, EC or OKP; `oct` is a shared secret, by which whoever knows it could sign.
        Kind => "key_type",
        /// `use` or `key_ops` say that it is not for signatures.
        Purpose => "not_for_signatures",
        /// `alg` is not supported, or does not fit the key.
        Algorithm => "algorithm",
        /// A curve that is not supported.
        Curve => "curve",
        /// Too short, too long, not on its curve, or a number that cannot be read.
        Value => "key_value",
        /// The set holds its private half: whoever reads the set could sign.
        Private => "private_key",
        /// Beyond the keys of a set that are read.
        TooMany => "too_many_keys",
    }
}

/// The usable keys of an issuer.
#[derive(Debug)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
    /// Why others are not used.
    pub(crate) skipped: Vec<SkippedKey>,
}

/// A key, with a verifier for each algorithm.
struct Key {
    kid: Option<String>,
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithms: Vec<_> = self.verifiers.iter().map(|(algorithm, _)| algorithm).collect();
        f.debug_struct("Key").field("kid", &self.kid).field("algorithms", &algorithms).finish()
    }
}

/// Why a text is no set of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeySetError {
    /// No JSON object, or one in which a name is given twice.
    #[error("not a JSON object, or a name is given twice in it")]
    NotJson,
    /// Without `keys`.
    #[error("not a JSON Web Key Set: it has no list `keys` (RFC 7517)")]
    NotASet,
    /// Without a usable key.
    #[error("no usable key for signatures in it ({0})")]
    NoUsableKey(String),
}

impl KeySet {
    /// Reads a set.
    ///
    /// # Errors
    /// It is no key set, or has no usable key.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let set = strict::object(text).ok_or(KeySetError::NotJson)?;
        let Some(Value::Array(found)) = set.get("keys") else { return Err(KeySetError::NotASet) };
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for found in found.iter().take(MOST_KEYS) {
            match found.as_object().ok_or(SkippedKey::Value).and_then(key) {
                Ok(key) => keys.push(key),
                Err(reason) => skipped.push(reason),
            }
        }
        if found.len() > MOST_KEYS {
            skipped.push(SkippedKey::TooMany);
        }
        if keys.is_empty() {
            let reasons: Vec<&str> = skipped.iter().map(|reason| reason.label()).collect();
            return Err(KeySetError::NoUsableKey(if reasons.is_empty() {
                "empty".to_owned()
            } else {
                reasons.join(", ")
            }));
        }
        Ok(Self { keys, skipped })
    }

    /// How many keys are usable.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Verifies the signature of a token.
    ///
    /// # Errors
    /// There is no such key, it does not fit, or the signature is another's.
    pub(super) fn verify(&self, jwt: &Jwt<'_>) -> Result<(), TokenError> {
        let is_named = jwt.kid.is_some() && self.keys.iter().any(|key| key.kid == jwt.kid);
        // A set made by hand may have keys without names.
        let is_candidate =
            |key: &&Key| if is_named { key.kid == jwt.kid } else { jwt.kid.is_none() || key.kid.is_none() };
        let candidates = self.keys.iter().filter(is_candidate).flat_map(|key| &key.verifiers);
        let fitting = candidates.filter(|(algorithm, _)| *algorithm == jwt.algorithm).take(MOST_TRIALS);
        let mut refusal = if is_named { TokenError::Algorithm } else { TokenError::UnknownKey };
        for (_, verifier) in fitting {
            if verifier.verify_sig(jwt.signed, &jwt.signature).is_ok() {
                return Ok(());
            }
            // Without the key's name it may be one that the set does not have yet.
            refusal = if is_named { TokenError::Signature } else { TokenError::UnknownKey };
        }
        Err(refusal)
    }
}

fn key(members: &Map<String, Value>) -> Result<Key, SkippedKey> {
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    if ["d", "p", "q"].iter().any(|name| members.contains_key(*name)) {
        return Err(SkippedKey::Private);
    }
    if text("use").is_some_and(|purpose| purpose != "sig") || !members.get("key_ops").is_none_or(verifies) {
        return Err(SkippedKey::Purpose);
    }
    let number = |name: &str| text(name).and_then(|text| jwt::decode(text.as_bytes())).ok_or(SkippedKey::Value);
    let verifiers = match text("kty") {
        Some("RSA") => rsa(&number("n")?, &number("e")?)?,
        Some("EC") => vec![ec(text("crv"), &number("x")?, &number("y")?)?],
        Some("OKP") if text("crv") == Some("Ed25519") => {
            vec![(Algorithm::EdDsa, parsed(ParsedPublicKey::new(&ED25519, number("x")?.as_slice()))?)]
        }
        Some("OKP") => return Err(SkippedKey::Curve),
        Some(_) | None => return Err(SkippedKey::Kind),
    };
    let verifiers = match members.get("alg") {
        None => verifiers,
        Some(algorithm) => {
            let algorithm = algorithm.as_str().and_then(Algorithm::named).ok_or(SkippedKey::Algorithm)?;
            verifiers.into_iter().filter(|(fitting, _)| *fitting == algorithm).collect()
        }
    };
    if verifiers.is_empty() {
        return Err(SkippedKey::Algorithm);
    }
    Ok(Key { kid: text("kid").map(str::to_owned), verifiers })
}

/// Whether `key_ops` has the verification of signatures (RFC 7517 section 4.3).
fn verifies(operations: &Value) -> bool {
    operations.as_array().is_some_and(|operations| operations.iter().any(|operation| operation == "verify"))
}

fn parsed<E>(key: Result<ParsedPublicKey, E>) -> Result<ParsedPublicKey, SkippedKey> {
    key.map_err(|_| SkippedKey::Value)
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Vec<(Algorithm, ParsedPublicKey)>, SkippedKey> {
    // RFC 7518 section 6.3.1.1 has no leading zero; some libraries write one.
    let stripped = |number: &'_ [u8]| number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let (n, e) =
        (modulus.get(stripped(modulus)..).unwrap_or_default(), exponent.get(stripped(exponent)..).unwrap_or_default());
    // The library checks the length at each verification; a key that never verifies is no usable key.
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    // An exponent of 1 would let every text sign itself, and a long one makes each verification slow.
    let is_odd = e.last().is_some_and(|last| last % 2 == 1);
    if !(2_048..=8_192).contains(&bits) || !is_odd || e == [1] || e.len() > 4 {
        return Err(SkippedKey::Value);
    }
    let components = RsaPublicKeyComponents { n, e };
    RSA.iter()
        .map(|(algorithm, parameters)| Ok((*algorithm, parsed(components.to_parsed_public_key(parameters))?)))
        .collect()
}

fn ec(curve: Option<&str>, x: &[u8], y: &[u8]) -> Result<(Algorithm, ParsedPublicKey), SkippedKey> {
    let (algorithm, verification, length) = match curve {
        Some("P-256") => (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED, 32),
        Some("P-384") => (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED, 48),
        Some("P-521") => (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED, 66),
        Some(_) | None => return Err(SkippedKey::Curve),
    };
    // RFC 7518 section 6.2.1.2: the full length, leading zeros included.
    if x.len() != length || y.len() != length {
        return Err(SkippedKey::Value);
    }
    // SEC 1 section 2.3.3: an uncompressed point.
    let point = [&[4], x, y].concat();
    Ok((algorithm, parsed(ParsedPublicKey::new(verification, point))?))
}
