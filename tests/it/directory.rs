//! The directory: connections, the meaning of its replies, and its outages.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::certs::Leaf;
use crate::kit::scripted::{
    Operation, Scripted, ScriptedLdap, ber, ldap_entry, ldap_message, ldap_reference, ldap_result,
};
use crate::kit::slapd::{Options, Slapd};
use crate::kit::users::{SERVICE_DN, SUFFIX};
use crate::kit::{Config, Imap, Usher, password_of, shared, slapd};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";
/// The promised maximum time of a reply.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

fn alice(usher: &Usher) -> crate::kit::client::Reply {
    let mut imap = Imap::tls(usher.imaps_port());
    let asked = Instant::now();
    let reply = imap.login("alice", &password_of("alice"));
    assert!(asked.elapsed() < REPLY_LIMIT, "answered after {:?}", asked.elapsed());
    imap.command("NOOP").ok();
    reply
}

#[test]
fn ldaps_starttls_loopback_and_unix_socket_connect() {
    for (url, starttls) in
        [(slapd().tls_url(), false), (slapd().url(), true), (slapd().url(), false), (slapd().socket_url(), false)]
    {
        let config = Config::shared().set("/directory/servers", json!([url])).set("/directory/starttls", starttls);
        alice(&Usher::start(config)).ok();
    }
}

#[test]
fn server_outside_the_ca_receives_no_password() {
    let slapd = Slapd::private();
    let backend = Scripted::accepting();
    let wrong_ca = shared().certificates.wrong_ca();
    let config = Config::with_directory(&slapd).scripted(&backend).set("/directory/ca", json!(wrong_ca));
    for (url, starttls) in [(slapd.tls_url(), false), (slapd.url(), true)] {
        let config = config.clone().set("/directory/servers", json!([url])).set("/directory/starttls", starttls);
        let usher = Usher::start(config);
        alice(&usher).is("NO [UNAVAILABLE]");
        assert_eq!(usher.login("alice")["result"], "directory_unavailable");
    }
    assert_eq!((slapd.binds(ALICE), slapd.binds(SERVICE_DN)), (0, 0), "{}", slapd.logged());
}

#[test]
fn certificate_for_another_name_is_rejected() {
    let certificates = &shared().certificates;
    let pair = certificates.leaf("ldap-other-name", Leaf::server(&["ldap.example.net"]));
    let slapd = Slapd::with(Options { ca: Some(&certificates.ca()), pair: Some(&pair), ..Options::default() });
    for (url, starttls) in [(slapd.tls_url(), false), (slapd.url(), true)] {
        let config = Config::with_url(&url).scripted(&Scripted::accepting()).set("/directory/starttls", starttls);
        alice(&Usher::start(config)).is("NO [UNAVAILABLE]");
    }
    assert_eq!((slapd.binds(ALICE), slapd.binds(SERVICE_DN)), (0, 0), "{}", slapd.logged());
}

#[test]
fn starttls_is_mandatory_once_configured() {
    // protocolError to the extended request, as from a server that does not know StartTLS.
    let ldap = ScriptedLdap::start(|_, operation, id, _| match operation {
        Operation::Other(0x77) => Some(ldap_result(id, 0x78, 2)),
        Operation::Bind => panic!("a password in the clear"),
        Operation::Search | Operation::Other(_) => None,
    });
    let config = Config::with_url(&ldap.url()).scripted(&Scripted::accepting()).set("/directory/starttls", true);
    alice(&Usher::start(config)).is("NO [UNAVAILABLE]");
}

#[test]
fn client_certificate_is_presented_to_the_directory() {
    let certificates = &shared().certificates;
    let slapd =
        Slapd::with(Options { ca: Some(&certificates.ca()), global: "TLSVerifyClient demand", ..Options::default() });
    let backend = Scripted::accepting();
    let config = Config::with_directory(&slapd).scripted(&backend);
    alice(&Usher::start(config.clone())).is("NO [UNAVAILABLE]");
    let pair = certificates.leaf("ldap-client", Leaf { client: true, ..Leaf::server(&["usher.example.com"]) });
    alice(&Usher::start(config.set("/directory/client_certificate", pair.yaml()))).ok();
}

#[test]
fn search_can_be_anonymous() {
    let config = Config::shared().without("/directory/bind_dn").without("/directory/bind_password_file");
    let usher = Usher::start(config.set("/directory/base", format!("ou=open,{SUFFIX}")));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("olga", "wrong").is("NO [AUTHENTICATIONFAILED]");
    imap.login("olga", &password_of("olga")).ok();
}

#[test]
fn entry_that_its_user_cannot_read_gives_no_route() {
    let usher = Usher::start(Config::shared().user_dn("uid={login},ou=closed,dc=example,dc=com"));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("clara", "wrong").is("NO [AUTHENTICATIONFAILED]");
    imap.login("clara", &password_of("clara")).is("NO [UNAVAILABLE]");
}

#[test]
fn refused_service_account_is_not_a_wrong_password() {
    let config = Config::shared();
    config.file("ldap.password", "not the password");
    let usher = Usher::start(config);
    alice(&usher).is("NO [UNAVAILABLE]");
    assert_eq!(usher.login("alice")["result"], "directory_unavailable");
    assert_eq!(usher.metric("usher_directory_service_bind_ok", &[]), 0.0);
    alice(&Usher::start(Config::shared().set("/directory/base", "ou=nowhere,dc=example,dc=com")))
        .is("NO [UNAVAILABLE]");
}

#[test]
fn operation_counts_match_the_directory() {
    let slapd = Slapd::private();
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&Scripted::accepting()));
    alice(&usher).ok();
    assert_eq!(usher.metric("usher_directory_service_bind_ok", &[]), 1.0);
    for (operation, dn) in [("bind", ALICE), ("service_bind", SERVICE_DN)] {
        let labels = [("directory", "default"), ("operation", operation), ("code", "0")];
        let counted = usher.metric("usher_directory_operations_total", &labels);
        assert_eq!(counted, slapd.binds(dn) as f64, "{operation}: {}", slapd.logged());
    }
}

#[test]
fn recovered_directory_is_used_at_once() {
    let mut slapd = Slapd::private();
    let usher =
        Usher::start(Config::with_directory(&slapd).scripted(&Scripted::accepting()).set("/cache/ttl", "100ms"));
    alice(&usher).ok();
    slapd.stop();
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("anna", &password_of("anna")).is("NO [UNAVAILABLE]");
    assert_eq!(usher.login("anna")["result"], "directory_unavailable");
    slapd.start_again();
    imap.login("anna", &password_of("anna")).ok();
}

#[test]
fn frozen_directory_costs_one_timeout() {
    let slapd = Slapd::private();
    let config = Config::with_directory(&slapd).scripted(&Scripted::accepting()).set("/directory/timeout", "2s");
    let usher = Usher::start(config.set("/directory/attempt_timeout", "700ms"));
    alice(&usher).ok();
    slapd.freeze();
    let mut imap = Imap::tls(usher.imaps_port());
    let asked = Instant::now();
    imap.login("anna", &password_of("anna")).is("NO [UNAVAILABLE]");
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    slapd.thaw();
    imap.login("anna", &password_of("anna")).ok();
}

#[test]
fn next_server_answers_for_a_dead_or_frozen_one() {
    let (mut first, second) = (Slapd::private(), Slapd::private());
    let config = Config::with_directory(&first)
        .scripted(&Scripted::accepting())
        .set("/directory/servers", json!([first.tls_url(), second.tls_url()]))
        .set("/directory/attempt_timeout", "1s");
    let usher = Usher::start(config);
    alice(&usher).ok();
    first.freeze();
    for (uid, limit) in [("anna", 4), ("gruen", 4), ("quote", 4)] {
        let asked = Instant::now();
        Imap::tls(usher.imaps_port()).authenticate("", uid, password_of(uid).as_bytes()).ok();
        assert!(asked.elapsed() < Duration::from_secs(limit), "{uid} after {:?}", asked.elapsed());
    }
    first.thaw();
    first.stop();
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("space", "wrong").is("NO [AUTHENTICATIONFAILED]");
    imap.login("space", &password_of("space")).ok();
}

#[test]
fn wrong_password_costs_one_bind_on_one_server() {
    let (first, second) = (Slapd::private(), Slapd::private());
    let config = Config::with_directory(&first).scripted(&Scripted::accepting());
    let usher = Usher::start(config.set("/directory/servers", json!([first.tls_url(), second.tls_url()])));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    imap.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(first.binds(ALICE) + second.binds(ALICE), 1);
    assert_eq!(usher.metric("usher_decisions_total", &[("by", "negative")]), 1.0);
}

/// A directory that finds alice and answers her bind with this.
fn answers_binds(answer: impl Fn(u8) -> Option<Vec<u8>> + Send + Sync + 'static) -> ScriptedLdap {
    ScriptedLdap::start(move |_, operation, id, request| match operation {
        Operation::Bind if contains(request, SERVICE_DN) => Some(ldap_result(id, 0x61, 0)),
        Operation::Bind if contains(request, ALICE) => answer(id),
        Operation::Search if contains(request, "alice") => {
            let entry = ldap_entry(id, ALICE, &[("mailHost", "server3")]);
            Some([entry, ldap_reference(id), ldap_result(id, 0x65, 0)].concat())
        }
        Operation::Search => Some(ldap_result(id, 0x65, 0)),
        Operation::Bind | Operation::Other(_) => None,
    })
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn continuation_references_beside_the_entry_are_ignored() {
    let ldap = answers_binds(|id| Some(ldap_result(id, 0x61, 0)));
    alice(&Usher::start(Config::with_url(&ldap.url()).scripted(&Scripted::accepting()))).ok();
}

#[test]
fn only_success_accepts_and_only_invalid_credentials_refuses() {
    let backend = Scripted::accepting();
    for code in [1, 2, 3, 7, 8, 10, 11, 12, 14, 17, 19, 21, 32, 34, 36, 50, 51, 52, 53, 54, 64, 71, 80, 118] {
        let ldap = answers_binds(move |id| Some(ldap_result(id, 0x61, code)));
        let usher = Usher::start(Config::with_url(&ldap.url()).scripted(&backend));
        alice(&usher).is("NO [UNAVAILABLE]");
        let event = usher.login("alice");
        assert_eq!(event["result"], "directory_unavailable", "{event}");
        assert_eq!(event["directory_code"].to_string().trim_matches('"'), code.to_string(), "{event}");
    }
    // About this entry: it has no password.
    for code in [16, 48] {
        let ldap = answers_binds(move |id| Some(ldap_result(id, 0x61, code)));
        let usher = Usher::start(Config::with_url(&ldap.url()).scripted(&backend));
        alice(&usher).is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(usher.login("alice")["result"], "no_password");
    }
    let ldap = answers_binds(|id| Some(ldap_result(id, 0x61, 49)));
    alice(&Usher::start(Config::with_url(&ldap.url()).scripted(&backend))).is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn invalid_reply_logs_no_user_in() {
    let backend = Scripted::accepting();
    type Answer = fn(u8) -> Option<Vec<u8>>;
    let answers: [(&str, Answer); 7] = [
        ("success for another message", |id| Some(ldap_result(id.wrapping_add(1), 0x61, 0))),
        ("success for message 0", |_| Some(ldap_result(0, 0x61, 0))),
        ("an entry", |id| Some(ldap_entry(id, ALICE, &[]))),
        ("a bind response without a code", |id| Some(ldap_message(id, &ber(0x61, &[])))),
        ("garbage", |_| Some(b"HTTP/1.1 200 OK\r\n\r\n".to_vec())),
        ("silence", |_| Some(vec![])),
        ("the end", |_| None),
    ];
    for (name, answer) in answers {
        let ldap = answers_binds(answer);
        let config = Config::with_url(&ldap.url()).scripted(&backend).set("/directory/timeout", "1s");
        let usher = Usher::start(config.set("/directory/attempt_timeout", "400ms"));
        let reply = alice(&usher);
        assert!(reply.tagged.starts_with("NO [UNAVAILABLE]"), "{name}: {reply:?}");
        // A panic of the LDAP library would end neither usher nor its replies.
        assert_eq!(usher.http("/live").0, 200, "{name}");
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn malformed_search_replies_are_an_unavailable_directory() {
    type Answer = fn(u8) -> Option<Vec<u8>>;
    let answers: [(&str, Answer); 4] = [
        ("a bind response", |id| Some(ldap_result(id, 0x61, 0))),
        ("an entry without attributes", |id| Some(ldap_message(id, &ber(0x64, &[&ber(4, &[b"x"])])))),
        ("an entry that is a number", |id| Some(ldap_message(id, &ber(0x64, &[&[2, 1, 5]])))),
        ("the end", |_| None),
    ];
    for (name, answer) in answers {
        let ldap = ScriptedLdap::start(move |_, operation, id, _| match operation {
            Operation::Bind => Some(ldap_result(id, 0x61, 0)),
            Operation::Search | Operation::Other(_) => answer(id),
        });
        let config = Config::with_url(&ldap.url()).scripted(&Scripted::accepting()).set("/directory/timeout", "1s");
        let usher = Usher::start(config.set("/directory/attempt_timeout", "400ms"));
        let reply = alice(&usher);
        assert!(reply.tagged.starts_with("NO [UNAVAILABLE]"), "{name}: {reply:?}");
        assert!(ldap.connections() > 0);
    }
}

#[test]
fn referral_never_receives_the_password() {
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let url = format!("ldap://{}/", elsewhere.local_addr().unwrap());
    let ldap = answers_binds(move |id| {
        let referral = ber(0xa3, &[&ber(4, &[url.as_bytes()])]);
        Some(ldap_message(id, &ber(0x61, &[&[10, 1, 10, 4, 0, 4, 0], &referral])))
    });
    alice(&Usher::start(Config::with_url(&ldap.url()).scripted(&Scripted::accepting()))).is("NO [UNAVAILABLE]");
    assert!(elsewhere.accept().is_err(), "the referral was followed");
}

#[test]
fn searches_request_at_most_two_entries_and_named_attributes() {
    let (sender, requests) = std::sync::mpsc::channel();
    let ldap = ScriptedLdap::start(move |_, operation, id, request| match operation {
        Operation::Bind => Some(ldap_result(id, 0x61, 0)),
        Operation::Search => {
            let _ = sender.send(request.to_vec());
            Some(ldap_result(id, 0x65, 0))
        }
        Operation::Other(_) => None,
    });
    let config = Config::with_url(&ldap.url()).scripted(&Scripted::accepting());
    alice(&Usher::start(config.set("/directory/login_attribute", "uid"))).is("NO [AUTHENTICATIONFAILED]");
    let request = requests.iter().find(|request| contains(request, "alice")).unwrap();
    // SearchRequest (RFC 4511 4.5.1): base, scope, derefAliases, sizeLimit, timeLimit, typesOnly.
    let base = request.windows(SUFFIX.len()).position(|window| window == SUFFIX.as_bytes()).unwrap();
    let after = &request[base + SUFFIX.len()..];
    assert_eq!(&after[..3], [10, 1, 2], "scope subtree");
    assert_eq!(&after[6..9], [2, 1, 2], "sizeLimit 2: {after:?}");
    assert!(contains(&request, "mailHost") && !contains(&request, "*"), "{request:?}");
}

#[test]
fn users_are_never_bound_on_the_search_connection() {
    let slapd = Slapd::private();
    let usher = Usher::start(Config::with_directory(&slapd).scripted(&Scripted::accepting()));
    for uid in ["alice", "anna", "quote"] {
        Imap::tls(usher.imaps_port()).login(uid, &password_of(uid)).ok();
    }
    let log = slapd.logged();
    let connections = |needle: &str| -> std::collections::BTreeSet<String> {
        let lines = log.lines().filter(|line| line.contains(needle));
        lines.filter_map(|line| line.split(' ').find(|word| word.starts_with("conn=")).map(Into::into)).collect()
    };
    let (binds, searches) = (connections("BIND dn=\"uid="), connections("SRCH base=\"dc=example,dc=com\""));
    assert!(!binds.is_empty() && !searches.is_empty(), "{log}");
    assert!(binds.is_disjoint(&searches), "{log}");
}

#[test]
fn slow_bind_does_not_delay_another() {
    // alice's bind is never answered; anna's is answered at once.
    let anna = "uid=anna,ou=people,dc=example,dc=com";
    let ldap = ScriptedLdap::start(move |_, operation, id, request| match operation {
        Operation::Bind if contains(request, ALICE) => Some(vec![]),
        Operation::Bind => Some(ldap_result(id, 0x61, 0)),
        Operation::Search => {
            let dn = if contains(request, "alice") { ALICE } else { anna };
            Some([ldap_entry(id, dn, &[("mailHost", "server3")]), ldap_result(id, 0x65, 0)].concat())
        }
        Operation::Other(_) => None,
    });
    let config = Config::with_url(&ldap.url()).scripted(&Scripted::accepting()).set("/directory/timeout", "5s");
    let usher = Usher::start(config.set("/directory/attempt_timeout", "5s"));
    let mut waiting = Imap::tls(usher.imaps_port());
    waiting.send("a LOGIN alice secret\r\n");
    let asked = Instant::now();
    Imap::tls(usher.imaps_port()).login("anna", "secret").ok();
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    waiting.reply("a").is("NO [UNAVAILABLE]");
}
