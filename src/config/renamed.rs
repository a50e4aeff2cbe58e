//! Keys and words of earlier versions, and what they are called now.
//!
//! An old name is an error that names the new one: a key that were silently taken over, or a limit
//! that were silently ignored, would both be a surprise. Names are stable since the first release,
//! so this table only grows by what a later version renames.

/// Old path to new name. In a path `[]` stands for any index.
const KEYS: &[(&str, &str)] = &[
    ("tls.client_certificate", "client_auth"),
    ("directory.bind_connections", "connections: {max: ...}"),
    ("directory.connections.idle", "idle_timeout"),
    ("directory.connections.age", "max_age"),
    ("directory.connections.operations", "max_operations"),
    ("routing.backends[].ramp", "slow_start"),
    ("limits.backend_untagged", "max_backend_greeting"),
    ("limits.conversation_timeout", "prelogin_timeout"),
    ("throttle.failed_logins_per_prefix.free", "free_failures"),
    ("throttle.failed_logins_per_user.free", "free_failures"),
    ("throttle.known_for", "known_network_ttl"),
    ("trusted_networks", "trusted"),
];

/// Keys whose value may be an old word: the path, the old word, the new one.
const WORDS: &[(&str, &str, &str)] = &[
    ("directory.result_19", "cannot_tell", "unavailable"),
    ("directory.result_50", "cannot_tell", "unavailable"),
    ("directory.result_53", "cannot_tell", "unavailable"),
    ("directory.result_19", "not_now", "outside_logon_hours"),
    ("directory.result_50", "not_now", "outside_logon_hours"),
    ("directory.result_53", "not_now", "outside_logon_hours"),
    ("directory.result_19", "not_here", "wrong_workstation"),
    ("directory.result_50", "not_here", "wrong_workstation"),
    ("directory.result_53", "not_here", "wrong_workstation"),
];

/// The new name of the key at `path`, if the path is an old one.
pub(super) fn key(path: &str) -> Option<&'static str> {
    KEYS.iter().find(|(old, _)| matches(old, path)).map(|(_, new)| *new)
}

/// The new spelling of `word` as the value of the key at `path`.
pub(super) fn word(path: &str, word: &str) -> Option<&'static str> {
    WORDS.iter().find(|(at, old, _)| *old == word && matches(at, path)).map(|(_, _, new)| *new)
}

/// Whether the path is the pattern's, whatever its indices are.
fn matches(pattern: &str, path: &str) -> bool {
    let mut pieces = pattern.split("[]");
    let Some(mut rest) = pieces.next().and_then(|first| path.strip_prefix(first)) else { return false };
    for piece in pieces {
        let index = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let Some((digits, behind)) = index else { return false };
        let Some(behind) = behind.strip_prefix(piece) else { return false };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return false;
        }
        rest = behind;
    }
    rest.is_empty()
}

#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    KEYS.iter().copied()
}
