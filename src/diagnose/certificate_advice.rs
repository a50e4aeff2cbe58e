//! What to do about a server's certificate that is refused: in the keys that the server has, and with the command that
//! makes a good one.

use std::net::IpAddr;

use super::certificates::version_advice;
use crate::tls::{CertificateFault, HandshakeError, HandshakeFailure};

/// The length of a common name (RFC 5280, upper bounds).
const COMMON_NAME: usize = 64;

/// A server, as the configuration verifies it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verified<'a> {
    /// A backend, by this name.
    Backend(&'a str),
    /// A directory server, by this name.
    Directory(&'a str),
}

impl Verified<'_> {
    /// What to do about its certificate.
    pub(super) fn advice(self, fault: CertificateFault) -> String {
        let (ca, pin, make) = (self.ca(), self.pin(), self.command());
        match fault {
            CertificateFault::Expired => {
                format!("renew the certificate on that server, or {pin} if it never will be: {make}")
            }
            CertificateFault::NotYetValid => {
                "set the clocks of both machines; or issue the certificate again".to_owned()
            }
            CertificateFault::UnknownIssuer => {
                format!("{ca} must name who issued the certificate; without it the system's authorities count")
            }
            CertificateFault::MissingIssuer => format!(
                "{ca} must name the issuer (without it the system's authorities count); if the issuer is an intermediate of \
                 a known authority, let the server send it"
            ),
            CertificateFault::SelfSigned => format!(
                "name a file with this certificate as {ca} (`openssl s_client -connect {} | openssl x509`), or {pin}",
                self.address()
            ),
            CertificateFault::WrongName => {
                format!(
                    "{} a name that is in the certificate, or issue it again for this name: {make}",
                    self.name_key()
                )
            }
            CertificateFault::NoName => format!("issue it again with its name as subjectAltName, or {pin}: {make}"),
            CertificateFault::Authority => {
                format!("issue one for the server alone (basicConstraints CA:FALSE), or {pin}: {make}")
            }
            // No verifier accepts the signature of such a key, with or without a pin.
            CertificateFault::ShortKey => {
                format!("let the server, or its issuer, have a new key: RSA from 2048 bits, or P-256: {make}")
            }
            CertificateFault::WeakSignature => {
                format!("issue it again, signed with SHA-256 or better, or {pin}: {make}")
            }
            CertificateFault::OldVersion => format!("issue it again as X.509 v3 with a name, or {pin}: {make}"),
            CertificateFault::WrongUsage => format!("issue it again for servers, or {pin}: {make}"),
            CertificateFault::NameConstraints => format!("let another authority issue it, or {pin}"),
            CertificateFault::BadSignature => format!(
                "is the file of {ca} that of the authority as it is now, and the server's key that of its certificate?"
            ),
            CertificateFault::NotPinned => {
                "if the server has a new key, add the presented one to pin_sha256".to_owned()
            }
            CertificateFault::Other => format!("issue it again, or {pin}: {make}"),
        }
    }

    const fn ca(self) -> &'static str {
        match self {
            Self::Backend(_) => "the backend's `ca`",
            Self::Directory(_) => "directory.ca",
        }
    }

    const fn pin(self) -> &'static str {
        match self {
            Self::Backend(_) => "set pin_sha256",
            Self::Directory(_) => "set pin_sha256 beside the server's `url`",
        }
    }

    const fn name_key(self) -> &'static str {
        match self {
            Self::Backend(_) => "set `server_name` to",
            Self::Directory(_) => "set `server_name` beside the server's `url` in directory.servers to",
        }
    }

    /// A place for the server's address, which the caller knows.
    const fn address(self) -> &'static str {
        match self {
            Self::Backend(_) => "HOST:PORT",
            Self::Directory(_) => "HOST:636",
        }
    }

    /// The command that makes a certificate that is accepted. The name is a host name or an address, so that no shell
    /// takes a part of it for anything else.
    fn command(self) -> String {
        let (Self::Backend(name) | Self::Directory(name)) = self;
        let kind = if name.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
        let subject = if name.len() <= COMMON_NAME { name } else { "server" };
        format!(
            "`openssl req -x509 -newkey rsa:2048 -sha256 -nodes -days 825 -keyout server.key -out server.pem -subj \
             /CN={subject} -addext subjectAltName={kind}:{name} -addext basicConstraints=critical,CA:FALSE -addext \
             extendedKeyUsage=serverAuth` makes a self-signed one, and {} then names server.pem",
            self.ca()
        )
    }
}

/// What to do where TLS to a server fails that a URL names: an issuer of tokens, a store.
pub(super) fn url_advice(error: &HandshakeError) -> &'static str {
    if let Some(advice) = version_advice(error) {
        return advice;
    }
    match error.failure {
        HandshakeFailure::Certificate(fault) => match fault {
            CertificateFault::UnknownIssuer | CertificateFault::MissingIssuer | CertificateFault::SelfSigned => {
                "if its certificate is of an authority of your own, name that authority's file in `ca`"
            }
            CertificateFault::WrongName => "write a name that is in the certificate as the host of the URL",
            CertificateFault::NoName => "issue it again with a name (openssl: -addext subjectAltName=DNS:NAME)",
            CertificateFault::Expired => "renew the certificate on that server",
            CertificateFault::NotYetValid => "set the clocks of both machines; or issue the certificate again",
            CertificateFault::BadSignature => {
                "is the file in `ca` that of the authority as it is now, and the server's key that of its certificate?"
            }
            CertificateFault::Authority
            | CertificateFault::ShortKey
            | CertificateFault::WeakSignature
            | CertificateFault::OldVersion
            | CertificateFault::WrongUsage
            | CertificateFault::NameConstraints
            | CertificateFault::NotPinned
            | CertificateFault::Other => "let the server have a certificate without this fault",
        },
        HandshakeFailure::NotTls => "this port is not one for TLS: check the port of the URL",
        HandshakeFailure::Alert | HandshakeFailure::Incompatible | HandshakeFailure::Other => {
            "the log of that server may say more"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_fits_names_addresses_and_long_names() {
        let host = Verified::Backend("mail.example.com").advice(CertificateFault::NoName);
        assert!(host.contains("-subj /CN=mail.example.com -addext subjectAltName=DNS:mail.example.com "), "{host}");
        let address = Verified::Directory("2001:db8::1").advice(CertificateFault::NoName);
        assert!(address.contains(" subjectAltName=IP:2001:db8::1 ") && address.contains("directory.ca"), "{address}");
        let long = format!("{}.example.com", "a".repeat(60));
        let advice = Verified::Backend(&long).advice(CertificateFault::Authority);
        assert!(advice.contains("/CN=server ") && advice.contains(&format!("DNS:{long} ")), "{advice}");
    }
}
