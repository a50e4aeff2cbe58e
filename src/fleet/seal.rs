//! What the store may not read or forge: names are keyed digests, everything else is sealed.
//!
//! Keys are derived (HKDF-SHA-256) from the lines of the fleet's secret file and the fleet's name, so that two fleets in one
//! store share nothing even under the same file. What is sealed (AES-256-GCM under random nonces of 96 bits) names
//! its line, and is bound to what it is for: a record of a member is no message, a message of one channel none of
//! another. Names are keyed by a random key of the fleet's own, which its members keep sealed in the store
//! ([`marks`](super::marks)): so it outlives the rotation of the file, and counts go on under the same names.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{self, HKDF_SHA256, Salt};
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::base::labels::labels;
use crate::tls::key_lines::KeyLines;

/// How a line is found again.
const LINE: usize = 8;
const KEY: usize = 32;
const TAG: usize = 16;
/// The length of a keyed id.
const ID: usize = 16;

labels! {
    /// What a sealed text is for.
    pub(super) enum Purpose {
        /// The record of a member.
        Member => "member",
        /// A mark.
        Mark => "mark",
        /// A message.
        Message => "message",
    }
}

/// Why a sealed text cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    /// It is too short.
    #[error("it is no sealed text")]
    Garbage,
    /// By a line that is not in the file, of this fleet.
    #[error("it is sealed under another secret")]
    UnknownLine,
    /// It was modified, or is meant for something else.
    #[error("it is forged")]
    Forged,
}

/// Seals under one line of the file and opens under all.
pub(crate) struct Sealer {
    keys: Vec<LineKey>,
    current: usize,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({})", self.keys.len())
    }
}

struct LineKey {
    line: [u8; LINE],
    key: RandomizedNonceKey,
}

impl LineKey {
    fn derive(secret: &[u8], fleet: &str) -> Result<Self, Unspecified> {
        let mut derived = Zeroizing::new([0; LINE + KEY]);
        let prk = Salt::new(HKDF_SHA256, b"usher fleet, version 1").extract(secret);
        prk.expand(&[fleet.as_bytes()], KeyLength)?.fill(&mut *derived)?;
        let (line, key) = derived.split_first_chunk().ok_or(Unspecified)?;
        Ok(Self { line: *line, key: RandomizedNonceKey::new(&AES_256_GCM, key)? })
    }
}

struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        LINE + KEY
    }
}

impl Sealer {
    /// From the lines of the file.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub(crate) fn new(lines: &KeyLines, fleet: &str) -> Result<Self, Unspecified> {
        let keys: Vec<_> = lines.secrets().map(|secret| LineKey::derive(secret, fleet)).collect::<Result<_, _>>()?;
        Ok(Self { keys, current: lines.current() })
    }

    /// Of secrets that consist of one byte each; the last but one seals.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn for_tests(secrets: &[u8], fleet: &str) -> Self {
        let keys: Vec<_> = secrets.iter().filter_map(|byte| LineKey::derive(&[*byte; 48], fleet).ok()).collect();
        Self { current: keys.len().saturating_sub(2), keys }
    }

    /// `line | nonce | sealed | tag`; `None` if there are no random numbers. `bound` are bytes that the reader knows.
    pub(super) fn seal(&self, purpose: Purpose, bound: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let LineKey { line, key } = self.keys.get(self.current)?;
        let mut sealed = Vec::with_capacity(plain.len() + TAG);
        sealed.extend_from_slice(plain);
        let nonce = key.seal_in_place_append_tag(aad(purpose, line, bound), &mut sealed).ok()?;
        Some([line.as_slice(), nonce.as_ref(), &sealed].concat())
    }

    /// Opens what any member sealed.
    pub(super) fn open(&self, purpose: Purpose, bound: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (line, rest) = sealed.split_first_chunk::<LINE>().ok_or(SealError::Garbage)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Garbage)?;
        if rest.len() < TAG {
            return Err(SealError::Garbage);
        }
        let known = self.keys.iter().find(|known| known.line == *line).ok_or(SealError::UnknownLine)?;
        let mut text = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = known.key.open_in_place(nonce, aad(purpose, line, bound), &mut text);
        let length = length.map_err(|_| SealError::Forged)?.len();
        text.truncate(length);
        Ok(text)
    }
}

fn aad(purpose: Purpose, line: &[u8; LINE], bound: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([purpose.label().as_bytes(), b"|", line, bound].concat())
}

labels! {
    /// What a key of the store counts or keeps; the word is a part of its name.
    pub(crate) enum KeyKind {
        /// Wrong passwords of a user.
        User => "u",
        /// Wrong passwords of a user at a prefix.
        UserAtPrefix => "up",
        /// Wrong passwords of a prefix.
        Prefix => "p",
        /// Names tried at a prefix.
        Names => "n",
        /// Sessions of a user.
        Sessions => "s",
        /// Networks that a user is known from.
        Networks => "w",
        /// Users that the brake holds back.
        Brake => "b",
    }
}

/// A keyed digest of a name: the same on every member, and nothing to anyone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyedId(pub(crate) [u8; ID]);

/// The name of a key in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StoreKey(String);

impl StoreKey {
    pub(super) fn plain(fleet: &str, name: &str) -> Self {
        Self(format!("usher:{fleet}:{name}"))
    }

    pub(super) fn keyed(fleet: &str, kind: KeyKind, id: KeyedId) -> Self {
        // 96 bits: of a billion names no two are likely to have the same, and the store has a key for each.
        let id = id.0.first_chunk::<12>().map_or_else(String::new, |id| URL_SAFE_NO_PAD.encode(id));
        Self(format!("usher:{fleet}:{}:{id}", kind.label()))
    }

    /// From the text of another.
    pub(crate) const fn written(text: String) -> Self {
        Self(text)
    }

    /// As the store has it.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key of the fleet's names.
#[derive(Clone)]
pub(super) struct Names {
    secret: Zeroizing<[u8; KEY]>,
    key: hmac::Key,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names(..)")
    }
}

impl Names {
    /// A new one; `None` if there are no random numbers.
    pub(super) fn random() -> Option<Self> {
        let mut secret = Zeroizing::new([0; KEY]);
        rand::fill(&mut *secret).ok()?;
        Self::read(&*secret)
    }

    /// As it was kept.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let secret: [u8; KEY] = bytes.try_into().ok()?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Some(Self { secret: Zeroizing::new(secret), key })
    }

    /// What is kept, sealed.
    pub(super) fn secret(&self) -> &[u8] {
        &*self.secret
    }

    /// The keyed digest of these parts, in this order; no other division into parts has the same.
    pub(super) fn id(&self, kind: &str, parts: &[&[u8]]) -> KeyedId {
        let mut context = hmac::Context::with_key(&self.key);
        for part in std::iter::once(&kind.as_bytes()).chain(parts) {
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        KeyedId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(secrets: &[u8], fleet: &str) -> Sealer {
        Sealer::for_tests(secrets, fleet)
    }

    #[test]
    fn second_newest_line_seals_and_all_open() {
        let (old, new, apart) = (sealer(&[1, 2, 3], "mail"), sealer(&[2, 3, 4], "mail"), sealer(&[7], "mail"));
        for (maker, reader) in [(&old, &new), (&new, &old)] {
            let sealed = maker.seal(Purpose::Mark, b"x", b"text").unwrap();
            assert_eq!(reader.open(Purpose::Mark, b"x", &sealed).as_deref(), Ok(&b"text"[..]));
            assert_eq!(apart.open(Purpose::Mark, b"x", &sealed), Err(SealError::UnknownLine));
        }
    }

    #[test]
    fn text_for_another_use_or_fleet_and_modified_text_are_refused() {
        let ours = sealer(&[1], "mail");
        let mut sealed = ours.seal(Purpose::Message, b"channel", b"text").unwrap();
        assert_eq!(sealed.len(), 4 + LINE + NONCE_LEN + TAG);
        assert!(ours.open(Purpose::Message, b"channel", &sealed).is_ok());
        assert_eq!(ours.open(Purpose::Message, b"other", &sealed), Err(SealError::Forged));
        assert_eq!(ours.open(Purpose::Member, b"channel", &sealed), Err(SealError::Forged));
        let other = sealer(&[1], "test");
        assert_eq!(other.open(Purpose::Message, b"channel", &sealed), Err(SealError::UnknownLine));
        for index in 0..sealed.len() {
            sealed[index] ^= 1;
            assert!(ours.open(Purpose::Message, b"channel", &sealed).is_err(), "{index}");
            sealed[index] ^= 1;
            assert!(ours.open(Purpose::Message, b"channel", &sealed[..index]).is_err(), "{index}");
        }
        assert_ne!(ours.seal(Purpose::Message, b"channel", b"text"), Some(sealed), "each has a nonce of its own");
    }

    #[test]
    fn names_depend_on_kind_parts_and_key() {
        let names = Names::read(&[5; KEY]).unwrap();
        let id = |parts: &[&[u8]]| names.id(KeyKind::User.label(), parts);
        assert_eq!(id(&[b"ab", b"c"]), Names::read(names.secret()).unwrap().id("u", &[b"ab", b"c"]));
        assert_ne!(id(&[b"ab", b"c"]), id(&[b"a", b"bc"]));
        assert_ne!(id(&[b"ab"]), id(&[b"ab", b""]));
        assert_ne!(id(&[b"ab"]), names.id("up", &[b"ab"]));
        assert_ne!(id(&[b"ab"]), Names::random().unwrap().id("u", &[b"ab"]));
        let key = StoreKey::keyed("mail", KeyKind::User, id(&[b"ab"]));
        assert!(key.as_str().starts_with("usher:mail:u:") && key.as_str().len() == 13 + 16, "{key:?}");
        assert!(Names::read(b"short").is_none());
    }
}
