//! The requests of usher's own LDAP client, as bytes (RFC 4511 sections 4.2, 4.5 and 4.14).
//!
//! All are written into memory that is wiped, in one allocation of known size: a growing buffer never moves a
//! password.

use std::time::Duration;

use ldap3::asn1::{ASNTag as _, PL, StructureTag};

use crate::base::secret::SecretBuf;
use crate::directory::ldap::policy::PASSWORD_POLICY;
use crate::directory::ldap::query::{Scope, SearchRequest};
use crate::proto::ldap::ber::{digits, put_header, size_of, wrapped};

/// RFC 4511 section 4.14.1.
const START_TLS: &str = "1.3.6.1.4.1.1466.20037";

/// BER tags.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const BOOLEAN: u8 = 0x01;

/// A simple bind that requests the password-policy control. The control is not critical: a server that does not
/// know it answers as usual.
pub(crate) fn bind(id: u32, dn: &str, password: &[u8]) -> SecretBuf {
    let id = wrapped(INTEGER, &[&digits(id)]);
    let controls = wrapped(0xa0, &[&wrapped(SEQUENCE, &[&wrapped(OCTET_STRING, &[PASSWORD_POLICY.as_bytes()])])]);
    let version = [INTEGER, 1, 3];
    let bind = version.len() + size_of(dn.len()) + size_of(password.len());
    let message = id.len() + size_of(bind) + controls.len();
    let mut request = SecretBuf::with_room(size_of(message));
    let mut put = |bytes: &[u8]| request.extend(bytes);
    put_header(SEQUENCE, message, &mut put);
    put(&id);
    put_header(0x60, bind, &mut put);
    put(&version);
    put_header(OCTET_STRING, dn.len(), &mut put);
    put(dn.as_bytes());
    put_header(0x80, password.len(), &mut put);
    put(password);
    put(&controls);
    request
}

/// StartTLS.
pub(crate) fn start_tls(id: u32) -> SecretBuf {
    message(id, &wrapped(0x77, &[&wrapped(0x80, &[START_TLS.as_bytes()])]))
}

/// A search for one entry, or for one that should be the only one; `None` if its filter cannot be parsed.
pub(crate) fn search(id: u32, query: &SearchRequest, time_limit: Duration) -> Option<SecretBuf> {
    let filter = encoded(&ldap3::parse_filter(&query.filter).ok()?.into_structure())?;
    let scope = match query.scope {
        Scope::Base => 0,
        Scope::OneLevel => 1,
        Scope::Subtree => 2,
    };
    let (size, seconds) = query.limits(time_limit);
    let names = query.attributes.names().into_iter().flat_map(|name| wrapped(OCTET_STRING, &[name.as_bytes()]));
    let parts = [
        wrapped(OCTET_STRING, &[query.base.as_bytes()]),
        wrapped(ENUMERATED, &[&[scope]]),
        // Aliases are not followed.
        wrapped(ENUMERATED, &[&[0]]),
        wrapped(INTEGER, &[&digits(size)]),
        wrapped(INTEGER, &[&digits(seconds)]),
        // Values, and not only types.
        wrapped(BOOLEAN, &[&[0]]),
        filter,
        wrapped(SEQUENCE, &[&names.collect::<Vec<_>>()]),
    ];
    Some(message(id, &wrapped(0x63, &[&parts.concat()])))
}

fn message(id: u32, operation: &[u8]) -> SecretBuf {
    let bytes = wrapped(SEQUENCE, &[&wrapped(INTEGER, &[&digits(id)]), operation]);
    let mut request = SecretBuf::with_room(bytes.len());
    request.extend(&bytes);
    request
}

/// A filter of the configuration, as parsed by ldap3; `None` if it has a tag that no filter has.
fn encoded(tag: &StructureTag) -> Option<Vec<u8>> {
    let number = u8::try_from(tag.id).ok().filter(|number| *number < 0x1f)?;
    let first = (tag.class as u8) << 6 | number;
    Some(match &tag.payload {
        PL::P(content) => wrapped(first, &[content]),
        PL::C(inner) => {
            let inner: Vec<u8> = inner.iter().map(encoded).collect::<Option<Vec<_>>>()?.concat();
            wrapped(first | 0x20, &[&inner])
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::directory::ldap::schema::Attributes;
    use crate::proto::ldap::ber::{element, tagged};

    #[test]
    fn bind_is_encoded_as_specified() {
        let expected = [
            &b"\x30\x39\x02\x01\x01\x60\x15\x02\x01\x03\x04\x08uid=x,dc\x80\x06secret"[..],
            b"\xa0\x1d\x30\x1b\x04\x191.3.6.1.4.1.42.2.27.8.5.1",
        ]
        .concat();
        assert_eq!(bind(1, "uid=x,dc", b"secret").as_slice(), expected);
    }

    proptest! {
        /// What goes out is read back as it was meant, and fills the room that was made for it.
        #[test]
        fn encoded_bind_is_read_back(id in 1..=i32::MAX as u32, dn in ".{1,300}", password in vec(any::<u8>(), 1..40_000)) {
            let request = bind(id, &dn, &password);
            let (message, rest) = tagged(request.as_slice(), SEQUENCE).unwrap();
            prop_assert_eq!(rest, b"");
            prop_assert_eq!(request.room(), request.len());
            let (read, rest) = tagged(message, INTEGER).unwrap();
            prop_assert_eq!(crate::proto::ldap::ber::number(read), Some(id));
            let (body, rest) = tagged(rest, 0x60).unwrap();
            let (version, body) = tagged(body, INTEGER).unwrap();
            let (name, body) = tagged(body, OCTET_STRING).unwrap();
            let (secret, body) = tagged(body, 0x80).unwrap();
            prop_assert_eq!((version, name, secret, body), (&[3][..], dn.as_bytes(), &password[..], &[][..]));
            prop_assert!(tagged(rest, 0xa0).is_some_and(|(_, rest)| rest.is_empty()));
        }
    }

    #[test]
    fn search_is_encoded_as_by_ldap3() {
        let query = SearchRequest {
            operation: crate::telemetry::labels::DirectoryOperation::Read,
            base: "uid=alice,dc=x".to_owned(),
            scope: Scope::Base,
            filter: "(&(objectClass=*)(!(|(uid=a*b)(cn>=\\2a))))".to_owned(),
            attributes: Arc::new(Attributes::default()),
        };
        let request = search(7, &query, Duration::from_millis(1_200)).unwrap();
        let (message, _) = tagged(request.as_slice(), SEQUENCE).unwrap();
        let (_, operation) = tagged(message, INTEGER).unwrap();
        let (body, _) = tagged(operation, 0x63).unwrap();
        let expected = b"\x04\x0euid=alice,dc=x\x0a\x01\x00\x0a\x01\x00\x02\x01\x01\x02\x01\x02\x01\x01\x00";
        let (fixed, filter) = body.split_at(expected.len());
        assert_eq!(fixed, expected);
        // ldap3's own reader finds the filter that ldap3 has parsed.
        let (_, read) = ldap3::asn1::parse_tag(filter).unwrap();
        assert_eq!(read, ldap3::parse_filter(&query.filter).unwrap().into_structure());
        let (_, _, names) = element(filter).unwrap();
        assert_eq!(names, b"\x30\x00");
    }
}
