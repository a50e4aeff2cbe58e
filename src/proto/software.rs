//! Which mail server a backend is, as far as it says so before a login. Used for advice alone, never for a decision.

use super::{ForwardMethod, Protocol, capabilities};

/// The question for a server's name before the login, where the protocol has one, and how the line begins that ends the
/// reply: IMAP's ID (RFC 2971).
#[must_use]
pub(crate) fn question(protocol: &Protocol) -> Option<(&'static [u8], &'static [u8])> {
    (protocol.forward_method == Some(ForwardMethod::Id)).then_some((b"i ID NIL\r\n", b"i "))
}

/// Whether it is Dovecot: by its greeting and its name, which can both be configured, or by what it lists.
#[must_use]
pub(crate) fn is_dovecot(greeting: &[u8], identity: &[u8], listed: &[String]) -> bool {
    let says = |text: &[u8]| text.to_ascii_lowercase().windows(b"dovecot".len()).any(|part| part == b"dovecot");
    let lists = |name: &str| listed.iter().any(|one| capabilities::name(one).eq_ignore_ascii_case(name));
    says(greeting)
        || says(identity)
        // Pigeonhole's IMPLEMENTATION.
        || listed.iter().any(|one| capabilities::name(one).eq_ignore_ascii_case("IMPLEMENTATION") && says(one.as_bytes()))
        // Before the login no other server has both of these in IMAP, nor the latter two in submission.
        || (lists("LOGIN-REFERRALS") && lists("ENABLE"))
        || (listed.iter().any(|one| one.eq_ignore_ascii_case("BURL imap")) && lists("CHUNKING"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::PROTOCOLS;

    #[test]
    fn dovecot_is_recognized_in_each_protocol() {
        let is = |greeting: &str, identity: &str, listed: &[&str]| {
            let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
            is_dovecot(greeting.as_bytes(), identity.as_bytes(), &listed)
        };
        assert!(is("* OK [CAPABILITY IMAP4rev1] Dovecot (Debian) ready.", "", &[]));
        assert!(is("+OK Dovecot ready.", "", &[]) && is("220 mx Dovecot (Debian) ready.", "", &[]));
        // With a greeting and a name of its own.
        assert!(is("* OK Welcome", "* ID (\"name\" \"Dovecot\")\r\ni OK ID completed.\r\n", &[]));
        assert!(is(
            "* OK Welcome",
            "",
            &["IMAP4rev1", "SASL-IR", "LOGIN-REFERRALS", "ID", "ENABLE", "IDLE", "LITERAL+"]
        ));
        assert!(is("", "", &["IMPLEMENTATION Dovecot (Debian) Pigeonhole", "SIEVE fileinto"]));
        assert!(is("220 mx ready", "", &["8BITMIME", "BURL imap", "CHUNKING", "SIZE"]));
        assert!(!is(
            "* OK server4 Cyrus IMAP 3.6 ready",
            "* ID (\"name\" \"Cyrus IMAPD\")\r\ni OK\r\n",
            &["ID", "ENABLE"]
        ));
        assert!(!is("220 mx ESMTP Postfix", "", &["CHUNKING", "BURL", "SIZE 1"]));
        assert!(!is("", "", &["IMPLEMENTATION Cyrus timsieved v3.6.1", "NOTIFY dovecot"]));
    }

    #[test]
    fn only_imap_has_a_question() {
        let asked: Vec<_> = PROTOCOLS.iter().filter(|one| question(one).is_some()).map(|one| one.name).collect();
        assert_eq!(asked, ["imap"]);
    }
}
