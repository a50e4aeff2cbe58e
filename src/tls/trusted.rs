//! What OpenSSL writes behind the certificate in a TRUSTED CERTIFICATE (`openssl x509 -trustout`): the purposes
//! that it is trusted for, and those that it is not. It is read as OpenSSL does: whom an administrator has
//! excluded there is no authority here.

use x509_parser::asn1_rs::{Any, Class, FromDer as _, Oid, Tag};

/// What the certificates of an authority are to vouch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Backends and directories.
    Servers,
    /// Clients.
    Clients,
}

/// The length of the first element; all of it without one.
pub(super) fn length(der: &[u8]) -> usize {
    Any::from_der(der).map_or(der.len(), |(rest, _)| der.len() - rest.len())
}

/// Whether these settings let a certificate vouch for this purpose; without any every purpose is.
pub(super) fn is_trusted(settings: &[u8], purpose: Purpose) -> bool {
    if settings.is_empty() {
        return true;
    }
    // X509_CERT_AUX ::= SEQUENCE { trust SEQUENCE OF OID OPTIONAL, reject [0] SEQUENCE OF OID OPTIONAL, alias,
    // keyid, other }. What cannot be read excludes: it may be the purpose in question.
    let Ok((_, whole)) = Any::from_der(settings) else { return false };
    let (mut rest, mut trusted) = (whole.data, true);
    while !rest.is_empty() {
        let Ok((behind, element)) = Any::from_der(rest) else { return false };
        if element.class() == Class::Universal && element.tag() == Tag::Sequence {
            let Some(named) = names(element.data, purpose) else { return false };
            trusted &= named;
        } else if element.class() == Class::ContextSpecific && element.tag().0 == 0 {
            let Some(named) = names(element.data, purpose) else { return false };
            trusted &= !named;
        }
        rest = behind;
    }
    trusted
}

/// Whether a list of purposes has this one, or all of them; `None` if it cannot be read.
fn names(mut list: &[u8], purpose: Purpose) -> Option<bool> {
    // RFC 5280 section 4.2.1.12: id-kp-serverAuth, id-kp-clientAuth, anyExtendedKeyUsage.
    let wanted = match purpose {
        Purpose::Servers => "1.3.6.1.5.5.7.3.1",
        Purpose::Clients => "1.3.6.1.5.5.7.3.2",
    };
    let mut found = false;
    while !list.is_empty() {
        let (rest, oid) = Oid::from_der(list).ok()?;
        let oid = oid.to_id_string();
        found |= oid == wanted || oid == "2.5.29.37.0";
        list = rest;
    }
    Some(found)
}
