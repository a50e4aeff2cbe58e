//! A request of nginx's mail proxy: `GET` with the client's credentials in headers, and no body.
//!
//! Pure: bytes in, a request out; the only copy of the password is wiped. nginx writes spaces, percent signs
//! and control characters below 0x20 of name and password as `%XX` and everything else as it is
//! (NGX_ESCAPE_MAIL_AUTH): a plus is a plus. Whatever nginx would not have written is refused. Parsed by hand:
//! httparse refuses DEL in a value, which nginx does not escape and a password may contain.
//! <https://nginx.org/en/docs/mail/ngx_mail_auth_http_module.html>

use std::net::IpAddr;

use thiserror::Error;

use crate::base::net::percent_decoded;
use crate::base::secret::Secret;
use crate::proto::{Nginx, PROTOCOLS, Protocol};

/// The longest request. nginx buffers a page of client input and may escape each byte as three.
const MOST: usize = 32 * 1024;
/// The headers that are read, in the order of [`read`].
const NAMES: [&str; 7] =
    ["Auth-Method", "Auth-User", "Auth-Pass", "Auth-Protocol", "Auth-Login-Attempt", "Client-IP", "X-Auth-Key"];

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    /// The name, byte for byte as typed.
    pub login: Vec<u8>,
    /// The password, byte for byte.
    pub password: Secret,
    /// Whether it is a plain password: with APOP and CRAM-MD5 it is a digest, with other methods empty.
    pub plain: bool,
    /// The client's protocol.
    pub protocol: &'static Protocol,
    /// nginx's row of that protocol.
    pub nginx: Nginx,
    /// The client's address, canonical.
    pub client: IpAddr,
    /// How many attempts its connection has made, with this one.
    pub attempts: u32,
    /// The value of `X-Auth-Key`; empty if absent.
    pub key: Secret,
}

/// Why a request is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum RequestSyntaxError {
    /// Longer than any.
    #[error("request is longer than 32 KiB")]
    TooLong,
    /// Not HTTP.
    #[error("request does not start with a line such as `GET / HTTP/1.0`")]
    NotGet,
    /// A line is not a header.
    #[error("invalid header line")]
    NoHeader,
    /// A header is missing, repeated or not in nginx's form.
    #[error("{0} is missing, repeated or malformed")]
    Header(&'static str),
}

/// Reads a request; `None` while it is incomplete.
///
/// # Errors
/// The request is invalid.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<Request>, RequestSyntaxError> {
    let known = bytes.get(..bytes.len().min(MOST)).unwrap_or_default();
    let Some(end) = known.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() < MOST { Ok(None) } else { Err(RequestSyntaxError::TooLong) };
    };
    let mut lines = known.get(..end).unwrap_or_default().split(|byte| *byte == b'\n');
    let mut lines = std::iter::from_fn(|| lines.next().map(|line| line.strip_suffix(b"\r").unwrap_or(line)));
    let words: Vec<&[u8]> = lines.next().unwrap_or_default().split(|byte| *byte == b' ').collect();
    if !matches!(words.as_slice(), [b"GET", _, version] if version.starts_with(b"HTTP/1.")) {
        return Err(RequestSyntaxError::NotGet);
    }
    let mut values = [None; NAMES.len()];
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').ok_or(RequestSyntaxError::NoHeader)?;
        let (name, value) = (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
        if name.is_empty() || value.iter().any(|byte| *byte < b' ' && *byte != b'\t') {
            return Err(RequestSyntaxError::NoHeader);
        }
        let mut places = NAMES.into_iter().zip(&mut values);
        if let Some((name, place)) = places.find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name))
            && place.replace(value.trim_ascii()).is_some()
        {
            return Err(RequestSyntaxError::Header(name));
        }
    }
    let [method, login, password, protocol, attempts, client, key] = values;
    let text = |value: Option<&'_ [u8]>| value.and_then(|value| String::from_utf8(value.to_vec()).ok());
    let method = text(method).ok_or(RequestSyntaxError::Header("Auth-Method"))?;
    let protocol = text(protocol).unwrap_or_default();
    let spoken = PROTOCOLS.iter().filter_map(|known| Some((known, known.nginx?)));
    let (protocol, nginx) = spoken
        .into_iter()
        .find(|(_, nginx)| nginx.name == protocol)
        .ok_or(RequestSyntaxError::Header("Auth-Protocol"))?;
    let client: Option<IpAddr> = text(client).and_then(|client| client.parse().ok());
    Ok(Some(Request {
        login: login.and_then(percent_decoded).ok_or(RequestSyntaxError::Header("Auth-User"))?,
        password: password.and_then(percent_decoded).map(Secret::new).ok_or(RequestSyntaxError::Header("Auth-Pass"))?,
        plain: method == "plain",
        protocol,
        nginx,
        client: client.ok_or(RequestSyntaxError::Header("Client-IP"))?.to_canonical(),
        attempts: text(attempts)
            .and_then(|count| count.parse().ok())
            .ok_or(RequestSyntaxError::Header("Auth-Login-Attempt"))?,
        key: Secret::copy_of(key.unwrap_or_default()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /auth HTTP/1.0\r\nHost: 127.0.0.1\r\nAuth-Method: plain\r\nAuth-User: alice\r\n\
        Auth-Pass: secret\r\nAuth-Protocol: imap\r\nAuth-Login-Attempt: 1\r\nClient-IP: 192.0.2.1\r\n\
        Client-Host: [UNAVAILABLE]\r\nAuth-SSL: on\r\nX-Auth-Key: k:1\r\n\r\n";

    fn good(from: &str, to: &str) -> Request {
        assert!(GOOD.contains(from), "{from}");
        read(GOOD.replacen(from, to, 1).as_bytes()).unwrap().expect("a complete request")
    }

    fn bad(from: &str, to: &str) -> RequestSyntaxError {
        assert!(GOOD.contains(from), "{from}");
        read(GOOD.replacen(from, to, 1).as_bytes()).unwrap_err()
    }

    #[test]
    fn nginx_request_is_parsed_once_complete() {
        for end in 0..GOOD.len() {
            assert!(read(&GOOD.as_bytes()[..end]).unwrap().is_none(), "{end}");
        }
        let request = good("", "");
        assert_eq!((request.login.as_slice(), request.password.expose()), (&b"alice"[..], &b"secret"[..]));
        assert_eq!((request.protocol.name, request.attempts, request.plain), ("imap", 1, true));
        assert_eq!((request.client.to_string().as_str(), request.key.expose()), ("192.0.2.1", &b"k:1"[..]));
        assert_eq!(good(": imap", ": smtp").protocol.name, "submission");
        assert_eq!(good(": imap", ": pop3").protocol.name, "pop3");
        assert_eq!(good("192.0.2.1", "::ffff:192.0.2.1").client, good("", "").client);
        assert!(!good(": plain", ": cram-md5").plain);
    }

    #[test]
    fn names_and_passwords_are_decoded_unchanged() {
        for (written, typed) in [
            ("a+b%2B", &b"a+b+"[..]),
            ("a%20b%25%25c", b"a b%%c"),
            ("p\u{e4}ss:w\u{f6}rd", "p\u{e4}ss:w\u{f6}rd".as_bytes()),
            ("%0D%0A%00%1f", b"\r\n\0\x1f"),
            ("a\x7f\\\"'<>", b"a\x7f\\\"'<>"),
            ("", b""),
        ] {
            assert_eq!(good("alice", written).login, typed, "{written}");
            assert_eq!(good("secret", written).password.expose(), typed, "{written}");
        }
        let latin1 =
            [GOOD.split("alice").next().unwrap().as_bytes(), b"\xe4", GOOD.split("alice").nth(1).unwrap().as_bytes()];
        assert_eq!(read(&latin1.concat()).unwrap().unwrap().login, b"\xe4");
    }

    #[test]
    fn malformed_request_is_refused() {
        for name in ["Auth-Method", "Auth-User", "Auth-Pass", "Auth-Protocol", "Auth-Login-Attempt", "Client-IP"] {
            assert_eq!(bad(name, "Other"), RequestSyntaxError::Header(name));
        }
        assert_eq!(bad("Auth-SSL: on", "auth-pass: another"), RequestSyntaxError::Header("Auth-Pass"));
        for escape in ["%", "%2", "%zz", "a%2g", "%+1"] {
            assert_eq!(bad("alice", escape), RequestSyntaxError::Header("Auth-User"), "{escape}");
        }
        assert_eq!(bad("192.0.2.1", "unix:"), RequestSyntaxError::Header("Client-IP"));
        assert_eq!(bad(": imap", ": managesieve"), RequestSyntaxError::Header("Auth-Protocol"));
        assert_eq!(bad("Attempt: 1", "Attempt: -1"), RequestSyntaxError::Header("Auth-Login-Attempt"));
        for line in ["none", ": none", "a: b\rc", "a: \0"] {
            assert_eq!(bad("Auth-SSL: on", line), RequestSyntaxError::NoHeader, "{line:?}");
        }
        for first in ["POST /auth HTTP/1.0", "GET /auth HTTP/2", "GET / x HTTP/1.0", "* OK"] {
            assert_eq!(bad("GET /auth HTTP/1.0", first), RequestSyntaxError::NotGet, "{first}");
        }
        assert_eq!(bad("secret", &"x".repeat(MOST)), RequestSyntaxError::TooLong);
    }
}
