//! The PROXY protocol (HAProxy's `proxy-protocol.txt`, versions 1 and 2): a proxy sends its client's address
//! before the client's first byte.
//!
//! Pure: bytes in, a header out. The parser reports the minimum of bytes still missing, so that the caller
//! reads the header and not a byte beyond. Extensions (TLVs) are skipped. Whether the peer is trusted is not
//! decided here. Not a library, because reading has to be exact and bounded.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How every line of version 1 begins (section 2.1).
const LINE: &[u8] = b"PROXY ";
/// The longest line with its CRLF (section 2.1).
const LONGEST_LINE: usize = 107;
/// How every header of version 2 begins (section 2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, command, family and length.
const FIXED: usize = 16;
/// The longest header that is read: the largest addresses take 216 bytes, the rest is extensions.
const LONGEST: usize = 4096;

/// The two versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// The content of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// No client: a connection of the proxy itself, such as a health check (LOCAL, UNKNOWN), or a client
    /// without a TCP address.
    Local,
    /// A client.
    Client {
        /// The client.
        client: SocketAddr,
        /// Where it connected to.
        local: SocketAddr,
    },
}

/// The progress of reading a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderProgress {
    /// At least this many more bytes belong to it.
    Needs(usize),
    /// It is complete and has this length.
    Complete(Header, usize),
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyHeaderError {
    /// The connection begins with something else.
    Missing,
    /// It is malformed.
    Malformed,
    /// It is longer than a header may be.
    TooLong,
}

/// Reads a connection's first bytes.
///
/// # Errors
/// They are not a header.
pub(crate) fn read(bytes: &[u8]) -> Result<HeaderProgress, ProxyHeaderError> {
    let begins = |start: &[u8]| std::iter::zip(bytes, start).all(|(byte, wanted)| byte == wanted);
    match bytes.first() {
        // The shortest line has more.
        None => Ok(HeaderProgress::Needs(SIGNATURE.len())),
        Some(_) if begins(&SIGNATURE) => read_binary(bytes),
        Some(_) if begins(LINE) => read_line(bytes),
        Some(_) => Err(ProxyHeaderError::Missing),
    }
}

fn read_line(bytes: &[u8]) -> Result<HeaderProgress, ProxyHeaderError> {
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        let left = LONGEST_LINE.saturating_sub(bytes.len());
        return if left < 2 { Err(ProxyHeaderError::TooLong) } else { Ok(HeaderProgress::Needs(2)) };
    };
    let length = end + 2;
    if length > LONGEST_LINE {
        return Err(ProxyHeaderError::TooLong);
    }
    match bytes.get(end..length) {
        Some(b"\r\n") => {
            let header = bytes.get(..end).and_then(line).ok_or(ProxyHeaderError::Malformed)?;
            Ok(HeaderProgress::Complete(header, length))
        }
        Some(_) => Err(ProxyHeaderError::Malformed),
        None if bytes.ends_with(b"\r") => Ok(HeaderProgress::Needs(1)),
        None => Err(ProxyHeaderError::Malformed),
    }
}

/// `PROXY TCP4 192.0.2.7 192.0.2.1 4711 993`, or `PROXY UNKNOWN` with any rest.
fn line(line: &[u8]) -> Option<Header> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(Header::Local);
    }
    let [client, local, client_port, local_port] = [words.next()?, words.next()?, words.next()?, words.next()?];
    if words.next().is_some() {
        return None;
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    // `parse` alone would take "+993".
    let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    Some(Header::Client {
        client: canonical(address(client)?, port(client_port)?),
        local: canonical(address(local)?, port(local_port)?),
    })
}

fn read_binary(bytes: &[u8]) -> Result<HeaderProgress, ProxyHeaderError> {
    let Some([.., command, family, high, low]) = bytes.first_chunk::<FIXED>() else {
        return Ok(HeaderProgress::Needs(FIXED.saturating_sub(bytes.len())));
    };
    // Version 2, and one of its two commands.
    if !matches!(command, 0x20 | 0x21) {
        return Err(ProxyHeaderError::Malformed);
    }
    let length = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if length > LONGEST {
        return Err(ProxyHeaderError::TooLong);
    }
    let Some(addresses) = bytes.get(FIXED..length) else {
        return Ok(HeaderProgress::Needs(length - bytes.len()));
    };
    let header = if *command == 0x20 { Some(Header::Local) } else { binary(*family, addresses) };
    Ok(HeaderProgress::Complete(header.ok_or(ProxyHeaderError::Malformed)?, length))
}

/// The addresses of a family, with whatever extensions behind them.
fn binary(family: u8, addresses: &[u8]) -> Option<Header> {
    let (client, local, ports) = match family {
        0x11 => {
            let [a, b, c, d, e, f, g, h, ports @ ..] = addresses.first_chunk::<12>()?;
            let address = |octets: [u8; 4]| IpAddr::V4(octets.into());
            (address([*a, *b, *c, *d]), address([*e, *f, *g, *h]), ports)
        }
        0x21 => {
            let (client, rest) = addresses.split_first_chunk::<16>()?;
            let (local, rest) = rest.split_first_chunk::<16>()?;
            let address = |octets: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*octets));
            (address(client), address(local), rest.first_chunk::<4>()?)
        }
        // UNSPEC, UDP and Unix sockets are treated as UNSPEC (section 2.2).
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => return Some(Header::Local),
        _ => return None,
    };
    let [a, b, c, d] = *ports;
    let (client_port, local_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(Header::Client { client: canonical(client, client_port), local: canonical(local, local_port) })
}

/// An IPv4 client of an IPv6 socket is an IPv4 client.
fn canonical(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

/// Writes a header.
#[must_use]
pub(crate) fn write(version: Version, header: &Header) -> Vec<u8> {
    let pair = match header {
        Header::Local => None,
        Header::Client { client, local } => Some((*client, of_one_family(*client, *local))),
    };
    match (version, pair) {
        (Version::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (Version::V1, Some((client, local))) => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (client.port(), local.port());
            format!("PROXY {family} {} {} {from} {to}\r\n", client.ip(), local.ip()).into_bytes()
        }
        (Version::V2, None) => [SIGNATURE.as_slice(), &[0x20, 0, 0, 0]].concat(),
        (Version::V2, Some((client, local))) => {
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend(if client.is_ipv4() { [0x21, 0x11, 0, 12] } else { [0x21, 0x21, 0, 36] });
            for ip in [client.ip(), local.ip()] {
                match ip {
                    IpAddr::V4(v4) => bytes.extend(v4.octets()),
                    IpAddr::V6(v6) => bytes.extend(v6.octets()),
                }
            }
            bytes.extend(client.port().to_be_bytes());
            bytes.extend(local.port().to_be_bytes());
            bytes
        }
    }
}

/// The local address in the client's family, as a header has one for both. They differ where another proxy in
/// front translated between families; the client's family counts.
fn of_one_family(client: SocketAddr, local: SocketAddr) -> SocketAddr {
    let ip = match (client.ip(), local.ip()) {
        (IpAddr::V4(_), IpAddr::V6(v6)) => v6.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
        (IpAddr::V6(_), IpAddr::V4(v4)) => v4.to_ipv6_mapped().into(),
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => local.ip(),
    };
    SocketAddr::new(ip, local.port())
}

/// The invariants of any input: a connection's first bytes, with a PROXY header or not. Nothing behind the header is
/// asked for, the answer is the same whole or byte by byte, and what was read can be written again.
#[cfg(any(test, feature = "internals"))]
#[allow(clippy::panic, reason = "a violated invariant is reported by a panic")]
pub fn invariants(data: &[u8]) {
    let whole = read(data);
    let mut taken = 0;
    let stepwise = loop {
        let known = data.get(..taken).unwrap_or_default();
        match read(known) {
            Ok(HeaderProgress::Needs(more)) => {
                assert!(more > 0, "needs nothing and is not complete");
                assert!(taken + more <= 4096, "asks for more than a header may have");
                match whole {
                    Ok(HeaderProgress::Complete(_, length)) => {
                        assert!(taken + more <= length, "asks for what is not its own")
                    }
                    Ok(HeaderProgress::Needs(_)) | Err(_) => {}
                }
                if taken == data.len() {
                    break Ok(HeaderProgress::Needs(more));
                }
                taken += 1;
            }
            answer => break answer,
        }
    };
    assert_eq!(stepwise, whole, "pieces make a difference");
    if let Ok(HeaderProgress::Complete(header, length)) = whole {
        assert!(length <= data.len(), "longer than what has come");
        for version in [Version::V1, Version::V2] {
            let written = write(version, &header);
            let Ok(HeaderProgress::Complete(again, all)) = read(&written) else {
                panic!("cannot read its own: {written:?}")
            };
            assert_eq!(all, written.len());
            match (header, again) {
                (Header::Client { client, .. }, Header::Client { client: same, .. }) => assert_eq!(client, same),
                (header, again) => assert_eq!(header, again),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(client: &str, local: &str) -> Header {
        Header::Client { client: client.parse().unwrap(), local: local.parse().unwrap() }
    }

    /// A version 2 header of these parts.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, rest].concat()
    }

    /// The header, if it is read exactly, whatever follows it.
    #[track_caller]
    fn said(bytes: &[u8]) -> Header {
        for behind in [b"".as_slice(), b"\x16\x03\x01", b"\r\n", b"PROXY "] {
            let all = [bytes, behind].concat();
            invariants(&all);
            let Ok(HeaderProgress::Complete(_, length)) = read(&all) else { panic!("{:?}", read(&all)) };
            assert_eq!(length, bytes.len());
        }
        let Ok(HeaderProgress::Complete(header, _)) = read(bytes) else { panic!("{bytes:?}") };
        header
    }

    #[track_caller]
    fn refused(bytes: &[u8], fault: ProxyHeaderError) {
        invariants(bytes);
        assert_eq!(read(bytes), Err(fault), "{}", bytes.escape_ascii());
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 192, 0, 2, 1, 0x12, 0x67, 0x03, 0xe1];

    #[test]
    fn text_headers_are_parsed() {
        let four = client("192.0.2.7:4711", "192.0.2.1:993");
        assert_eq!(said(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 993\r\n"), four);
        let six = client("[2001:db8::7]:1", "[2001:db8::1]:65535");
        assert_eq!(said(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n"), six);
        assert_eq!(said(b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 4711 993\r\n"), four);
        assert_eq!(said(b"PROXY UNKNOWN\r\n"), Header::Local);
        // The longest that the protocol has: what follows UNKNOWN is to be ignored.
        let longest = format!("PROXY UNKNOWN {}", "f".repeat(91));
        assert_eq!(said(format!("{longest}\r\n").as_bytes()), Header::Local);
        refused(format!("{longest}f\r\n").as_bytes(), ProxyHeaderError::TooLong);
        refused(format!("{longest}f").as_bytes(), ProxyHeaderError::TooLong);
        refused("PROXY UNKNOWN".repeat(10_000).as_bytes(), ProxyHeaderError::TooLong);
    }

    #[test]
    fn invalid_text_headers_are_refused() {
        for line in [
            "PROXY \r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP5 192.0.2.7 192.0.2.1 4711 993\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 993 \r\n",
            "PROXY TCP4  192.0.2.7 192.0.2.1 4711 993\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 +4711 993\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 65536\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1  993\r\n",
            "PROXY TCP4 2001:db8::7 192.0.2.1 4711 993\r\n",
            "PROXY TCP6 192.0.2.7 192.0.2.1 4711 993\r\n",
            "PROXY TCP4 localhost 192.0.2.1 4711 993\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 993\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 993\rx",
            "PROXY TCP4 \0 192.0.2.1 4711 993\r\n",
        ] {
            refused(line.as_bytes(), ProxyHeaderError::Malformed);
        }
    }

    #[test]
    fn binary_headers_are_parsed() {
        let four = client("192.0.2.7:4711", "192.0.2.1:993");
        assert_eq!(said(&v2(0x21, 0x11, &V4)), four);
        // Extensions are ignored, well-formed or not.
        assert_eq!(said(&v2(0x21, 0x11, &[&V4, b"\x01\0\x04imap\x05".as_slice()].concat())), four);
        assert_eq!(said(&v2(0x21, 0x11, &[&V4, vec![0xff; 4_000].as_slice()].concat())), four);
        let mut v6 = [[0; 16], [0; 16]].concat();
        (v6[0], v6[15], v6[31]) = (0x20, 7, 1);
        v6.extend([0, 9, 0, 143]);
        assert_eq!(said(&v2(0x21, 0x21, &v6)), client("[2000::7]:9", "[::1]:143"));
        let mapped = [[0; 10].as_slice(), &[0xff, 0xff, 192, 0, 2, 7]].concat();
        let both = [&mapped, mapped.as_slice(), &[0, 9, 0, 143]].concat();
        assert_eq!(said(&v2(0x21, 0x21, &both)), client("192.0.2.7:9", "192.0.2.7:143"));
        for local in [v2(0x20, 0, b""), v2(0x20, 0x11, &V4), v2(0x20, 0xff, b"x"), v2(0x21, 0, b"")] {
            assert_eq!(said(&local), Header::Local);
        }
        for other in [0x12, 0x22, 0x31, 0x32] {
            assert_eq!(said(&v2(0x21, other, &[1; 216])), Header::Local);
        }
    }

    #[test]
    fn invalid_binary_headers_are_refused() {
        for malformed in [
            v2(0x11, 0x11, &V4),
            v2(0x22, 0x11, &V4),
            v2(0x21, 0x13, &V4),
            v2(0x21, 0x41, &V4),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x21, &[0; 35]),
        ] {
            refused(&malformed, ProxyHeaderError::Malformed);
        }
        refused(&v2(0x21, 0x11, &[0; 4_081]), ProxyHeaderError::TooLong);
        // Rejected by the length alone, before more is read.
        refused(&[SIGNATURE.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat(), ProxyHeaderError::TooLong);
    }

    #[test]
    fn invalid_header_is_detected_at_its_first_wrong_byte() {
        for other in [b"\x16\x03\x01".as_slice(), b"a LOGIN", b"G", b"PROXX", b"proxy", b"\r\n\r\n\0\r\nQUIT\r"] {
            refused(other, ProxyHeaderError::Missing);
        }
        assert_eq!(read(b""), Ok(HeaderProgress::Needs(12)));
        assert_eq!(read(b"P"), Ok(HeaderProgress::Needs(2)));
        assert_eq!(read(b"\r"), Ok(HeaderProgress::Needs(15)));
    }

    #[test]
    fn both_addresses_have_the_family_of_the_client() {
        for (from, to, line) in [
            ("192.0.2.7:1", "[2001:db8::1]:2", "PROXY TCP4 192.0.2.7 0.0.0.0 1 2\r\n"),
            ("[2001:db8::7]:1", "192.0.2.1:2", "PROXY TCP6 2001:db8::7 ::ffff:192.0.2.1 1 2\r\n"),
            ("[2001:db8::7]:1", "[2001:db8::1]:2", "PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n"),
        ] {
            let header = client(from, to);
            assert_eq!(String::from_utf8(write(Version::V1, &header)).unwrap(), line);
            let Header::Client { client, .. } = said(&write(Version::V2, &header)) else { panic!("{line}") };
            assert_eq!(client.to_string(), from);
        }
        assert_eq!(write(Version::V1, &Header::Local), b"PROXY UNKNOWN\r\n");
        assert_eq!(said(&write(Version::V2, &Header::Local)), Header::Local);
    }
}
