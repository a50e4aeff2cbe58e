//! Addresses and names as the network writes them: prefixes of addresses, percent-encoding (RFC 3986).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use percent_encoding::percent_decode;

/// The network of this address with this prefix length, at most that of the address.
#[must_use]
pub(crate) fn network_of(address: IpAddr, bits: u8) -> IpNet {
    IpNet::new(address, bits).map_or_else(|_| address.into(), |network| network.trunc())
}

/// Whether a loopback address is in it.
#[must_use]
pub(crate) fn has_loopback(network: &IpNet) -> bool {
    network.addr().is_loopback()
        || network.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST))
        || network.contains(&IpAddr::V6(Ipv6Addr::LOCALHOST))
}

/// Decodes `%XX`; `None` if a percent sign is not followed by two hexadecimal digits. The result is allocated
/// once, so that a secret leaves no copies behind.
#[must_use]
pub(crate) fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let digits = |escape: &[u8]| escape.get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    // The library leaves an incomplete escape as it is.
    if !text.split(|byte| *byte == b'%').skip(1).all(digits) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len());
    bytes.extend(percent_decode(text));
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_longer_than_the_address_is_the_address() {
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(network_of(address, 24).to_string(), "192.0.2.0/24");
        assert_eq!(network_of(address, 33).to_string(), "192.0.2.7/32");
        assert_eq!(network_of(address, 0).to_string(), "0.0.0.0/0");
    }

    #[test]
    fn networks_around_loopback_are_recognized() {
        let has = |text: &str| has_loopback(&text.parse().unwrap());
        assert!(has("127.0.0.0/8") && has("127.9.9.9/32") && has("0.0.0.0/0") && has("::1/128") && has("::/0"));
        assert!(!has("192.0.2.0/24") && !has("2001:db8::/32"));
    }

    #[test]
    fn incomplete_escape_is_refused() {
        for (text, bytes) in
            [("", &b""[..]), ("a+b", b"a+b"), ("%0d%0A", b"\r\n"), ("%2541", b"%41"), ("%e4x", b"\xe4x")]
        {
            let decoded = percent_decoded(text.as_bytes()).unwrap();
            assert_eq!((decoded.as_slice(), decoded.capacity()), (bytes, text.len()));
        }
        for text in ["%", "%2", "a%zz", "%+1", "%%41", "%4\u{e9}"] {
            assert_eq!(percent_decoded(text.as_bytes()), None, "{text}");
        }
    }
}
