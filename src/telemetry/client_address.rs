//! How much of a client's address is shown (`log.client_address`): in log lines, lists of sessions and traces.
//!
//! Of the process, as the log is. Limits, filters, backends and the directory's networks go on by the whole address.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::net::network_of;
use crate::config::ClientAddress;

/// Whether clients' addresses are shortened.
static SHOWS_NETWORKS: AtomicBool = AtomicBool::new(false);

/// Shows clients' addresses so from now on.
pub(crate) fn show(settings: ClientAddress) {
    SHOWS_NETWORKS.store(settings == ClientAddress::Network, Ordering::Relaxed);
}

fn shows_networks() -> bool {
    SHOWS_NETWORKS.load(Ordering::Relaxed)
}

/// The network that is shown: 24 bits of IPv4, also within IPv6, or 48 of IPv6.
fn network(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    network_of(address, if address.is_ipv4() { 24 } else { 48 })
}

/// A client's address, or its network where `log.client_address` says so.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Client {
    /// As configured.
    Address(IpAddr),
    /// Always the whole address: what administrators, and users that act for others, do must be traceable.
    Acting(IpAddr),
}

impl Client {
    /// The same, unless the client acts for another user.
    #[must_use]
    pub(crate) const fn of(address: IpAddr, is_acting: bool) -> Self {
        if is_acting { Self::Acting(address) } else { Self::Address(address) }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address(address) if shows_networks() => network(address).fmt(f),
            Self::Address(address) | Self::Acting(address) => address.fmt(f),
        }
    }
}

/// A client's address in a list: whole in memory, as configured once it is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListedClient(IpNet);

impl ListedClient {
    /// The address; of one that was read from a list, maybe that of its network.
    #[must_use]
    pub(crate) fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// Whole, also where it is shown shortened.
    #[must_use]
    pub(crate) const fn network(&self) -> IpNet {
        self.0
    }
}

impl From<IpNet> for ListedClient {
    fn from(network: IpNet) -> Self {
        Self(network)
    }
}

impl From<IpAddr> for ListedClient {
    fn from(address: IpAddr) -> Self {
        Self(address.into())
    }
}

impl FromStr for ListedClient {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpAddr>().map_or_else(|_| text.parse().map(Self), |address| Ok(address.into()))
    }
}

impl fmt::Display for ListedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shortened = network(self.address());
        if shows_networks() && self.0.prefix_len() > shortened.prefix_len() {
            return shortened.fmt(f);
        }
        if self.0.prefix_len() == self.0.max_prefix_len() {
            Client::Address(self.address()).fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl Serialize for ListedClient {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListedClient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text of a peer, such as a server's reply, in which the client's address stands as configured, in whatever way it is
/// spelled.
#[must_use]
pub(crate) fn masked(text: &str, client: IpAddr) -> Cow<'_, str> {
    let client = client.to_canonical();
    masked_as(text, |address| address == client, shows_networks())
}

/// What a client has sent, without any whole address: it may name the client that it connects for.
#[must_use]
pub(crate) fn masked_all(text: &str) -> Cow<'_, str> {
    masked_as(text, |_| true, shows_networks())
}

fn masked_as(text: &str, is_hidden: impl Fn(IpAddr) -> bool, is_wanted: bool) -> Cow<'_, str> {
    if !is_wanted {
        return text.into();
    }
    let is_part = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    let (mut masked, mut rest) = (String::with_capacity(text.len()), text);
    while !rest.is_empty() {
        let is_first_part = rest.bytes().next().is_some_and(is_part);
        let end = rest.bytes().position(|byte| is_part(byte) != is_first_part).unwrap_or(rest.len());
        // Between an ASCII character and another one is a boundary.
        let (piece, behind) = rest.split_at(end);
        match is_first_part.then(|| address_in(piece, &is_hidden)).flatten() {
            Some((before, address, after)) => {
                masked.extend([before, &network(address).to_string(), after]);
            }
            None => masked.push_str(piece),
        }
        rest = behind;
    }
    masked.into()
}

/// What stands before and behind the address in a run of its characters: `192.0.2.1:993`, `192.0.2.1.`, the `6:` of
/// `IPV6:2001:db8::1`.
fn address_in(piece: &str, is_hidden: impl Fn(IpAddr) -> bool) -> Option<(&str, IpAddr, &str)> {
    let hidden =
        |text: &str| text.parse().ok().map(|found: IpAddr| found.to_canonical()).filter(|found| is_hidden(*found));
    let starts = std::iter::once(0).chain(piece.match_indices([':', '.']).map(|(at, _)| at + 1));
    starts.take(LONGEST_RUN).find_map(|start| {
        let (before, text) = piece.split_at_checked(start)?;
        let ends = std::iter::once(text.len()).chain(text.rmatch_indices([':', '.']).map(|(at, _)| at));
        let mut texts = ends.take(LONGEST_RUN).filter_map(|end| text.split_at_checked(end));
        texts.find_map(|(text, after)| Some((before, hidden(text)?, after)))
    })
}

/// Separators of a run that are tried: an address has at most 8.
const LONGEST_RUN: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_shown_in_place_of_addresses() {
        for (address, shown) in [
            ("192.0.2.7", "192.0.2.0/24"),
            ("::ffff:192.0.2.7", "192.0.2.0/24"),
            ("2001:db8:1:2::7", "2001:db8:1::/48"),
            ("127.0.0.1", "127.0.0.0/24"),
        ] {
            assert_eq!(network(ip(address)).to_string(), shown);
        }
        assert_eq!(Client::of(ip("192.0.2.7"), true).to_string(), "192.0.2.7");
    }

    #[test]
    fn listed_client_keeps_what_another_process_has_shown() {
        for text in ["\"192.0.2.77\"", "\"192.0.2.0/24\"", "\"2001:db8::/48\"", "\"2001:db8::1\""] {
            let client: ListedClient = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&client).unwrap(), text);
        }
        assert!("192.0.2".parse::<ListedClient>().is_err());
    }

    #[test]
    fn address_in_a_text_is_masked_in_every_spelling() {
        let client = ip("192.0.2.77");
        for (text, masked) in [
            ("no login from 192.0.2.77 now", "no login from 192.0.2.0/24 now"),
            ("[192.0.2.77]", "[192.0.2.0/24]"),
            ("ADDR=192.0.2.77 PORT=1", "ADDR=192.0.2.0/24 PORT=1"),
            ("from 192.0.2.77.", "from 192.0.2.0/24."),
            ("from 192.0.2.77:40001", "from 192.0.2.0/24:40001"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("::FFFF:c000:24d", "192.0.2.0/24"),
            ("é192.0.2.77é", "é192.0.2.0/24é"),
            ("1192.0.2.77 192.0.2.7 192.0.2.771", "1192.0.2.77 192.0.2.7 192.0.2.771"),
        ] {
            assert_eq!(masked_as(text, |address| address == client, true), masked, "{text}");
            assert_eq!(masked_as(text, |address| address == client, false), text);
        }
        let client = ip("2001:db8:1:2::4");
        for text in ["2001:db8:1:2::4", "2001:0DB8:0001:0002:0000:0000:0000:0004", "IPV6:2001:db8:1:2::4"] {
            let masked = masked_as(text, |address| address == client, true);
            assert!(masked.ends_with("2001:db8:1::/48"), "{masked}");
        }
        let run = "1:".repeat(10_000);
        assert_eq!(masked_as(&run, |_| true, true), run);
        let id = "ID (\"x-originating-ip\" \"192.0.2.77\" \"x-connected-ip\" \"198.51.100.9\")";
        let shown = "ID (\"x-originating-ip\" \"192.0.2.0/24\" \"x-connected-ip\" \"198.51.100.0/24\")";
        assert_eq!(masked_as(id, |_| true, true), shown);
    }
}
