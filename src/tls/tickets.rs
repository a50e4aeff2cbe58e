//! Tickets for clients under keys from a file, so that several ushers, and an usher after its restart,
//! resume each other's sessions.
//!
//! The last but one line of the file encrypts, all decrypt ([`key_lines`](super::key_lines)). Keys are derived from a line and the
//! policy for clients (HKDF, RFC 5869), so that a ticket is valid only under the policy its client was verified
//! by. A ticket contains its time; after 12 hours it is invalid. AES-256-GCM; the form is usher's own (RFC 5077
//! section 4 leaves it open).

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{self, HKDF_SHA256, Salt};
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use super::key_lines::KeyLines;

/// How long a ticket is good, in seconds: a phone that was offline for longer does a full handshake.
pub(super) const LIFETIME: u32 = 12 * 3_600;

/// The prefix of a ticket, to find its key.
const NAME: usize = 16;
const KEY: usize = 32;
const TAG: usize = 16;
/// When it was made, Unix seconds.
const TIME: usize = 8;

/// Makes and reads tickets under this policy.
pub(super) fn ticketer(lines: &KeyLines, rules: &[u8]) -> Result<Arc<dyn ProducesTickets>, Unspecified> {
    let keys: Vec<Key> = lines.secrets().map(|secret| Key::derive(secret, rules)).collect::<Result<_, _>>()?;
    Ok(Arc::new(Ticketer { keys, current: lines.current() }))
}

#[derive(Debug)]
struct Ticketer {
    /// In the order of the file.
    keys: Vec<Key>,
    /// Which of them encrypts.
    current: usize,
}

#[derive(Debug)]
struct Key {
    name: [u8; NAME],
    key: RandomizedNonceKey,
}

impl Key {
    fn derive(secret: &[u8], rules: &[u8]) -> Result<Self, Unspecified> {
        let mut derived = Zeroizing::new([0; NAME + KEY]);
        let prk = Salt::new(HKDF_SHA256, b"usher tickets, version 1").extract(secret);
        prk.expand(&[rules], KeyLength)?.fill(&mut *derived)?;
        let (name, key) = derived.split_first_chunk().ok_or(Unspecified)?;
        Ok(Self { name: *name, key: RandomizedNonceKey::new(&AES_256_GCM, key)? })
    }
}

/// The keys derived from a secret.
struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        NAME + KEY
    }
}

impl Ticketer {
    /// `name | nonce | sealed(time | session) | tag`.
    fn seal(&self, session: &[u8], now: u64) -> Option<Vec<u8>> {
        let Key { name, key } = self.keys.get(self.current)?;
        // Room for all of it, so that no growth leaves a part of a session behind.
        let mut sealed = Vec::with_capacity(TIME + session.len() + TAG);
        sealed.extend_from_slice(&now.to_be_bytes());
        sealed.extend_from_slice(session);
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        Some([name.as_slice(), nonce.as_ref(), &sealed].concat())
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = &self.keys.iter().find(|key| key.name == *name)?.key;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name), &mut sealed).ok()?;
        let (made, session) = opened.split_first_chunk::<TIME>()?;
        // A time in the future comes from a machine whose clock is ahead.
        let age = now.saturating_sub(u64::from_be_bytes(*made));
        (age <= u64::from(LIFETIME)).then(|| session.to_vec())
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, UnixTime::now().as_secs())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, UnixTime::now().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tls::key_lines::SECRET;

    fn ticketer(secrets: &[u8], rules: &[u8]) -> Ticketer {
        let keys: Vec<Key> = secrets.iter().map(|byte| Key::derive(&[*byte; SECRET], rules).unwrap()).collect();
        Ticketer { current: keys.len().saturating_sub(2), keys }
    }

    #[test]
    fn second_newest_key_encrypts_and_all_keys_decrypt() {
        let sealed_by = |secrets: &[u8]| {
            let ticket = ticketer(secrets, b"rules").seal(b"session", 0).unwrap();
            (0..9).find(|byte| ticketer(&[*byte], b"rules").open(&ticket, 0).is_some()).unwrap()
        };
        assert_eq!([sealed_by(&[1]), sealed_by(&[1, 2]), sealed_by(&[1, 2, 3]), sealed_by(&[2, 3, 4])], [1, 1, 2, 3]);
        // One machine has the new file and the other has not: each accepts the other's tickets.
        let (old, new) = (ticketer(&[1, 2, 3], b"rules"), ticketer(&[2, 3, 4], b"rules"));
        for (maker, reader) in [(&old, &new), (&new, &old)] {
            let ticket = maker.seal(b"session", 0).unwrap();
            assert_eq!(reader.open(&ticket, 0).as_deref(), Some(&b"session"[..]));
        }
    }

    #[test]
    fn ticket_is_invalid_under_other_settings_expired_or_modified() {
        let ours = ticketer(&[1, 2], b"imap");
        let mut ticket = ours.seal(b"session", 1_000).unwrap();
        assert!(ticketer(&[1, 2], b"pop3").open(&ticket, 1_000).is_none());
        let end = 1_000 + u64::from(LIFETIME);
        assert!(ours.open(&ticket, 900).is_some() && ours.open(&ticket, end).is_some());
        assert!(ours.open(&ticket, end + 1).is_none());
        for index in 0..ticket.len() {
            ticket[index] ^= 1;
            assert!(ours.open(&ticket, 1_000).is_none(), "{index}");
            ticket[index] ^= 1;
            assert!(ours.open(&ticket[..index], 1_000).is_none(), "{index}");
        }
        assert_ne!(ours.seal(b"session", 1_000), Some(ticket), "each has a nonce of its own");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_ticket(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let ours = ticketer(&[1, 2], b"imap");
            prop_assert!(ours.open(&tail, 0).is_none());
            let named = [&ours.keys[0].name[..], &tail].concat();
            prop_assert!(ours.open(&named, 0).is_none());
        }
    }
}
