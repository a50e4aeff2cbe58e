//! Invariants of the parsers outside the mail dialogues for any input from an operator or a peer: one function
//! for each fuzz target in `fuzz/`, which plain tests also run on the corpora. The dialogues' checks are in
//! [`crate::proto::trial`].
//!
//! Not part of the product: built for tests and with the feature `internals` alone. Panics when an invariant is
//! violated.
#![allow(clippy::panic, reason = "a violated invariant is reported by a panic")]

use std::path::Path;

use ldap3::asn1::{ASNTag as _, PL, StructureTag};

use crate::base::credential::Login;
use crate::config::{self, Find};
use crate::directory::ldap::{frames, policy};
use crate::frontend::auth_http::read_request;
use crate::proto::ldap::template::{self, Template};
pub use crate::proto::proxy_header::invariants as proxy_header;
pub use crate::proto::socketmap::invariants as socketmap;
use crate::server::brake_answer;
pub use crate::tls::pem::invariants as pem;
pub use crate::tls::server_name::invariants as client_hello;
pub use crate::token::invariants as token;

/// A fuzz target: a config file. A refusal has a reason, an existing line, and no control character.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Err(mistakes) = config::parse(Path::new("usher.yaml"), text) else { return };
    assert!(!mistakes.problems.is_empty(), "refused without a reason");
    // The parser may place the end of a file one line below its last.
    let lines = 1 + text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() as u64;
    for problem in mistakes.problems {
        assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "no such line: {problem}");
        let text = problem.to_string();
        assert!(!text.contains(char::is_control), "a control character is shown: {text:?}");
    }
}

/// A fuzz target: what comes to the `auth_http` listener. Once a request is complete, what follows it makes no
/// difference, and neither do pieces; its name and password are no longer than what was sent.
pub fn auth_http(data: &[u8]) {
    let whole = read_request(data);
    let first = (0..=data.len()).map(|end| read_request(data.get(..end).unwrap_or_default()));
    let stepwise = first.into_iter().find(|read| !matches!(read, Ok(None))).unwrap_or(Ok(None));
    match (whole, stepwise) {
        (Ok(Some(whole)), Ok(Some(stepwise))) => {
            assert_eq!((&whole.login, &whole.password), (&stepwise.login, &stepwise.password));
            assert_eq!((whole.client, whole.attempts), (stepwise.client, stepwise.attempts));
            assert!(whole.login.len() + whole.password.expose().len() < data.len(), "longer than what was sent");
        }
        (Ok(None), Ok(None)) => {}
        (Err(whole), Err(stepwise)) => assert_eq!(whole, stepwise),
        (whole, stepwise) => panic!("pieces make a difference: {whole:?} {stepwise:?}"),
    }
}

/// A fuzz target: the demo's LDIF. What is read is the same when it is written down and read again; an error
/// names a line of the text.
#[cfg(feature = "demo")]
pub fn ldif(data: &[u8]) {
    use crate::demo::ldif::{Entry, LdifError, parse};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let Ok(text) = std::str::from_utf8(data) else { return };
    let written = |entry: &Entry| {
        let mut record = format!("dn:: {}\n", STANDARD.encode(&entry.dn));
        for attribute in &entry.attributes {
            for value in &attribute.values {
                record.push_str(&format!("{}:: {}\n", attribute.name, STANDARD.encode(value)));
            }
        }
        record + "\n"
    };
    match parse(text) {
        Ok(entries) => {
            let again: String = entries.iter().map(written).collect();
            assert_eq!(parse(&again), Ok(entries), "written down as {again:?}");
        }
        Err(
            LdifError::NoColon { line }
            | LdifError::NoDn { line }
            | LdifError::Base64 { line }
            | LdifError::Unsupported { line },
        ) => assert!((1..=text.lines().count()).contains(&line), "no line {line}"),
    }
}

/// A fuzz target: an operator's filter or DN template (the first byte chooses), NUL, and a login
/// name. If both are accepted, the name is a value in what comes out and never changes its shape.
pub fn template(data: &[u8]) {
    let [choice, rest @ ..] = data else { return };
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    let (Some(text), Some(name)) = (parts.next(), parts.next()) else { return };
    let (Ok(text), Some(login)) = (std::str::from_utf8(text), Login::parse(name)) else { return };
    let is_filter = choice & 1 == 0;
    let Some(template) = accepted(text, is_filter) else { return };
    // The same filter for a name in which nothing needs an escape.
    let Some(plain) = Login::parse(b"Xlocalx@Xdomainx") else { return };
    let (whole, plain_whole) = (login.as_str(), plain.as_str());
    let (local, domain) = whole.rsplit_once('@').unwrap_or((whole, ""));
    if text.contains("Xlocalx") || text.contains("Xdomainx") {
        return;
    }
    let stands_for = |value: &[u8]| {
        let named = String::from_utf8_lossy(value).replace(plain_whole, "\u{1}");
        let named = named.replace("Xlocalx", "\u{2}").replace("Xdomainx", "\u{3}");
        let put = |letter| match letter {
            '\u{1}' => whole.to_owned(),
            '\u{2}' => local.to_owned(),
            '\u{3}' => domain.to_owned(),
            other => other.to_string(),
        };
        named.chars().map(put).collect::<String>().into_bytes()
    };
    // Bytes that are no text, or that stand for a part here, would be changed by the comparison.
    let comparable =
        |value: &[u8]| std::str::from_utf8(value).is_ok_and(|text| !text.contains(['\u{1}', '\u{2}', '\u{3}']));
    if is_filter {
        let Some(asked) = template::filter(&template, &login) else { return };
        let shape = |text: &str| ldap3::parse_filter(text).map(|tag| tag.into_structure());
        let expected = template::filter(&template, &plain).map(|text| shape(&text));
        let (Ok(asked_for), Some(Ok(mut expected))) = (shape(&asked), expected) else {
            panic!("no filter came out: {asked:?}");
        };
        if values(&mut expected).iter().all(|value| comparable(value)) {
            values(&mut expected).into_iter().for_each(|value| *value = stands_for(value));
            assert_eq!(asked_for, expected, "{asked:?} has another meaning");
        }
    } else {
        let Some(dn) = template::dn(&template, &login) else { return };
        let expected = template::dn(&template, &plain).map(|dn| components(&dn)).unwrap_or_default();
        if expected.iter().all(|value| comparable(value)) {
            let expected: Vec<Vec<u8>> = expected.iter().map(|value| stands_for(value)).collect();
            assert_eq!(components(&dn), expected, "{dn:?} is another entry");
        }
    }
}

/// A fuzz target: what a directory sends, as a stream: two bytes of a limit, eight that say in which pieces
/// it comes, and the bytes. Pieces make no difference, memory is bounded, and a parser that trusts its input
/// agrees about each message that is let through.
pub fn ldap_frames(data: &[u8]) {
    frames::invariants(data);
}

/// A fuzz target: what a server says with the answer to a bind: the result code, the length of a
/// control's value, that value, and the diagnostic text. No bytes make it panic, and a warning never
/// stands beside a refusal.
pub fn bind_answer(data: &[u8]) {
    let [code, length, rest @ ..] = data else { return };
    let (control, text) = rest.split_at(usize::from(*length).min(rest.len()));
    policy::invariants(u32::from(*code), control, &String::from_utf8_lossy(text));
}

/// A fuzz target: what the store of a fleet holds, sends and answers. Nothing that no member has sealed is read; what is
/// read is bounded, and is not taken twice.
pub fn fleet(data: &[u8]) {
    crate::fleet::invariants(data);
    brake_answer(data);
}

/// The template of a config that is sound but for this text, if the config accepts it.
fn accepted(text: &str, is_filter: bool) -> Option<Template> {
    // JSON's strings are YAML's.
    let text = serde_json::to_string(text).ok()?;
    let find = if is_filter {
        format!("base: dc=x\n  bind_dn: cn=usher,dc=x\n  bind_password_file: password\n  filter: {text}")
    } else {
        format!("user_dn: {text}")
    };
    let yaml = format!(
        "listeners: [{{protocol: imap, address: \"[::]:993\", tls: implicit}}]\n\
         tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}\n\
         directory:\n  servers: [\"ldaps://ldap.example.com\"]\n  ca: ca.pem\n  {find}\n\
         routing: {{backends: [{{name: s, hosts: [s], ca: ca.pem, imap: {{address: \"192.0.2.3:993\", tls: implicit, \
         server_name: s.example.com}}}}]}}\n"
    );
    match config::parse(Path::new("usher.yaml"), &yaml).ok()?.directories.into_iter().next()?.find {
        Find::Search { filter, .. } => Some(filter),
        Find::UserDn { template, .. } => Some(template),
        // Its name is made of plain letters or not at all.
        Find::Principal { .. } => None,
    }
}

/// Every octet string in a filter, from left to right.
fn values(tag: &mut StructureTag) -> Vec<&mut Vec<u8>> {
    match &mut tag.payload {
        PL::P(octets) => vec![octets],
        PL::C(inner) => inner.iter_mut().flat_map(values).collect(),
    }
}

/// What a DN is made of (RFC 4514 section 3): types, values without their escapes, and separators,
/// one after the other.
fn components(dn: &str) -> Vec<Vec<u8>> {
    let mut found = vec![Vec::new()];
    let mut rest = dn.bytes();
    while let Some(byte) = rest.next() {
        let octet = match byte {
            b',' | b'+' | b';' | b'=' => {
                found.extend([vec![byte], Vec::new()]);
                continue;
            }
            b'\\' => match rest.next() {
                Some(high) if high.is_ascii_hexdigit() => {
                    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                    let low = rest.next().and_then(digit).expect("an escape has two digits");
                    digit(high).expect("it is a digit") << 4 | low
                }
                Some(special) => special,
                None => panic!("a backslash at the end of {dn:?}"),
            },
            // A value that begins so is hexadecimal; a blank at an end is no part of its value.
            b'#' | b' ' if found.last().is_some_and(Vec::is_empty) => {
                found.extend([vec![byte], Vec::new()]);
                continue;
            }
            b'"' | b'<' | b'>' => panic!("unescaped: {dn:?}"),
            other => other,
        };
        if let Some(value) = found.last_mut() {
            value.push(octet);
        }
    }
    assert!(!dn.ends_with(' ') || dn.ends_with("\\ "), "a blank at the end of {dn:?}");
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{imap, managesieve, pop3, submission};

    /// Runs a target on every file of its corpus, and on every beginning of each.
    fn corpus(target: &str, check: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut count = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let data = std::fs::read(file.unwrap().path()).unwrap();
            (0..=data.len()).for_each(|end| check(&data[..end]));
            count += 1;
        }
        assert!(count >= 10, "the corpus of {target} is there");
    }

    #[test]
    fn imap_front() {
        corpus("imap_front", imap::trial::front);
    }

    #[test]
    fn imap_back() {
        corpus("imap_back", imap::trial::back);
    }

    #[test]
    fn pop3_front() {
        corpus("pop3_front", pop3::trial::front);
    }

    #[test]
    fn pop3_back() {
        corpus("pop3_back", pop3::trial::back);
    }

    #[test]
    fn submission_front() {
        corpus("submission_front", submission::trial::front);
    }

    #[test]
    fn submission_back() {
        corpus("submission_back", submission::trial::back);
    }

    #[test]
    fn sieve_front() {
        corpus("sieve_front", managesieve::trial::front);
    }

    #[test]
    fn sieve_back() {
        corpus("sieve_back", managesieve::trial::back);
    }

    #[test]
    fn proxy_headers() {
        corpus("proxy_header", proxy_header);
    }

    #[test]
    fn client_hellos() {
        corpus("client_hello", client_hello);
    }

    #[test]
    fn pem_file() {
        corpus("pem", pem);
    }

    #[test]
    fn auth_http_request() {
        corpus("auth_http", auth_http);
    }

    #[test]
    fn socketmap_questions() {
        corpus("socketmap", socketmap);
    }

    #[test]
    fn config_file() {
        corpus("config", config);
    }

    #[cfg(feature = "demo")]
    #[test]
    fn demo_ldif() {
        corpus("ldif", ldif);
    }

    #[test]
    fn bind_answers() {
        corpus("bind_answer", bind_answer);
    }

    #[test]
    fn ldap_streams() {
        corpus("ldap_frames", ldap_frames);
    }

    #[test]
    fn tokens() {
        corpus("token", token);
    }

    #[test]
    fn fleet_store() {
        corpus("fleet", fleet);
    }

    #[test]
    fn templates() {
        corpus("template", template);
    }
}
