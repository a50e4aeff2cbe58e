//! The values of a valid file.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::base::net::network_of;
use crate::outcome::AccountState;
use crate::proto::BackTls;
use crate::proto::ldap::template::{Template, TemplatePart};
use crate::proto::proxy_header::Version;
use std::net::IpAddr;

#[test]
fn every_key_is_read() {
    let config = parse_text(SOUND).unwrap();
    assert_eq!(config.warnings, []);
    assert_eq!(config.file, Path::new("/etc/usher/config.yaml"));
    assert_eq!(config.hostname.as_deref(), Some("mail.example.com"));
    let listeners: Vec<_> = config.listeners.iter().map(|l| (l.protocol.name, l.address.to_string(), l.tls)).collect();
    let imap = |address: &str, tls| ("imap", address.to_owned(), tls);
    assert_eq!(listeners, [imap("[::]:993", ListenerTls::Implicit), imap("[::]:143", ListenerTls::StartTls)]);

    assert!(config.listeners.iter().all(|listener| listener.proxies.is_none()));
    let network = |address: &str, bits| IpNet::new(address.parse().unwrap(), bits).unwrap();
    assert_eq!(config.trusted, [network("198.51.100.9", 32), network("2001:db8:9::", 64)]);

    assert_eq!(config.config_reload, ConfigReload::Auto);
    assert_eq!(sound("config_reload: auto\n", "").config_reload, ConfigReload::Manual);
    assert_eq!(config.digest, TextDigest::of(SOUND.as_bytes()));
    assert_ne!(config.digest, sound("config_reload: auto\n", "").digest);

    let tls = &config.tls;
    let pair = |chain: &str, key: &str| CertificateFiles { chain: chain.into(), key: key.into() };
    assert_eq!(tls.certificates, [pair("/etc/usher/tls/fullchain.pem", "/etc/tls/privkey.pem")]);
    assert_eq!(tls.min_version, TlsVersion::V1_3);
    assert_eq!(tls.groups, [Group::X25519, Group::Secp384r1]);
    assert_eq!(tls.cipher_suites, Some(vec!["TLS_AES_256_GCM_SHA384".to_owned()]));
    assert_eq!(tls.client_ca, Some("/etc/usher/clients.pem".into()));
    assert_eq!(tls.client_auth, ClientAuth::Required);
    let often = sound("client_auth: required", "client_auth: required\n  reload_interval: 10s");
    assert_eq!((often.tls.reload_interval, often.tls.ticket_keys_file), (Duration::from_secs(10), None));
    let shared = sound("client_auth: required", "client_auth: required\n  ticket_keys_file: tls/ticket.keys");
    assert_eq!(shared.tls.ticket_keys_file, Some("/etc/usher/tls/ticket.keys".into()));

    let server = |url: &str, host: &str, port| DirectoryServer {
        server_name: None,
        pin_sha256: Vec::new(),
        starttls: false,
        srv: None,
        url: url.into(),
        scheme: LdapScheme::Ldap,
        host: host.into(),
        port,
    };
    let text = |text: &str| TemplatePart::Text(text.into());
    let parts = vec![text("(|(uid="), TemplatePart::Local, text(")(mail="), TemplatePart::Login, text("))")];
    let expected = Directory {
        name: "default".into(),
        key: "directory".into(),
        domains: Vec::new(),
        windows_domains: Vec::new(),
        servers: vec![
            server("ldap://ldap1.example.com", "ldap1.example.com", 389),
            server("ldap://[2001:db8::1]:3389", "2001:db8::1", 3389),
        ],
        srv_targets: Vec::new(),
        resolver: Vec::new(),
        starttls: true,
        ca: Some("/etc/usher/ldap-ca.pem".into()),
        client_certificate: Some(pair("/etc/usher/lc.pem", "/etc/usher/lk.pem")),
        groups: vec![Group::X25519MlKem768, Group::X25519, Group::Secp256r1, Group::Secp384r1],
        plaintext: false,
        find: Find::Search {
            service: Some(ServiceAccount {
                dn: "cn=usher,dc=example,dc=com".into(),
                password_file: "/etc/usher/ldap.password".into(),
            }),
            base: "ou=people,dc=example,dc=com".into(),
            filter: Template { parts },
        },
        mail_filter: None,
        reads_certificates: false,
        claim_attributes: Vec::new(),
        other_filters: Vec::new(),
        mail_host_attribute: "mailServer".into(),
        grant_attribute: None,
        login_attribute: Some("uid".into()),
        networks_attribute: None,
        allow: Allow { values: own_names(), ..Allow::default() },
        password_filter: None,
        timeout: Duration::from_secs(3),
        attempt_timeout: Duration::from_millis(700),
        max_message: 1 << 20,
        balance: Balance::RoundRobin,
        connections: Connections {
            min: 2,
            max: 8,
            idle_timeout: Duration::from_secs(20),
            max_age: Duration::from_secs(600),
            max_operations: 5_000,
        },
        canary: Some(Canary { login: "canary@example.com".into(), mail_host: "server3".into() }),
        reveal_account_state: false,
        disabled_by: DisabledBy::DEFAULT.to_vec(),
        watch: Watch {
            mode: WatchMode::Off,
            poll_interval: Duration::from_secs(60),
            on_move: OnChange::Keep,
            on_disable: OnChange::Keep,
            on_password_change: OnChange::Close,
            brake: Some(500),
            hold_attribute: Some("mailHold".into()),
            hold_timeout: Duration::from_secs(5),
        },
        results: BTreeMap::new(),
    };
    assert_eq!(config.directories[0], expected);

    assert_eq!(config.routing.default.as_deref(), Some("server3"));
    let [three, four] = config.routing.backends.as_slice() else { panic!("not two backends") };
    assert_eq!(
        (three.name.as_str(), three.hosts.as_slice()),
        ("server3", &["server3".into(), "server3.example.com".into()][..])
    );
    assert_eq!(three.ca, Some("/etc/usher/backend-ca.pem".into()));
    assert_eq!(three.client_certificate, Some(pair("/etc/usher/c.pem", "/etc/usher/k.pem")));
    assert_eq!((three.pin_sha256.len(), &three.service, three.pass_refusals), (0, &None, true));
    assert_eq!(three.timeout, Duration::from_secs(6));
    let health = |probe, probe_interval, failures, slow_start| Health { probe, probe_interval, failures, slow_start };
    let seconds = Duration::from_secs;
    assert_eq!(three.health, health(Probe::Tcp, seconds(60), 5, seconds(0)));
    let account = BackendService { login: "probe".into(), password_file: "/etc/usher/probe.password".into() };
    assert_eq!(four.health, health(Probe::Login(account), seconds(10), 3, seconds(10)));
    assert_eq!((three.logins_in_flight, four.logins_in_flight), (20, 200));
    let sources = "logins_in_flight: 20\n      source: [192.0.2.31, \"2001:db8::31\"]";
    let sourced = sound("logins_in_flight: 20", sources).routing;
    let of = |index: usize| sourced.backends[index].source.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((of(0), of(1)), (vec!["192.0.2.31".to_owned(), "2001:db8::31".to_owned()], vec![]));
    let endpoint = |backend: &Backend| {
        let [endpoint] = backend.endpoints.as_slice() else { panic!("not one endpoint") };
        let [address] = endpoint.addresses.as_slice() else { panic!("not one address") };
        (endpoint.protocol.name, address.host.clone(), address.port, endpoint.tls, endpoint.server_name.clone())
    };
    assert_eq!(endpoint(three), ("imap", "192.0.2.3".into(), 993, BackTls::Implicit, "server3.example.com".into()));
    let name = "server4.example.com".to_owned();
    assert_eq!(endpoint(four), ("imap", name.clone(), 143, BackTls::StartTls, name));
    let balanced = |keys: &str| {
        let keys = format!("server_name: server3.example.com, {keys}}}");
        parse_text(&replaced("server_name: server3.example.com}", &keys)).unwrap()
    };
    let balance = |keys: &str| balanced(keys).routing.backends[0].endpoints[0].balance;
    assert_eq!(three.endpoints[0].balance, AddressBalance::First);
    assert_eq!(balance("balance: first"), AddressBalance::First);
    assert_eq!(balance("balance: user_hash"), AddressBalance::UserHash(OnReturn::Keep));
    assert_eq!(balance("balance: user_hash, on_return: close"), AddressBalance::UserHash(OnReturn::Close));
    let [warning] = <[Problem; 1]>::try_from(balanced("on_return: close").warnings).unwrap();
    assert_eq!(warning.key, "routing.backends[0].imap.on_return");
    assert_eq!(four.hosts, ["server4"]);
    // The SHA-256 of nothing.
    assert_eq!(four.pin_sha256[0][..4], [0xe3, 0xb0, 0xc4, 0x42]);
    let service = BackendService { login: "usher".into(), password_file: "/etc/usher/server4.password".into() };
    assert_eq!((&four.service, four.pass_refusals), (&Some(service), false));

    assert_eq!(
        config.cache,
        Cache {
            ttl: seconds(60),
            negative_ttl: seconds(5),
            negative_ttl_max: seconds(900),
            stale: seconds(7_200),
            capacity: 10
        }
    );
    let limits = Limits {
        connections: 100,
        unauthenticated: 50,
        proxy_header_timeout: seconds(2),
        handshake_timeout: seconds(5),
        login_timeout: seconds(20),
        prelogin_timeout: seconds(40),
        refusal_delay: seconds(1),
        failed_logins: 5,
        bad_commands: 4,
        max_backend_greeting: 1 << 20,
        idle_timeout: seconds(3_600),
        on_unavailable: OnUnavailable::ReplyAndClose,
    };
    assert_eq!(config.limits, limits);
    let failed_logins = |mode, free_failures, first, max| {
        let first_delay = Duration::from_millis(first);
        FailedLogins { mode, free_failures, limit: None, first_delay, max_delay: seconds(max) }
    };
    let limit = |mode, limit| Limit { mode, limit };
    let throttle = Throttle {
        ipv4_prefix: 24,
        ipv6_prefix: 48,
        exempt: vec![
            IpNet::new("192.0.2.0".parse().unwrap(), 24).unwrap(),
            IpNet::new("2001:db8::7".parse().unwrap(), 128).unwrap(),
        ],
        memory: Memory { capacity: 5_000, forget_every: seconds(120), known_network_ttl: seconds(7 * 86_400) },
        failed_logins_per_prefix: failed_logins(Mode::Enforce, 30, 1_000, 3),
        failed_logins_per_user: FailedLogins { limit: Some(4), ..failed_logins(Mode::DryRun, 7, 100, 2) },
        password_spraying: PasswordSpraying {
            mode: Mode::Enforce,
            names_per_minute: 8,
            first_delay: Duration::from_millis(200),
            max_delay: seconds(5),
        },
        connections_per_prefix: limit(Mode::Enforce, 11),
        handshakes: limit(Mode::DryRun, 12),
        handshakes_per_prefix: limit(Mode::Enforce, 13),
        sessions_per_user: limit(Mode::DryRun, 14),
        sessions_per_user_and_prefix: limit(Mode::Enforce, 15),
        logins_per_second: limit(Mode::DryRun, 16),
    };
    assert_eq!(config.throttle, throttle);
    let drain =
        Drain { delay: seconds(1), deadline: seconds(10), max_closes_per_second: 7, upgrade_deadline: seconds(7_200) };
    assert_eq!(config.drain, drain);
    assert_eq!(config.admin.address, "[::1]:9931".parse().unwrap());
    assert_eq!(config.control, Some(Control { path: "/etc/usher/control.sock".into(), group: Some("mail".into()) }));
    let allow = vec![IpNet::new("127.0.0.1".parse().unwrap(), 32).unwrap()];
    let (address, key_file) = ("127.0.0.1:9940".parse().unwrap(), Some("/etc/usher/nginx.key".into()));
    assert_eq!(config.auth_http, Some(AuthHttp { address, allow, key_file }));
    let hop = AuthHttpTarget { address: Some("127.0.0.1".parse().unwrap()), port: Some(1143) };
    let hops: Vec<_> = config.routing.backends.iter().map(|backend| backend.endpoints[0].auth_http).collect();
    assert_eq!(hops, [AuthHttpTarget::default(), hop]);
    assert_eq!(
        config.log,
        Log { format: LogFormat::Json, level: LogLevel::Debug, client_address: ClientAddress::Full }
    );
}

/// The shortest config there is.
const SHORT: &str = r#"
listeners: [{protocol: imap, address: "127.0.0.1:0", tls: implicit}, {protocol: imap, address: "127.0.0.1:0", tls: starttls}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ldapi://%2Frun%2Fldapi, user_dn: "uid={local},dc=example"}
routing: {backends: [{name: server3, imap: {address: "server3:993", tls: implicit}}]}
limits:
  # connections: 1
"#;

#[test]
fn defaults_are_as_documented() {
    let config = parse_text(SHORT).unwrap();
    assert_eq!(config.warnings, []);
    let seconds = Duration::from_secs;
    assert_eq!(config.tls.min_version, TlsVersion::V1_2);
    assert_eq!(config.tls.groups, [Group::X25519MlKem768, Group::X25519, Group::Secp256r1, Group::Secp384r1]);
    assert_eq!((config.tls.cipher_suites, config.tls.client_ca), (None, None));
    assert_eq!(config.tls.client_auth, ClientAuth::Off);
    assert_eq!(config.tls.reload_interval, seconds(60));
    let directory = &config.directories[0];
    assert!(matches!(&directory.find, Find::UserDn { service: None, .. }));
    assert_eq!((directory.servers[0].scheme, directory.servers[0].host.as_str()), (LdapScheme::Ldapi, "/run/ldapi"));
    assert_eq!((directory.mail_host_attribute.as_str(), &directory.login_attribute), ("mailHost", &None));
    assert_eq!((directory.timeout, directory.attempt_timeout), (seconds(5), Duration::from_millis(1_200)));
    assert_eq!(directory.max_message, 1 << 20);
    assert_eq!((directory.starttls, directory.plaintext, directory.balance), (false, false, Balance::First));
    let connections =
        Connections { min: 1, max: 16, idle_timeout: seconds(30), max_age: seconds(1_800), max_operations: 100_000 };
    assert_eq!((directory.connections, &directory.canary), (connections, &None));
    assert_eq!((directory.reveal_account_state, directory.results.len()), (false, 0));
    assert_eq!(config.routing.default, None);
    let backend = &config.routing.backends[0];
    assert_eq!(
        (backend.hosts.as_slice(), backend.timeout, backend.pass_refusals),
        (&["server3".into()][..], seconds(4), true)
    );
    assert_eq!((&backend.health.probe, backend.logins_in_flight), (&Probe::Greeting, 200));
    assert_eq!(
        config.cache,
        Cache {
            ttl: seconds(300),
            negative_ttl: seconds(30),
            negative_ttl_max: seconds(900),
            stale: seconds(3_600),
            capacity: 100_000
        }
    );
    let limits = Limits {
        connections: 60_000,
        unauthenticated: 30_000,
        proxy_header_timeout: seconds(5),
        handshake_timeout: seconds(10),
        login_timeout: seconds(30),
        prelogin_timeout: seconds(60),
        refusal_delay: seconds(2),
        failed_logins: 3,
        bad_commands: 10,
        max_backend_greeting: 65_536,
        idle_timeout: seconds(65 * 60),
        on_unavailable: OnUnavailable::Reply,
    };
    assert_eq!(config.limits, limits);
    let failed_logins = |mode, free_failures| {
        let first_delay = Duration::from_millis(300);
        FailedLogins { mode, free_failures, limit: None, first_delay, max_delay: seconds(4) }
    };
    let limit = |mode, limit| Limit { mode, limit };
    let throttle = Throttle {
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        exempt: Vec::new(),
        memory: Memory { capacity: 100_000, forget_every: seconds(60), known_network_ttl: seconds(30 * 86_400) },
        failed_logins_per_prefix: failed_logins(Mode::DryRun, 20),
        failed_logins_per_user: failed_logins(Mode::Enforce, 5),
        password_spraying: PasswordSpraying {
            mode: Mode::DryRun,
            names_per_minute: 30,
            first_delay: Duration::from_millis(300),
            max_delay: seconds(4),
        },
        connections_per_prefix: limit(Mode::DryRun, 1_000),
        handshakes: limit(Mode::Enforce, 10_000),
        handshakes_per_prefix: limit(Mode::DryRun, 100),
        sessions_per_user: limit(Mode::Enforce, 60),
        sessions_per_user_and_prefix: limit(Mode::DryRun, 40),
        logins_per_second: limit(Mode::Enforce, 1_000),
    };
    assert_eq!(config.throttle, throttle);
    let drain = Drain {
        delay: seconds(0),
        deadline: seconds(30),
        max_closes_per_second: 100,
        upgrade_deadline: seconds(3_600),
    };
    assert_eq!(config.drain, drain);
    assert_eq!(config.admin.address, "127.0.0.1:9930".parse().unwrap());
    assert_eq!(config.control, None);
    assert_eq!(config.log, Log { format: LogFormat::Text, level: LogLevel::Info, client_address: ClientAddress::Full });
}

#[test]
fn service_account_helps_explain_in_user_dn_mode() {
    let config = sound(
        "base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))",
        "user_dn: uid={login},o=x",
    );
    assert!(matches!(config.directories[0].find, Find::UserDn { service: Some(_), .. }));
}

#[test]
fn short_timeout_shortens_the_attempt() {
    let config = sound("timeout: 3s\n  attempt_timeout: 700ms", "timeout: 1s");
    assert_eq!(config.directories[0].attempt_timeout, Duration::from_secs(1));
}

#[test]
fn aliases_keywords_and_single_values_are_accepted() {
    let config = sound("min_version: \"1.3\"", "min_version: 1.2");
    assert_eq!(config.tls.min_version, TlsVersion::V1_2);
    let config = sound("hosts: [server3, Server3.Example.COM.]", "hosts: &host mail3").routing;
    assert_eq!(config.backends[0].hosts, ["mail3"]);
    let text = replaced("ca: ldap-ca.pem", "ca: &ca ldap-ca.pem").replace("ca: backend-ca.pem", "ca: *ca");
    assert_eq!(parse_text(&text).unwrap().routing.backends[0].ca, Some("/etc/usher/ldap-ca.pem".into()));
    sound("\"ldap://ldap1.example.com\", \"ldap://[2001:db8::1]:3389\"", "ldap://ldap1.example.com");
}

#[test]
fn addresses_keep_their_order() {
    let config = sound("\"192.0.2.3:993\"", "[\"192.0.2.3:993\", \"[2001:db8::3]:993\", \"mail3.example.com:994\"]");
    let endpoint = &config.routing.backends[0].endpoints[0];
    let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.3:993", "[2001:db8::3]:993", "mail3.example.com:994"]);
    // Several ports of one host need no separate name.
    let ports = "address: [server4.example.com:143, Server4.example.com:1143]";
    let config = sound("address: server4.example.com:143", ports);
    assert_eq!(config.routing.backends[1].endpoints[0].server_name, "server4.example.com");
}

#[test]
fn cleartext_on_loopback_needs_no_permission() {
    sound(
        "\"ldap://ldap1.example.com\", \"ldap://[2001:db8::1]:3389\"]\n  starttls: true",
        "\"ldap://[::1]\", \"ldap://localhost:3890\"]",
    );
    let local = "address: localhost:1143\n        tls: plaintext-insecure";
    sound("address: server4.example.com:143\n        tls: starttls", local);
}

#[test]
fn suspicious_values_are_warnings() {
    let clear = "\"ldap://ldap1.example.com\", \"ldap://[2001:db8::1]:3389\"]\n  starttls: true\n  plaintext: false";
    suspicion("client_address: full", "client_address: network # HERE\n ", "log.client_address", "cannot ban a client");
    suspicion(clear, "ldap://ldap1]\n  plaintext: true # HERE", "directory.plaintext", "in clear");
    suspicion("plaintext: false", "plaintext: true # HERE", "directory.plaintext", "without effect");
    suspicion(
        "tls: starttls\ncache",
        "tls: plaintext-insecure # HERE\ncache",
        "routing.backends[1].imap.tls",
        "in clear",
    );
    suspicion("- name: server4", "- name: server4\n      ca: x.pem # HERE", "routing.backends[1].ca", "without effect");
    let account = "      probe_account: {login: p, password_file: p} # HERE\n      probe_interval: 1m";
    suspicion("      probe_interval: 1m", account, "routing.backends[0].probe_account", "without effect");
    let off = "probe: off\n      probe_interval: 1m # HERE";
    let key = "routing.backends[0].probe_interval";
    suspicion("probe: tcp\n      probe_interval: 1m", off, key, "without effect: `probe` is off");
    suspicion("143\", tls: starttls}", "143\", tls: implicit} # HERE", "listeners[1].tls", "port 143");
    suspicion("993\", tls: implicit}", "993\", tls: starttls} # HERE", "listeners[0].tls", "port 993");
    suspicion("login_timeout: 20s", "login_timeout: 1m # HERE", "limits.login_timeout", "never reached");
    suspicion("idle_timeout: 1h", "idle_timeout: 29m # HERE", "limits.idle_timeout", "RFC 3501");
}

#[test]
fn line_of_a_key_is_available_to_other_modules() {
    let config = parse_text(SOUND).unwrap();
    let problem = config.problem("tls.certificates[0].key", "does not belong to the certificate");
    let expected = "/etc/usher/config.yaml:8: tls.certificates[0].key: does not belong to the certificate";
    assert_eq!(problem.to_string(), expected);
    assert_eq!(config.problem("routing.backends[1].ca", "x").line, Some(54));
    assert_eq!(config.problem("nowhere", "x").to_string(), "/etc/usher/config.yaml: nowhere: x");
    assert_eq!(config.problem("", "x").to_string(), "/etc/usher/config.yaml: x");
}

#[test]
fn debug_output_stays_readable() {
    let shown = format!("{:?}", parse_text(SOUND).unwrap());
    assert!(shown.contains("Lines(") && !shown.contains("\"tls.certificates"), "{shown}");
}

/// The default value that allows a protocol: its name.
fn own_names() -> BTreeMap<&'static str, Vec<String>> {
    crate::proto::PROTOCOLS.iter().map(|protocol| (protocol.name, vec![protocol.name.to_owned()])).collect()
}

#[test]
fn protocol_permissions_are_read() {
    let allow = "balance: round_robin\n  allow_attribute: mailAccess\n  allow_values: {imap: [IMAP, all]}\n  allow_filter: (memberOf=cn=mail,dc=example)";
    let allow = sound("balance: round_robin", allow).directories.remove(0).allow;
    let mut values = own_names();
    values.insert("imap", vec!["imap".to_owned(), "all".to_owned()]);
    let filter = Some("(memberOf=cn=mail,dc=example)".to_owned());
    assert_eq!(allow, Allow { attribute: Some("mailAccess".into()), values, filter });
}

#[test]
fn networks_attribute_is_read() {
    let directory =
        sound("login_attribute: uid", "login_attribute: uid\n  networks_attribute: mailNetworks").directories.remove(0);
    assert_eq!(directory.networks_attribute.as_deref(), Some("mailNetworks"));
}

#[test]
fn password_filter_is_read() {
    let text = "login_attribute: uid\n  password_filter: (employeeType=legacy)";
    let directory = parse_text(&replaced("login_attribute: uid", text)).unwrap().directories.remove(0);
    assert_eq!(directory.password_filter.as_deref(), Some("(employeeType=legacy)"));
}

#[test]
fn principal_name_mode_keeps_the_base() {
    let found = "base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))";
    let principal = "base: dc=ad,dc=example,dc=com\n  user_dn: \"{login}@ad.example.com\"";
    let Find::Principal { template, base, service } = sound(found, principal).directories.remove(0).find else {
        panic!()
    };
    assert_eq!(template.parts, [TemplatePart::Login, TemplatePart::Text("@ad.example.com".into())]);
    assert_eq!((base.as_str(), service.is_some()), ("dc=ad,dc=example,dc=com", true));
}

#[test]
fn bind_results_are_mapped_to_states() {
    let states = "balance: round_robin\n  reveal_account_state: true\n  result_19: account_locked\n  result_50: unavailable\n  result_53: account_disabled";
    let directory = sound("balance: round_robin", states).directories.remove(0);
    assert!(directory.reveal_account_state);
    assert_eq!(directory.results, [(19, AccountState::Locked), (53, AccountState::Disabled)].into());
}

#[test]
fn network_contains_exactly_its_addresses() {
    let network = |address: &str, bits| network_of(address.parse().unwrap(), bits);
    for (network, inside, outside) in [
        (network("192.0.2.0", 24), "192.0.2.255", "192.0.3.0"),
        (network("192.0.2.7", 32), "192.0.2.7", "192.0.2.6"),
        (network("0.0.0.0", 0), "203.0.113.9", "::"),
        (network("2001:db8::", 32), "2001:db8:ffff::1", "2001:db9::"),
        (network("::", 0), "2001:db8::1", "0.0.0.0"),
    ] {
        assert!(network.contains(&inside.parse::<IpAddr>().unwrap()), "{inside} is in {network:?}");
        assert!(!network.contains(&outside.parse::<IpAddr>().unwrap()), "{outside} is not in {network:?}");
    }
}

#[test]
fn trusted_client_address_settings_are_read() {
    let header = "tls: starttls, proxy_header: required, trusted: [192.0.2.20, \"2001:db8::/64\"]}";
    let config = sound("tls: starttls}\ntls:", &format!("{header}\ntls:"));
    let network = |address: &str, bits| IpNet::new(address.parse().unwrap(), bits).unwrap();
    let proxies = vec![network("192.0.2.20", 32), network("2001:db8::", 64)];
    assert_eq!(config.listeners[1].proxies, Some(proxies));
    assert_eq!(config.listeners[0].proxies, None);
    let off = sound("tls: starttls}\ntls:", "tls: starttls, proxy_header: off}\ntls:");
    assert_eq!(off.listeners[1].proxies, None);
    for (word, forward) in [
        ("none", Forward::Nothing),
        ("proxy_v1", Forward::Header(Version::V1)),
        ("proxy_v2", Forward::Header(Version::V2)),
        ("id", Forward::Dialogue),
    ] {
        let config = sound("tls: implicit, server_name", &format!("tls: implicit, forward: {word}, server_name"));
        assert_eq!(config.routing.backends[0].endpoints[0].forward, forward);
        assert_eq!(config.routing.backends[1].endpoints[0].forward, Forward::Nothing);
    }
}

#[test]
fn ehlo_has_the_name_of_the_client_behind_xclient() {
    for (keys, ehlo) in [
        ("", Ehlo::Own),
        ("ehlo: own, ", Ehlo::Own),
        ("ehlo: client, ", Ehlo::Client),
        ("forward: proxy_v2, ", Ehlo::Own),
        ("forward: xclient, ", Ehlo::Client),
        ("forward: xclient, ehlo: own, ", Ehlo::Own),
    ] {
        let submission = format!("submission: {{address: \"x.example.com:587\", tls: starttls, {keys}server_name");
        let with = format!("tls: implicit, server_name: x.example.com}}\n      {submission}");
        let config = sound("tls: implicit, server_name", &with);
        let endpoints = &config.routing.backends[0].endpoints;
        let of = |name: &str| endpoints.iter().find(|endpoint| endpoint.protocol.name == name).unwrap().ehlo;
        assert_eq!((of("submission"), of("imap")), (ehlo, Ehlo::Own), "{keys}");
    }
}

#[test]
fn directory_servers_have_names_and_pins_of_their_own() {
    let pin = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let servers = |list: &str| {
        let from = "servers: [\"ldap://ldap1.example.com\", \"ldap://[2001:db8::1]:3389\"]";
        sound(from, &format!("servers: [{list}]")).directories.remove(0).servers
    };
    let both = servers(&format!(
        "ldap://a.example.com, {{url: \"ldap://192.0.2.1\", server_name: b.example.com, pin_sha256: [\"{pin}\"]}}"
    ));
    assert_eq!(
        (both[0].name(), both[1].name(), both[1].host.as_str()),
        ("a.example.com", "b.example.com", "192.0.2.1")
    );
    assert_eq!((both[0].pin_sha256.len(), both[1].pin_sha256[0][0]), (0, 0xe3));
    let same = servers("{url: ldap://a.example.com}");
    assert_eq!(same, servers("ldap://a.example.com"));
    // The chain of no server is verified.
    let text = |ca: &str| format!("servers: [{{url: ldap://a.example.com, pin_sha256: \"{pin}\"}}]\n  ca: {ca}\n  # ");
    let config = parse_text(&replaced("ca: ldap-ca.pem", "").replace("servers: [", &text("x.pem"))).unwrap();
    let [warning] = config.warnings.as_slice() else { panic!("{:#?}", config.warnings) };
    assert!(warning.key == "directory.ca" && warning.message.contains("`pin_sha256` of each server"), "{warning}");
}
