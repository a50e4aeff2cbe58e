//! What a token says of itself, for `usher explain --token-stdin` alone: nothing of it is verified, and nothing is decided
//! by it. The values of other claims than those that usher compares are not shown.

use serde_json::{Map, Value};

use super::jwt::{LONGEST, decode};
use super::strict;
use crate::base::secret::Secret;

const HEADER: [&str; 3] = ["alg", "kid", "typ"];
const COMPARED: [&str; 11] =
    ["iss", "aud", "azp", "appid", "client_id", "scope", "scp", "iat", "nbf", "exp", "email_verified"];
/// The most characters of a value, and the most names of claims.
const SHOWN: usize = 200;
const NAMES: usize = 40;

/// The header and the claims that usher compares, and the names of all claims; `None` if it is no JWT.
#[must_use]
pub(crate) fn unverified(token: &Secret) -> Option<Vec<(&'static str, String)>> {
    let token = token.expose();
    if token.len() > LONGEST {
        return None;
    }
    let mut parts = token.split(|byte| *byte == b'.');
    let mut object = || strict::object(&decode(parts.next()?)?);
    let (header, claims) = (object()?, object()?);
    let mut shown = Vec::new();
    shown.extend(HEADER.iter().filter_map(|name| value(&header, name)));
    shown.extend(COMPARED.iter().filter_map(|name| value(&claims, name)));
    let names: Vec<_> = claims.keys().take(NAMES).map(String::as_str).collect();
    shown.push(("claims", bounded(&names.join(" "))));
    Some(shown)
}

fn value(object: &Map<String, Value>, name: &'static str) -> Option<(&'static str, String)> {
    let value = object.get(name)?;
    Some((name, bounded(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))))
}

fn bounded(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn of(header: &str, claims: &str) -> Option<Vec<(&'static str, String)>> {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        unverified(&Secret::new(format!("{header}.{claims}.c2ln").into_bytes()))
    }

    #[test]
    fn compared_claims_are_shown_and_others_by_name_alone() {
        let shown =
            of(r#"{"alg":"HS256"}"#, r#"{"iss":"https://a/","aud":["x","y"],"exp":7,"email":"bob@example.com"}"#);
        let expected = [
            ("alg", "HS256"),
            ("iss", "https://a/"),
            ("aud", r#"["x","y"]"#),
            ("exp", "7"),
            ("claims", "iss aud exp email"),
        ];
        let mut shown = shown.unwrap();
        shown.last_mut().unwrap().1 = sorted(&shown.last().unwrap().1.clone());
        let mut expected = expected.map(|(name, value)| (name, value.to_owned())).to_vec();
        expected.last_mut().unwrap().1 = sorted("iss aud exp email");
        assert_eq!(shown, expected);
    }

    fn sorted(names: &str) -> String {
        let mut names: Vec<_> = names.split(' ').collect();
        names.sort_unstable();
        names.join(" ")
    }

    #[test]
    fn opaque_and_endless_tokens_show_nothing() {
        assert_eq!(unverified(&Secret::new(b"opaque.token.x".to_vec())), None);
        assert_eq!(unverified(&Secret::new(b"opaque".to_vec())), None);
        let long = format!(r#"{{"iss":"{}"}}"#, "x".repeat(1_000));
        assert_eq!(of("{}", &long).unwrap()[0].1.len(), SHOWN);
        assert_eq!(of("{}", &format!(r#"{{"iss":"{}"}}"#, "x".repeat(LONGEST))), None);
    }
}
