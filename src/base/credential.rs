//! What a client proves itself with: its login name and a secret, with a digest of both uses made once.
//!
//! A frontend makes the [`Credential`] of an attempt; every layer below takes it by reference, and the secret in
//! clear is read only where it is sent. The digest is HMAC-SHA-256 (RFC 2104) under a random key that exists in
//! this process only.

use std::fmt;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::{digest, hmac};
use subtle::ConstantTimeEq as _;

use super::labels::labels;
use super::secret::Secret;

/// The key of every digest. Without random numbers nothing may be decided: the process does not start then.
static KEY: LazyLock<hmac::Key> = LazyLock::new(|| {
    let random = aws_lc_rs::rand::SystemRandom::new();
    hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system has random numbers")
});

/// The size of a block of SHA-256 (FIPS 180-4), in bytes.
const BLOCK: usize = 64;

/// Generates the key of the digests, so that a system without random numbers fails at the start.
///
/// # Panics
/// If the operating system has no random numbers.
pub(crate) fn prepare() {
    LazyLock::force(&KEY);
}

/// A login name as typed, checked: UTF-8, not empty, no NUL or control character, at most
/// [`Login::MAX`] bytes. White space at its ends is removed: a directory ignores it when it compares names (RFC 4518
/// section 2.6.1), so that with and without it is the same user, but a backend may see two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login(Arc<str>);

impl Login {
    /// The longest name, in bytes.
    pub const MAX: usize = 512;

    /// Checks a name from the wire; `None` if it cannot be a login name.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text =
            std::str::from_utf8(bytes).ok()?.trim_matches(|char: char| char.is_whitespace() && !char.is_control());
        let fits = !text.is_empty() && text.len() <= Self::MAX;
        (fits && !text.chars().any(char::is_control)).then(|| Self(text.into()))
    }

    /// The absent name of a message that need not name a user: a token says itself whose it is. No name that is parsed
    /// equals it.
    #[must_use]
    pub fn absent() -> Self {
        Self("".into())
    }

    /// Whether it is [`Login::absent`].
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.0.is_empty()
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

labels! {
    /// The mechanism that carries a token.
    pub enum TokenForm {
        /// RFC 7628.
        OAuthBearer => "oauthbearer",
        /// Google's and Microsoft's predecessor of it.
        XOAuth2 => "xoauth2",
    }
}

/// A token, and how it came: a backend that gets it gets it in the same form.
#[derive(Debug, Clone)]
pub struct BearerToken {
    /// The token (RFC 6750 section 2.1).
    pub token: Secret,
    /// The mechanism.
    pub form: TokenForm,
}

/// The secret of a credential.
#[derive(Debug, Clone)]
pub enum CredentialSecret {
    /// A password.
    Password(Secret),
    /// A token.
    Token(BearerToken),
    /// A certificate, whose key the client has proven in the TLS handshake. A dialogue only knows that the client
    /// refers to it: the frontend replaces [`ClientCertificate::claimed`] by the one that is verified.
    ClientCertificate(ClientCertificate),
}

labels! {
    /// What a user logs in with.
    pub enum CredentialKind {
        /// A password.
        Password => "password",
        /// A token.
        Token => "token",
        /// A client certificate.
        Certificate => "certificate",
    }
}

impl CredentialSecret {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> CredentialKind {
        match self {
            Self::Password(_) => CredentialKind::Password,
            Self::Token(_) => CredentialKind::Token,
            Self::ClientCertificate(_) => CredentialKind::Certificate,
        }
    }
}

/// The SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateDigest([u8; 32]);

impl CertificateDigest {
    /// Of these bytes.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(digest::digest(&digest::SHA256, der).as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

impl fmt::Display for CertificateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CertificateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a client certificate proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateProof {
    /// The holder of the key; the entry has to list the certificate.
    Key,
    /// The user's address, for which its authority vouches.
    Address,
}

/// A verified client certificate, as a credential.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    digest: CertificateDigest,
    proof: CertificateProof,
    /// Another name that the client gives for itself, to be compared with the entry found.
    authzid: Option<Login>,
    /// What failures are charged to: never a name that the client has given.
    charged: Login,
    /// The name of the directory that has its users, if they are in one.
    directory: Option<Arc<str>>,
}

impl ClientCertificate {
    /// This certificate, with a name to be compared with the entry that it leads to.
    #[must_use]
    pub fn new(digest: CertificateDigest, proof: CertificateProof, authzid: Option<Login>) -> Self {
        // No parsed name begins with NUL.
        let charged = Login(format!("\0{digest}").into());
        Self { digest, proof, authzid, charged, directory: None }
    }

    /// The same with a user of this directory alone.
    #[must_use]
    pub fn of_directory(self, directory: Option<Arc<str>>) -> Self {
        Self { directory, ..self }
    }

    /// The name of the directory that has its users, if they are in one.
    #[must_use]
    pub fn directory(&self) -> Option<&str> {
        self.directory.as_deref()
    }

    /// One that a client only refers to. It is the digest of nothing, which no entry lists.
    #[must_use]
    pub fn claimed() -> Self {
        Self::new(CertificateDigest::of(b""), CertificateProof::Key, None)
    }

    /// The certificate.
    #[must_use]
    pub const fn digest(&self) -> CertificateDigest {
        self.digest
    }

    /// What it proves.
    #[must_use]
    pub const fn proof(&self) -> CertificateProof {
        self.proof
    }

    /// The name that has to be the same entry's.
    #[must_use]
    pub const fn authzid(&self) -> Option<&Login> {
        self.authzid.as_ref()
    }
}

/// A login name and its secret, as one client has sent them. The name beside a token is a claim of the client's that
/// may be absent, and never says who the user is.
#[derive(Debug, Clone)]
pub struct Credential {
    login: Login,
    secret: CredentialSecret,
    digest: Digest,
}

impl Credential {
    /// Takes over what a client has sent, and computes the digest of the secret.
    #[must_use]
    pub fn new(login: Login, secret: CredentialSecret) -> Self {
        let digest = Digest::of(&secret);
        Self { login, secret, digest }
    }

    /// The same secret with another name.
    #[must_use]
    pub fn named(&self, login: Login) -> Self {
        Self { login, ..self.clone() }
    }

    /// The login name.
    #[must_use]
    pub const fn login(&self) -> &Login {
        &self.login
    }

    /// The name that a failure is charged to. Whoever has a certificate cannot lock others out by naming them.
    #[must_use]
    pub(crate) const fn charged(&self) -> &Login {
        match &self.secret {
            // A token is charged to no name: see `PendingAttempt::begin_token`.
            CredentialSecret::Password(_) | CredentialSecret::Token(_) => &self.login,
            CredentialSecret::ClientCertificate(certificate) => &certificate.charged,
        }
    }

    /// Whether a right one shows that the user knows a secret that others may guess.
    #[must_use]
    pub(crate) const fn is_guessable(&self) -> bool {
        match self.secret {
            CredentialSecret::Password(_) => true,
            CredentialSecret::Token(_) | CredentialSecret::ClientCertificate(_) => false,
        }
    }

    /// The secret in clear. Review every call.
    #[must_use]
    pub const fn secret(&self) -> &CredentialSecret {
        &self.secret
    }

    /// The digest of the secret; each use narrows it.
    #[must_use]
    pub(crate) const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// A name and a password for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(login: &str, password: impl AsRef<[u8]>) -> Self {
        let login = Login::parse(login.as_bytes()).expect("a login name");
        Self::new(login, CredentialSecret::Password(Secret::copy_of(password.as_ref())))
    }
}

/// The keyed digest of a secret. It cannot be compared or stored itself: each use takes bytes of its own.
///
/// The output of HMAC is indistinguishable from random bytes without the key, so that disjoint parts of it are
/// independent: what one use stores says nothing about the digest of another use. 128 bits are the least that
/// RFC 2104 section 5 recommends for a truncated tag; it decides who gets in. The limits only count repetitions:
/// 64 bits are enough for them.
#[derive(Clone, Copy)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    fn of(secret: &CredentialSecret) -> Self {
        match secret {
            CredentialSecret::Password(password) => Self::keyed(&[password.expose()], 0),
            CredentialSecret::Token(BearerToken { token, .. }) => Self::of_token(token),
            CredentialSecret::ClientCertificate(ClientCertificate { digest, proof, authzid, .. }) => {
                let kind = match proof {
                    CertificateProof::Key => 2,
                    CertificateProof::Address => 3,
                };
                // The digest has a fixed length, so that the parts are distinct.
                Self::keyed(&[&digest.0, authzid.as_ref().map(Login::as_str).unwrap_or_default().as_bytes()], kind)
            }
        }
    }

    /// The digest of a token. One that is sent as a password has another.
    #[must_use]
    pub(crate) fn of_token(token: &Secret) -> Self {
        Self::keyed(&[token.expose()], 1)
    }

    fn keyed(parts: &[&[u8]], kind: u8) -> Self {
        let mut context = hmac::Context::with_key(&KEY);
        parts.iter().for_each(|part| context.update(part));
        // The context keeps the last part of its input, and is moved when it is finished, which leaves a copy on
        // the stack: this one has the end of the secret no longer. A suffix of fixed length keeps inputs distinct,
        // and those of different kinds.
        context.update(&[kind; BLOCK]);
        let tag = context.sign();
        let mut digest = [0; 32];
        digest.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Self(digest)
    }

    /// The part for one use.
    #[must_use]
    pub(crate) fn narrow<P: Purpose>(&self) -> P {
        P::of(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

/// A use of a digest, with bytes of its own.
pub(crate) trait Purpose {
    /// Takes these bytes.
    fn of(digest: &[u8; 32]) -> Self;
}

/// The digest of a secret in the cache of the directory's answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AnswerDigest([u8; 16]);

impl AnswerDigest {
    /// Compares in constant time.
    #[must_use]
    pub(crate) fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Purpose for AnswerDigest {
    fn of(digest: &[u8; 32]) -> Self {
        let [part, _] = halves(digest);
        Self(part)
    }
}

/// The digest of a secret in the limits on wrong passwords.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttemptDigest(u64);

impl Purpose for AttemptDigest {
    fn of(digest: &[u8; 32]) -> Self {
        let [_, part] = halves(digest);
        Self(part.into_iter().take(8).fold(0, |digest, byte| digest << 8 | u64::from(byte)))
    }
}

fn halves(digest: &[u8; 32]) -> [[u8; 16]; 2] {
    let (halves, _) = digest.as_chunks::<16>();
    let half = |at: usize| halves.get(at).copied().unwrap_or_default();
    [half(0), half(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_depends_on_the_secret_and_not_on_the_login() {
        let digest = |login: &str, password: &str| Credential::for_tests(login, password).digest().0;
        assert_eq!(digest("alice", "sesame"), digest("bob", "sesame"));
        assert_ne!(digest("alice", "sesame"), digest("alice", "sesame "));
    }

    #[test]
    fn token_and_password_of_the_same_bytes_have_different_digests() {
        let of = |secret| Credential::new(Login::absent(), secret).digest().0;
        let token = |form| CredentialSecret::Token(BearerToken { token: Secret::copy_of(b"sesame"), form });
        let tokens = [TokenForm::OAuthBearer, TokenForm::XOAuth2].map(|form| of(token(form)));
        assert_eq!(tokens[0], tokens[1]);
        assert_ne!(tokens[0], of(CredentialSecret::Password(Secret::copy_of(b"sesame"))));
    }

    #[test]
    fn no_parsed_name_is_absent() {
        assert!(Login::absent().is_absent());
        for typed in ["", " ", "\u{a0}", "alice"] {
            assert!(Login::parse(typed.as_bytes()).is_none_or(|login| !login.is_absent()), "{typed:?}");
        }
    }

    #[test]
    fn digest_of_a_certificate_depends_on_all_that_is_decided_by() {
        let certificate = |der: &[u8], proof, authzid: Option<&str>| {
            let authzid = authzid.and_then(|name| Login::parse(name.as_bytes()));
            let certificate = ClientCertificate::new(CertificateDigest::of(der), proof, authzid);
            let login = Login::parse(b"alice").expect("a login name");
            Credential::new(login, CredentialSecret::ClientCertificate(certificate)).digest().0
        };
        let all = [
            certificate(b"one", CertificateProof::Key, None),
            certificate(b"other", CertificateProof::Key, None),
            certificate(b"one", CertificateProof::Address, None),
            certificate(b"one", CertificateProof::Address, Some("alicia")),
            Credential::for_tests("alice", CertificateDigest::of(b"one").0).digest().0,
        ];
        assert!(all.iter().enumerate().all(|(at, one)| all.iter().skip(at + 1).all(|other| one != other)));
    }

    #[test]
    fn failure_of_a_certificate_is_charged_to_no_name_that_can_be_typed() {
        let certificate = ClientCertificate::new(CertificateDigest::of(b"one"), CertificateProof::Key, None);
        let login = Login::parse(b"alice").expect("a login name");
        let credential = Credential::new(login, CredentialSecret::ClientCertificate(certificate));
        assert!(Login::parse(credential.charged().as_str().as_bytes()).is_none() && !credential.is_guessable());
        let password = Credential::for_tests("alice", "sesame");
        assert!(password.charged() == password.login() && password.is_guessable());
    }

    #[test]
    fn login_has_no_white_space_at_its_ends() {
        let parsed = |text: &str| Login::parse(text.as_bytes()).map(|login| login.as_str().to_owned());
        for typed in ["alice", " alice", "alice  ", "\u{a0}alice\u{3000}"] {
            assert_eq!(parsed(typed).as_deref(), Some("alice"), "{typed:?}");
        }
        assert_eq!(parsed("o  neil ").as_deref(), Some("o  neil"));
        for typed in ["", "  ", "\talice", "alice\r\n", "alice\u{85}"] {
            assert_eq!(parsed(typed), None, "{typed:?}");
        }
    }

    #[test]
    fn digests_of_two_uses_share_no_byte() {
        let bytes: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let digest = Digest(bytes);
        let AnswerDigest(answer) = digest.narrow();
        let AttemptDigest(attempt) = digest.narrow();
        assert_eq!(answer, std::array::from_fn(|at| u8::try_from(at).unwrap()));
        assert_eq!(attempt, 0x1011_1213_1415_1617);
        assert!(attempt.to_be_bytes().iter().all(|byte| !answer.contains(byte)));
    }

    #[test]
    fn debug_shows_neither_secret_nor_digest() {
        let shown = format!("{:?}", Credential::for_tests("alice", "hunter2"));
        assert!(shown.contains("alice") && shown.contains("Digest(..)") && !shown.contains("hunter2"), "{shown}");
    }
}
