//! The capabilities that usher advertises before a login: those that all backends have in common.
//!
//! Each address' list is kept by its pool (`pool`), through outages and reloads; here is what they have in
//! common, worked out again when one of them has changed. A backend that was never reached counts with what is
//! usual in the protocol. A configured list replaces them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::{info, warn};

use super::Backend;
use crate::proto::{PROTOCOLS, Protocol, capabilities};
use crate::telemetry::log::Bounded;
use crate::telemetry::metrics::Metrics;

/// What is advertised, for each protocol.
#[derive(Debug)]
pub(crate) struct AdvertisedCapabilities {
    by_protocol: HashMap<&'static str, ArcSwap<Advertised>>,
    /// The configured lists, which take precedence.
    fixed: Vec<(&'static Protocol, Vec<String>)>,
}

#[derive(Debug)]
struct Advertised {
    /// How often any of the lists that it is made of has changed; `None`: it is made of none.
    generation: Option<u64>,
    capabilities: Arc<[String]>,
    /// What single backends have beyond that, as text for the log.
    differences: String,
}

impl AdvertisedCapabilities {
    /// What these backends have in common now, with the operator's lists. What is known from
    /// `previous` is not logged again.
    #[must_use]
    pub(crate) fn new(
        fixed: &[(&'static Protocol, Vec<String>)],
        backends: &[Arc<Backend>],
        metrics: &Metrics,
        previous: Option<&Self>,
    ) -> Self {
        let start = |protocol: &'static Protocol| {
            let known = previous.and_then(|previous| previous.by_protocol.get(protocol.name)).map(ArcSwap::load_full);
            let differences = known.map(|offer| offer.differences.clone()).unwrap_or_default();
            let offer = Advertised { generation: None, capabilities: Arc::default(), differences };
            (protocol.name, ArcSwap::from_pointee(offer))
        };
        let offers = Self { by_protocol: PROTOCOLS.iter().map(start).collect(), fixed: fixed.to_vec() };
        offers.refresh(backends, metrics);
        offers
    }

    /// What may be advertised in this protocol.
    #[must_use]
    pub(crate) fn of(&self, protocol: &Protocol) -> Arc<[String]> {
        let offer = self.by_protocol.get(protocol.name).map(ArcSwap::load);
        offer.map_or_else(Arc::default, |offer| Arc::clone(&offer.capabilities))
    }

    /// What single backends have beyond what all of this protocol have, as text for the log; empty if
    /// they can do the same.
    #[must_use]
    pub(crate) fn differences(&self, protocol: &Protocol) -> String {
        self.by_protocol.get(protocol.name).map(|offer| offer.load().differences.clone()).unwrap_or_default()
    }

    /// Recomputes what has changed. To be called several times a second.
    pub(crate) fn refresh(&self, backends: &[Arc<Backend>], metrics: &Metrics) {
        for protocol in PROTOCOLS {
            let Some(advertised) = self.by_protocol.get(protocol.name) else { continue };
            let serving = backends.iter().filter_map(|backend| Some((backend, backend.endpoints.get(protocol.name)?)));
            let lessons = Some(serving.clone().map(|(_, endpoint)| endpoint.pool.generation()).sum());
            let before = advertised.load();
            if before.generation == lessons {
                continue;
            }
            let known = serving.map(|(backend, endpoint)| (&*backend.name, endpoint.pool.capabilities()));
            let offer = Arc::new(self.offer(protocol, &known.collect::<Vec<_>>(), lessons, metrics));
            // Stored before it is logged, so that the log line is true.
            advertised.store(Arc::clone(&offer));
            if offer.differences != before.differences {
                let offered = Bounded(offer.capabilities.join(", ").as_bytes()).to_string();
                let (protocol, differences) = (protocol.name, Bounded(offer.differences.as_bytes()).to_string());
                match offer.differences.is_empty() {
                    true => info!(protocol, offered, "all backends have the same capabilities"),
                    false => warn!(
                        protocol,
                        offered, differences, "backends differ in capabilities; only common ones are advertised"
                    ),
                }
            }
        }
    }

    fn offer(
        &self,
        protocol: &Protocol,
        backends: &[(&str, Option<Vec<String>>)],
        lessons: Option<u64>,
        metrics: &Metrics,
    ) -> Advertised {
        let usual: Vec<String> = protocol.usual.iter().map(ToString::to_string).collect();
        let lists: Vec<&[String]> = backends.iter().map(|(_, known)| known.as_deref().unwrap_or(&usual)).collect();
        let fixed = self.fixed.iter().find(|(known, _)| *known == protocol).map(|(_, fixed)| fixed.clone());
        let capabilities = fixed.unwrap_or_else(|| capabilities::common(&lists));
        // A backend that was never reached has no known difference.
        let known: Vec<(&str, &[String])> =
            backends.iter().filter_map(|(name, known)| Some((*name, known.as_deref()?))).collect();
        let agreed = capabilities::common(&known.iter().map(|(_, list)| *list).collect::<Vec<_>>());
        let (mut differences, mut count) = (String::new(), 0);
        for (name, list) in known {
            let beyond = capabilities::beyond(list, &agreed);
            count += beyond.len();
            if !beyond.is_empty() {
                let separator = if differences.is_empty() { "" } else { "; " };
                let _ = write!(differences, "{separator}{name}: {}", beyond.join(", "));
            }
        }
        let gauge = metrics.backend_capabilities_missing.with_label_values(&[protocol.name]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        Advertised { generation: lessons, capabilities: capabilities.into(), differences }
    }
}
