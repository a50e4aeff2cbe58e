//! Verification of backends, and its errors.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rcgen::ExtendedKeyUsagePurpose;
use rustls_native_certs::CertificateResult;

use super::*;
use crate::tls::{describe, system};

const NAME: &str = "server3.example.com";

async fn refusal(server: &Acceptor, client: &ClientTls) -> String {
    describe(&shake(server, &client.prepare().unwrap(), NAME).await.0.unwrap_err())
}

#[tokio::test]
async fn valid_backend_is_accepted_and_resumed() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.ecdsa("one", &[NAME])]));
    let client = ClientTls { alpn: Some(b"imap"), ..desk.client() }.prepare().unwrap();
    for resumed in [false, true] {
        let (near, far) = shake(&server, &client, NAME).await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        assert_eq!(near.resumed(), resumed);
        assert_eq!(near.agreed().unwrap().group, Some("X25519MLKEM768"));
        // The tickets arrive with the greeting.
        tell(&mut far, b"*").await;
        assert_eq!(hear(&mut near).await.unwrap(), b"*");
    }
}

/// A handshake, and a byte with which the tickets arrive; whether it resumed.
async fn visit(server: &Acceptor, client: &Arc<ClientConfig>) -> bool {
    let (near, far) = shake(server, client, NAME).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    tell(&mut far, b"*").await;
    assert_eq!(hear(&mut near).await.unwrap(), b"*");
    near.resumed()
}

#[tokio::test]
async fn tickets_for_a_burst_are_kept_and_each_is_used_once_at_its_server() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.ecdsa("one", &[NAME])]));
    let client = desk.client().prepare().unwrap();
    // One full handshake yields two; each further one uses one and yields two.
    for count in 0..19 {
        assert_eq!(visit(&server, &client).await, count > 0);
    }
    let mut resumed = Vec::new();
    for _ in 0..21 {
        // Nothing is read, so that no new ticket arrives.
        resumed.push(shake(&server, &client, NAME).await.0.unwrap().resumed());
    }
    let expected: Vec<bool> = (0..21).map(|count| count < 20).collect();
    assert_eq!(resumed, expected);
    // A verification by another configuration does not count here.
    visit(&server, &client).await;
    let other = desk.client().prepare().unwrap();
    assert!(!visit(&server, &other).await);

    for _ in 0..260 {
        visit(&server, &client).await;
    }
    let store = format!("{:?}", client.resumption);
    assert!(store.contains("servers: 1, tickets: 256"), "{store}");
}

/// Tickets of a length chosen by the server, after some short ones.
#[derive(Debug)]
struct LongTickets {
    length: usize,
    short: AtomicUsize,
}

impl rustls::server::ProducesTickets for LongTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        3_600
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut ticket = plain.to_vec();
        let is_short = self.short.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        ticket.resize(if is_short { 200 } else { self.length }, 0);
        Some(ticket)
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// The size of a store after connections to a server with tickets of this length and this many certificates.
async fn kept(visits: usize, length: usize, certificates: usize) -> String {
    kept_after(0, visits, length, certificates).await
}

/// The same with this many short tickets before.
async fn kept_after(short: usize, visits: usize, length: usize, certificates: usize) -> String {
    let desk = Desk::new();
    let files = desk.ecdsa("one", &[NAME]);
    let chain = (read(&files.chain) + &desk.ca.pem().repeat(certificates)).into_bytes();
    let chain = rustls::pki_types::pem::PemObject::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>().unwrap();
    let key = rustls::pki_types::pem::PemObject::from_pem_file(&files.key).unwrap();
    let mut server = rustls::ServerConfig::builder_with_provider(crate::tls::provider(&DEFAULT_GROUPS, None))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    server.ticketer = Arc::new(LongTickets { length, short: short.into() });
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let client = desk.client().prepare().unwrap();
    for _ in 0..visits {
        let (near, far) = tcp_pair().await;
        let name = ServerName::try_from(NAME).unwrap();
        let (near, far) = tokio::join!(connect(&client, name, near), acceptor.accept(far));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        tell(&mut far, b"*").await;
        assert_eq!(hear(&mut near).await.unwrap(), b"*");
    }
    format!("{:?}", client.resumption)
}

#[tokio::test]
async fn tickets_of_a_server_are_bounded_in_bytes() {
    let store = kept(3, 3_900, 0).await;
    // The second and the third connection have used one each.
    assert!(store.contains("tickets: 4"), "{store}");
    // 256 of them would be kept for its server.
    for length in [4_200, 14_000] {
        let store = kept(3, length, 0).await;
        assert!(store.contains("tickets: 0, bytes: 0"), "{length}: {store}");
    }
    // A server that begins with short ones is detected: 100 long ones escape measurement once in 600,000 runs.
    let store = kept_after(4, 60, 14_000, 0).await;
    assert!(store.contains("tickets: 0, bytes: 0"), "{store}");
    // The same applies to a long chain, of which each ticket has a copy.
    let store = kept(100, 300, 30).await;
    let bytes: usize = store
        .split("bytes: ")
        .nth(1)
        .unwrap()
        .split(|one: char| !one.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1_000_000..=1024 * 1024).contains(&bytes), "{store}");
}

#[tokio::test]
async fn session_of_tls_1_2_is_resumed_as_often_as_needed() {
    let desk = Desk::new();
    let mut tls = settings(vec![desk.ecdsa("one", &[NAME])]);
    tls.cipher_suites = Some(vec!["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384".to_owned()]);
    let (server, client) = (acceptor(&tls), desk.client().prepare().unwrap());
    for expected in [false, true, true, true] {
        assert_eq!(visit(&server, &client).await, expected);
    }
}

#[tokio::test]
async fn wrong_authority_name_or_date_is_refused_with_a_clear_error() {
    let (desk, stranger) = (Desk::new(), Desk::named("Other CA"));
    let text = refusal(&acceptor(&settings(vec![stranger.ecdsa("one", &[NAME])])), &desk.client()).await;
    assert!(
        text.starts_with(
            "its certificate comes from no known authority: it does not send that of the issuer, CN=Other CA"
        ),
        "{text}"
    );

    let twin = Desk::new();
    let text = refusal(&acceptor(&settings(vec![twin.ecdsa("one", &[NAME])])), &desk.client()).await;
    assert!(text.contains("has another key than the one that signed it"), "{text}");

    let text = refusal(&acceptor(&settings(vec![desk.ecdsa("two", &["imap.example.net"])])), &desk.client()).await;
    assert_eq!(text, "its certificate is not for server3.example.com, it is for imap.example.net");

    let text = refusal(&acceptor(&settings(vec![desk.expired("three", &[NAME])])), &desk.client()).await;
    assert_eq!(text, "its certificate expired on Feb  3 00:00:00 2020 +00:00");

    let early = desk.issue("four", &[NAME], &KeyPair::generate().unwrap(), |params| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
    });
    let text = refusal(&acceptor(&settings(vec![early])), &desk.client()).await;
    assert_eq!(text, "its certificate is not valid before Jan  1 00:00:00 2090 +00:00: is a clock wrong?");

    let purpose = desk.issue("five", &[NAME], &KeyPair::generate().unwrap(), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let text = refusal(&acceptor(&settings(vec![purpose])), &desk.client()).await;
    assert!(text.contains("is for client authentication, not for server authentication"), "{text}");

    let nameless = acceptor(&settings(vec![desk.ecdsa("six", &[])]));
    let text = refusal(&nameless, &desk.client()).await;
    assert!(
        text.contains("no name as subjectAltName, only the CN rcgen self signed cert: a CN does not count"),
        "{text}"
    );
}

#[tokio::test]
async fn obsolete_certificates_are_refused_with_their_reason() {
    let desk = Desk::new();
    desk.openssl("req -x509 -newkey rsa:2048 -nodes -keyout own.key -out own.pem -subj /CN=server3.example.com");
    let server = acceptor(&settings(vec![desk.files("own")]));
    let own = ClientTls { ca: Some(desk.path("own.pem")), ..desk.client() };
    let text = refusal(&server, &own).await;
    assert!(text.contains("that of an authority (CA:TRUE)") && !text.contains("pin_sha256"), "{text}");
}

#[tokio::test]
async fn hostile_names_in_a_certificate_cannot_forge_a_line() {
    let desk = Desk::new();
    let hostile = desk.issue("one", &[], &KeyPair::generate().unwrap(), |params| {
        let names = (0..20).map(|n| format!("{n}\r\nlogin ok \u{1b}[31m"));
        params.subject_alt_names = names.map(|name| rcgen::SanType::DnsName(name.try_into().unwrap())).collect();
    });
    let text = refusal(&acceptor(&settings(vec![hostile])), &desk.client()).await;
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() < 2_000, "{}", text.len());
}

#[tokio::test]
async fn backend_can_request_a_client_certificate() {
    let (desk, stranger) = (Desk::new(), Desk::named("Other CA"));
    let mut tls = settings(vec![desk.ecdsa("one", &[NAME])]);
    tls.client_ca = Some(desk.ca_file());
    tls.client_auth = ClientAuth::Required;
    let server = acceptor(&tls);
    let with = |files| ClientTls { client_certificate: Some(files), ..desk.client() };

    let (near, far) = shake(&server, &with(desk.rsa("usher", &["usher"])).prepare().unwrap(), NAME).await;
    near.unwrap();
    far.unwrap();
    // TLS 1.3 reports it to the client after its handshake: with the first read.
    for (client, expected) in
        [(desk.client(), "it requires a client certificate"), (with(stranger.ecdsa("eve", &["eve"])), "unknown_ca")]
    {
        let (near, _far) = shake(&server, &client.prepare().unwrap(), NAME).await;
        let text = describe(&hear(&mut near.unwrap()).await.unwrap_err());
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn missing_system_roots_are_reported_with_advice() {
    let error = system::roots(CertificateResult::default(), None).unwrap_err();
    assert!(error.to_string().contains("ca-certificates"), "{error}");
    let mut partly = CertificateResult::default();
    partly.certs = vec![Desk::new().ca.der().clone(), b"garbage".to_vec().into()];
    assert_eq!(system::roots(partly, None).unwrap().len(), 1);
}

#[test]
fn bundle_of_the_system_is_read_whole() {
    let (desk, other, third) = (Desk::new(), Desk::named("Other CA"), Desk::named("Third CA"));
    let [one, two, three] = [&desk, &other, &third].map(|desk| read(&desk.ca_file()));
    let bundle = desk.write("bundle.pem", &format!("{one}\u{feff}{two}{}", three.replace("-----B", "  -----B")));
    let found = || {
        let mut found = CertificateResult::default();
        found.certs = vec![desk.ca.der().clone()];
        found
    };
    assert_eq!(system::roots(found(), Some(&bundle)).unwrap().len(), 3);
    // One block that cannot be read is no outage, and an excluded authority is not trusted.
    desk.write("bundle.pem", &two.replace("-----E", "----E"));
    assert_eq!(system::roots(found(), Some(&bundle)).unwrap().len(), 1);
    desk.write("two.pem", &two);
    desk.openssl("x509 -in two.pem -trustout -addreject serverAuth -out bundle.pem");
    assert_eq!(system::roots(found(), Some(&bundle)).unwrap().len(), 1);
}
