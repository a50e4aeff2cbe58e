//! The networks that an entry may log in from: the values of `networks_attribute`, as Dovecot's `allow_nets` has them.
//!
//! Whatever is not understood permits no address: one value that is no network makes all of them unusable, because
//! what its writer meant to allow is unknown. Addresses of clients are canonical, so an IPv4 address is compared with
//! IPv4 networks only, in whichever form it reached usher.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::fault::{EntryFault, MAX_VALUE, MAX_VALUES};
use crate::base::net;

/// The bits before an IPv4 address in its IPv6 form (RFC 4291 section 2.5.5.2).
const MAPPED: u8 = 96;
/// Characters of a value in a message.
const SHOWN: usize = 64;

/// The networks of an entry that has the attribute. An entry without it is permitted from everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networks {
    /// These, sorted and without overlaps.
    Only(Box<[IpNet]>),
    /// A value cannot be used: no address is permitted.
    Unusable(EntryFault),
    /// The entry was not read: no address is known to be permitted.
    Unread,
}

impl Networks {
    /// The values of the attribute, together with those read before under another option of it.
    pub(super) fn read(before: Option<&Self>, attribute: &str, values: &[Vec<u8>]) -> Arc<Self> {
        let mut list = match before {
            Some(Self::Unusable(fault)) => return Arc::new(Self::Unusable(fault.clone())),
            Some(Self::Only(list)) => list.to_vec(),
            Some(Self::Unread) | None => Vec::new(),
        };
        let read = values.iter().try_for_each(|value| {
            if value.len() > MAX_VALUE {
                return Err(EntryFault::LongValue(attribute.into()));
            }
            let no_network = || EntryFault::NoNetwork { attribute: attribute.into(), value: shown(value) };
            list.extend(networks(value).ok_or_else(no_network)?);
            if list.len() > MAX_VALUES { Err(EntryFault::TooManyValues(attribute.into())) } else { Ok(()) }
        });
        Arc::new(match read {
            Ok(()) if list.is_empty() => {
                Self::Unusable(EntryFault::NoNetwork { attribute: attribute.into(), value: shown(b"") })
            }
            Ok(()) => Self::Only(IpNet::aggregate(&list).into()),
            Err(fault) => Self::Unusable(fault),
        })
    }

    /// Whether a client at this address, canonical, may log in.
    #[must_use]
    pub fn permit(&self, client: IpAddr) -> bool {
        match self {
            Self::Only(list) => list.iter().any(|network| network.contains(&client)),
            Self::Unusable(_) | Self::Unread => false,
        }
    }

    /// The networks as text; none if the values cannot be used.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        match self {
            Self::Only(list) => list.iter().map(ToString::to_string).collect(),
            Self::Unusable(_) | Self::Unread => Vec::new(),
        }
    }

    /// Why the values cannot be used.
    #[must_use]
    pub const fn fault(&self) -> Option<&EntryFault> {
        match self {
            Self::Unusable(fault) => Some(fault),
            Self::Only(_) | Self::Unread => None,
        }
    }
}

/// The networks of one value: one, or several separated by commas or spaces, as Dovecot takes them; `None` if one of
/// them is no network, or the value has no item.
fn networks(value: &[u8]) -> Option<Vec<IpNet>> {
    let items = std::str::from_utf8(value).ok()?.split([',', ' ']).filter(|item| !item.is_empty());
    let list: Vec<_> = items.map(network).collect::<Option<_>>()?;
    (!list.is_empty()).then_some(list)
}

/// An address or a network, whatever bits stand behind its prefix.
fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().or_else(|_| text.parse().map(IpAddr::into)).ok()?;
    let (address, bits) = (IpNet::addr(&network), network.prefix_len());
    let canonical = address.to_canonical();
    let bits = if canonical == address { bits } else { bits.checked_sub(MAPPED)? };
    Some(net::network_of(canonical, bits))
}

/// The beginning of a value, for a message.
fn shown(value: &[u8]) -> Box<str> {
    String::from_utf8_lossy(value).chars().take(SHOWN).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Arc<Networks> {
        let values: Vec<_> = values.iter().map(|value| value.as_bytes().to_vec()).collect();
        Networks::read(None, "nets", &values)
    }

    #[test]
    fn networks_permit_exactly_their_addresses() {
        for (values, inside, outside) in [
            (&["192.0.2.0/24"][..], &["192.0.2.0", "192.0.2.255"][..], &["192.0.3.0", "::192.0.2.1", "::1"][..]),
            (&["192.0.2.7"], &["192.0.2.7"], &["192.0.2.6"]),
            (&["192.0.2.7/24"], &["192.0.2.200"], &["192.0.3.7"]),
            (&["10.0.0.0/8", "2001:db8::/32"], &["10.9.9.9", "2001:db8:ffff::1"], &["11.0.0.1", "2001:db9::1"]),
            (&["10.0.0.0/8,2001:db8::7 ,192.0.2.1"], &["10.1.1.1", "2001:db8::7", "192.0.2.1"], &["2001:db8::8"]),
            (&["::ffff:10.0.0.0/104"], &["10.255.0.1"], &["11.0.0.1", "::ffff:0:1"]),
            (&["::ffff:192.0.2.7"], &["192.0.2.7"], &["192.0.2.8"]),
            (&["0.0.0.0/0"], &["203.0.113.9"], &["2001:db8::1"]),
            (&["::/0"], &["2001:db8::1"], &["203.0.113.9"]),
            (&["2001:DB8:0:0::/64"], &["2001:db8::1"], &["2001:db8:0:1::1"]),
        ] {
            let networks = read(values);
            assert_eq!(networks.fault(), None, "{values:?}");
            let permit = |address: &&str| networks.permit(address.parse::<IpAddr>().unwrap().to_canonical());
            assert!(inside.iter().all(permit) && !outside.iter().any(permit), "{values:?}: {networks:?}");
        }
    }

    #[test]
    fn value_that_is_no_network_permits_no_address() {
        for value in [
            "",
            " ",
            ",",
            "local",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0/8",
            "10.0.0.0/255.0.0.0",
            "010.0.0.1",
            "10.0.0.1-10.0.0.9",
            "*",
            "host.example.com",
            "fe80::1%eth0",
            "[2001:db8::1]",
            "2001:db8::/129",
            "::ffff:10.0.0.0/95",
            "10.0.0.0/8;192.0.2.1",
            "10.0.0.0 /8",
            "10.0.0.1\n",
        ] {
            let networks = read(&["10.0.0.0/8", value]);
            assert!(matches!(networks.fault(), Some(EntryFault::NoNetwork { .. })), "{value:?}: {networks:?}");
            assert!(!networks.permit("10.0.0.1".parse().unwrap()), "{value:?}");
        }
        let fault = |values: &[Vec<u8>]| Networks::read(None, "nets", values).fault().cloned();
        assert!(matches!(fault(&[vec![0xff]]), Some(EntryFault::NoNetwork { .. })));
        assert!(matches!(fault(&[]), Some(EntryFault::NoNetwork { .. })), "types only");
        assert_eq!(fault(&[vec![b' '; MAX_VALUE + 1]]), Some(EntryFault::LongValue("nets".into())));
        assert_eq!(fault(&vec![b"::1".to_vec(); 65]), Some(EntryFault::TooManyValues("nets".into())));
        assert_eq!(fault(&["::1,".repeat(65).into()]), Some(EntryFault::TooManyValues("nets".into())));
        assert!(!Networks::Unread.permit("::1".parse().unwrap()));
    }

    #[test]
    fn order_of_values_makes_no_other_networks() {
        assert_eq!(read(&["10.0.0.0/8", "::1"]), read(&["::1", "10.0.0.1/8", "10.2.0.0/16"]));
        let first = read(&["10.0.0.0/8"]);
        let both = Networks::read(Some(&first), "nets;x-b", &[b"::1".to_vec()]);
        assert_eq!(both, read(&["::1", "10.0.0.0/8"]));
        let spoiled = Networks::read(Some(&read(&["x"])), "nets;x-b", &[b"::1".to_vec()]);
        assert!(spoiled.fault().is_some());
    }
}
