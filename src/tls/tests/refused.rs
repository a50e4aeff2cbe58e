//! Certificates that no verifier accepts, made by openssl as they are in the field: each is refused for its true
//! reason, in words, and what is advised against it works.

use super::pinning::{pinned, s_server};
use super::*;
use crate::tls::certificate::CertificateInfo;
use crate::tls::{CertificateFault, HandshakeError, HandshakeFailure};

const NAME: &str = "server3.example.com";

/// What a certificate is made of: `k.pem` and `k.key`, signed by `auth.pem`.
struct Kind {
    what: &'static str,
    /// The algorithm of the key, for `openssl req -newkey`.
    key: &'static str,
    /// The extensions; without any it is X.509 v1.
    extensions: &'static str,
    /// More arguments of `openssl x509 -req`.
    more: &'static str,
    fault: CertificateFault,
    reason: &'static str,
}

const NAMED: &str = "subjectAltName=DNS:server3.example.com\nbasicConstraints=CA:FALSE\n";
/// Each but those below is otherwise sound.
const USUAL: Kind =
    Kind { what: "", key: "rsa:2048", extensions: NAMED, more: "", fault: CertificateFault::Other, reason: "" };

const KINDS: [Kind; 10] = [
    Kind {
        what: "an authority as server",
        extensions: "subjectAltName=DNS:server3.example.com\nbasicConstraints=CA:TRUE\n",
        fault: CertificateFault::Authority,
        reason: "its certificate is that of an authority (CA:TRUE), which may sign others and not stand for a server",
        ..USUAL
    },
    Kind {
        what: "CN alone",
        extensions: "basicConstraints=CA:FALSE\n",
        fault: CertificateFault::NoName,
        reason: "its certificate has no name as subjectAltName, only the CN server3.example.com: a CN does not count \
                 (RFC 9525)",
        ..USUAL
    },
    Kind {
        what: "RSA 1024",
        key: "rsa:1024",
        fault: CertificateFault::ShortKey,
        reason: "its key is too short: RSA with 1024 bits, at least 2048 are required",
        ..USUAL
    },
    Kind {
        what: "SHA-1",
        more: "-sha1",
        fault: CertificateFault::WeakSignature,
        reason: "its certificate is signed with SHA-1, which is no longer accepted",
        ..USUAL
    },
    Kind {
        what: "MD5",
        more: "-md5",
        fault: CertificateFault::WeakSignature,
        reason: "its certificate is signed with MD5 or older, which is no longer accepted",
        ..USUAL
    },
    Kind {
        what: "X.509 v1",
        extensions: "",
        fault: CertificateFault::OldVersion,
        reason: "its certificate is X.509 v1, which has no room for names and purposes",
        ..USUAL
    },
    Kind {
        what: "another name",
        extensions: "subjectAltName=DNS:imap.example.net,DNS:*.example.org,IP:192.0.2.1\n",
        fault: CertificateFault::WrongName,
        reason: "its certificate is not for server3.example.com, it is for imap.example.net, *.example.org, 192.0.2.1",
        ..USUAL
    },
    Kind {
        what: "for clients",
        extensions: "subjectAltName=DNS:server3.example.com\nextendedKeyUsage=clientAuth,emailProtection\n",
        fault: CertificateFault::WrongUsage,
        reason: "its certificate is for client authentication and the purpose 1.3.6.1.5.5.7.3.4, not for server \
                 authentication (extended key usage)",
        ..USUAL
    },
    Kind {
        what: "ends before it begins",
        more: "-days -1",
        fault: CertificateFault::Expired,
        reason: "the validity of its certificate ends before it begins",
        ..USUAL
    },
    Kind {
        what: "a critical extension",
        extensions: "subjectAltName=DNS:server3.example.com\n1.2.3.4=critical,ASN1:NULL\n",
        reason: "its certificate has a critical extension that is not supported",
        ..USUAL
    },
];

/// An authority by openssl, as `NAME.pem` and `NAME.key`.
fn authority(desk: &Desk, name: &str, more: &str) {
    desk.openssl(&format!(
        "req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem -days 900 -subj /CN={name} {more}"
    ));
}

/// Issues `FILE.pem` and `FILE.key`.
fn issue(desk: &Desk, file: &str, key: &str, extensions: &str, authority: &str, more: &str) {
    desk.write("extensions", extensions);
    let request = format!("req -new -newkey {key} -nodes -keyout {file}.key -out {file}.csr -subj /CN={NAME}");
    desk.openssl(&request);
    let extensions = if extensions.is_empty() { "" } else { "-extfile extensions" };
    let days = if more.contains("-days") { "" } else { "-days 9" };
    let serial = if more.contains("serial") { "" } else { "-CAcreateserial" };
    desk.openssl(&format!(
        "x509 -req -in {file}.csr -CA {authority}.pem -CAkey {authority}.key {serial} {extensions} {days} {more} \
         -out {file}.pem"
    ));
}

/// Why a server with `k.pem` is refused.
async fn refusal(desk: &Desk, client: &ClientTls, arguments: &str) -> Result<(), HandshakeError> {
    let client = client.prepare().unwrap_or_else(|problems| panic!("{:?}", words(&problems)));
    let (_server, tcp) = s_server(desk, &format!("-cipher ALL:@SECLEVEL=0 {arguments}")).await;
    let name = ServerName::try_from(NAME).unwrap();
    let connected = timeout(DEADLINE, connect(&client, name, tcp)).await.unwrap();
    connected.map(drop).map_err(|error| HandshakeError::of_stream(&error))
}

fn trusting(desk: &Desk, ca: &str) -> ClientTls {
    ClientTls { ca: Some(desk.path(ca)), ..desk.client() }
}

/// No name of a type or of a variant, and no key that only one section of the configuration has.
#[track_caller]
fn is_plain(text: &str) {
    let words = text.replace("subjectAltName", "").replace("RSA", "").replace("MD5", "");
    let joined = words.as_bytes().windows(2).any(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase());
    assert!(!joined && !text.contains("::") && !text.contains('{') && !text.contains("pin_sha256"), "{text}");
}

#[tokio::test]
async fn each_certificate_is_refused_for_its_true_reason() {
    let desk = Desk::new();
    authority(&desk, "auth", "");
    let client = trusting(&desk, "auth.pem");
    for Kind { what, key, extensions, more, fault, reason } in KINDS {
        issue(&desk, "k", key, extensions, "auth", more);
        let info = CertificateInfo::read(
            &<rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_file(
                desk.path("k.pem"),
            )
            .unwrap(),
        );
        for version in ["-tls1_3", "-tls1_2"] {
            let refused = refusal(&desk, &client, version).await.expect_err(what);
            assert!(refused.to_string().starts_with(reason), "{what} {version}: {refused}");
            assert_eq!(refused.failure, HandshakeFailure::Certificate(fault), "{what} {version}: {refused}");
            is_plain(&refused.to_string());
            // What is advised against all but a short key.
            let info = info.as_ref().unwrap_or_else(|error| panic!("{what}: {error}"));
            let pinned = refusal(&desk, &pinned(&[info.spki_sha256()]), version).await;
            if fault == CertificateFault::ShortKey {
                assert_eq!(pinned.unwrap_err().to_string(), reason, "{what}");
            } else {
                assert!(pinned.is_ok(), "{what} {version}: {}", pinned.unwrap_err());
            }
        }
    }
}

#[tokio::test]
async fn unknown_issuers_are_told_apart() {
    let desk = Desk::new();
    for name in ["auth", "other"] {
        authority(&desk, name, "");
    }
    desk.openssl(
        "req -x509 -newkey rsa:2048 -nodes -keyout k.key -out k.pem -days 9 -subj /CN=self \
         -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:server3.example.com",
    );
    let told = async |client: &ClientTls, arguments: &str, fault, reason: &str| {
        let refused = refusal(&desk, client, arguments).await.expect_err(reason);
        assert_eq!((refused.failure, refused.to_string().as_str()), (HandshakeFailure::Certificate(fault), reason));
        is_plain(reason);
    };
    let other = trusting(&desk, "other.pem");
    let start = "its certificate comes from no known authority: ";
    told(&other, "", CertificateFault::SelfSigned, &format!("{start}it is self-signed")).await;
    refusal(&desk, &trusting(&desk, "k.pem"), "").await.expect("the advice works");

    issue(&desk, "k", "rsa:2048", NAMED, "auth", "");
    let missing = format!("{start}it does not send that of the issuer, CN=auth");
    told(&other, "", CertificateFault::MissingIssuer, &missing).await;
    let ends = format!("{start}its chain ends with CN=auth");
    told(&other, "-cert_chain auth.pem", CertificateFault::UnknownIssuer, &ends).await;
    refusal(&desk, &trusting(&desk, "auth.pem"), "").await.expect("the advice works");

    // An intermediate: sent or not.
    issue(&desk, "between", "rsa:2048", "basicConstraints=CA:TRUE\n", "auth", "");
    desk.openssl("req -new -key between.key -subj /CN=between -out between.csr");
    desk.openssl("x509 -req -in between.csr -CA auth.pem -CAkey auth.key -days 9 -extfile extensions -out between.pem");
    issue(&desk, "k", "rsa:2048", NAMED, "between", "");
    let missing = format!("{start}it does not send that of the issuer, CN=between");
    told(&trusting(&desk, "auth.pem"), "", CertificateFault::MissingIssuer, &missing).await;
    refusal(&desk, &trusting(&desk, "auth.pem"), "-cert_chain between.pem").await.expect("the advice works");
    refusal(&desk, &trusting(&desk, "between.pem"), "").await.expect("the other advice works");
    let missing = format!("{start}it does not send that of the issuer, CN=auth");
    told(&other, "-cert_chain between.pem", CertificateFault::MissingIssuer, &missing).await;
}

#[tokio::test]
async fn faults_of_authorities_are_told() {
    let desk = Desk::new();
    let told = async |client: &ClientTls, arguments: &str, fault, reason: &str| {
        let refused = refusal(&desk, client, arguments).await.expect_err(reason);
        assert_eq!((refused.failure, refused.to_string().as_str()), (HandshakeFailure::Certificate(fault), reason));
        is_plain(reason);
    };
    authority(&desk, "auth", "");
    // A new authority of the same name.
    issue(&desk, "k", "rsa:2048", NAMED, "auth", "");
    std::fs::rename(desk.path("auth.pem"), desk.path("old.pem")).unwrap();
    std::fs::rename(desk.path("auth.key"), desk.path("old.key")).unwrap();
    authority(&desk, "auth", "");
    let reason = "the signature of its certificate does not fit: the known authority CN=auth has another key than the one \
                  that signed it";
    told(&trusting(&desk, "auth.pem"), "", CertificateFault::BadSignature, reason).await;

    desk.openssl("req -x509 -newkey rsa:1024 -nodes -keyout short.key -out short.pem -days 9 -subj /CN=short");
    issue(&desk, "k", "rsa:2048", NAMED, "short", "");
    let reason = "the key of its issuer CN=short is too short: RSA with 1024 bits, at least 2048 are required";
    told(&trusting(&desk, "short.pem"), "", CertificateFault::ShortKey, reason).await;

    authority(&desk, "narrow", "-addext nameConstraints=critical,permitted;DNS:example.org");
    issue(&desk, "k", "rsa:2048", NAMED, "narrow", "");
    let reason = "its authority may not issue certificates for its names (name constraints)";
    told(&trusting(&desk, "narrow.pem"), "", CertificateFault::NameConstraints, reason).await;

    // Issuers that may not issue, and one whose certificate is signed with SHA-1.
    for (extensions, more, fault, reason) in [
        (
            "basicConstraints=CA:FALSE\n",
            "",
            CertificateFault::Other,
            "the certificate of its issuer is not that of an authority (no CA:TRUE)",
        ),
        (
            "",
            "",
            CertificateFault::OldVersion,
            "the certificate of its issuer is X.509 v1, which has no room for names and purposes",
        ),
        (
            "basicConstraints=CA:TRUE\n",
            "-sha1",
            CertificateFault::WeakSignature,
            "the certificate of its issuer CN=server3.example.com is signed with SHA-1, which is no longer accepted",
        ),
    ] {
        issue(&desk, "between", "rsa:2048", extensions, "auth", more);
        issue(&desk, "k", "rsa:2048", NAMED, "between", "");
        // The subject of the one is the issuer of the other, and both names are the same.
        told(&trusting(&desk, "auth.pem"), "-cert_chain between.pem", fault, reason).await;
    }
}

#[tokio::test]
async fn expired_certificate_of_an_issuer_is_told_apart() {
    use rcgen::{CertifiedIssuer, KeyUsagePurpose};
    let desk = Desk::new();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "between");
    params.not_before = rcgen::date_time_ymd(2019, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 2, 3);
    let between = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &desk.ca).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &between).unwrap();
    desk.write("k.pem", &leaf.pem());
    desk.write("k.key", &key.serialize_pem());
    desk.write("between.pem", &between.pem());
    let refused = refusal(&desk, &desk.client(), "-cert_chain between.pem").await.unwrap_err();
    assert_eq!(refused.to_string(), "the certificate of its issuer CN=between expired on Feb  3 00:00:00 2020 +00:00");
    assert_eq!(refused.failure, HandshakeFailure::Certificate(CertificateFault::Expired));
}

/// Alerts and broken rules of the protocol are named in words, too.
#[tokio::test]
async fn protocol_failures_have_no_names_of_types() {
    let desk = Desk::new();
    desk.ecdsa("k", &[NAME]);
    for (arguments, reason) in [
        ("-tls1_1", "the peer ended the handshake with the alert protocol_version: no common TLS version"),
        (
            "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA",
            "the peer ended the handshake with the alert handshake_failure: no common parameters, or it requires a client \
             certificate",
        ),
    ] {
        let client = desk.client().prepare().unwrap();
        let (_server, tcp) = s_server(&desk, arguments).await;
        let error = timeout(DEADLINE, connect(&client, NAME.try_into().unwrap(), tcp)).await.unwrap().unwrap_err();
        assert_eq!(HandshakeError::of_stream(&error).to_string(), reason);
    }
    // A server that writes what is no message of a handshake.
    for (sent, reason) in [
        (&b"\x16\x03\x03\x00\x04\xff\x00\x00\x00"[..], "the peer sent a handshake message out of order: type 255"),
        (b"\x17\x03\x03\x00\x01x", "the peer sent a TLS message out of order: application data"),
        (b"\x16\x03\x03\x00\x05\x02\x00\x00\x01x", "the peer sent a malformed TLS message: "),
    ] {
        let (near, mut far) = tcp_pair().await;
        far.write_all(sent).await.unwrap();
        let client = desk.client().prepare().unwrap();
        let error = timeout(DEADLINE, connect(&client, NAME.try_into().unwrap(), near)).await.unwrap().unwrap_err();
        let text = HandshakeError::of_stream(&error).to_string();
        assert!(text.starts_with(reason), "{text}");
        is_plain(&text);
    }
}

/// The groups of the configuration are those that a server is offered; the first message is one packet without
/// the hybrid.
#[tokio::test]
async fn configured_groups_are_offered() {
    let desk = Desk::new();
    let server = acceptor(&settings(vec![desk.ecdsa("one", &[NAME])]));
    let hello = |groups: Vec<Group>| {
        let client = ClientTls { groups, ..desk.client() }.prepare().unwrap();
        let mut sent = Vec::new();
        let mut connection = rustls::ClientConnection::new(Arc::clone(&client), NAME.try_into().unwrap()).unwrap();
        connection.write_tls(&mut sent).unwrap();
        (client, sent.len())
    };
    for (groups, agreed, packets) in [
        (vec![], "X25519MLKEM768", 2),
        (vec![Group::X25519, Group::Secp256r1], "X25519", 1),
        (vec![Group::Secp384r1], "secp384r1", 1),
    ] {
        let (client, length) = hello(groups);
        let (near, _) = shake(&server, &client, NAME).await;
        assert_eq!(near.unwrap().agreed().unwrap().group, Some(agreed));
        assert_eq!(length.div_ceil(1400), packets, "{agreed}: {length} bytes");
    }
}
