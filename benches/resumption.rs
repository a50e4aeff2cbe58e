//! How many TLS handshakes of usher with a real Dovecot and a real Cyrus resume an earlier session, by how
//! many logins there are at a time:
//!
//! ```sh
//! cargo bench --bench resumption
//! ```
//!
//! `docs/benchmarks.md` has the figures, and `benches/peers/run` those of a server that always resumes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers"
)]

#[path = "../tests/it/kit/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests' kit, of which this needs a part")]
mod kit;

use std::sync::Barrier;

use kit::{Config, Imap, Usher, password_of, start_deadline};

/// Logins for each figure.
const LOGINS: usize = 512;

fn main() {
    let throttled_by_nothing = serde_json::json!({"mode": "dry_run"});
    let mut config = Config::shared();
    for rule in ["sessions_per_user", "sessions_per_user_and_prefix", "logins_per_second", "connections_per_prefix"] {
        config = config.set(&format!("/throttle/{rule}"), throttled_by_nothing.clone());
    }
    let usher = Usher::start(config);
    for (uid, backend, server) in [("alice", "server3", "Dovecot"), ("bob", "server4", "Cyrus")] {
        for at_a_time in [1, 32, 256] {
            let before = usher.backend_handshakes(backend);
            let (rounds, together) = (LOGINS / at_a_time, Barrier::new(at_a_time));
            std::thread::scope(|scope| {
                for _ in 0..at_a_time {
                    scope.spawn(|| {
                        for _ in 0..rounds {
                            start_deadline();
                            // All of a round at once.
                            let mut imap = Imap::tls(usher.imaps_port());
                            together.wait();
                            imap.login(uid, &password_of(uid)).ok();
                            imap.command("LOGOUT").ok();
                        }
                    });
                }
            });
            let after = usher.backend_handshakes(backend);
            let (full, resumed) = (after.0 - before.0, after.1 - before.1);
            println!(
                "{server}, {at_a_time} at a time: {:.0} % of {}",
                100.0 * resumed / (full + resumed),
                full + resumed
            );
        }
    }
}
