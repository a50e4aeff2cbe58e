//! Sets of keys: what is used of them, and what is skipped.

use super::*;
use crate::token::keys::{KeySetError, SkippedKey};

fn parse(keys: &Value) -> Result<(usize, Vec<SkippedKey>), KeySetError> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).map(|set| (set.len(), set.skipped))
}

#[tokio::test]
async fn every_algorithm_verifies_with_a_key_of_its_type_alone() {
    let rsa = || Signer::new("RS256", "rsa");
    let mut signers: Vec<Signer> =
        ["ES256", "ES384", "ES512", "EdDSA"].map(|algorithm| Signer::new(algorithm, algorithm)).into();
    signers.extend(
        ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"].map(|algorithm| rsa().with_algorithm(algorithm)),
    );
    for signer in &signers {
        let files = IssuerFiles { keys: Some(Arc::new(key_set(&[signer]))), ..IssuerFiles::default() };
        let tokens = Tokens::new(&[settings()], vec![files], &Arc::new(Metrics::new()), None);
        verify(&tokens, signer.token(&claims())).await.unwrap();
        // Without a name it is tried with the keys that fit.
        let algorithm = serde_json::from_slice::<Value>(
            &jwt::decode(signer.token(&claims()).split('.').next().unwrap().as_bytes()).unwrap(),
        )
        .unwrap()["alg"]
            .clone();
        verify(&tokens, signer.signed(&json!({"alg": algorithm}).to_string(), &claims().to_string())).await.unwrap();
    }
}

#[test]
fn example_of_the_standard_verifies() {
    let example = include_bytes!("../../../fuzz/corpus/token/rfc7515_a3");
    let key = json!({"keys": [{
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }]});
    let Ok(Form::Jwt(jwt)) = jwt::read(example) else { panic!("no JWT") };
    assert_eq!(KeySet::parse(key.to_string().as_bytes()).unwrap().verify(&jwt), Ok(()));
}

#[test]
fn unusable_keys_are_skipped_one_by_one() {
    let good = SIGNER.jwk();
    let altered = |members: Value| {
        let mut key = good.clone();
        for (name, value) in members.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    let rsa = Signer::new("RS256", "rsa").jwk();
    let mut short = rsa.clone();
    short["n"] = base64url([0xff_u8; 128]).into();
    let mut even = rsa.clone();
    even["e"] = base64url([2_u8]).into();
    let mut one = rsa.clone();
    one["e"] = base64url([1_u8]).into();
    let mut huge = rsa;
    huge["e"] = base64url([0xff_u8; 256]).into();
    for (key, reason) in [
        (json!({"kty": "oct", "k": "AAAA", "kid": "one"}), SkippedKey::Kind),
        (json!({"kty": "RSA", "k": "AAAA"}), SkippedKey::Value),
        (altered(json!({"kty": "ec"})), SkippedKey::Kind),
        (altered(json!({"kty": null})), SkippedKey::Kind),
        (altered(json!({"use": "enc"})), SkippedKey::Purpose),
        (altered(json!({"key_ops": ["sign"]})), SkippedKey::Purpose),
        (altered(json!({"key_ops": "verify"})), SkippedKey::Purpose),
        (altered(json!({"alg": "HS256"})), SkippedKey::Algorithm),
        (altered(json!({"alg": "RS256"})), SkippedKey::Algorithm),
        (altered(json!({"alg": "ES384"})), SkippedKey::Algorithm),
        (altered(json!({"crv": "secp256k1"})), SkippedKey::Curve),
        (altered(json!({"crv": "P-384"})), SkippedKey::Value),
        // Not on the curve, and not of its length.
        (altered(json!({"x": base64url([1_u8; 32])})), SkippedKey::Value),
        (altered(json!({"x": base64url([1_u8; 31])})), SkippedKey::Value),
        (altered(json!({"x": "***"})), SkippedKey::Value),
        (altered(json!({"d": base64url([1_u8; 32])})), SkippedKey::Private),
        (json!({"kty": "OKP", "crv": "X25519", "x": base64url([9_u8; 32])}), SkippedKey::Curve),
        (json!({"kty": "OKP", "crv": "Ed25519", "x": base64url([9_u8; 31])}), SkippedKey::Value),
        (short, SkippedKey::Value),
        (even, SkippedKey::Value),
        (one, SkippedKey::Value),
        (huge, SkippedKey::Value),
        (json!("key"), SkippedKey::Value),
    ] {
        assert_eq!(parse(&json!([key, good])), Ok((1, vec![reason])), "{key}");
        assert_eq!(parse(&json!([key])), Err(KeySetError::NoUsableKey(reason.label().to_owned())), "{key}");
    }
    assert_eq!(parse(&json!([altered(json!({"key_ops": ["verify"], "alg": "ES256"}))])), Ok((1, vec![])));
    let many: Vec<Value> = (0..150).map(|_| good.clone()).collect();
    assert_eq!(parse(&json!(many)), Ok((100, vec![SkippedKey::TooMany])));
}

#[test]
fn texts_that_are_no_set_are_refused() {
    for (text, error) in [
        ("", KeySetError::NotJson),
        ("<html>", KeySetError::NotJson),
        ("{\"keys\": [], \"keys\": []}", KeySetError::NotJson),
        ("{}", KeySetError::NotASet),
        ("{\"keys\": {}}", KeySetError::NotASet),
        ("{\"keys\": []}", KeySetError::NoUsableKey("empty".to_owned())),
    ] {
        assert_eq!(KeySet::parse(text.as_bytes()).unwrap_err(), error, "{text}");
    }
}

#[tokio::test]
async fn key_for_one_algorithm_verifies_no_other() {
    let signer = Signer::new("PS256", "rsa");
    let mut key = signer.jwk();
    key["alg"] = "RS256".into();
    let set = KeySet::parse(json!({"keys": [key]}).to_string().as_bytes()).unwrap();
    let files = IssuerFiles { keys: Some(Arc::new(set)), ..IssuerFiles::default() };
    let tokens = Tokens::new(&[settings()], vec![files], &Arc::new(Metrics::new()), None);
    assert_eq!(verify(&tokens, signer.token(&claims())).await.unwrap_err(), TokenError::Algorithm);
}

#[tokio::test]
async fn keys_of_one_name_and_keys_without_one_are_all_tried() {
    let second = Signer::new("ES256", "one");
    let mut unnamed = Signer::new("ES256", "x").jwk();
    unnamed.as_object_mut().unwrap().remove("kid");
    let set = json!({"keys": [unnamed, SIGNER.jwk(), second.jwk()]});
    let set = KeySet::parse(set.to_string().as_bytes()).unwrap();
    let files = IssuerFiles { keys: Some(Arc::new(set)), ..IssuerFiles::default() };
    let tokens = Tokens::new(&[settings()], vec![files], &Arc::new(Metrics::new()), None);
    for signer in [&*SIGNER, &second] {
        verify(&tokens, signer.token(&claims())).await.unwrap();
    }
    // A name that the set does not have may be that of the key without one.
    let stranger = Signer::new("ES256", "three");
    assert_eq!(verify(&tokens, stranger.token(&claims())).await.unwrap_err(), TokenError::UnknownKey);
}
