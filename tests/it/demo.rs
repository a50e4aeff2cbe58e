//! The demo, as `cargo demo -- --once` runs it.

use crate::kit::process::run;
use crate::kit::usher::BINARY;

#[test]
fn demo_checks_itself() {
    let said = run(BINARY, &["demo", "--once"], b"").succeeded();
    for word in ["alice", "bob", "server3", "server4"] {
        assert!(said.stdout.contains(word), "{word}: {said:#?}");
    }
}
