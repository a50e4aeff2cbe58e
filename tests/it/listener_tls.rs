//! TLS towards clients: versions, names, certificates, groups, deadlines.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use serde_json::json;

use crate::kit::certs::Leaf;
use crate::kit::client::Tls;
use crate::kit::process::run;
use crate::kit::tools::python;
use crate::kit::{Config, Imap, Usher, password_of, shared};

fn shows(imap: &Imap, pair: &crate::kit::certs::Pair) -> bool {
    imap.connection().peer_certificates().unwrap()[0] == pair.certificates()[0]
}

#[test]
fn tls_1_2_and_1_3_are_accepted_and_older_versions_are_refused() {
    let usher = Usher::start(Config::shared());
    for (version, spoken) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let tls = Tls { versions: vec![version], ..Tls::default() };
        let mut imap = Imap::try_tls(usher.imaps_port(), &tls).unwrap();
        assert_eq!(imap.connection().protocol_version(), Some(spoken));
        imap.login("alice", &password_of("alice")).ok();
    }
    let target = format!("127.0.0.1:{}", usher.imaps_port());
    let ciphers = "ALL:@SECLEVEL=0";
    for old in
        [&["-tls1"][..], &["-tls1_1"], &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:AES128-SHA:AES128-GCM-SHA256"]]
    {
        let arguments = [&["s_client", "-connect", &target, "-cipher", ciphers][..], old].concat();
        let said = run("openssl", &arguments, b"");
        assert_ne!(said.code, 0, "{old:?}: {said:#?}");
        assert!(!said.stdout.contains("* OK"), "{said:#?}");
    }
    let newer = Usher::start(Config::shared().set("/tls/min_version", "1.3"));
    assert!(Imap::try_tls(newer.imaps_port(), &Tls { versions: vec![&TLS12], ..Tls::default() }).is_err());
    Imap::tls(newer.imaps_port()).login("alice", &password_of("alice")).ok();
    newer.wait_metric("usher_tls_handshakes_total", &[("result", "failed")], 1.0);
}

#[test]
fn alpn_is_strict_when_offered() {
    let usher = Usher::start(Config::shared());
    let connect =
        |alpn: &[&'static [u8]]| Imap::try_tls(usher.imaps_port(), &Tls { alpn: alpn.to_vec(), ..Tls::default() });
    let imap = connect(&[b"imap"]).unwrap();
    assert_eq!(imap.connection().alpn_protocol(), Some(&b"imap"[..]));
    assert!(connect(&[b"h2", b"imap"]).is_ok());
    for foreign in [&[&b"h2"[..], b"http/1.1"][..], &[b"pop3"], &[b"managesieve"]] {
        assert!(connect(foreign).is_err(), "{foreign:?}");
    }
    // The same after STARTTLS, where nothing is offered here.
    let mut imap = Imap::plain(usher.imap_port());
    imap.command("STARTTLS").ok();
    imap.start_tls();
    imap.login("alice", &password_of("alice")).ok();
}

#[test]
fn certificates_are_selected_by_name_and_key_type() {
    let certificates = &shared().certificates;
    let first = certificates.leaf("sni-first", Leaf::server(&["usher.example.com", "first.example.com"]));
    let rsa = certificates.leaf("sni-rsa", Leaf { rsa: true, ..Leaf::server(&["both.example.com"]) });
    let ecdsa = certificates.leaf("sni-ecdsa", Leaf::server(&["both.example.com"]));
    let list = json!([first.yaml(), rsa.yaml(), ecdsa.yaml()]);
    let usher = Usher::start(Config::shared().set("/tls/certificates", list));
    let connect = |server_name, suites: Option<Vec<CipherSuite>>| {
        let versions = if suites.is_some() { vec![&TLS12] } else { rustls::ALL_VERSIONS.to_vec() };
        Imap::try_tls(usher.imaps_port(), &Tls { server_name, suites, versions, ..Tls::default() }).unwrap()
    };
    assert!(shows(&connect("first.example.com", None), &first));
    assert!(shows(&connect("both.example.com", None), &ecdsa), "ECDSA if the client can");
    let old = vec![CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    assert!(shows(&connect("both.example.com", Some(old)), &rsa), "RSA for one who cannot");
    // An unknown name and no name: the first; its name does not match, as s_client reports.
    let target = format!("127.0.0.1:{}", usher.imaps_port());
    for name in [&["-noservername"][..], &["-servername", "unknown.example.com"]] {
        let said = run("openssl", &[&["s_client", "-connect", &target][..], name].concat(), b"");
        assert!(said.stdout.contains("CN = usher.example.com"), "{said:#?}");
    }
}

#[test]
fn odd_server_names_are_unknown_names() {
    let certificates = &shared().certificates;
    let first = certificates.leaf("odd-first", Leaf::server(&["usher.example.com"]));
    let second = certificates.leaf("odd-second", Leaf::server(&["mail.example.com"]));
    let usher = Usher::start(Config::shared().set("/tls/certificates", json!([first.yaml(), second.yaml()])));
    let (implicit, starttls) =
        (format!("127.0.0.1:{}", usher.imaps_port()), format!("127.0.0.1:{}", usher.imap_port()));
    for name in ["[mail.example.com]", "mail.example.com:993", "m..example.com", "192.0.2.1"] {
        for how in [&["-connect", &implicit][..], &["-starttls", "imap", "-connect", &starttls]] {
            let arguments = [&["s_client", "-ign_eof", "-servername", name][..], how].concat();
            let said = run("openssl", &arguments, b"a LOGOUT\r\n");
            assert!(said.stdout.contains("CN = usher.example.com"), "{name}: {said:#?}");
            assert!(said.stdout.contains("* BYE"), "{name}: {said:#?}");
        }
    }
    // Python's client, with a session of TLS 1.3 that is resumed and a login.
    let script = format!(
        "import socket\ncontext.check_hostname = False\nsession = None\n\
         for name in ('[mail.example.com]', 'mail.example.com:993', '[mail.example.com]'):\n \
         tcp = socket.create_connection(('127.0.0.1', port), 40)\n \
         tls = context.wrap_socket(tcp, server_hostname=name, session=session)\n \
         tls.recv(999)\n tls.sendall(b'a LOGIN alice {}\\r\\n')\n \
         print(tls.version(), tls.session_reused, tls.recv(999).split(b' ')[1].decode())\n \
         session = tls.session\n",
        password_of("alice")
    );
    let said = python(usher.imaps_port(), &script).succeeded();
    assert_eq!(said.stdout, "TLSv1.3 False OK\nTLSv1.3 True OK\nTLSv1.3 True OK\n", "{said:#?}");
}

#[test]
fn expired_certificate_is_served_with_an_error_and_a_metric() {
    let pair = shared().certificates.leaf("expired", Leaf { expired: true, ..Leaf::server(&["usher.example.com"]) });
    let usher = Usher::start(Config::shared().certificate(&pair));
    let logged = usher.logged();
    let reported = logged.iter().any(|line| line["level"] == "ERROR" && line.to_string().contains("expired"));
    assert!(reported, "{logged:#?}");
    let ends = usher.metric("usher_certificate_expiry_timestamp_seconds", &[]);
    assert_eq!(ends, 1_609_459_200.0, "2021-01-01");
    let target = format!("127.0.0.1:{}", usher.imaps_port());
    let said = run("openssl", &["s_client", "-connect", &target, "-ign_eof"], b"a LOGOUT\r\n");
    assert!(said.stdout.contains("* OK [CAPABILITY"), "{said:#?}");
}

#[test]
fn key_exchange_prefers_the_hybrid_and_can_be_pinned() {
    let usher = Usher::start(Config::shared());
    let negotiated = |usher: &Usher, groups: Option<Vec<NamedGroup>>| {
        let imap = Imap::try_tls(usher.imaps_port(), &Tls { groups, ..Tls::default() }).ok()?;
        Some(imap.connection().negotiated_key_exchange_group()?.name())
    };
    assert_eq!(negotiated(&usher, None), Some(NamedGroup::X25519MLKEM768));
    for group in [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1] {
        assert_eq!(negotiated(&usher, Some(vec![group])), Some(group));
    }
    let pinned = Usher::start(Config::shared().set("/tls/groups", json!(["secp384r1"])));
    assert_eq!(negotiated(&pinned, None), Some(NamedGroup::secp384r1));
    assert_eq!(negotiated(&pinned, Some(vec![NamedGroup::X25519])), None);
    let suite = "TLS_AES_256_GCM_SHA384";
    let suites = Usher::start(Config::shared().set("/tls/cipher_suites", json!([suite])));
    let imap = Imap::tls(suites.imaps_port());
    let negotiated = imap.connection().negotiated_cipher_suite().unwrap().suite();
    assert_eq!(negotiated, CipherSuite::TLS13_AES_256_GCM_SHA384);
}

#[test]
fn sessions_are_resumed() {
    let usher = Usher::start(Config::shared());
    for version in [&TLS12, &TLS13] {
        let tls = Tls { versions: vec![version], ..Tls::default() };
        let config = tls.config();
        let connect = || {
            let mut imap = Imap::try_tls_with(usher.imaps_port(), config.clone(), tls.server_name).unwrap();
            imap.command("NOOP").ok(); // tickets of TLS 1.3 come with the first bytes
            imap.connection().handshake_kind().unwrap()
        };
        assert_eq!(connect(), HandshakeKind::Full);
        assert_eq!(connect(), HandshakeKind::Resumed, "{version:?}");
    }
    assert_eq!(usher.metric("usher_tls_handshakes_total", &[("result", "full")]), 2.0);
    assert_eq!(usher.metric("usher_tls_handshakes_total", &[("result", "resumed")]), 2.0);
}

#[test]
fn client_certificates_are_requested_where_configured() {
    let certificates = &shared().certificates;
    let leaf = Leaf { client: true, ..Leaf::server(&["client"]) };
    let good = certificates.leaf("client-good", leaf);
    let bad = certificates.leaf("client-bad", Leaf { wrong_ca: true, ..leaf });
    let config = Config::shared().set("/tls/client_ca", json!(certificates.ca()));
    let login = |usher: &Usher, client_certificate| {
        let tls = Tls { client_certificate, ..Tls::default() };
        Imap::try_tls(usher.imaps_port(), &tls).map(|mut imap| imap.login("alice", &password_of("alice")).ok()).is_ok()
    };
    let optional = Usher::start(config.clone());
    assert!(login(&optional, None) && login(&optional, Some(good.clone())) && !login(&optional, Some(bad.clone())));
    let required = Usher::start(config.set("/tls/client_auth", "required"));
    assert!(!login(&required, None) && login(&required, Some(good)) && !login(&required, Some(bad)));
}

#[test]
fn handshake_has_a_deadline_of_its_own() {
    let usher = Usher::start(Config::shared().set("/limits/handshake_timeout", "500ms"));
    let started = Instant::now();
    let mut silent = Imap::silent(usher.imaps_port());
    let mut dripping = TcpStream::connect(("127.0.0.1", usher.imaps_port())).unwrap();
    while dripping.write_all(&[22]).is_ok() && started.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(50)); // the pace of the dripping
    }
    silent.rest();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    usher.wait_metric("usher_connections", &[], 0.0);
    usher.wait_metric("usher_tls_handshakes_total", &[("result", "timeout")], 1.0);
    let mut garbage = Imap::silent(usher.imaps_port());
    garbage.send("a LOGIN alice secret\r\n");
    let said = garbage.rest();
    assert!(!String::from_utf8_lossy(&said).contains("OK"), "{said:?}");
}

#[test]
fn ipv4_client_of_an_ipv6_listener_is_an_ipv4_client() {
    let listeners = json!([{"protocol": "imap", "address": "[::]:0", "tls": "implicit"}]);
    let usher = Usher::start(Config::shared().set("/listeners", listeners));
    assert!(usher.addresses()[0].starts_with("[::]:"), "{:?}", usher.addresses());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let client = usher.login("alice")["client"].as_str().unwrap().to_owned();
    assert!(client.starts_with("127.0.0.1"), "{client}");
    assert!(!usher.log_text().contains("::ffff:"), "no mapped address is ever logged");
    assert!(TcpStream::connect(("::1", usher.imaps_port())).is_ok(), "IPv6 is served as well");
}
