//! The effect of a change on a session, at any time: while a login is decided, while its OK is in
//! transit, and after it. And accounts whose entries show them as disabled.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use crate::kit::client::base64;
use crate::kit::scripted::{GREETING, Peer, Scripted};
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::SUFFIX;
use crate::kit::{Config, Imap, User, Usher, dovecot, password_of, relay};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";
/// The size of a backend's output before it accepts a login: far more than the kernel buffers, and little
/// enough for a busy machine to send it within the login timeout.
const OUTPUT_BEFORE_OK: usize = 2 * 1024 * 1024;

/// A followed directory with a password policy and the attributes of other directories.
fn directory() -> Slapd {
    Slapd::with(Options {
        modules: &["syncprov", "ppolicy"],
        global: "attributetype ( 1.2.840.113556.1.4.159 NAME 'accountExpires' \
                 SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )\n\
                 attributetype ( 1.3.6.1.1.1.1.10 NAME 'shadowExpire' EQUALITY integerMatch \
                 SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )\n\
                 attributetype ( 2.16.840.1.113730.3.1.610 NAME 'nsAccountLock' EQUALITY caseIgnoreMatch \
                 SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )\n",
        database: &format!("{SYNCPROV}overlay ppolicy\nppolicy_default \"cn=policy,ou=services,{SUFFIX}\"\n"),
        entries: &format!(
            "dn: cn=policy,ou=services,{SUFFIX}\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\n\
             pwdAttribute: userPassword\n\n"
        ),
        ..Options::default()
    })
}

fn config(slapd: &Slapd, backends: &[&Scripted]) -> Config {
    let mut config = Config::with_directory(slapd);
    for (backend, name) in backends.iter().zip(["server3", "server4"]) {
        config = config.backend(name, backend.port, &[name]);
        let index = if name == "server3" { 0 } else { 1 };
        config = config.set(&format!("/routing/backends/{index}/imap/server_name"), "server3.example.com");
    }
    config
        .set("/directory/watch", "auto")
        .set("/cache/ttl", "1h")
        .set("/directory/on_password_change", "close")
        .set("/directory/hold_attribute", "description")
        .set("/limits/max_backend_greeting", "16MiB")
}

fn start(config: Config) -> Usher {
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    usher
}

fn set(slapd: &Slapd, attribute: &str, value: Option<&str>) {
    slapd.set(&User::new("alice", None), attribute, value);
}

/// Sends so much before it accepts a login that the OK cannot reach a client that does not read.
fn verbose_backend() -> Scripted {
    Scripted::tls(|peer: &mut Peer| {
        peer.send(GREETING);
        if let Some(tag) = peer.take_login() {
            let line = format!("* OK {}\r\n", "x".repeat(8_000));
            peer.send(line.repeat(OUTPUT_BEFORE_OK / line.len()));
            peer.send(format!("{tag} OK [CAPABILITY IMAP4rev1] welcome\r\n"));
            peer.reply_to_everything();
        }
    })
}

/// A client that fills its receive window with pipelined CAPABILITY, logs in and reads nothing.
fn unread_login(usher: &Usher) -> Imap {
    let mut imap = Imap::with_small_window(usher.imaps_port());
    imap.send("c CAPABILITY\r\n".repeat(10));
    imap.send(format!("w LOGIN alice {}\r\nn NOOP\r\n", password_of("alice")));
    imap
}

/// Whether the client received OK before the connection ended.
fn was_accepted(imap: &mut Imap) -> bool {
    let said = imap.rest();
    let has = |line: &[u8]| said.windows(line.len()).any(|window| window == line);
    assert!(has(b"c OK"), "{} bytes", said.len());
    has(b"\nw OK") || has(b"\nn OK")
}

#[test]
fn client_that_reads_its_ok_late_gets_it_if_the_entry_is_unchanged() {
    let (slapd, backend) = (directory(), verbose_backend());
    let usher = start(config(&slapd, &[&backend]));
    let mut imap = unread_login(&usher);
    assert_eq!(usher.login("alice")["result"], "ok");
    usher.wait_metric("usher_sessions", &[], 1.0);
    imap.reply("w").ok();
    imap.reply("n").is("OK did NOOP");
}

#[test]
fn session_whose_ok_is_blocked_is_listed_and_ends_by_every_reason() {
    let (slapd, backend, other) = (directory(), verbose_backend(), Scripted::accepting());
    let usher = start(config(&slapd, &[&backend, &other]));
    let listed = |count: &str| {
        let shown = usher.command(&["sessions", "--user", "alice"]);
        assert!(shown.stdout.contains(count), "{shown:?}");
    };
    let mut ended: HashMap<&str, f64> = HashMap::new();
    let mut nth = 0;
    type Act<'a> = &'a dyn Fn();
    let modify = |ldif: &str| slapd.modify(&format!("dn: {ALICE}\n{ldif}"));
    let cases: [(&str, Act<'_>, Act<'_>); 6] = [
        ("hold", &|| set(&slapd, "description", Some("held")), &|| set(&slapd, "description", None)),
        ("disabled", &|| set(&slapd, "pwdAccountLockedTime", Some("000001010000Z")), &|| {
            set(&slapd, "pwdAccountLockedTime", None)
        }),
        ("password_changed", &|| modify("changetype: modify\nreplace: userPassword\nuserPassword: another\n"), &|| {
            set(&slapd, "userPassword", Some(&password_of("alice")))
        }),
        ("moved", &|| set(&slapd, "mailHost", Some("server4")), &|| set(&slapd, "mailHost", Some("server3"))),
        ("kicked", &|| drop(usher.command(&["kick", "--user", "alice"]).succeeded()), &|| {}),
        ("backend_drained", &|| drop(usher.command(&["backends", "drain", "server3"]).succeeded()), &|| {
            drop(usher.command(&["backends", "undrain", "server3"]).succeeded())
        }),
    ];
    for (cause, act, undo) in cases {
        let mut imap = unread_login(&usher);
        nth += 1;
        assert_eq!(usher.nth_login(nth, "alice")["result"], "ok", "{cause}");
        listed("server3");
        act();
        let count = ended.entry(cause).or_default();
        *count += 1.0;
        usher.wait_metric("usher_sessions_ended_total", &[("cause", cause)], *count);
        usher.wait_log("end", |line| line["cause"] == cause);
        listed("0 sessions");
        assert!(!was_accepted(&mut imap), "{cause}");
        undo();
        usher.wait_metric("usher_sessions", &[], 0.0);
        wait_until_accepted(&usher, &mut nth);
    }
    // After a rename it is found by the new DN.
    let mut imap = unread_login(&usher);
    nth += 1;
    assert_eq!(usher.nth_login(nth, "alice")["result"], "ok");
    slapd.modify(&format!("dn: {ALICE}\nchangetype: modrdn\nnewrdn: cn=alice\ndeleteoldrdn: 0\n"));
    usher.wait_log("entry renamed", |line| line["old"] == ALICE);
    usher.command(&["kick", "--user", "cn=alice,ou=people,dc=example,dc=com"]).succeeded();
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "kicked")], 2.0);
    assert!(!was_accepted(&mut imap));
}

/// Waits until alice is accepted again at server3: the reverted change has arrived.
fn wait_until_accepted(usher: &Usher, nth: &mut usize) {
    loop {
        let mut imap = Imap::tls(usher.imaps_port());
        let reply = imap.login("alice", &password_of("alice"));
        *nth += 1;
        let event = usher.nth_login(*nth, "alice");
        if reply.tagged.starts_with("OK ") && event["backend"] == "server3" {
            imap.command("LOGOUT");
            usher.wait_metric("usher_sessions", &[], 0.0);
            return;
        }
    }
}

/// A backend that accepts a login when the gate opens.
struct GatedBackend {
    backend: Scripted,
    gate: Sender<()>,
}

impl GatedBackend {
    fn new() -> Self {
        let (gate, open): (_, Receiver<()>) = channel();
        let open = Mutex::new(open);
        let backend = Scripted::tls(move |peer| {
            peer.send(GREETING);
            if let Some(tag) = peer.take_login() {
                let _ = open.lock().unwrap().recv_timeout(Duration::from_secs(30));
                peer.send(format!("{tag} OK [CAPABILITY IMAP4rev1] welcome\r\n"));
                peer.reply_to_everything();
            }
        });
        Self { backend, gate }
    }
}

#[test]
fn dialogue_begun_before_a_reload_uses_the_configuration_in_force() {
    let (slapd, backend) = (directory(), Scripted::accepting());
    let mut usher = start(config(&slapd, &[&backend]));
    let mut session = Imap::tls(usher.imaps_port());
    session.login("alice", &password_of("alice")).ok();
    let mut old = Imap::tls(usher.imaps_port());
    usher.config.change("/cache/ttl", "2h");
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    usher.wait_nth_log(2, "watching the directory for changes", |_| true);
    set(&slapd, "pwdAccountLockedTime", Some("000001010000Z"));
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "disabled")], 1.0);
    // Decided and cached before the reload, in a cache that no longer receives changes.
    old.login("alice", &password_of("alice")).is("NO [AUTHENTICATIONFAILED]");
}

#[test]
fn attempt_begun_before_a_reload_uses_the_configuration_in_force() {
    let (slapd, gated) = (directory(), GatedBackend::new());
    let mut usher = start(config(&slapd, &[&gated.backend]));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.send(format!("w LOGIN alice {}\r\n", password_of("alice")));
    gated.backend.next_login();
    usher.config.change("/cache/ttl", "2h");
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    usher.wait_nth_log(2, "watching the directory for changes", |_| true);
    set(&slapd, "nsAccountLock", Some("TRUE"));
    gated.gate.send(()).unwrap();
    imap.reply("w").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.login("alice")["result"], "account_disabled");
    usher.wait_metric("usher_sessions", &[], 0.0);
}

#[test]
fn change_during_a_login_refuses_it_and_a_move_is_followed() {
    let (slapd, gated, other) = (directory(), GatedBackend::new(), Scripted::accepting());
    let usher = start(config(&slapd, &[&gated.backend, &other]).set("/directory/reveal_account_state", true));
    let begin = || {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.send(format!("w LOGIN alice {}\r\n", password_of("alice")));
        gated.backend.next_login();
        imap
    };
    let changed = |kind: &str| usher.wait_metric("usher_directory_changes_total", &[("kind", kind)], 1.0);
    // The server accepts its bind: only the entry shows the state.
    let mut imap = begin();
    set(&slapd, "nsAccountLock", Some("TRUE"));
    changed("disable");
    gated.gate.send(()).unwrap();
    imap.reply("w").is("NO [CONTACTADMIN] Your account is disabled");
    set(&slapd, "nsAccountLock", None);
    changed("enable");
    let mut imap = begin();
    set(&slapd, "mailHost", Some("server4"));
    changed("move");
    gated.gate.send(()).unwrap();
    imap.reply("w").ok();
    assert_eq!(usher.nth_login(2, "alice")["backend"], "server4");
}

/// Dovecot's submission service with this directory.
fn submission(slapd: &Slapd) -> Config {
    relay();
    Config::with_directory(slapd)
        .backend("server3", dovecot().imaps, &["server3"])
        .backend("server4", dovecot().imaps, &["server4"])
        .speaking("submission", &[dovecot().submissions])
        .set("/directory/watch", "auto")
        .set("/directory/hold_attribute", "description")
}

fn reply(smtp: &mut Imap) -> String {
    let mut line = smtp.line();
    while line.as_bytes().get(3) == Some(&b'-') {
        line = smtp.line();
    }
    line
}

fn ask(smtp: &mut Imap, command: &str) -> String {
    smtp.send(format!("{command}\r\n"));
    reply(smtp)
}

/// A session of alice's with a message begun.
fn sending(usher: &Usher) -> Imap {
    let mut smtp = Imap::tls(usher.imaps_port());
    ask(&mut smtp, "EHLO here");
    let plain = base64(format!("\0alice\0{}", password_of("alice")).as_bytes());
    assert!(ask(&mut smtp, &format!("AUTH PLAIN {plain}")).starts_with("235 "));
    assert!(ask(&mut smtp, "MAIL FROM:<alice@example.com>").starts_with("250 "));
    assert!(ask(&mut smtp, "RCPT TO:<carol@example.com>").starts_with("250 "));
    smtp
}

#[test]
fn disabled_account_sends_nothing_more_and_a_moved_one_continues() {
    let slapd = directory();
    let usher = start(submission(&slapd));
    let (mut idle, mut busy) = (sending(&usher), sending(&usher));
    set(&slapd, "mailHost", Some("server4"));
    usher.wait_log("route changed", |line| line["new_backend"] == "server4");
    assert!(ask(&mut busy, "DATA").starts_with("354 "));
    busy.send("Subject: half of it\r\n\r\nnever sent");
    set(&slapd, "nsAccountLock", Some("TRUE"));
    // The reply to its next command, such as DATA.
    assert_eq!(reply(&mut idle), "421 4.3.2 Your account is no longer available");
    idle.expect_clean_end();
    // During a message nothing is sent that could be mistaken for its acceptance.
    busy.expect_clean_end();
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "disabled")], 2.0);
    assert_eq!(usher.metric("usher_sessions_ended_total", &[("cause", "moved")]), 0.0);
    assert!(!relay().has("Subject: half of it"));
    set(&slapd, "nsAccountLock", None);
    set(&slapd, "mailHost", Some("server3"));
    usher.wait_metric("usher_directory_changes_total", &[("kind", "move")], 2.0);
    let mut kicked = sending(&usher);
    usher.command(&["kick", "--user", "alice"]).succeeded();
    assert_eq!(reply(&mut kicked), "421 4.3.2 Session ended by an administrator, please reconnect");
    let mut held = sending(&usher);
    set(&slapd, "description", Some("held"));
    assert!(reply(&mut held).starts_with("421 "), "no login is accepted during a hold");
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "hold")], 1.0);
}

/// Seconds from now in the form of accountExpires.
fn filetime(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    ((i64::try_from(now).unwrap() + seconds + 11_644_473_600) * 10_000_000).to_string()
}

#[test]
fn disabled_or_expired_account_is_refused_although_its_bind_succeeds() {
    let (slapd, backend) = (directory(), Scripted::accepting());
    for watch in ["off", "auto"] {
        let usher = Usher::start(config(&slapd, &[&backend]).set("/directory/watch", watch).set("/cache/ttl", "1s"));
        let mut nth = 0;
        let mut login = |result: &str| {
            let reply = Imap::tls(usher.imaps_port()).login("alice", &password_of("alice"));
            nth += 1;
            assert_eq!(usher.nth_login(nth, "alice")["result"], result, "{watch}");
            let expected = if result == "ok" { "OK " } else { "NO [AUTHENTICATIONFAILED]" };
            assert!(reply.tagged.starts_with(expected), "{watch} {reply:?}");
        };
        for (attribute, value, result) in [
            ("nsAccountLock", "TRUE".to_owned(), "account_disabled"),
            ("accountExpires", filetime(-10), "account_expired"),
            ("accountExpires", "9223372036854775807".to_owned(), "ok"),
            ("accountExpires", "0".to_owned(), "ok"),
            ("accountExpires", filetime(3_600), "ok"),
            ("shadowExpire", "1".to_owned(), "ok"),
        ] {
            set(&slapd, attribute, Some(&value));
            // The cached decision has expired or was dropped.
            std::thread::sleep(Duration::from_millis(1_100));
            login(result);
            set(&slapd, attribute, None);
            std::thread::sleep(Duration::from_millis(1_100));
        }
        login("ok");
    }
    let usher =
        Usher::start(config(&slapd, &[&backend]).set("/directory/disabled_by", serde_json::json!(["shadowExpire"])));
    set(&slapd, "nsAccountLock", Some("TRUE"));
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    set(&slapd, "shadowExpire", Some("1"));
    usher.wait_metric("usher_sessions", &[], 0.0);
    let refused = Imap::tls(usher.imaps_port()).login("alice", &password_of("alice"));
    assert!(refused.tagged.starts_with("NO [AUTHENTICATIONFAILED]"), "{refused:?}");
}

#[test]
fn expiry_ends_the_session_and_is_not_cached_past_its_date() {
    let (slapd, backend) = (directory(), Scripted::accepting());
    let usher = start(config(&slapd, &[&backend]));
    set(&slapd, "accountExpires", Some(&filetime(4)));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    // The decision is cached for an hour, and the account expires within it.
    let refused = std::iter::repeat_with(|| Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")));
    let refused = refused.map(|reply| reply.tagged).find(|tagged| !tagged.starts_with("OK ")).unwrap();
    assert!(refused.starts_with("NO [AUTHENTICATIONFAILED]"), "{refused}");
    set(&slapd, "accountExpires", Some(&filetime(-4)));
    usher.wait_log("end", |line| line["cause"] == "expired");
}
