//! The demo's identity provider, as far as usher needs one: a key pair, its public half as a JSON Web Key Set, and a
//! token for alice. A real one hands out a token after its users have signed in there.

use std::io;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::base::clock::unix_now;

/// The value of `iss`; nothing is served there.
pub(crate) const ISSUER: &str = "https://idp.demo.example";
/// How long the token is good: longer than any demo runs, in seconds.
const LIFE: u64 = 30 * 24 * 60 * 60;

/// The provider's public key, and alice's token.
pub(crate) struct Issuer {
    /// The JSON Web Key Set.
    pub(crate) keys: String,
    /// A token that names alice by her address.
    pub(crate) token: String,
}

impl Issuer {
    /// With a new key.
    pub(crate) fn new() -> io::Result<Self> {
        let failed = |_| io::Error::other("no key for tokens");
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
        // An uncompressed point: 4, then both coordinates.
        let point = pair.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        let key = json!({"kty": "EC", "crv": "P-256", "kid": "demo", "x": base64url(x), "y": base64url(y)});
        let head = json!({"alg": "ES256", "kid": "demo", "typ": "at+jwt"});
        let claims = json!({
            "iss": ISSUER,
            "aud": "mail",
            "sub": "alice",
            "azp": "demo",
            "email": "alice@demo.example",
            "email_verified": true,
            "exp": unix_now() + LIFE,
        });
        let part = |value: &Value| base64url(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(failed)?;
        let token = format!("{signed}.{}", base64url(signature.as_ref()));
        Ok(Self { keys: json!({ "keys": [key] }).to_string(), token })
    }
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
