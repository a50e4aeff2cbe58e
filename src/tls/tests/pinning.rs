//! Pins accept exactly one certificate, even one that no verifier accepts, as openssl creates them in the field.

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::*;
use crate::tls::certificate::{CertificateInfo, load};
use crate::tls::{describe, provider};

const NAME: &str = "server3.example.com";

/// An openssl command per kind of certificate, each with another kind of key.
const KINDS: [(&str, &str); 7] = [
    ("self-signed CA as leaf, RSA", "req -x509 -newkey rsa:2048 -nodes -keyout k.key -out k.pem -subj /CN=old"),
    (
        "self-signed CA as leaf, P-256",
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.key -out k.pem -subj /CN=x",
    ),
    ("P-384", "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout k.key -out k.pem -subj /CN=x"),
    ("Ed25519", "req -x509 -newkey ed25519 -nodes -keyout k.key -out k.pem -subj /CN=x"),
    ("expired", ""),
    ("X.509 v1, CN only", "x509 -req -in v1.csr -signkey k.key -out k.pem -days 30"),
    ("X.509 v1 signed with SHA-1", "x509 -req -sha1 -in v1.csr -signkey k.key -out k.pem -days 30"),
];

fn make(desk: &Desk, command: &str) -> CertificateInfo {
    if command.contains("v1.csr") {
        desk.openssl("req -new -newkey rsa:2048 -nodes -keyout k.key -out v1.csr -subj /CN=server3.example.com");
    }
    if command.is_empty() {
        desk.expired("k", &[NAME]);
    } else {
        desk.openssl(command);
    }
    load(&desk.files("k"), "").unwrap().info
}

pub(super) fn pinned(pins: &[[u8; 32]]) -> ClientTls {
    ClientTls { pins: pins.to_vec(), key: "backend".to_owned(), ..ClientTls::default() }
}

/// `openssl s_server` with these files; the address it listens on.
pub(super) async fn s_server(desk: &Desk, arguments: &str) -> (tokio::process::Child, TcpStream) {
    let mut server = Command::new("openssl")
        .args("s_server -accept 127.0.0.1:0 -cert k.pem -key k.key -naccept 1".split(' '))
        .args(arguments.split_whitespace())
        .current_dir(desk.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = loop {
        let line = lines.next_line().await.unwrap().expect("s_server says where it listens");
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.to_owned();
        }
    };
    // Keeps the pipe open and empty for as long as the server writes to it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (server, TcpStream::connect(address).await.unwrap())
}

#[tokio::test]
async fn pin_accepts_a_certificate_that_no_verifier_accepts() {
    for (kind, command) in KINDS {
        let desk = Desk::new();
        let facts = make(&desk, command);
        let right = pinned(&[[7; 32], facts.spki_sha256()]).prepare().unwrap();
        let wrong = pinned(&[[7; 32]]).prepare().unwrap();
        let unpinned = ClientTls { ca: Some(desk.path("k.pem")), ..desk.client() }.prepare();
        for version in ["-tls1_3", "-tls1_2"] {
            let name = ServerName::try_from(NAME).unwrap();
            let (_server, tcp) = s_server(&desk, version).await;
            let stream = timeout(DEADLINE, connect(&right, name.clone(), tcp)).await.unwrap();
            assert!(stream.is_ok(), "{kind} {version}: {}", describe(&stream.unwrap_err()));

            let (_server, tcp) = s_server(&desk, version).await;
            let reported = describe(&timeout(DEADLINE, connect(&wrong, name.clone(), tcp)).await.unwrap().unwrap_err());
            use base64::Engine as _;
            let presented = base64::engine::general_purpose::STANDARD.encode(facts.spki_sha256());
            assert!(reported.contains("its public key is not pinned") && reported.contains(&presented), "{reported}");

            // The reason for the pin.
            if let Ok(unpinned) = &unpinned {
                let (_server, tcp) = s_server(&desk, version).await;
                assert!(timeout(DEADLINE, connect(unpinned, name, tcp)).await.unwrap().is_err(), "{kind}");
            }
        }
    }
}

/// The pin computed by an operator equals the compared one.
#[tokio::test]
async fn pin_equals_the_one_computed_by_openssl() {
    let desk = Desk::new();
    let facts = make(&desk, KINDS[0].1);
    desk.openssl("x509 -in k.pem -pubkey -noout -out pub.pem");
    desk.openssl("pkey -pubin -in pub.pem -outform der -out pub.der");
    desk.openssl("dgst -sha256 -binary -out pin pub.der");
    assert_eq!(std::fs::read(desk.path("pin")).unwrap(), facts.spki_sha256());
}

/// Presents a certificate without its key.
#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesServerCert for Impostor {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn copied_certificate_without_its_key_is_refused() {
    let desk = Desk::new();
    let real = load(&desk.ecdsa("real", &[NAME]), "").unwrap();
    let thief = load(&desk.ecdsa("thief", &[NAME]), "").unwrap();
    let copied = CertifiedKey::new(real.certified.cert.clone(), Arc::clone(&thief.certified.key));
    let impostor = Arc::new(Impostor(Arc::new(copied)));
    let client = pinned(&[real.info.spki_sha256()]).prepare().unwrap();
    for version in [&version::TLS13, &version::TLS12] {
        let config = ServerConfig::builder_with_provider(provider(&DEFAULT_GROUPS, None))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(impostor.clone());
        let (near, far) = tcp_pair().await;
        let server = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let name = ServerName::try_from(NAME).unwrap();
        let both = async { tokio::join!(connect(&client, name, near), server.accept(far)) };
        let (near, _) = timeout(DEADLINE, both).await.unwrap();
        let reported = describe(&near.unwrap_err());
        assert!(reported.contains("it does not hold the key of its certificate"), "{version:?}: {reported}");
    }
}

#[tokio::test]
async fn pinned_backend_resumes() {
    let desk = Desk::new();
    let files = desk.ecdsa("real", &["other.example.net"]);
    let server = acceptor(&settings(vec![files.clone()]));
    let client = pinned(&[load(&files, "").unwrap().info.spki_sha256()]).prepare().unwrap();
    for resumed in [false, true] {
        let (near, far) = shake(&server, &client, NAME).await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        assert_eq!(near.resumed(), resumed);
        tell(&mut far, b"*").await;
        assert_eq!(hear(&mut near).await.unwrap(), b"*");
    }
}
