//! Clients that are not logged in, or never can be, take no slots and no login rate from others.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::{Config, Imap, PROMISED_SECOND, Usher, password_of};

const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 3];

#[test]
fn silent_connections_after_the_handshake_block_no_login() {
    // Every network rule is a dry run, as by default.
    let usher = Usher::start(Config::shared().set("/limits/connections", 40));
    let mut session = Imap::tls_from(HOME, usher.imaps_port());
    session.login("alice", &password_of("alice")).ok();
    // One address opens more connections than there are slots and stays silent. Up to 3/4 of 20 are accepted.
    let silent: Vec<Imap> = (0..60).filter_map(|_| Imap::try_tls_from(ELSEWHERE, usher.imaps_port()).ok()).collect();
    assert!(usher.metric("usher_connections_unauthenticated", &[]) <= 15.0);
    let asked = Instant::now();
    for login in ["bob", "alice"] {
        Imap::tls_from(HOME, usher.imaps_port()).login(login, &password_of(login)).ok();
    }
    assert!(asked.elapsed() < PROMISED_SECOND * 3, "{:?}", asked.elapsed());
    session.command("NOOP").ok();
    let labels = [("rule", "connections_per_prefix"), ("effect", "refused"), ("mode", "enforce")];
    assert!(usher.metric("usher_throttled_total", &labels) >= 1.0);
    drop(silent);
    usher.wait_metric("usher_connections_unauthenticated", &[], 0.0);
}

#[test]
fn unauthenticated_connections_are_limited_apart_from_sessions() {
    let config = Config::shared().set("/limits/connections", 8).set("/limits/unauthenticated", 2);
    let usher = Usher::start(config.set("/throttle/exempt", json!(["127.0.0.0/8"])));
    let sessions: Vec<Imap> = (0..4)
        .map(|_| {
            let mut imap = Imap::tls(usher.imaps_port());
            imap.login("alice", &password_of("alice")).ok();
            imap
        })
        .collect();
    let mut waiting: Vec<Imap> = (0..2).map(|_| Imap::tls(usher.imaps_port())).collect();
    assert_eq!(usher.metric("usher_connections_unauthenticated", &[]), 2.0);
    assert_eq!(Imap::silent(usher.imaps_port()).rest(), b"");
    usher.wait_metric("usher_connections_refused_total", &[], 1.0);
    let reported = usher.wait_log("connection closed: connection limit reached", |_| true);
    assert_eq!(reported["limit"], "limits.unauthenticated", "{reported}");
    // A login frees its slot for the next client.
    waiting[0].login("bob", &password_of("bob")).ok();
    Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).ok();
    drop(sessions);
}

#[test]
fn valid_passwords_without_a_route_are_delayed_and_counted_but_take_no_slot() {
    let config = Config::shared().set("/limits/failed_logins", 2).set("/limits/refusal_delay", "400ms");
    let rule = json!({"mode": "enforce", "limit": 1});
    let usher = Usher::start(config.set("/throttle/logins_per_second", rule));
    // carol has no mailHost, dave's names no backend; a valid cached password makes no difference.
    for (login, result) in [("carol", "no_mail_host"), ("dave", "unknown_mail_host")] {
        let mut imap = Imap::tls(usher.imaps_port());
        let asked = Instant::now();
        imap.login(login, &password_of(login)).is("NO [CONTACTADMIN]");
        assert!(asked.elapsed() >= Duration::from_millis(400), "{login}: {:?}", asked.elapsed());
        imap.send(format!("z LOGIN {login} {}\r\n", password_of(login)));
        let rest = String::from_utf8(imap.rest()).unwrap();
        assert!(rest.contains("z NO [CONTACTADMIN]") && rest.contains("* BYE"), "{rest}");
        assert_eq!(usher.metric("usher_logins_total", &[("result", result)]), 2.0);
    }
    // After four valid passwords the one login of this second is still available.
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    assert_eq!(usher.metric("usher_logins_total", &[("result", "limit")]), 0.0);
}
