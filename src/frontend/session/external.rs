//! Login by client certificate (SASL EXTERNAL, RFC 4422 appendix A): by which name the certificate's user is looked up.
//!
//! The name only leads to an entry. With `match: certificate` the entry has to list the certificate, so that any name will
//! do: the one that the client sends, or the first that the certificate has. With `match: san_email` the CA vouches for
//! the address, so that no other name may lead anywhere; what the client sends has to be a name of the same entry.

use super::Conversation;
use crate::base::credential::{CertificateProof, ClientCertificate, Credential, CredentialSecret, Login};
use crate::config::{CertificateMatch, ClientLogin};
use crate::outcome::Refusal;
use crate::tls::clients::{ClientFault, VerifiedCertificate};

/// The name to log, and the credential of a verified certificate or why there is none.
fn credential(
    certificate: &VerifiedCertificate,
    login: ClientLogin,
    authzid: Vec<u8>,
) -> (Vec<u8>, Result<Credential, Refusal>) {
    let asked = if login.ignore_authzid { Vec::new() } else { authzid };
    let (proof, name, authzid) = match login.matching {
        CertificateMatch::Certificate if !asked.is_empty() => (CertificateProof::Key, Some(asked), Vec::new()),
        CertificateMatch::Certificate => {
            let first = certificate.addresses.first().or_else(|| certificate.names.first());
            (CertificateProof::Key, first.map(|name| name.clone().into_bytes()), Vec::new())
        }
        CertificateMatch::SanEmail => {
            // Of several it would be unknown which one is meant.
            let [address] = certificate.addresses.as_slice() else {
                return (asked, Err(Refusal::NoCertificateName));
            };
            let address = address.clone().into_bytes();
            let other = if asked == address { Vec::new() } else { asked };
            (CertificateProof::Address, Some(address), other)
        }
    };
    let Some(name) = name else { return (Vec::new(), Err(Refusal::NoCertificateName)) };
    let parsed = || {
        let login = Login::parse(&name).ok_or(Refusal::InvalidUsername)?;
        let authzid = match authzid.as_slice() {
            [] => None,
            other => Some(Login::parse(other).ok_or(Refusal::InvalidUsername)?),
        };
        let certificate = ClientCertificate::new(certificate.digest, proof, authzid);
        Ok(Credential::new(login, CredentialSecret::ClientCertificate(certificate)))
    };
    let credential = parsed();
    (name, credential)
}

impl Conversation {
    /// The login by the client's certificate: the name that it goes by, the credential, and the certificate for the log.
    /// The rules are those in force now.
    pub(super) fn certificate(&self, authzid: Vec<u8>) -> (Vec<u8>, Result<Credential, Refusal>, Option<String>) {
        let listener = self.snapshot.config.listener_now(&self.listener, self.over_ipv4);
        let rules = listener.and_then(|listener| {
            Some((listener.client_login?, self.snapshot.tls.acceptor(self.protocol, &listener.clients)?))
        });
        let Some(((login, acceptor), chain)) = rules.zip(self.certified.as_ref()) else {
            return (authzid, Err(Refusal::CertificateUntrusted), None);
        };
        match acceptor.verify(chain) {
            Some(Ok(certificate)) => {
                let (typed, credential) = credential(&certificate, login, authzid);
                (typed, credential, Some(certificate.to_string()))
            }
            Some(Err(fault)) => (authzid, Err(refusal(fault)), None),
            None => (authzid, Err(Refusal::CertificateUntrusted), None),
        }
    }
}

/// Why a certificate that was accepted in the handshake is no longer.
const fn refusal(fault: ClientFault) -> Refusal {
    match fault {
        ClientFault::Expired => Refusal::CertificateExpired,
        ClientFault::Revoked => Refusal::CertificateRevoked,
        ClientFault::Untrusted => Refusal::CertificateUntrusted,
        ClientFault::RevocationUnknown => Refusal::RevocationUnknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::credential::CertificateDigest;

    fn certificate(addresses: &[&str], names: &[&str]) -> VerifiedCertificate {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        VerifiedCertificate {
            digest: CertificateDigest::of(b"one"),
            subject: String::new(),
            addresses: owned(addresses),
            names: owned(names),
        }
    }

    fn named(
        certificate: &VerifiedCertificate,
        matching: CertificateMatch,
        ignore_authzid: bool,
        authzid: &str,
    ) -> Result<(String, Option<String>), Refusal> {
        let login = ClientLogin { matching, ignore_authzid };
        let (_, credential) = credential(certificate, login, authzid.into());
        credential.map(|credential| {
            let CredentialSecret::ClientCertificate(certificate) = credential.secret() else { panic!("a password") };
            let authzid = certificate.authzid().map(|name| name.as_str().to_owned());
            (credential.login().as_str().to_owned(), authzid)
        })
    }

    #[test]
    fn listed_certificate_is_looked_up_by_any_name() {
        let by = |certificate: &VerifiedCertificate, ignored, authzid: &str| {
            named(certificate, CertificateMatch::Certificate, ignored, authzid).map(|(name, _)| name)
        };
        let full = certificate(&["alice@example.com"], &["Alice", "alice"]);
        assert_eq!(by(&full, false, "").unwrap(), "alice@example.com");
        assert_eq!(by(&full, false, "bob").unwrap(), "bob", "whose entry does not list it");
        assert_eq!(by(&full, true, "bob").unwrap(), "alice@example.com");
        assert_eq!(by(&certificate(&[], &["alice"]), false, "").unwrap(), "alice");
        assert_eq!(by(&certificate(&[], &[]), false, ""), Err(Refusal::NoCertificateName));
        assert_eq!(by(&certificate(&[], &[]), false, "alice").unwrap(), "alice");
        assert_eq!(by(&full, false, "a\0b"), Err(Refusal::InvalidUsername));
        assert_eq!(by(&certificate(&["a\r\nb"], &[]), false, ""), Err(Refusal::InvalidUsername));
    }

    #[test]
    fn address_of_a_certificate_is_the_only_name() {
        let by = |certificate: &VerifiedCertificate, ignored, authzid: &str| {
            named(certificate, CertificateMatch::SanEmail, ignored, authzid)
        };
        let alice = certificate(&["alice@example.com"], &["bob"]);
        let own = Ok(("alice@example.com".to_owned(), None));
        assert_eq!(by(&alice, false, ""), own);
        assert_eq!(by(&alice, false, "alice@example.com"), own);
        assert_eq!(by(&alice, true, "bob"), own);
        assert_eq!(by(&alice, false, "bob"), Ok(("alice@example.com".to_owned(), Some("bob".to_owned()))));
        for none in [certificate(&[], &["alice"]), certificate(&["alice@example.com", "bob@example.com"], &[])] {
            assert_eq!(by(&none, false, "alice"), Err(Refusal::NoCertificateName));
        }
    }
}
