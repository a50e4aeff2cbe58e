//! Login by client certificate (SASL EXTERNAL, RFC 4422 appendix A): by which name the certificate's user is looked up.
//!
//! The name only leads to an entry. With `match: certificate` the entry has to list the certificate, so that any name will
//! do: the one that the client sends, or the first that the certificate has. With `match: san_email` the CA vouches for
//! the address, so that no other name may lead anywhere; what the client sends has to be a name of the same entry, or of
//! a mailbox that its user acts for.

use super::{Conversation, Named};
use crate::base::credential::{CertificateProof, ClientCertificate, Credential, CredentialSecret, Login};
use crate::config::{CertificateMatch, ClientLogin};
use crate::login::acting::Acting;
use crate::outcome::Refusal;
use crate::tls::clients::{ClientFault, VerifiedCertificate};

/// The name to log, and the credential of a verified certificate or why it is unusable, with the mailbox that its user may
/// want to act for: where `permits_acting`, the name that the client sends may be another user's.
fn credential(
    certificate: &VerifiedCertificate,
    login: &ClientLogin,
    authzid: Vec<u8>,
    permits_acting: bool,
) -> (Vec<u8>, Named) {
    let asked = if login.ignore_authzid { Vec::new() } else { authzid };
    let (proof, own) = match (login.matching, certificate.addresses.as_slice()) {
        (CertificateMatch::Certificate, addresses) => {
            (CertificateProof::Key, addresses.first().or_else(|| certificate.names.first()))
        }
        (CertificateMatch::SanEmail, [address]) if !loses_white_space(address) => {
            (CertificateProof::Address, Some(address))
        }
        // Of several it would be unknown which one is meant. Without its white space it would be another address than
        // the CA's.
        (CertificateMatch::SanEmail, _) => return (asked, Err(Refusal::NoCertificateName)),
    };
    let own = own.map(|name| name.clone().into_bytes());
    let (name, other) = match (proof, own.clone()) {
        (CertificateProof::Key, _) if !asked.is_empty() => (Some(asked.clone()), None),
        (CertificateProof::Address, Some(address)) if !asked.is_empty() && asked != address => {
            (Some(address), Some(asked.clone()))
        }
        (CertificateProof::Key | CertificateProof::Address, own) => (own, None),
    };
    let Some(name) = name else { return (Vec::new(), Err(Refusal::NoCertificateName)) };
    let parsed = || {
        let parse = |name: &[u8]| Login::parse(name).ok_or(Refusal::InvalidUsername);
        let new = |name, authzid| {
            let certificate = ClientCertificate::new(certificate.digest, proof, authzid);
            let certificate = certificate.of_directory(login.directory.clone());
            Credential::new(name, CredentialSecret::ClientCertificate(certificate))
        };
        let credential = new(parse(&name)?, other.as_deref().map(parse).transpose()?);
        let own = own.as_deref().filter(|own| permits_acting && !asked.is_empty() && *own != asked);
        // A certificate without a usable name of its own acts for no mailbox.
        let own = own.and_then(Login::parse).map(|own| new(own, None));
        let acting = match own {
            Some(own) => Some(Acting { target: parse(&asked)?, whole: None, own: Some(own) }),
            None => None,
        };
        Ok((credential, acting))
    };
    let named = parsed();
    (name, named)
}

/// Whether an address is another one as a login name, which has no white space at its ends.
fn loses_white_space(address: &str) -> bool {
    Login::parse(address.as_bytes()).is_some_and(|login| login.as_str() != address)
}

impl Conversation {
    /// The login by the client's certificate: the name that it goes by, the credential, and the certificate for the log.
    /// The rules are those in force now.
    pub(super) fn certificate(&self, authzid: Vec<u8>) -> (Vec<u8>, Named, Option<String>) {
        let listener = self.snapshot.config.listener_now(&self.listener, self.over_ipv4);
        let rules = listener.and_then(|listener| {
            Some((listener.client_login.clone()?, self.snapshot.tls.acceptor(self.protocol, &listener.clients)?))
        });
        let Some(((login, acceptor), chain)) = rules.zip(self.certified.as_ref()) else {
            return (authzid, Err(Refusal::CertificateUntrusted), None);
        };
        match acceptor.verify(chain) {
            Some(Ok(certificate)) => {
                let permits_acting = self.snapshot.config.permits_acting();
                let (typed, named) = credential(&certificate, &login, authzid, permits_acting);
                (typed, named, Some(certificate.to_string()))
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
        let login = ClientLogin { matching, ignore_authzid, directory: None };
        let (_, named) = credential(certificate, &login, authzid.into(), false);
        named.map(|(credential, acting)| {
            assert!(acting.is_none());
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
        for none in [
            certificate(&[], &["alice"]),
            certificate(&["alice@example.com", "bob@example.com"], &[]),
            certificate(&[" alice@example.com"], &[]),
            certificate(&["alice@example.com\u{a0}"], &[]),
        ] {
            assert_eq!(by(&none, false, "alice"), Err(Refusal::NoCertificateName));
        }
    }

    #[test]
    fn other_name_is_a_mailbox_where_users_may_act() {
        let acts = |certificate: &VerifiedCertificate, matching, ignore_authzid, authzid: &str| {
            let login = ClientLogin { matching, ignore_authzid, directory: None };
            let (_, named) = credential(certificate, &login, authzid.into(), true);
            let (credential, acting) = named.unwrap();
            let acting = acting.map(|acting| {
                let own = acting.own.unwrap();
                let CredentialSecret::ClientCertificate(proof) = own.secret() else { panic!("a password") };
                assert!(proof.authzid().is_none());
                (own.login().as_str().to_owned(), acting.target.as_str().to_owned())
            });
            (credential.login().as_str().to_owned(), acting)
        };
        let (key, address) = (CertificateMatch::Certificate, CertificateMatch::SanEmail);
        let admin = certificate(&["admin@example.com"], &["admin"]);
        let acting = Some(("admin@example.com".to_owned(), "bob".to_owned()));
        assert_eq!(acts(&admin, key, false, "bob"), ("bob".to_owned(), acting.clone()), "bob's own, or another's");
        assert_eq!(acts(&admin, address, false, "bob"), ("admin@example.com".to_owned(), acting));
        for (matching, ignored, authzid) in
            [(key, true, "bob"), (address, true, "bob"), (key, false, ""), (address, false, "admin@example.com")]
        {
            assert_eq!(acts(&admin, matching, ignored, authzid), ("admin@example.com".to_owned(), None));
        }
        assert_eq!(acts(&certificate(&[], &[]), key, false, "bob"), ("bob".to_owned(), None), "no name of its own");
    }
}
