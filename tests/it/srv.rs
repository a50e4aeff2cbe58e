//! Directory servers that DNS names by SRV records: a real DNS server, and real directories with TLS.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::certs::Leaf;
use crate::kit::dns::{self, Dns};
use crate::kit::slapd::{Options, Slapd};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, dovecot, password_of, shared};

const NAME: &str = "_ldap._tcp.dc._msdcs.corp.example.com";
const REFUSED: &str = "NO [UNAVAILABLE]";

/// A directory server with a certificate for these names.
fn controller(file: &str, names: &[&str]) -> Slapd {
    let pair = shared().certificates.leaf(file, Leaf::server(names));
    Slapd::with(Options { pair: Some(&pair), ..Options::default() })
}

/// A record: its name, target, port, priority and weight.
fn srv(name: &str, target: &str, port: u16, priority: u16, weight: u16) -> String {
    format!("--srv-host={name},{target},{port},{priority},{weight}")
}

fn host(name: &str) -> String {
    format!("--host-record={name},127.0.0.1")
}

fn config(servers: Value, resolver: &str) -> Config {
    Config::with_url("ldaps://127.0.0.1:636")
        .backend("server3", dovecot().imaps, &["server3", "server4.example.com"])
        .set("/directory/servers", servers)
        .set("/directory/ca", json!(shared().certificates.ca()))
        .set("/directory/resolver", resolver)
}

fn starttls(dns: &Dns) -> Config {
    config(json!([format!("srv:{NAME}")]), &dns.address())
}

#[track_caller]
fn accepted(usher: &Usher, login: &str) {
    Imap::tls(usher.imaps_port()).login(login, &password_of(login)).ok();
}

#[track_caller]
fn refused(usher: &Usher, login: &str) {
    Imap::tls(usher.imaps_port()).login(login, &password_of(login)).is(REFUSED);
}

fn binds(slapd: &Slapd, login: &str) -> usize {
    slapd.binds(&format!("uid={login},ou=people,dc=example,dc=com"))
}

/// `check --connect`: exit code, and the findings about a subject.
fn checked(config: &Config, subject: &str) -> (i32, String) {
    config.write();
    let said = command(config, &["check", "--connect", "--json"], b"");
    let report: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    let mut subjects = report["subjects"].as_array().unwrap().iter();
    let found = subjects.find(|one| one["name"] == subject).unwrap_or_else(|| panic!("{report:#}"));
    (said.code, found["findings"].to_string())
}

#[test]
fn servers_named_by_dns_are_used_with_starttls_and_with_tls() {
    let dc1 = controller("srv-both", &["dc1.corp.example.com"]);
    let dns = Dns::start(&[&srv(NAME, "dc1.corp.example.com", dc1.port, 0, 100), &host("dc1.corp.example.com")]);
    let ldaps = config(json!([format!("ldaps+srv:{NAME}:{}", dc1.tls_port)]), &dns.address());
    for (config, url) in [
        (starttls(&dns), format!("ldap://dc1.corp.example.com:{}", dc1.port)),
        (ldaps, format!("ldaps://dc1.corp.example.com:{}", dc1.tls_port)),
    ] {
        let usher = Usher::start(config);
        accepted(&usher, "alice");
        Imap::tls(usher.imaps_port()).login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(usher.metric("usher_directory_up", &[("server", &url)]), 1.0);
        let page = usher.http("/").1;
        assert!(page.contains(&url) && page.contains("1 listed") && page.contains("<th"), "{page}");
        // What is not the server's is not asked of the records' name.
        assert!(!usher.metrics().keys().any(|series| series.contains("server=\"srv:")), "{:?}", usher.metrics());
    }
    let (code, found) = checked(&starttls(&dns), &format!("srv:{NAME}"));
    assert_eq!(code, 0, "{found}");
    assert!(found.contains(&format!("ldap://dc1.corp.example.com:{} (priority 0, weight 100)", dc1.port)), "{found}");
}

#[test]
fn lower_priority_is_used_first_and_the_next_while_it_is_away() {
    let mut dc1 = controller("srv-first", &["dc1.corp.example.com"]);
    let dc2 = controller("srv-second", &["dc2.corp.example.com"]);
    let dns = Dns::start(&[
        &srv(NAME, "dc2.corp.example.com", dc2.port, 10, 100),
        &srv(NAME, "dc1.corp.example.com", dc1.port, 0, 0),
        &host("dc1.corp.example.com"),
        &host("dc2.corp.example.com"),
    ]);
    for balance in ["first", "round_robin"] {
        let usher = Usher::start(starttls(&dns).set("/directory/balance", balance));
        let before = (binds(&dc1, "alice"), binds(&dc1, "bob"));
        accepted(&usher, "alice");
        accepted(&usher, "bob");
        assert_eq!((binds(&dc1, "alice"), binds(&dc1, "bob")), (before.0 + 1, before.1 + 1), "{balance}");
    }
    assert_eq!((binds(&dc2, "alice"), binds(&dc2, "bob")), (0, 0));
    let usher = Usher::start(starttls(&dns));
    accepted(&usher, "alice");
    dc1.stop();
    accepted(&usher, "bob");
    assert_eq!(binds(&dc2, "bob"), 1);
}

/// The name leads to another server: the login that finds the old one away gets through, and no series of it is left.
#[test]
fn server_that_has_moved_is_found_at_the_next_login() {
    let mut old = controller("srv-old", &["dc1.corp.example.com"]);
    let new = controller("srv-new", &["dc2.corp.example.com"]);
    let mut dns = Dns::start(&[&srv(NAME, "dc1.corp.example.com", old.port, 0, 0), &host("dc1.corp.example.com")]);
    let usher = Usher::start(starttls(&dns));
    accepted(&usher, "alice");
    old.stop();
    dns.serve(&[&srv(NAME, "dc2.corp.example.com", new.port, 0, 0), &host("dc2.corp.example.com")]);
    // Looked up again as soon as nothing is in use, at most once a second while logins wait.
    let deadline = Instant::now() + Duration::from_secs(30);
    while Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).tagged.starts_with("NO ") {
        assert!(Instant::now() < deadline, "{}", usher.log_text());
    }
    assert_eq!(binds(&new, "bob"), 1);
    usher.wait_log("directory server is no longer named by DNS", |_| true);
    let left = || usher.metrics().keys().filter(|series| series.contains("dc1.corp.example.com")).count();
    while left() > 0 {
        assert!(Instant::now() < deadline, "{:?}", usher.metrics());
    }
}

/// The list of before holds during an outage of DNS, also over a reload; a start without DNS is an outage until it is back.
#[test]
fn outage_of_dns_is_no_outage_of_the_directory() {
    let dc1 = controller("srv-away", &["dc1.corp.example.com"]);
    let records = [srv(NAME, "dc1.corp.example.com", dc1.port, 0, 0), host("dc1.corp.example.com")];
    let records = records.each_ref().map(String::as_str);
    let mut dns = Dns::start(&records);
    let usher = Usher::start(starttls(&dns));
    accepted(&usher, "alice");
    dns.stop();
    Imap::tls(usher.imaps_port()).login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    usher.hup();
    accepted(&usher, "bob");

    let mut later = Dns::away();
    let usher = Usher::start_unready(starttls(&later));
    refused(&usher, "alice");
    assert_eq!(usher.http("/ready").0, 503);
    assert_eq!(usher.metric("usher_directory_srv_resolved", &[("name", &format!("srv:{NAME}"))]), 0.0);
    let (code, found) = checked(&starttls(&later), &format!("srv:{NAME}"));
    assert!(code == 69 && found.contains("dig srv _ldap._tcp.dc._msdcs"), "{found}");
    later.serve(&records);
    let deadline = Instant::now() + Duration::from_secs(90);
    while usher.http("/ready").0 != 200 {
        assert!(Instant::now() < deadline, "{}", usher.log_text());
        std::thread::sleep(Duration::from_millis(50));
    }
    accepted(&usher, "alice");
}

/// Whoever changes an answer gets no password by it.
#[test]
fn hosts_outside_the_domain_get_no_passwords() {
    let rogue = controller("srv-rogue", &["evil.example.net", "dc1.corp.example.com.example.net"]);
    for target in ["evil.example.net", "dc1.corp.example.com.example.net"] {
        let dns = Dns::start(&[&srv(NAME, target, rogue.port, 0, 0), &host(target)]);
        let usher = Usher::start_unready(starttls(&dns));
        refused(&usher, "alice");
        usher.wait_log("directory server named by DNS is not used", |line| line["target"] == target);
        assert_eq!(binds(&rogue, "alice"), 0);
        let (code, found) = checked(&starttls(&dns), &format!("srv:{NAME}"));
        assert!(code == 69 && found.contains(target) && found.contains("directory.srv_targets"), "{found}");
        // It is what an administrator may want.
        let usher = Usher::start(starttls(&dns).set("/directory/srv_targets", json!(["*.example.net"])));
        accepted(&usher, "bob");
    }
}

/// The certificate is verified for the target, or for the one name that all have.
#[test]
fn certificate_is_that_of_the_target() {
    let other = controller("srv-other", &["dc9.corp.example.com", "corp.example.com"]);
    let dns = Dns::start(&[&srv(NAME, "dc1.corp.example.com", other.port, 0, 0), &host("dc1.corp.example.com")]);
    let usher = Usher::start_unready(starttls(&dns));
    refused(&usher, "alice");
    assert_eq!(binds(&other, "alice"), 0);
    let url = format!("ldap://dc1.corp.example.com:{}", other.port);
    let (code, found) = checked(&starttls(&dns), &url);
    assert!(code == 69 && found.contains("not for dc1.corp.example.com"), "{found}");
    assert!(found.contains("subjectAltName=DNS:dc1.corp.example.com"), "{found}");
    let named = json!([{"url": format!("srv:{NAME}"), "server_name": "corp.example.com"}]);
    accepted(&Usher::start(config(named, &dns.address())), "alice");
    let pinned = json!([{"url": format!("srv:{NAME}"), "pin_sha256": shared().server3.pin}]);
    refused(&Usher::start_unready(config(pinned, &dns.address())), "alice");
}

/// A name without records, one that does not exist, the decided absence, errors and silence: none of them is a wrong
/// password, and a look-up that is not answered keeps no login waiting.
#[test]
fn names_without_servers_are_outages_with_a_reason() {
    let dns = Dns::start(&[&format!("--srv-host={NAME}"), &host("_ldap._tcp.none.example.com")]);
    for (name, resolver, reason) in [
        (NAME, dns.address(), "not available"),
        ("_ldap._tcp.missing.example.com", dns.address(), "NXDOMAIN"),
        ("_ldap._tcp.none.example.com", dns.address(), "no records of this kind"),
        (NAME, dns::answering(Some(2)), "the DNS server answered"),
        (NAME, dns::answering(Some(5)), "the DNS server answered"),
        (NAME, dns::answering(None), "no DNS server answered in time"),
        (NAME, dns::looping(), "cannot be used"),
    ] {
        let config = config(json!([format!("srv:{name}")]), &resolver);
        let usher = Usher::start_unready(config.clone());
        let began = Instant::now();
        refused(&usher, "alice");
        // Two seconds are promised.
        assert!(began.elapsed() < Duration::from_secs(6), "{reason}: {:?}", began.elapsed());
        let (code, found) = checked(&config, &format!("srv:{name}"));
        assert!(code == 69 && found.contains(reason), "{reason}: {found}");
    }
}

/// An alias of the records, an answer that needs TCP, a silent DNS server beside a good one.
#[test]
fn unusual_answers_are_used() {
    let dc1 = controller("srv-unusual", &["dc1.corp.example.com"]);
    let many: Vec<_> = (0..60).map(|n| srv(NAME, &format!("server-{n}.corp.example.com"), 389, 9, 1)).collect();
    let (first, address) = (srv(NAME, "dc1.corp.example.com", dc1.port, 0, 1), host("dc1.corp.example.com"));
    let alias = format!("--cname=_ldap._tcp.alias.corp.example.com,{NAME}");
    let records = [&first, &address, &alias].into_iter().chain(&many).map(String::as_str).collect::<Vec<_>>();
    let dns = Dns::start(&records);
    accepted(&Usher::start(starttls(&dns)), "alice");
    let (_, found) = checked(&starttls(&dns), &format!("srv:{NAME}"));
    assert!(found.contains("server-59.corp.example.com"), "the whole answer: {found}");
    let alias = json!(["srv:_ldap._tcp.alias.corp.example.com"]);
    let alias = config(alias, &dns.address());
    refused(&Usher::start_unready(alias.clone()), "alice");
    accepted(&Usher::start(alias.set("/directory/srv_targets", json!(["dc1.corp.example.com"]))), "alice");
    let both = starttls(&dns).set("/directory/resolver", json!([dns::answering(None), dns.address()]));
    accepted(&Usher::start(both), "alice");
}

/// The servers of a site, and all of the domain behind them.
#[test]
fn names_are_used_in_the_order_of_the_list() {
    let mut near = controller("srv-near", &["near.corp.example.com"]);
    let far = controller("srv-far", &["far.corp.example.com"]);
    let site = "_ldap._tcp.berlin._sites.dc._msdcs.corp.example.com";
    let dns = Dns::start(&[
        &srv(site, "near.corp.example.com", near.port, 5, 1),
        &srv(NAME, "far.corp.example.com", far.port, 0, 100),
        &srv(NAME, "near.corp.example.com", near.port, 0, 100),
        &host("near.corp.example.com"),
        &host("far.corp.example.com"),
    ]);
    let config = config(json!([format!("srv:{site}"), format!("srv:{NAME}")]), &dns.address());
    let usher = Usher::start(config.clone());
    accepted(&usher, "alice");
    assert_eq!((binds(&near, "alice"), binds(&far, "alice")), (1, 0));
    near.stop();
    accepted(&usher, "bob");
    assert_eq!(binds(&far, "bob"), 1);
    // Each server once.
    let urls = usher.metrics().keys().filter(|series| series.starts_with("usher_directory_up")).count();
    assert_eq!(urls, 2, "{:?}", usher.metrics());
}

/// Without `--connect` nothing is asked.
#[test]
fn check_without_connect_asks_no_dns_server() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let config = config(json!([format!("srv:{NAME}")]), &socket.local_addr().unwrap().to_string());
    config.write();
    let said = command(&config, &["check"], b"").succeeded();
    assert!(said.stdout.contains("1 name of directory servers"), "{said:#?}");
    assert!(socket.recv(&mut [0; 512]).is_err(), "a question was sent");
}
