//! Server names (SNI) that are no host names: they are unknown names, and no reason to refuse a client.

use rustls::version;
use tokio::io::AsyncReadExt as _;

use super::serving::{mail_client, modern, s_client};
use super::*;
use crate::tls::describe;
use crate::tls::server_name::invariants;

/// What clients are seen to send, and what else could not be a host name.
const ODD: [&str; 13] = [
    "[mail.example.com]",
    "mail.example.com:993",
    "m..example.com",
    "mail.example.com.",
    "mail.example.com..",
    ".example.com",
    "mail_server.example.com",
    "imaps://mail.example.com",
    "-",
    "*.example.com",
    "192.0.2.1",
    "2001:db8::1",
    "[2001:db8::1]",
];

/// Two certificates, of which the second has the name in many odd ones.
fn two(desk: &Desk) -> Tls {
    settings(vec![desk.ecdsa("one", &["one.example.com"]), desk.ecdsa("two", &["mail.example.com"])])
}

#[tokio::test]
async fn odd_server_name_gets_the_first_certificate() {
    let desk = Desk::new();
    let server = acceptor(&two(&desk));
    let long = ["a".repeat(255), format!("{}.example.com", "b".repeat(64))];
    for name in ODD.iter().copied().chain(long.iter().map(String::as_str)) {
        // The last has to send a second message, with a share of the group that usher prefers.
        for parameters in ["-tls1_2", "-tls1_3", "-tls1_3 -groups P-384:X25519"] {
            let arguments = format!("-servername {name} -verify_hostname one.example.com {parameters}");
            let (report, served) = s_client(&desk, &server, &arguments).await;
            let served = served.unwrap_or_else(|error| panic!("{arguments}: {}: {report}", describe(&error)));
            assert!(report.contains("Verify return code: 0 (ok)"), "{arguments}: {report}");
            assert_eq!(served.agreed().unwrap().group, Some("X25519"), "{arguments}");
        }
    }
    let (report, _) = s_client(&desk, &server, "-servername mail.example.com -verify_hostname mail.example.com").await;
    assert!(report.contains("Verify return code: 0 (ok)"), "{report}");
}

#[tokio::test]
async fn session_resumes_under_an_odd_server_name() {
    let desk = Desk::new();
    let server = acceptor(&two(&desk));
    for (name, reused) in [("[mail.example.com]", "New, "), ("[mail.example.com]", "Reused, "), ("m..x", "Reused, ")] {
        let keep = if reused == "New, " { "-sess_out session" } else { "-sess_in session" };
        let (report, served) = s_client(&desk, &server, &format!("-tls1_2 -servername {name} {keep}")).await;
        assert!(served.is_ok() && report.contains(reused), "{name}: {report}");
    }
}

/// A handshake of openssl with a greeting behind it, with which the tickets of TLS 1.3 leave.
async fn greeted(desk: &Desk, server: &Acceptor, arguments: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = tokio::process::Command::new("openssl")
        .args(["s_client", "-CAfile", "ca.pem", "-ign_eof", "-connect"])
        .arg(listener.local_addr().unwrap().to_string())
        .args(arguments.split_whitespace())
        .current_dir(desk.dir.path())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = server.accept(tcp).await.unwrap();
        let mut greeting = crate::base::secret::SecretBuf::new();
        greeting.extend(b"* OK ready\r\n");
        stream.send(&mut greeting).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let (client, ()) = timeout(DEADLINE, async { tokio::join!(client, serve) }).await.unwrap();
    String::from_utf8_lossy(&client.unwrap().stdout).into_owned()
}

/// The ticket's binder covers the beginning of the message, with the name in it (RFC 8446 section 4.2.11.2).
#[tokio::test]
async fn ticket_of_tls_1_3_is_taken_under_an_odd_server_name_and_under_no_other_kind() {
    let desk = Desk::new();
    let server = acceptor(&two(&desk));
    for name in ["-servername [mail.example.com]", "-noservername", "-servername mail.example.com"] {
        greeted(&desk, &server, &format!("-tls1_3 {name} -sess_out session")).await;
        for (other, groups) in [("-servername m..x", ""), ("-servername m..x", "-groups P-384:X25519")] {
            let report = greeted(&desk, &server, &format!("-tls1_3 {other} {groups} -sess_in session")).await;
            let expected = if name == "-servername mail.example.com" { "New, " } else { "Reused, " };
            assert!(report.contains(expected), "{name}, {other} {groups}: {report}");
        }
    }
}

#[tokio::test]
async fn client_certificate_is_verified_under_an_odd_server_name() {
    let (desk, stranger) = (Desk::new(), Desk::named("Other CA"));
    let mut tls = two(&desk);
    (tls.client_ca, tls.client_auth) = (Some(desk.ca_file()), ClientAuth::Required);
    let server = acceptor(&tls);
    desk.ecdsa("alice", &["alice"]);
    let eve = stranger.ecdsa("eve", &["eve"]);
    desk.write("eve.pem", &read(&eve.chain));
    desk.write("eve.key", &read(&eve.key));
    for version in ["-tls1_2", "-tls1_3", "-tls1_3 -groups P-384:X25519"] {
        for (shown, accepted) in
            [("-cert alice.pem -key alice.key", true), ("-cert eve.pem -key eve.key", false), ("", false)]
        {
            let arguments = format!("-servername [mail.example.com] {version} {shown}");
            let (report, served) = s_client(&desk, &server, &arguments).await;
            assert_eq!(served.is_ok(), accepted, "{arguments}: {report}");
        }
    }
}

#[tokio::test]
async fn policy_holds_under_an_odd_server_name() {
    let desk = Desk::new();
    let mut tls = two(&desk);
    tls.min_version = TlsVersion::V1_3;
    tls.cipher_suites = Some(vec!["TLS_AES_256_GCM_SHA384".to_owned()]);
    let server = acceptor(&tls);
    for (arguments, accepted) in [
        ("-tls1_3", true),
        ("-tls1_3 -alpn imap", true),
        ("-tls1_3 -alpn http/1.1", false),
        ("-tls1_2", false),
        ("-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", false),
    ] {
        let arguments = format!("-servername [mail.example.com] {arguments}");
        let (report, served) = s_client(&desk, &server, &arguments).await;
        assert_eq!(served.is_ok(), accepted, "{arguments}: {report}");
    }
}

/// A client's first message in TLS 1.2 with this extension of server names, in records of this size.
fn hello(desk: &Desk, names: &[u8], records: usize) -> Vec<u8> {
    let client = Arc::new(mail_client(desk, rustls::crypto::aws_lc_rs::default_provider(), &[&version::TLS12]));
    let name = ServerName::try_from("mail.example.com").unwrap();
    let mut sent = Vec::new();
    rustls::ClientConnection::new(client, name).unwrap().write_tls(&mut sent).unwrap();
    let mut message = sent.split_off(5);
    let extension = message.windows(16).position(|bytes| bytes == b"mail.example.com").unwrap() - 9;
    assert_eq!(message[extension..extension + 4], [0, 0, 0, 21]);
    let length = u16::try_from(names.len()).unwrap().to_be_bytes();
    message.splice(extension + 2..extension + 25, length.iter().chain(names).copied());
    // The lengths around it.
    let mut at = 4 + 34;
    at += 1 + usize::from(message[at]);
    at += 2 + usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    at += 1 + usize::from(message[at]);
    let extensions = u16::try_from(message.len() - at - 2).unwrap().to_be_bytes();
    message[at..at + 2].copy_from_slice(&extensions);
    let whole = u32::try_from(message.len() - 4).unwrap().to_be_bytes();
    message[1..4].copy_from_slice(&whole[1..]);
    let record = |part: &[u8]| [&[22, 3, 1], &u16::try_from(part.len()).unwrap().to_be_bytes()[..], part].concat();
    message.chunks(records).flat_map(record).collect()
}

/// An extension with one name.
fn one_name(name: &[u8]) -> Vec<u8> {
    let length = |more: usize| u16::try_from(name.len() + more).unwrap().to_be_bytes();
    [&length(3)[..], &[0], &length(0), name].concat()
}

/// Whether the server goes on from this message, with its first certificate.
async fn goes_on(desk: &Desk, server: &Acceptor, hello: &[u8]) -> bool {
    let (mut near, far) = tcp_pair().await;
    let first = rustls::pki_types::pem::PemObject::from_pem_file(desk.path("one.pem")).unwrap();
    let first: rustls::pki_types::CertificateDer<'_> = first;
    let client = async {
        near.write_all(hello).await.unwrap();
        let mut came = Vec::new();
        // An alert is a record of type 21.
        while near.read_buf(&mut came).await.unwrap() > 0 && came[0] != 21 {
            if came.windows(first.len()).any(|bytes| bytes == &*first) {
                return true;
            }
        }
        false
    };
    let serve = async {
        let _ = server.accept(far).await;
        std::future::pending().await
    };
    timeout(DEADLINE, async {
        tokio::select! { answered = client => answered, () = serve => unreachable!() }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn malformed_server_name_gets_the_first_certificate() {
    let desk = Desk::new();
    let server = acceptor(&two(&desk));
    let two = |first: &[u8], second: &[u8]| {
        let names = [&one_name(first)[2..], &one_name(second)[2..]].concat();
        [&u16::try_from(names.len()).unwrap().to_be_bytes()[..], &names].concat()
    };
    for (what, names) in [
        ("a name of 300 bytes", one_name(&[b'a'; 300])),
        ("a name of 9,000 bytes", one_name(&[b'a'; 9_000])),
        ("an empty name", one_name(b"")),
        ("a name with NUL", one_name(b"mail\0.example.com")),
        ("a name that is not ASCII", one_name("b\u{fc}cher.example".as_bytes())),
        ("an empty list", vec![0, 0]),
        ("no list", vec![]),
        ("two names", two(b"mail.example.com", b"two.example.com")),
        ("a list that is cut", one_name(b"mail.example.com")[..10].to_vec()),
    ] {
        for records in [16_000, 1_000, 3, 1] {
            if records < 100 && names.len() > 1_000 {
                continue; // More bytes of headers than are kept.
            }
            assert!(goes_on(&desk, &server, &hello(&desk, &names, records)).await, "{what}, records of {records}");
        }
    }
    // What else is wrong stays wrong: the message ends within its extensions.
    let mut cut = hello(&desk, &one_name(b"[mail]"), 16_000);
    cut[8] -= 7;
    cut[4] -= 7;
    cut.truncate(cut.len() - 7);
    assert!(!goes_on(&desk, &server, &cut).await);
}

#[tokio::test]
async fn host_name_is_never_hidden() {
    let desk = Desk::new();
    let server = acceptor(&two(&desk));
    let client = Arc::new(modern(&desk));
    let (near, far) = shake(&server, &client, "mail.example.com").await;
    assert_eq!(shown(&near.unwrap()), ["mail.example.com"]);
    assert_eq!(far.unwrap().server_name(), Some("mail.example.com"));
}

#[test]
fn first_message_in_any_records_is_hashed_as_it_came() {
    let desk = Desk::new();
    for name in ["[mail]", "", "m..example.com"] {
        for records in 1..300 {
            invariants(&hello(&desk, &one_name(name.as_bytes()), records));
        }
    }
}
