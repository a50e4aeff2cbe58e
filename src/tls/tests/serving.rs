//! TLS for clients: names, key types, versions, groups, ALPN, resumption, client certificates.

use rustls::crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::{CipherSuite, RootCertStore, SignatureScheme, SupportedProtocolVersion, version};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::*;
use crate::tls::server::prefers_chacha;
use crate::tls::{describe, key_exchange};

/// A mail client with this provider and these versions.
pub(super) fn mail_client(
    desk: &Desk,
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(desk.ca.der().clone()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

pub(super) fn modern(desk: &Desk) -> ClientConfig {
    mail_client(desk, aws_lc_rs::default_provider(), &[&version::TLS13, &version::TLS12])
}

/// A client that verifies only RSA signatures in a handshake.
fn rsa_only(desk: &Desk, version: &'static SupportedProtocolVersion) -> ClientConfig {
    static MAPPING: &[(SignatureScheme, &[&dyn rustls::pki_types::SignatureVerificationAlgorithm])] =
        &[(SignatureScheme::RSA_PSS_SHA256, &[webpki::aws_lc_rs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY])];
    let mut provider = aws_lc_rs::default_provider();
    provider.signature_verification_algorithms =
        WebPkiSupportedAlgorithms { all: provider.signature_verification_algorithms.all, mapping: MAPPING };
    mail_client(desk, provider, &[version])
}

fn with_groups(desk: &Desk, groups: &[Group]) -> ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = groups.iter().copied().map(key_exchange).collect::<Vec<&'static dyn SupportedKxGroup>>();
    mail_client(desk, provider, &[&version::TLS13, &version::TLS12])
}

#[tokio::test]
async fn certificate_is_selected_by_name() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![
        desk.ecdsa("one", &["one.example.com", "any.example.com"]),
        desk.ecdsa("two", &["two.example.com"]),
        desk.ecdsa("wild", &["*.example.com"]),
    ]));
    let client = Arc::new(modern(&desk));
    for (asked, file) in [
        ("one.example.com", "one"),
        ("TWO.example.COM", "two"),
        ("three.example.com", "wild"),
        // An exact name takes precedence over a matching wildcard.
        ("any.example.com", "one"),
    ] {
        let (near, far) = shake(&server, &client, asked).await;
        let expected = super::super::certificate::load(&desk.files(file), "").unwrap();
        assert_eq!(peer(&near.unwrap()), expected.certified.cert[0].to_vec(), "{asked}");
        assert_eq!(far.unwrap().server_name().map(str::to_lowercase), Some(asked.to_lowercase()));
    }
    // A wildcard matches one label: the first certificate is served, and its name does not match.
    let (near, _) = shake(&server, &client, "a.b.example.com").await;
    let text = describe(&near.unwrap_err());
    assert_eq!(text, "its certificate is not for a.b.example.com, it is for one.example.com, any.example.com");
}

#[tokio::test]
async fn first_certificate_is_served_without_a_name() {
    let desk = Desk::new();
    let server =
        acceptor(&settings(vec![desk.ecdsa("one", &["one.example.com"]), desk.ecdsa("two", &["two.example.com"])]));
    let mut client = modern(&desk);
    client.enable_sni = false;
    let (near, _) = shake(&server, &Arc::new(client), "one.example.com").await;
    assert_eq!(shown(&near.unwrap()), ["one.example.com"]);
}

#[tokio::test]
async fn ecdsa_is_served_to_capable_clients_and_rsa_to_others() {
    let desk = Desk::new();
    let names = ["mail.example.com"];
    let server = acceptor(&settings(vec![desk.rsa("rsa", &names), desk.ecdsa("ecdsa", &names)]));
    let certificate = |file| super::super::certificate::load(&desk.files(file), "").unwrap().certified.cert[0].to_vec();
    for sni in [true, false] {
        let mut able = modern(&desk);
        able.enable_sni = sni;
        let (near, _) = shake(&server, &Arc::new(able), names[0]).await;
        assert_eq!(peer(&near.unwrap()), certificate("ecdsa"), "SNI {sni}");
        for version in [&version::TLS13, &version::TLS12] {
            let mut old = rsa_only(&desk, version);
            old.enable_sni = sni;
            let (near, _) = shake(&server, &Arc::new(old), names[0]).await;
            assert_eq!(peer(&near.unwrap()), certificate("rsa"), "SNI {sni} {version:?}");
        }
    }
}

#[tokio::test]
async fn min_version_is_enforced() {
    let desk = Desk::new();
    let mut tls = settings(vec![desk.ecdsa("one", &["mail.example.com"])]);
    let old = Arc::new(mail_client(&desk, aws_lc_rs::default_provider(), &[&version::TLS12]));
    let (near, _) = shake(&acceptor(&tls), &old, "mail.example.com").await;
    assert_eq!(near.unwrap().agreed().unwrap().version, "TLSv1_2");

    tls.min_version = TlsVersion::V1_3;
    let (near, far) = shake(&acceptor(&tls), &old, "mail.example.com").await;
    assert!(describe(&far.unwrap_err()).starts_with("no common TLS version"));
    let text = describe(&near.unwrap_err());
    assert!(text.contains("alert protocol_version: no common TLS version"), "{text}");
}

#[tokio::test]
async fn group_is_chosen_by_the_server() {
    use Group::{Secp256r1, Secp384r1, X25519, X25519MlKem768};
    let desk = Desk::new();
    let mut tls = settings(vec![desk.ecdsa("one", &["mail.example.com"])]);
    for (offered, agreed) in [
        (vec![Secp384r1, Secp256r1, X25519, X25519MlKem768], "X25519MLKEM768"),
        (vec![Secp384r1, Secp256r1, X25519], "X25519"),
        (vec![Secp384r1, Secp256r1], "secp256r1"),
        (vec![Secp384r1], "secp384r1"),
    ] {
        let (near, far) = shake(&acceptor(&tls), &Arc::new(with_groups(&desk, &offered)), "mail.example.com").await;
        assert_eq!(near.unwrap().agreed().unwrap().group, Some(agreed), "{offered:?}");
        far.unwrap();
    }
    // TLS 1.2 has no hybrid group, although the client lists it.
    let old = Arc::new(mail_client(&desk, aws_lc_rs::default_provider(), &[&version::TLS12]));
    let (near, _) = shake(&acceptor(&tls), &old, "mail.example.com").await;
    assert_eq!(near.unwrap().agreed().unwrap().group, Some("X25519"));

    tls.groups = vec![Secp384r1];
    let (near, _) = shake(&acceptor(&tls), &Arc::new(modern(&desk)), "mail.example.com").await;
    assert_eq!(near.unwrap().agreed().unwrap().group, Some("secp384r1"));
    let (_, far) = shake(&acceptor(&tls), &Arc::new(with_groups(&desk, &[X25519])), "mail.example.com").await;
    assert_eq!(describe(&far.unwrap_err()), "no common key exchange group");
}

#[tokio::test]
async fn configured_suites_are_used_in_order() {
    let desk = Desk::new();
    let mut tls = settings(vec![desk.ecdsa("one", &["mail.example.com"])]);
    tls.cipher_suites = Some(vec![
        "TLS_CHACHA20_POLY1305_SHA256".to_owned(),
        "TLS_AES_256_GCM_SHA384".to_owned(),
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256".to_owned(),
    ]);
    let (near, _) = shake(&acceptor(&tls), &Arc::new(modern(&desk)), "mail.example.com").await;
    assert_eq!(near.unwrap().agreed().unwrap().suite, "TLS13_CHACHA20_POLY1305_SHA256");
}

#[tokio::test]
async fn aes_128_is_the_default_and_chacha_follows_the_client_preference() {
    let desk = Desk::new();
    let acceptor = acceptor(&settings(vec![desk.ecdsa("one", &["mail.example.com"])]));
    for (version, aes, chacha) in [
        (&version::TLS13, "TLS13_AES_128_GCM_SHA256", "TLS13_CHACHA20_POLY1305_SHA256"),
        (&version::TLS12, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    ] {
        let mut provider = aws_lc_rs::default_provider();
        for (first, agreed) in [("AES_256", aes), ("AES_128", aes), ("CHACHA20", chacha)] {
            provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains(first));
            let client = Arc::new(mail_client(&desk, provider.clone(), &[version]));
            let (near, _) = shake(&acceptor, &client, "mail.example.com").await;
            assert_eq!(near.unwrap().agreed().unwrap().suite, agreed, "{first} first");
        }
    }
}

#[test]
fn unknown_suite_is_no_client_preference() {
    let (chacha, aes) = (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, CipherSuite::TLS13_AES_128_GCM_SHA256);
    let grease = [0x0a0a, 0x1a1a, 0xfafa].map(CipherSuite::from);
    for first in grease {
        assert!(prefers_chacha(&[first, chacha, aes]), "{first:?}");
        assert!(!prefers_chacha(&[first, aes, chacha]), "{first:?}");
    }
    assert!(!prefers_chacha(&grease) && !prefers_chacha(&[]));
}

#[tokio::test]
async fn alpn_is_strict_when_offered() {
    let desk = Desk::new();
    let server = ServerTls::from_settings(&settings(vec![desk.ecdsa("one", &["mail.example.com"])])).unwrap();
    let nameless = Protocol { name: "nameless", alpn: None, ..*imap() };
    let offers: [(&[&[u8]], &Protocol, bool); 6] = [
        (&[], imap(), true),
        (&[b"imap"], imap(), true),
        (&[b"h2", b"imap"], imap(), true),
        (&[b"http/1.1"], imap(), false),
        (&[], &nameless, true),
        (&[b"imap"], &nameless, false),
    ];
    for (offer, protocol, accepted) in offers {
        let mut client = modern(&desk);
        client.alpn_protocols = offer.iter().map(|id| id.to_vec()).collect();
        let (near, far) = shake(&server.common_acceptor(protocol), &Arc::new(client), "mail.example.com").await;
        assert_eq!(far.is_ok(), accepted, "{offer:?} at {}", protocol.name);
        if !accepted {
            assert_eq!(describe(&far.unwrap_err()), "the client speaks another protocol (ALPN)");
            let text = describe(&near.unwrap_err());
            assert!(text.contains("no_application_protocol"), "{text}");
        }
    }
}

/// Two connections, with a byte each way so that tickets arrive; whether each side resumed.
pub(super) async fn twice(first: &Acceptor, second: &Acceptor, client: &Arc<ClientConfig>) -> (bool, bool) {
    let mut resumed = (false, false);
    for acceptor in [first, second] {
        let (near, far) = shake(acceptor, client, "mail.example.com").await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        tell(&mut far, b"*").await;
        assert_eq!(hear(&mut near).await.unwrap(), b"*");
        resumed = (near.resumed(), far.resumed());
    }
    resumed
}

#[tokio::test]
async fn sessions_resume_within_a_protocol_only() {
    let desk = Desk::new();
    let server = ServerTls::from_settings(&settings(vec![desk.ecdsa("one", &["mail.example.com"])])).unwrap();
    let nameless = Protocol { name: "nameless", alpn: None, ..*imap() };
    let (imap, other) = (server.common_acceptor(imap()), server.common_acceptor(&nameless));
    for version in [&version::TLS13, &version::TLS12] {
        let client = || Arc::new(mail_client(&desk, aws_lc_rs::default_provider(), &[version]));
        assert_eq!(twice(&imap, &imap, &client()).await, (true, true), "{version:?}");
        assert_eq!(twice(&imap, &other, &client()).await, (false, false), "{version:?}");
    }
    // A client without tickets resumes from the cache.
    let mut old = mail_client(&desk, aws_lc_rs::default_provider(), &[&version::TLS12]);
    old.resumption = old.resumption.tls12_resumption(rustls::client::Tls12Resumption::SessionIdOnly);
    assert_eq!(twice(&imap, &imap, &Arc::new(old)).await, (true, true));
}

#[tokio::test]
async fn expired_certificate_is_served() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.expired("old", &["mail.example.com"])]));
    let (near, far) = shake(&server, &Arc::new(modern(&desk)), "mail.example.com").await;
    assert_eq!(describe(&near.unwrap_err()), "its certificate expired on Feb  3 00:00:00 2020 +00:00");
    let text = describe(&far.unwrap_err());
    assert!(text.contains("certificate_expired: our certificate has expired"), "{text}");
}

#[tokio::test]
async fn client_certificates_are_checked_when_an_authority_is_named() {
    let (desk, stranger) = (Desk::new(), Desk::named("Other CA"));
    let mut tls = settings(vec![desk.ecdsa("one", &["mail.example.com"])]);
    let with = |files| ClientTls { client_certificate: Some(files), ..desk.client() }.prepare().unwrap();
    let known = with(desk.ecdsa("alice", &["alice"]));
    let foreign = with(stranger.ecdsa("eve", &["eve"]));
    let none = desk.client().prepare().unwrap();
    tls.client_ca = Some(desk.ca_file());
    for required in [false, true] {
        tls.client_auth = if required { ClientAuth::Required } else { ClientAuth::Optional };
        let server = acceptor(&tls);
        shake(&server, &known, "mail.example.com").await.1.unwrap();
        let text = describe(&shake(&server, &foreign, "mail.example.com").await.1.unwrap_err());
        assert!(text.starts_with("its certificate comes from no known authority"), "{text}");
        let without = shake(&server, &none, "mail.example.com").await.1;
        assert_eq!(without.is_ok(), !required);
        if let Err(error) = without {
            assert_eq!(describe(&error), "the peer presented no certificate");
        }
    }
}

#[tokio::test]
async fn cleartext_client_is_detected() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.ecdsa("one", &["mail.example.com"])]));
    let (mut near, far) = tcp_pair().await;
    tell(&mut near, b"a1 LOGIN alice secret\r\n").await;
    let text = describe(&timeout(DEADLINE, server.accept(far)).await.unwrap().unwrap_err());
    assert_eq!(text, "the peer does not speak TLS here (is this a STARTTLS port?)");

    let (near, far) = tcp_pair().await;
    drop(near);
    let text = describe(&timeout(DEADLINE, server.accept(far)).await.unwrap().unwrap_err());
    assert_eq!(text, "the peer closed the connection during TLS");
}

/// What `openssl s_client` reports of a handshake with these arguments.
pub(super) async fn s_client(desk: &Desk, server: &Acceptor, arguments: &str) -> (String, io::Result<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Command::new("openssl")
        .args(["s_client", "-CAfile", "ca.pem", "-verify_return_error", "-connect"])
        .arg(listener.local_addr().unwrap().to_string())
        .args(arguments.split_whitespace())
        .current_dir(desk.dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        server.accept(tcp).await
    };
    let (client, served) = timeout(DEADLINE, async { tokio::join!(client, serve) }).await.unwrap();
    let output = client.unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr), served)
}

#[tokio::test]
async fn openssl_interoperates() {
    let desk = Desk::new();
    let names = ["mail.example.com"];
    let server = acceptor(&settings(vec![desk.rsa("rsa", &names), desk.ecdsa("ecdsa", &names)]));
    for (arguments, expected) in [
        ("-tls1_3", "ECDSA"),
        ("-tls1_3 -sigalgs RSA-PSS+SHA256:RSA+SHA256 -groups P-384:X25519", "X25519, 253 bits"),
        ("-tls1_3 -sigalgs RSA-PSS+SHA256:RSA+SHA256", "RSA-PSS"),
        ("-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("-tls1_2 -alpn imap", "ALPN protocol: imap"),
    ] {
        let arguments = format!("-servername mail.example.com -verify_hostname mail.example.com {arguments}");
        let (report, served) = s_client(&desk, &server, &arguments).await;
        assert!(served.is_ok() && report.contains(expected), "{arguments}: {report}");
        assert!(report.contains("Verify return code: 0 (ok)"), "{arguments}: {report}");
    }
    for refused in ["-tls1_2 -cipher AES128-SHA", "-alpn http/1.1", "-tls1_1 -cipher ALL@SECLEVEL=0"] {
        let (report, served) = s_client(&desk, &server, refused).await;
        assert!(served.is_err(), "{refused}: {report}");
    }
}

#[tokio::test]
async fn stream_reports_and_closes_properly() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.ecdsa("one", &["mail.example.com"])]));
    let (near, far) = shake(&server, &Arc::new(modern(&desk)), "mail.example.com").await;
    let (near, mut far) = (near.unwrap(), far.unwrap());
    assert!(near.is_tls() && !near.resumed());
    assert_eq!(near.tcp().local_addr().unwrap(), far.tcp().peer_addr().unwrap());
    assert_eq!(near.agreed(), far.agreed());
    assert!(near.into_plain().is_none());
    let (near, _) = tcp_pair().await;
    let plain = Stream::from(near);
    assert!(!plain.is_tls() && plain.agreed().is_none() && plain.into_plain().is_some());
    // The dropped side sent no close_notify: for mail that is a normal close.
    assert_eq!(hear(&mut far).await.unwrap(), b"");
    assert_eq!(hear(&mut far).await.unwrap(), b"");

    let (near, far) = shake(&server, &Arc::new(modern(&desk)), "mail.example.com").await;
    let (mut near, far) = (near.unwrap(), far.unwrap());
    tell(&mut near, b"a1 NOOP\r\n").await;
    near.shutdown().await.unwrap();
    let mut lines = BufReader::new(Reading::from(far)).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("a1 NOOP"));
    assert_eq!(lines.next_line().await.unwrap(), None);
}
