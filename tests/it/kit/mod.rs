//! The kit: shared real servers, usher under test, clients and scripted peers.
//!
//! Every wait has a deadline, every test has an overall one ([`DEADLINE`]), and everything a failing
//! test had open prints its transcript or log when it is dropped.

pub(crate) mod authority;
pub(crate) mod browser;
pub(crate) mod certs;
pub(crate) mod client;
pub(crate) mod config;
pub(crate) mod cyrus;
pub(crate) mod dirsrv;
pub(crate) mod dns;
pub(crate) mod dovecot;
pub(crate) mod dovecot_versions;
pub(crate) mod exposition;
pub(crate) mod issuer;
pub(crate) mod lmtp;
pub(crate) mod log_line;
// timers.rs, which needs `internals`, is the only one to use all of it.
#[cfg_attr(not(feature = "internals"), allow(dead_code))]
pub(crate) mod netns;
pub(crate) mod nginx;
pub(crate) mod postfix;
pub(crate) mod process;
pub(crate) mod provider;
#[allow(dead_code, reason = "unit tests use the rest")]
pub(crate) mod redis;
pub(crate) mod samba;
pub(crate) mod scripted;
pub(crate) mod sieve;
#[allow(dead_code, reason = "unit tests and benches use the rest")]
pub(crate) mod signer;
pub(crate) mod slapd;
pub(crate) mod tools;
pub(crate) mod users;
pub(crate) mod usher;

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use certs::{Certificates, Leaf, Pair};

pub(crate) use client::Imap;
pub(crate) use config::Config;
pub(crate) use sieve::Sieve;
pub(crate) use users::{User, password_of};
pub(crate) use usher::Usher;

/// The time limit of a test, from the start of its usher.
const DEADLINE: Duration = Duration::from_secs(60);

thread_local! {
    // The test runner runs each test in its own thread.
    static TEST_ENDS: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Starts or restarts the deadline of the test.
pub(crate) fn start_deadline() {
    TEST_ENDS.set(Some(Instant::now() + DEADLINE));
}

/// Three times a promised second, so that a busy machine fails no test.
pub(crate) const PROMISED_SECOND: Duration = Duration::from_secs(3);

/// The limit of one wait: this, or what is left of the test's deadline.
pub(crate) fn wait_limit(limit: Duration) -> Duration {
    let left = TEST_ENDS.get().map_or(DEADLINE, |end| end.saturating_duration_since(Instant::now()));
    assert!(!left.is_zero(), "the test exceeded its deadline of {DEADLINE:?}");
    limit.min(left)
}

/// What the tests share: no test may stop, freeze or reconfigure it.
pub(crate) struct SharedServers {
    pub(crate) certificates: Certificates,
    /// usher's own certificate.
    pub(crate) usher: Pair,
    /// slapd's, for 127.0.0.1 and localhost.
    pub(crate) ldap: Pair,
    /// server3's.
    pub(crate) server3: Pair,
    /// server4's.
    pub(crate) server4: Pair,
}

/// Certificates, created at the first use.
pub(crate) fn shared() -> &'static SharedServers {
    static WORLD: OnceLock<SharedServers> = OnceLock::new();
    WORLD.get_or_init(|| {
        let certificates = Certificates::new(&process::folder("certificates"));
        let local = ["usher.example.com", "localhost", "127.0.0.1"];
        SharedServers {
            usher: certificates.leaf("usher", Leaf::server(&local)),
            ldap: certificates.leaf("ldap", Leaf::server(&["ldap.example.com", "localhost", "127.0.0.1"])),
            server3: certificates.leaf("server3", Leaf::server(&["server3.example.com"])),
            server4: certificates.leaf("server4", Leaf::server(&["server4.example.com"])),
            certificates,
        }
    })
}

/// The shared directory.
pub(crate) fn slapd() -> &'static slapd::Slapd {
    static SLAPD: OnceLock<slapd::Slapd> = OnceLock::new();
    SLAPD.get_or_init(slapd::Slapd::private)
}

/// The shared server3.
pub(crate) fn dovecot() -> &'static dovecot::Dovecot {
    static DOVECOT: OnceLock<dovecot::Dovecot> = OnceLock::new();
    DOVECOT.get_or_init(|| dovecot::Dovecot::start(&shared().certificates, &shared().server3, false))
}

/// The relay of server3.
pub(crate) fn relay() -> &'static dovecot::Relay {
    static RELAY: OnceLock<dovecot::Relay> = OnceLock::new();
    RELAY.get_or_init(|| dovecot().relay())
}

/// The shared server4.
pub(crate) fn cyrus() -> &'static cyrus::Cyrus {
    static CYRUS: OnceLock<cyrus::Cyrus> = OnceLock::new();
    CYRUS.get_or_init(|| cyrus::Cyrus::start(&shared().server4))
}
