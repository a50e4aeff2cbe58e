//! A server name (SNI) that is no host name, such as `[mail.example.com]` or `mail.example.com:993`, counts as
//! an unknown one, as with nginx and Dovecot.
//!
//! rustls 0.23 refuses such a ClientHello while it parses it, and no option of it accepts one (0.24 has
//! `ServerConfig::invalid_sni_policy`: with it, this file goes). So rustls is given the message with another
//! type in place of the extension's, one of private use, which it ignores. The client has hashed the message
//! as it sent it: [`restoring`] gives the configuration of such a client hash functions that put the right
//! type back, so that the transcripts of both sides are equal. Nothing else differs: keys, suites, verification
//! of certificates and what a client must prove are the same. RFC 8446 sections 4.1.2, 4.2 and 4.4.1, RFC 6066
//! section 3.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CipherSuiteCommon, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, SupportedCipherSuite,
    Tls12CipherSuite, Tls13CipherSuite,
};

const SERVER_NAME: u16 = 0;
/// What stands in its place for rustls: of private use (RFC 8446 section 11).
const HIDDEN: u16 = 0xffbc;
/// Record types (RFC 8446 section 5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;

/// What [`hide`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hiding {
    /// The name is hidden.
    Hidden,
    /// The message goes on.
    Incomplete,
    /// There is no name, or no such message.
    Nothing,
}

/// Hides the name in a ClientHello, given as the records that the client sent.
pub(super) fn hide(wire: &mut [u8]) -> Hiding {
    let Some((message, places)) = message(wire) else { return Hiding::Nothing };
    if message.len() < 4 || message.len() < length(&message) {
        return Hiding::Incomplete;
    }
    let mut names = extensions(&message).filter(|(_, kind)| *kind == SERVER_NAME);
    let (Some((offset, _)), None) = (names.next(), names.next()) else { return Hiding::Nothing };
    // Two of this type would be refused, and the wrong one put back.
    if extensions(&message).any(|(_, kind)| kind == HIDDEN) {
        return Hiding::Nothing;
    }
    for (offset, byte) in (offset..).zip(HIDDEN.to_be_bytes()) {
        // A message may be cut into records anywhere, between these two bytes as well.
        let place = places.iter().rev().find(|(begin, _)| *begin <= offset);
        if let Some(target) = place.and_then(|(begin, at)| wire.get_mut(at + offset - begin)) {
            *target = byte;
        }
    }
    Hiding::Hidden
}

/// Where the parts of a message stand: an offset in the message, and that in the records.
type Places = Vec<(usize, usize)>;

/// The handshake message at the beginning of these records, as far as it has come. `None`: other records.
fn message(wire: &[u8]) -> Option<(Vec<u8>, Places)> {
    let (mut message, mut places) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some([kind, _, _, high, low]) = wire.get(at..).and_then(<[u8]>::first_chunk) {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        at += 5;
        let payload = wire.get(at..).unwrap_or_default();
        match *kind {
            HANDSHAKE => {
                places.push((message.len(), at));
                message.extend_from_slice(payload.get(..length).unwrap_or(payload));
            }
            // A client sends one before its second ClientHello (RFC 8446 appendix D.4).
            CHANGE_CIPHER_SPEC if message.is_empty() => {}
            _ => return None,
        }
        if message.len() >= 4 && message.len() >= self::length(&message) {
            break;
        }
        at += length;
    }
    Some((message, places))
}

/// The length of a handshake message by its header, which is counted.
fn length(message: &[u8]) -> usize {
    let header = message.first_chunk().map(|[_, high, middle, low]| u32::from_be_bytes([0, *high, *middle, *low]));
    header.map_or(4, |length| 4 + length as usize)
}

/// The extensions of a ClientHello: where each begins, and its type. Ends where the bytes do: a binder covers
/// the message without its end.
fn extensions(message: &[u8]) -> impl Iterator<Item = (usize, u16)> {
    let hello = message.get(..length(message)).unwrap_or(message);
    let mut at = extensions_begin(hello).unwrap_or(hello.len());
    std::iter::from_fn(move || {
        let [kind, kind_low, high, low] = *hello.get(at..)?.first_chunk()?;
        let begin = at;
        at += 4 + usize::from(u16::from_be_bytes([high, low]));
        Some((begin, u16::from_be_bytes([kind, kind_low])))
    })
}

fn extensions_begin(hello: &[u8]) -> Option<usize> {
    if *hello.first()? != 1 {
        return None;
    }
    // The header, the version and the random bytes; then the session id, the suites, the compression methods.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(*hello.get(at)?);
    at += 2 + usize::from(u16::from_be_bytes(*hello.get(at..)?.first_chunk()?));
    at += 1 + usize::from(*hello.get(at)?);
    Some(at + 2)
}

/// Passes on a part of a transcript, as the client has hashed it.
fn restore(part: &[u8], mut pass: impl FnMut(&[u8])) {
    let hidden = extensions(part).find(|(_, kind)| *kind == HIDDEN);
    match hidden.and_then(|(begin, _)| Some((part.get(..begin)?, part.get(begin + 2..)?))) {
        Some((before, after)) => {
            pass(before);
            pass(&SERVER_NAME.to_be_bytes());
            pass(after);
        }
        None => pass(part),
    }
}

/// The provider for clients whose name is hidden.
pub(super) fn restoring(provider: &CryptoProvider) -> CryptoProvider {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> =
        LazyLock::new(|| ALL_CIPHER_SUITES.iter().map(|suite| restoring_suite(*suite)).collect());
    let mut restoring = provider.clone();
    for suite in &mut restoring.cipher_suites {
        let twin = SUITES.iter().find(|twin| twin.suite() == suite.suite());
        *suite = twin.copied().unwrap_or(*suite);
    }
    restoring
}

/// The same suite with the other hash. It is made once in the life of the process, for rustls wants it static.
fn restoring_suite(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let with_hash = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: Box::leak(Box::new(RestoringHash(common.hash_provider))),
        confidentiality_limit: common.confidentiality_limit,
    };
    match suite {
        SupportedCipherSuite::Tls13(suite) => SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
            common: with_hash(&suite.common),
            hkdf_provider: suite.hkdf_provider,
            aead_alg: suite.aead_alg,
            quic: suite.quic,
        }))),
        SupportedCipherSuite::Tls12(suite) => SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
            common: with_hash(&suite.common),
            prf_provider: suite.prf_provider,
            kx: suite.kx,
            sign: suite.sign,
            aead_alg: suite.aead_alg,
        }))),
    }
}

/// A hash function for transcripts; rustls passes each message to it in one piece.
struct RestoringHash(&'static dyn Hash);

impl Hash for RestoringHash {
    fn start(&self) -> Box<dyn Context> {
        Box::new(RestoringContext(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        let mut context = self.start();
        context.update(data);
        context.finish()
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct RestoringContext(Box<dyn Context>);

impl Context for RestoringContext {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        restore(data, |part| self.0.update(part));
    }
}

/// Verifies certificates of clients whose name is hidden: in TLS 1.2 they sign the transcript itself.
#[derive(Debug)]
pub(super) struct RestoringVerifier(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for RestoringVerifier {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let mut sent = Vec::with_capacity(message.len());
        restore(message, |part| sent.extend_from_slice(part));
        self.0.verify_tls12_signature(&sent, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.0.requires_raw_public_keys()
    }
}

/// A fuzz target: what a client sends first. A name that is hidden changes two bytes and nothing else, and what is hashed is
/// what came.
#[cfg(any(test, feature = "internals"))]
pub fn invariants(data: &[u8]) {
    let mut wire = data.to_vec();
    let came = message(data).map(|(message, _)| message);
    match hide(&mut wire) {
        Hiding::Hidden => {
            let changed = data.iter().zip(&wire).filter(|(before, after)| before != after).count();
            assert_eq!((wire.len(), changed), (data.len(), 2), "more than a type is changed");
            let (given, _) = message(&wire).unwrap_or_default();
            let mut hashed = Vec::new();
            restore(&given, |part| hashed.extend_from_slice(part));
            assert_eq!(Some(hashed), came, "another transcript");
            assert_ne!(hide(&mut wire), Hiding::Hidden, "hidden twice");
        }
        Hiding::Incomplete | Hiding::Nothing => assert_eq!(wire, data, "changed without a name"),
    }
}
