//! URLs of an issuer of tokens: https, or http to this machine.

use super::model::HttpUrl;
use super::names::{self, NameError};

/// The longest URL.
const LONGEST: usize = 2_048;

impl HttpUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// It is no URL, or one that must not be fetched.
    pub(crate) fn parse(text: &str) -> Result<Self, UrlError> {
        let (encrypted, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some(_) | None => return Err(UrlError::Form),
        };
        if text.len() > LONGEST
            || !text.bytes().all(|byte| byte.is_ascii_graphic())
            || text.contains(['#', '\\', '"', '<', '>'])
        {
            return Err(UrlError::Form);
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let (host, port) = names::split_port(authority).map_err(UrlError::Host)?;
        if !encrypted && !names::is_loopback(&host) {
            return Err(UrlError::Clear);
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let port = port.unwrap_or(if encrypted { 443 } else { 80 });
        Ok(Self { text: text.to_owned(), encrypted, host, port, path })
    }
}

/// Why a URL is not fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlError {
    /// No URL.
    #[error("write a URL such as https://idp.example.com/realms/corp, without blanks and without `#`")]
    Form,
    /// A name or a password in it.
    #[error("name and password are not allowed in the URL")]
    UserInfo,
    /// The host or the port.
    #[error(transparent)]
    Host(NameError),
    /// Not encrypted.
    #[error(
        "keys and tokens would cross the network in clear: write https:// (http:// only to 127.0.0.1 or localhost)"
    )]
    Clear,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split() {
        let parts = |url: &str| HttpUrl::parse(url).map(|url| (url.encrypted, url.authority(), url.port, url.path));
        let https = |authority: &str, port, path: &str| Ok((true, authority.to_owned(), port, path.to_owned()));
        assert_eq!(parts("https://idp.example.com"), https("idp.example.com", 443, "/"));
        assert_eq!(parts("HTTPS://idp.example.com:443/a/b?c=d"), https("idp.example.com", 443, "/a/b?c=d"));
        assert_eq!(parts("https://[2001:db8::1]:8443?x"), https("[2001:db8::1]:8443", 8_443, "/?x"));
        assert_eq!(parts("http://localhost:9000/x"), Ok((false, "localhost:9000".into(), 9_000, "/x".into())));
        for (url, error) in [
            ("idp.example.com", UrlError::Form),
            ("ftp://idp.example.com", UrlError::Form),
            ("https://idp.example.com/#x", UrlError::Form),
            ("https://idp.example.com/a b", UrlError::Form),
            ("https://idp.example.com/\r\nx: y", UrlError::Form),
            ("https://idp.example.com\\@evil.example/", UrlError::Form),
            ("https://user:secret@idp.example.com/", UrlError::UserInfo),
            ("http://idp.example.com/", UrlError::Clear),
            ("http://localhost.example.com/", UrlError::Clear),
            ("https://", UrlError::Host(NameError::Host)),
            ("https://idp.example.com:0/", UrlError::Host(NameError::Port)),
        ] {
            assert_eq!(parts(url), Err(error), "{url:?}");
        }
    }
}
