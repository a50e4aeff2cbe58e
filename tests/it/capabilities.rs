//! The capabilities advertised before login are those of every backend.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::kit::client::Tls;
use crate::kit::dovecot::Dovecot;
use crate::kit::scripted::Scripted;
use crate::kit::{Config, Imap, Sieve, Usher, cyrus, dovecot, password_of, shared};

/// The words of a capability in a list of ManageSieve.
fn words(list: &[String], name: &str) -> BTreeSet<String> {
    let start = format!("\"{name}\" \"");
    let line = list.iter().find_map(|line| line.strip_prefix(&start));
    let line = line.unwrap_or_else(|| panic!("no {name} in {list:?}"));
    line.trim_end_matches('"').split(' ').filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
}

/// Pigeonhole and timsieved, probed every second.
fn both() -> Config {
    let config = Config::shared().speaking("managesieve", &[dovecot().sieve, cyrus().sieve]);
    (0..2).fold(config, |config, index| {
        probed(config, index).set(&format!("/routing/backends/{index}/managesieve/tls"), "starttls")
    })
}

fn probed(config: Config, index: usize) -> Config {
    let config = config.set(&format!("/routing/backends/{index}/probe"), "greeting");
    config.set(&format!("/routing/backends/{index}/probe_interval"), "1s")
}

#[test]
fn sieve_extensions_are_those_that_both_servers_have() {
    let usher = Usher::start(both());
    let differ = usher.wait_log("backends differ in capabilities; only common ones are advertised", |_| true);
    assert_eq!(differ["protocol"], "managesieve", "{differ}");
    let reported = differ["differences"].as_str().unwrap();
    assert!(reported.contains("server3: ") && reported.contains("server4: "), "{differ}");

    let pigeonhole = words(&Sieve::plain(dovecot().sieve).greeting, "SIEVE");
    let timsieved = words(&Sieve::plain(cyrus().sieve).greeting, "SIEVE");
    let both: BTreeSet<String> = pigeonhole.intersection(&timsieved).cloned().collect();
    assert!(both.contains("fileinto") && pigeonhole != timsieved, "{pigeonhole:?} {timsieved:?}");

    let greeting = Sieve::tls(usher.imaps_port()).greeting;
    assert_eq!(words(&greeting, "SIEVE"), both);
    assert!(!greeting.iter().any(|line| line.starts_with("\"UNAUTHENTICATE\"")), "{greeting:?}");
    assert!(usher.metric("usher_backend_capabilities_missing", &[("protocol", "managesieve")]) >= 2.0);
    // Logged once, however often they are probed.
    usher.hup();
    usher.wait_metric("usher_backend_capability_changes_total", &[("protocol", "managesieve")], 0.0);
    let differ = |line: &&serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains("differ"));
    assert_eq!(usher.logged().iter().filter(differ).count(), 1);
    assert_eq!(words(&Sieve::tls(usher.imaps_port()).greeting, "SIEVE"), both, "kept over a reload");
}

#[test]
fn configured_capabilities_replace_the_learned_ones() {
    let config = both().set("/capabilities", json!({"managesieve": ["SIEVE fileinto", "MAXREDIRECTS 3"]}));
    let usher = Usher::start(config);
    usher.wait_log("backends differ in capabilities; only common ones are advertised", |_| true);
    let greeting = Sieve::tls(usher.imaps_port()).greeting;
    let reported = greeting.join("|");
    let expected =
        "\"IMPLEMENTATION\" \"usher\"|\"SASL\" \"PLAIN LOGIN\"|\"SIEVE\" \"fileinto\"|\"MAXREDIRECTS\" \"3\"|OK";
    assert!(reported.starts_with(expected), "{reported}");
}

#[test]
fn changed_capability_list_is_learned_and_kept_through_an_outage() {
    let state = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&state);
    let server = Scripted::tls(move |peer| {
        let list = ["SIEVE\" \"fileinto reject", "SIEVE\" \"fileinto"].get(now.load(Ordering::SeqCst));
        // An outage: the server closes without a greeting.
        let Some(list) = list else { return };
        peer.send(format!("\"IMPLEMENTATION\" \"scripted\"\r\n\"SASL\" \"PLAIN\"\r\n\"{list}\"\r\nOK\r\n"));
        peer.wait_for_end();
    });
    let config = probed(Config::shared().speaking("managesieve", &[server.port]), 0);
    let usher = Usher::start(config);
    let offered = |wanted: &str| {
        // A change of the greeting offers no event to wait for.
        for _ in 0..200 {
            if words(&Sieve::tls(usher.imaps_port()).greeting, "SIEVE").into_iter().collect::<Vec<_>>().join(" ")
                == wanted
            {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("never advertised {wanted}");
    };
    offered("fileinto reject");
    state.store(1, Ordering::SeqCst);
    usher.wait_log("backend capabilities changed", |line| line["backend"] == "server3");
    offered("fileinto");
    let labels = [("backend", "server3"), ("protocol", "managesieve")];
    assert_eq!(usher.metric("usher_backend_capability_changes_total", &labels), 1.0);
    state.store(2, Ordering::SeqCst);
    usher.wait_log("backend address marked down", |line| line["backend"] == "server3");
    offered("fileinto");
    usher.hup();
    offered("fileinto");
}

/// A capability that usher implements before login cannot be removed by one backend.
#[test]
fn backend_without_capabilities_removes_nothing_for_imap_clients() {
    let server = Scripted::accepting();
    let usher = Usher::start(Config::with_directory(crate::kit::slapd()).scripted(&server));
    let usual = "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE AUTH=PLAIN AUTH=LOGIN] usher is ready";
    let mut imap = Imap::tls(usher.imaps_port());
    assert_eq!(imap.greeting, usual);
    // Its greeting lists neither, as this login shows.
    imap.login("alice", &password_of("alice")).ok();
    // Lists are merged a few times a second, and at once after a reload.
    usher.hup();
    assert_eq!(Imap::tls(usher.imaps_port()).greeting, usual);
}

/// Lists are bounded, so that replies to clients are: oversized capabilities are not advertised.
#[test]
fn oversized_capability_lists_are_not_advertised() {
    let usher = Usher::start(hostile("managesieve"));
    usher.wait_metric("usher_backend_probes_total", &[("backend", "server3"), ("result", "ok")], 2.0);
    usher.hup();
    let greeting = Sieve::tls(usher.imaps_port()).greeting;
    assert!(greeting.contains(&"\"MAXREDIRECTS\" \"3\"".to_owned()), "{greeting:?}");
    assert!(!greeting.iter().any(|line| line.contains("NOTIFY")), "{greeting:?}");

    let usher = Usher::start(hostile("submission"));
    usher.wait_metric("usher_backend_probes_total", &[("backend", "server3"), ("result", "ok")], 2.0);
    usher.hup();
    let advertised = keywords(&mut Imap::tls(usher.imaps_port()));
    assert!(advertised.iter().any(|keyword| keyword.starts_with("LIMITS X0")), "{advertised:?}");
    assert!(advertised.iter().map(String::len).sum::<usize>() < 5 * 1024, "{advertised:?}");
}

/// A probed server that lists as much as the login limit allows: one capability of 59 KB, or as many
/// as fit.
pub(crate) fn hostile(protocol: &str) -> Config {
    let server = match protocol {
        "managesieve" => Scripted::tls(|peer| {
            peer.send("\"IMPLEMENTATION\" \"scripted\"\r\n\"SASL\" \"PLAIN\"\r\n\"NOTIFY\" {59000}\r\n");
            peer.send(format!("{}\r\n\"MAXREDIRECTS\" \"3\"\r\nOK\r\n", "x".repeat(59_000)));
            peer.wait_for_end();
        }),
        _ => Scripted::tls(|peer| {
            peer.send("220 scripted\r\n");
            while peer.line().is_some() {
                let many: String = (0..99).map(|n| format!("250-LIMITS X{n}{}\r\n", "x".repeat(380))).collect();
                peer.send(format!("250-scripted\r\n{many}250 AUTH PLAIN\r\n"));
            }
        }),
    };
    // Probed once: with IMAP, two probes.
    probed(Config::shared().speaking(protocol, &[server.port]), 0).set("/routing/backends/0/probe_interval", "1h")
}

#[test]
fn common_imap_capabilities_of_dovecot_and_cyrus_are_advertised() {
    let config = (0..2).fold(Config::shared(), probed);
    // One probe of each and no more.
    let once = |config: Config, index| config.set(&format!("/routing/backends/{index}/probe_interval"), "1h");
    let usher = Usher::start((0..2).fold(config, once));
    for server in ["server3", "server4"] {
        usher.wait_metric("usher_backend_probes_total", &[("backend", server), ("result", "ok")], 1.0);
    }
    let greeting = Imap::tls(usher.imaps_port()).greeting.clone();
    assert!(greeting.contains(" LITERAL- ID ENABLE "), "{greeting}");
    assert_eq!(usher.metric("usher_backend_capabilities_missing", &[("protocol", "imap")]), 0.0);
}

/// The keywords of an EHLO.
fn keywords(client: &mut Imap) -> BTreeSet<String> {
    client.send("EHLO here\r\n");
    let mut keywords = BTreeSet::new();
    loop {
        let line = client.line();
        keywords.insert(line[4..].to_owned());
        if line.starts_with("250 ") {
            return keywords;
        }
    }
}

#[test]
fn smaller_size_of_two_dovecots_is_advertised() {
    let sized = |pair, size: &str| {
        let more = format!("submission_max_mail_size = {size}\n");
        Dovecot::start_with(&shared().certificates, pair, false, &more)
    };
    let (large, small) = (sized(&shared().server3, "20 M"), sized(&shared().server4, "5 M"));
    let config = Config::shared().speaking("submission", &[large.submissions, small.submissions]);
    let usher = Usher::start((0..2).fold(config, probed));
    for (server, port, size) in [
        ("server3.example.com", large.submissions, "SIZE 20971520"),
        ("server4.example.com", small.submissions, "SIZE 5242880"),
    ] {
        let mut direct = Imap::try_tls(port, &Tls { server_name: server, ..Tls::default() }).unwrap();
        assert!(keywords(&mut direct).contains(size), "{server} is set up for {size}");
    }
    usher.wait_log("backends differ in capabilities; only common ones are advertised", |line| {
        line["protocol"] == "submission"
            && line["differences"].as_str().is_some_and(|reported| reported.contains("SIZE"))
    });
    let advertised = keywords(&mut Imap::tls(usher.imaps_port()));
    assert!(advertised.contains("SIZE 5242880") && advertised.contains("CHUNKING"), "{advertised:?}");
}

/// What an Exchange server lists for its own kind.
#[test]
fn extensions_between_servers_are_not_advertised() {
    let exchange = Scripted::tls(|peer| {
        peer.send("220 scripted\r\n");
        while peer.line().is_some() {
            peer.send("250-scripted\r\n250-SIZE 37748736\r\n250-PIPELINING\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n");
            peer.send("250-X-ANONYMOUSTLS\r\n250-AUTH PLAIN LOGIN\r\n250-X-EXPS GSSAPI NTLM LOGIN\r\n250-ETRN\r\n");
            peer.send("250-8BITMIME\r\n250-BINARYMIME\r\n250-CHUNKING\r\n250-XEXCH50\r\n250-XSHADOW\r\n250 XRDST\r\n");
        }
    });
    let config = probed(Config::shared().speaking("submission", &[exchange.port]), 0);
    let usher = Usher::start(config.set("/routing/backends/0/probe_interval", "1h"));
    usher.wait_metric("usher_backend_probes_total", &[("backend", "server3"), ("result", "ok")], 2.0);
    usher.hup();
    let listed = keywords(&mut Imap::tls(usher.imaps_port()));
    let expected = "8BITMIME|AUTH PLAIN LOGIN|BINARYMIME|CHUNKING|DSN|ENHANCEDSTATUSCODES|PIPELINING|SIZE 37748736|\
                    usher.example.com";
    assert_eq!(listed.into_iter().collect::<Vec<_>>().join("|"), expected);
}

#[test]
fn submission_advertises_the_smallest_size_and_the_common_keywords() {
    let small = Scripted::tls_as(&shared().server4, |peer| {
        peer.send("220 scripted\r\n");
        while let Some(line) = peer.line() {
            assert!(line.starts_with("EHLO "), "{line}");
            peer.send("250-scripted\r\n250-SIZE 1000\r\n250-CHUNKING\r\n250-DSN\r\n250-8BITMIME\r\n250-PIPELINING\r\n");
            peer.send("250 AUTH PLAIN\r\n");
        }
    });
    let config = Config::shared().speaking("submission", &[dovecot().submissions, small.port]);
    let usher = Usher::start((0..2).fold(config, probed));
    let differ = usher.wait_log("backends differ in capabilities; only common ones are advertised", |line| {
        line["protocol"] == "submission"
    });
    let reported = differ["differences"].as_str().unwrap();
    assert!(reported.contains("server3: ") && reported.contains("server4: ") && reported.contains("DSN"), "{differ}");
    let mut client = Imap::tls(usher.imaps_port());
    let keywords = keywords(&mut client);
    let has = |keyword: &str| keywords.contains(keyword);
    assert!(has("8BITMIME") && has("PIPELINING") && has("AUTH PLAIN LOGIN"), "{keywords:?}");
    assert!(!has("DSN") && !has("ENHANCEDSTATUSCODES"), "only one of them has these: {keywords:?}");
    assert!(keywords.iter().all(|keyword| !keyword.starts_with("SIZE") || keyword == "SIZE 1000"), "{keywords:?}");
}
