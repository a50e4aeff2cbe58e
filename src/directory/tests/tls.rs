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
    let ldap = Ldap::new(&settings, client, Arc::new(Metrics::new()));
    let login = Login::parse(b"alice").unwrap();
    within(ldap.authenticate(&login, &Secret::copy_of(b"right"), &|_| false, &NoFloor)).await.0
}

fn start_tls(seen: &Seen) -> Vec<Reply> {
    match &seen.op {
        LdapOp::ExtendedRequest(request) => {
            assert_eq!(request.name, "1.3.6.1.4.1.1466.20037");
            vec![extended(Code::Success), Reply::Tls]
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
            trouble(login_over(&server, scheme, host, Some(other_client.clone())).await);
            trouble(login_over(&server, scheme, host, None).await);
            assert_eq!(server.binds().len() + server.searches().len(), before);
            let server = Scripted::start_on(listen().await, Some(other.clone()), implicit, start_tls);
            let refused = trouble(login_over(&server, scheme, host, Some(other_client.clone())).await);
            assert!(refused.to_string().contains("certificate"), "{refused}");
            assert_eq!(server.binds().len() + server.searches().len(), 0);
        }
    }
}

#[tokio::test]
async fn refused_starttls_never_falls_back_to_the_clear() {
    let refuse = |seen: &Seen| match &seen.op {
        LdapOp::ExtendedRequest(_) => vec![extended(Code::UnwillingToPerform)],
        _ => alice(seen),
    };
    for (address, host) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        let (_, client) = tls(&[host]);
        let listener = TcpListener::bind(format!("{address}:0")).await.unwrap();
        let server = Scripted::start_on(listener, None, false, refuse);
        let refused = trouble(login_over(&server, LdapScheme::Ldap, host, Some(client)).await);
        assert!(refused.to_string().contains("StartTLS was refused with result 53"), "{refused}");
        assert_eq!(server.binds().len() + server.searches().len(), 0);
    }
}

#[tokio::test]
async fn plain_ipv6_and_all_addresses_of_a_name_are_tried() {
    let server = Scripted::start_on(TcpListener::bind("[::1]:0").await.unwrap(), None, false, alice);
    for host in ["::1", "localhost"] {
        let settings = settings(vec![server.server(LdapScheme::Ldap, host)], searching(None));
        if host == "localhost" && !tokio::net::lookup_host("localhost:1").await.unwrap().any(|found| found.is_ipv6()) {
            continue;
        }
        Under::test(&settings, Tuning::default()).alice().await.unwrap();
    }
}
