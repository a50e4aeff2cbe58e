//! TLS towards the directory, and its addresses.

use super::*;

/// Certificates for these names, and the two ends' configurations.
fn tls(names: &[&str]) -> (tokio_rustls::TlsAcceptor, Arc<rustls::ClientConfig>) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server).into(), Arc::new(client))
}

async fn login_over(
    server: &Scripted,
    scheme: LdapScheme,
    host: &str,
    client: Option<Arc<rustls::ClientConfig>>,
) -> Result<Identity, DirectoryError> {
    let mut settings = settings(vec![server.server(scheme, host)], searching(None));
    settings.starttls = scheme == LdapScheme::Ldap;
    let ldap = Ldap::new(&settings, client.into(), Arc::new(Metrics::new()));
    let credential = Credential::for_tests("alice", "right");
    within(ldap.authenticate(&credential, &|_| false, &NoFloor)).await.0
}

fn start_tls(seen: &Recorded) -> Vec<ScriptedReply> {
    match &seen.op {
        LdapOp::ExtendedRequest(request) => {
            assert_eq!(request.name, "1.3.6.1.4.1.1466.20037");
            vec![extended(Code::Success), ScriptedReply::Tls]
        }
        _ => alice(seen),
    }
}

#[tokio::test]
async fn tls_verifies_the_name_in_the_url() {
    let hosts = [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("[::1]", "::1")];
    for (address, host) in hosts {
        let (right, client) = tls(&[host]);
        let (other, other_client) = tls(&["elsewhere.example", "127.0.0.2", "::2"]);
        for (scheme, implicit) in [(LdapScheme::Ldaps, true), (LdapScheme::Ldap, false)] {
            let listen = async || TcpListener::bind(format!("{address}:0")).await.unwrap();
            let server = Scripted::start_on(listen().await, Some(right.clone()), implicit, start_tls);
            login_over(&server, scheme, host, Some(client.clone())).await.unwrap();

            // An unknown issuer, a wrong name, no TLS settings: no bind and no search.
            let before = server.binds().len() + server.searches().len();
            cause(login_over(&server, scheme, host, Some(other_client.clone())).await);
            cause(login_over(&server, scheme, host, None).await);
            assert_eq!(server.binds().len() + server.searches().len(), before);
            let server = Scripted::start_on(listen().await, Some(other.clone()), implicit, start_tls);
            let refused = cause(login_over(&server, scheme, host, Some(other_client.clone())).await);
            assert!(refused.to_string().contains("certificate"), "{refused}");
            assert_eq!(server.binds().len() + server.searches().len(), 0);
        }
    }
}

#[tokio::test]
async fn refused_starttls_never_falls_back_to_cleartext() {
    let refuse = |seen: &Recorded| match &seen.op {
        LdapOp::ExtendedRequest(_) => vec![extended(Code::UnwillingToPerform)],
        _ => alice(seen),
    };
    for (address, host) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        let (_, client) = tls(&[host]);
        let listener = TcpListener::bind(format!("{address}:0")).await.unwrap();
        let server = Scripted::start_on(listener, None, false, refuse);
        let refused = cause(login_over(&server, LdapScheme::Ldap, host, Some(client)).await);
        assert!(refused.to_string().contains("StartTLS refused with result 53"), "{refused}");
        assert_eq!(server.binds().len() + server.searches().len(), 0);
    }
}

#[tokio::test]
async fn ipv6_literals_and_all_addresses_of_a_name_are_tried() {
    let server = Scripted::start_on(TcpListener::bind("[::1]:0").await.unwrap(), None, false, alice);
    for host in ["::1", "localhost"] {
        let settings = settings(vec![server.server(LdapScheme::Ldap, host)], searching(None));
        if host == "localhost" && !tokio::net::lookup_host("localhost:1").await.unwrap().any(|found| found.is_ipv6()) {
            continue;
        }
        Under::test(&settings, Tuning::default()).alice().await.unwrap();
    }
}

/// `30 84 <length>` in itself, 20,000 times.
fn nested() -> Vec<u8> {
    let levels = 20_000_u32;
    (0..levels).rev().flat_map(|level| [&[0x30, 0x84][..], &(level * 6).to_be_bytes()].concat()).collect()
}

#[tokio::test]
async fn cleartext_before_tls_is_at_most_one_small_reply() {
    let ok = |id: i32| {
        [&[0x30, 0x0c, 0x02, 0x01, u8::try_from(id).unwrap()][..], b"\x78\x07\x0a\x01\x00\x04\x00\x04\x00"].concat()
    };
    let long = |id: i32| {
        let text = [&b"\x04\x82\x10\x00"[..], &[b'x'; 4_096]].concat();
        let body = [&b"\x78\x82\x10\x09\x0a\x01\x00\x04\x00"[..], &text].concat();
        [&[0x30, 0x82, 0x10, 0x10, 0x02, 0x01, u8::try_from(id).unwrap()][..], &body].concat()
    };
    type Bytes = Box<dyn Fn(i32) -> Vec<u8> + Send + Sync>;
    let answers: Vec<(&str, Bytes)> = vec![
        ("nested", Box::new(|_| nested())),
        ("2 GiB", Box::new(|_| b"\x30\x84\x7f\xff\xff\xff".to_vec())),
        ("more than 4 KiB", Box::new(long)),
        ("more than one answer", Box::new(move |id| [ok(id), ok(id + 1)].concat())),
        ("the beginning of another", Box::new(move |id| [&ok(id)[..], b"\x30"].concat())),
        ("to another request", Box::new(move |id| ok(id + 1))),
        (
            "a bind response",
            Box::new(move |id| ok(id).iter().map(|byte| if *byte == 0x78 { 0x61 } else { *byte }).collect()),
        ),
        (
            "no code",
            Box::new(|id| {
                [&[0x30, 0x0b, 0x02, 0x01, u8::try_from(id).unwrap()][..], b"\x78\x06\x0a\x00\x04\x00\x04\x00"].concat()
            }),
        ),
    ];
    let (acceptor, client) = tls(&["127.0.0.1"]);
    for (what, bytes) in answers {
        let script = move |seen: &Recorded| match &seen.op {
            LdapOp::ExtendedRequest(_) => vec![ScriptedReply::Raw(bytes(seen.id)), ScriptedReply::Tls],
            _ => alice(seen),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Scripted::start_on(listener, Some(acceptor.clone()), false, script);
        let refused = cause(login_over(&server, LdapScheme::Ldap, "127.0.0.1", Some(client.clone())).await);
        assert!(matches!(refused, UnavailableCause::Malformed { .. }), "{what}: {refused}");
        assert_eq!(server.binds().len() + server.searches().len(), 0, "{what}");
    }
}

#[tokio::test]
async fn nested_replies_under_tls_end_no_process() {
    let (acceptor, client) = tls(&["127.0.0.1"]);
    for bind in [false, true] {
        let script = move |seen: &Recorded| match seen.bind() {
            None if bind => alice(seen),
            _ => vec![ScriptedReply::Raw(nested())],
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Scripted::start_on(listener, Some(acceptor.clone()), true, script);
        let refused = cause(login_over(&server, LdapScheme::Ldaps, "127.0.0.1", Some(client.clone())).await);
        assert!(matches!(refused, UnavailableCause::Malformed { .. }), "{refused}");
    }
}

#[tokio::test]
async fn dripping_server_before_tls_is_bounded_by_the_attempt_timeout() {
    let (acceptor, client) = tls(&["127.0.0.1"]);
    // Of the answer to StartTLS, and of the handshake.
    for handshake in [false, true] {
        let drip = move |seen: &Recorded| -> Vec<ScriptedReply> {
            let all = [
                &b"\x30\x82\x0f\x00\x02\x01\x01\x78\x82\x0e\xf9\x0a\x01\x00\x04\x00\x04\x82\x0e\xf0"[..],
                &[b'x'; 900],
            ]
            .concat();
            let slow = [&b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"[..], &[0; 900]].concat();
            let bytes = if handshake { slow } else { all };
            let begin = if handshake { vec![extended(Code::Success), ScriptedReply::Hear] } else { Vec::new() };
            assert!(matches!(seen.op, LdapOp::ExtendedRequest(_)), "{seen:?}");
            let bytes = bytes
                .into_iter()
                .flat_map(|byte| [ScriptedReply::Raw(vec![byte]), ScriptedReply::Pause(Duration::from_millis(20))]);
            begin.into_iter().chain(bytes).collect()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Scripted::start_on(listener, Some(acceptor.clone()), false, drip);
        let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(None));
        (settings.starttls, settings.attempt_timeout) = (true, Duration::from_millis(300));
        let ldap = Ldap::new(&settings, Some(client.clone()).into(), Arc::new(Metrics::new()));
        let credential = Credential::for_tests("alice", "right");
        let began = Instant::now();
        let result = within(ldap.authenticate(&credential, &|_| false, &NoFloor)).await.0;
        assert_eq!(cause(result), UnavailableCause::Timeout);
        assert!(began.elapsed() < Duration::from_millis(2_700), "{:?}", began.elapsed());
    }
}
