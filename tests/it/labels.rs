//! The closed label sets in `src/telemetry/metrics.rs` are those that the code uses.
//!
//! Every series exists from the first scrape, so the sets are repeated there, in a layer below the
//! modules with the enums. This reads both from the source, so no module has to be public for a test.

use std::collections::BTreeSet;
use std::path::Path;

/// A part of a source file that holds labels: from a text to the next one.
struct Part(&'static str, &'static str, &'static str);

/// A set, the sources of its labels, those counted as literals, and those never counted.
struct Set {
    name: &'static str,
    parts: &'static [Part],
    words: &'static [(&'static str, &'static str)],
    not_counted: &'static [&'static str],
}

/// The end of a function in an `impl`.
const END: &str = "\n    }\n";

const SETS: &[Set] = &[
    Set {
        name: "DECIDED_BY",
        parts: &[Part("login/authn.rs", "impl DecidedBy {", END)],
        words: &[("default", "login/event.rs")],
        not_counted: &["usher"],
    },
    Set {
        name: "BACKEND_RESULTS",
        parts: &[Part("backend/mod.rs", "impl BackendError {", END)],
        words: &[("ok", "frontend/session.rs"), ("refused", "frontend/session.rs"), ("draining", "login/attempt.rs")],
        not_counted: &[],
    },
    Set {
        name: "PROBE_RESULTS",
        parts: &[Part("backend/mod.rs", "impl BackendError {", END)],
        words: &[("ok", "backend/endpoint.rs"), ("refused", "backend/endpoint.rs")],
        // A probe is no login: it is not limited, and a refusal of its account has its own label.
        not_counted: &["down", "in_flight", "slow_start", "backend_rejected"],
    },
    Set {
        name: "PROXY_HEADERS",
        parts: &[Part("frontend/proxy_header.rs", "impl HeaderRejection {", END)],
        words: &[("client", "frontend/proxy_header.rs"), ("local", "frontend/proxy_header.rs")],
        not_counted: &[],
    },
    Set {
        name: "AUTH_HTTP",
        parts: &[Part("frontend/auth_http/mod.rs", "impl NoReply {", END)],
        words: &[
            ("ok", "frontend/auth_http/mod.rs"),
            ("refused", "frontend/auth_http/mod.rs"),
            ("method", "frontend/auth_http/mod.rs"),
            ("untrusted", "frontend/auth_http/mod.rs"),
            ("limit", "frontend/auth_http/mod.rs"),
        ],
        not_counted: &[],
    },
    Set {
        name: "HANDSHAKE_RESULTS",
        parts: &[],
        words: &[
            ("full", "frontend/session.rs"),
            ("resumed", "frontend/session.rs"),
            ("failed", "frontend/session.rs"),
            ("timeout", "frontend/session.rs"),
        ],
        not_counted: &[],
    },
    Set {
        name: "CERTIFICATE_RELOADS",
        parts: &[],
        words: &[("ok", "server/reload.rs"), ("refused", "server/reload.rs")],
        not_counted: &[],
    },
    Set {
        name: "END_CAUSES",
        parts: &[
            Part("sessions/relay.rs", "impl EndReason {", END),
            Part("sessions/registry.rs", "fn label(self)", END),
        ],
        words: &[("panic", "frontend/session.rs")],
        not_counted: &[],
    },
    Set {
        name: "PRELOGIN_CAUSES",
        parts: &[Part("frontend/session.rs", "impl CloseReason {", END)],
        words: &[],
        not_counted: &[],
    },
    Set {
        name: "DIRECTORY_CHANGES",
        parts: &[Part("tracking/compare.rs", "fn kinds(", END)],
        words: &[("delete", "tracking/apply.rs")],
        not_counted: &[],
    },
    Set {
        name: "DIRECTORY_OPERATIONS",
        parts: &[],
        words: &[
            ("connect", "directory/ldap/bind_pool.rs"),
            ("bind", "directory/ldap/bind_pool.rs"),
            ("service_bind", "directory/ldap/service_account.rs"),
            ("search", "directory/ldap/mod.rs"),
            ("read", "directory/ldap/mod.rs"),
        ],
        not_counted: &[],
    },
    Set {
        name: "DIRECTORY_CONNECTIONS",
        parts: &[Part("directory/ldap/bind_pool.rs", "let states = [", "];")],
        words: &[],
        not_counted: &[],
    },
    Set {
        name: "PASSWORD_WARNINGS",
        parts: &[Part("directory/ldap/policy.rs", "fn warning(", END)],
        words: &[],
        not_counted: &[],
    },
    Set { name: "PHASES", parts: &[Part("login/event.rs", "let phases = [", "];")], words: &[], not_counted: &[] },
];

/// Sets that a unit test compares with the code, and the file of that test.
const CHECKED_BY_UNIT_TESTS: &[(&str, &str)] = &[
    ("DELAY_RULES", "throttle/tests.rs"),
    ("LIMIT_RULES", "throttle/tests.rs"),
    ("THROTTLE_MEMORY", "throttle/tests.rs"),
    // Numbers of RFC 4511, each a label if it is in the set.
    ("DIRECTORY_CODES", "telemetry/metrics.rs"),
];

fn source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The quoted words that can be labels.
fn words(text: &str) -> BTreeSet<String> {
    let is_label = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    text.split('"').skip(1).step_by(2).filter(is_label).map(str::to_owned).collect()
}

fn part(Part(file, from, to): &Part) -> BTreeSet<String> {
    let text = source(file);
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("{file} has no `{from}`"));
    words(rest.split(to).next().unwrap())
}

/// The sets of `src/telemetry/metrics.rs` by their names.
fn declared() -> Vec<(String, BTreeSet<String>)> {
    let text = source("telemetry/metrics.rs");
    let sets = text.split("\npub(crate) const ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once(": [&str;")?;
        Some((name.to_owned(), words(rest.split_once('=')?.1.split("];").next()?)))
    });
    sets.collect()
}

#[test]
fn label_sets_match_the_code() {
    let mut wrong = Vec::new();
    let declared = declared();
    assert!(declared.len() >= SETS.len() + CHECKED_BY_UNIT_TESTS.len(), "{declared:?}");
    for (name, labels) in declared {
        let Some(set) = SETS.iter().find(|set| set.name == name) else {
            match CHECKED_BY_UNIT_TESTS.iter().find(|(known, _)| *known == name) {
                Some((_, file)) => assert!(source(file).contains(&name), "{name} is not in {file}"),
                None => wrong.push(format!("{name} is compared with nothing: add it here")),
            }
            continue;
        };
        let mut counted: BTreeSet<String> = set.parts.iter().flat_map(part).collect();
        for word in set.not_counted {
            assert!(counted.remove(*word), "{name}: {word} is no label of the code");
        }
        for (word, file) in set.words {
            assert!(words(&source(file)).contains(*word), "{name}: {word} is not in {file}");
            counted.insert((*word).to_owned());
        }
        if counted != labels {
            wrong.push(format!("{name}: the code counts under {counted:?}, metrics.rs has {labels:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
