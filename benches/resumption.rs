//! The share of usher's TLS handshakes with a real Dovecot and a real Cyrus that resume an earlier session,
//! by number of concurrent logins:
//!
//! ```sh
//! cargo bench --bench resumption
//! ```
//!
//! `docs/developer/benchmarks.md` has the figures, and `benches/peers/run` those of a server that always resumes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers"
)]

#[path = "../tests/it/kit/mod.rs"]
#[allow(dead_code, unused_imports, reason = "a part of the tests' kit")]
mod kit;

use std::sync::Barrier;

use kit::{Config, Imap, Usher, password_of, start_deadline};

/// Logins per figure.
const LOGINS: usize = 512;

fn main() {
    let dry_run = serde_json::json!({"mode": "dry_run"});
    let mut config = Config::shared();
    for rule in ["sessions_per_user", "sessions_per_user_and_prefix", "logins_per_second", "connections_per_prefix"] {
        config = config.set(&format!("/throttle/{rule}"), dry_run.clone());
    }
    let usher = Usher::start(config);
    for (uid, backend, server) in [("alice", "server3", "Dovecot"), ("bob", "server4", "Cyrus")] {
        for concurrent in [1, 32, 256] {
            let before = usher.backend_handshakes(backend);
            let (rounds, together) = (LOGINS / concurrent, Barrier::new(concurrent));
            std::thread::scope(|scope| {
                for _ in 0..concurrent {
                    scope.spawn(|| {
                        for _ in 0..rounds {
                            start_deadline();
                            // All logins of a round start at once.
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
                "{server}, {concurrent} at a time: {:.0} % of {}",
                100.0 * resumed / (full + resumed),
                full + resumed
            );
        }
    }
}
