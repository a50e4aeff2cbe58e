//! Postfix's questions: what each map answers, what is no question, and where connections end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::SUFFIX;
use crate::kit::usher::Successor;
use crate::kit::{Config, Imap, User, Usher, wait_limit};

const TO_3: &str = "OK lmtp:inet:server3.example.com:24";
const TO_4: &str = "OK lmtp:inet:server4.example.com:24";
const HOLD: &str = "description";

/// A connection of Postfix.
pub(crate) struct Postfix<S>(S);

impl Postfix<TcpStream> {
    fn tcp(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(wait_limit(Duration::from_secs(20)))).unwrap();
        Self(stream)
    }

    pub(crate) fn of(usher: &Usher) -> Self {
        Self::tcp(port(usher))
    }

    /// From this loopback address.
    fn from(address: [u8; 4], usher: &Usher) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], port(usher))).into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(wait_limit(Duration::from_secs(20)))).unwrap();
        Self(stream)
    }
}

impl<S: Read + Write> Postfix<S> {
    /// The answer to a question.
    pub(crate) fn ask(&mut self, map: &str, key: &str) -> String {
        self.try_ask(map, key).unwrap()
    }

    fn try_ask(&mut self, map: &str, key: &str) -> std::io::Result<String> {
        let question = format!("{map} {key}");
        write!(self.0, "{}:{question},", question.len())?;
        self.try_answer()
    }

    fn answer(&mut self) -> String {
        self.try_answer().unwrap()
    }

    fn try_answer(&mut self) -> std::io::Result<String> {
        let mut length = String::new();
        loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            match byte[0] {
                b':' => break,
                digit => length.push(char::from(digit)),
            }
        }
        let mut rest = vec![0; length.parse::<usize>().unwrap() + 1];
        self.0.read_exact(&mut rest)?;
        assert_eq!(rest.pop(), Some(b','));
        Ok(String::from_utf8(rest).unwrap())
    }

    fn transport(&mut self, key: &str) -> String {
        self.ask("transport", key)
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}

fn port(usher: &Usher) -> u16 {
    let line = usher.wait_log("socketmap listening", |_| true);
    line["address"].as_str().unwrap().parse::<SocketAddr>().unwrap().port()
}

/// A followed directory with `users`.
fn directory(users: &[User]) -> Slapd {
    let entries: String = users.iter().map(User::ldif).collect();
    Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, entries: &entries, ..Options::default() })
}

/// Mailboxes at server3 and server4, which take mail by LMTP.
pub(crate) fn delivering(slapd: &Slapd) -> Config {
    Config::with_directory(slapd)
        .backend("server3", 9, &["server3"])
        .backend("server4", 9, &["server4"])
        .set("/routing/backends/0/delivery", "lmtp:inet:server3.example.com:24")
        .set("/routing/backends/1/delivery", "lmtp:inet:server4.example.com:24")
        .set("/directory/watch", "auto")
        .set("/directory/hold_attribute", HOLD)
        .set("/socketmap", json!({"address": "127.0.0.1:0", "domains": ["example.com"], "recipient_delimiter": "+-"}))
}

fn start(config: Config) -> Usher {
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    usher
}

fn with_mail(name: &str, host: Option<&'static str>, mails: &'static [&'static str]) -> User {
    User { mails, ..User::new(name, host) }
}

fn searches(slapd: &Slapd, address: &str) -> usize {
    slapd.searches(&format!("(mail={address})"))
}

#[test]
fn address_leads_to_the_server_of_its_entry() {
    let slapd = directory(&[
        with_mail("post1", Some("server3"), &["post1@example.com", "p.one@example.com", "lists-in@example.com"]),
        with_mail("post2", Some("server4"), &["post2@example.com", "post1+two@example.com"]),
        with_mail("nowhere", None, &["nowhere@example.com"]),
        with_mail("lost", Some("server9"), &["lost@example.com"]),
        with_mail("twin1", Some("server3"), &["twins@example.com"]),
        with_mail("twin2", Some("server3"), &["twins@example.com"]),
    ]);
    let usher = start(delivering(&slapd));
    let mut postfix = Postfix::of(&usher);
    for (key, transport, recipient) in [
        ("post1@example.com", TO_3, "OK post1@example.com"),
        ("POST1@Example.COM", TO_3, "OK post1@example.com"),
        ("p.one@example.com", TO_3, "OK p.one@example.com"),
        ("post2@example.com", TO_4, "OK post2@example.com"),
        // The whole address first.
        ("post1+two@example.com", TO_4, "OK post1+two@example.com"),
        ("post1+three@example.com", TO_3, "OK post1@example.com"),
        ("post1-three+four@example.com", TO_3, "OK post1@example.com"),
        ("lists-in@example.com", TO_3, "OK lists-in@example.com"),
        // Postfix does not split these.
        ("owner-post1@example.com", "NOTFOUND ", "NOTFOUND "),
        ("post1-request@example.com", "NOTFOUND ", "NOTFOUND "),
        ("+post1@example.com", "NOTFOUND ", "NOTFOUND "),
        ("unknown@example.com", "NOTFOUND ", "NOTFOUND "),
        ("nowhere@example.com", "TEMP its entry has no mail host", "OK nowhere@example.com"),
        ("lost@example.com", "TEMP its mail host is not that of a configured backend", "OK lost@example.com"),
        ("twins@example.com", "TEMP several entries have this address", "TEMP several entries have this address"),
    ] {
        assert_eq!(postfix.transport(key), transport, "{key}");
        assert_eq!(postfix.ask("recipient", key), recipient, "{key}");
    }
    let before = slapd.searches("(mail=");
    let long = format!("{}@example.com", "x".repeat(600));
    for key in [
        "*",
        "",
        "post1",
        "@example.com",
        "post1@",
        "post1@example.org",
        "post1@sub.example.com",
        "post1@example.com.",
        " post1@example.com",
        "post1@example.com ",
        "post1@example.com\n",
        "post1@example.com\0",
        &long,
        &"x".repeat(90_000),
    ] {
        assert_eq!((postfix.transport(key), postfix.ask("recipient", key)), ("NOTFOUND ".into(), "NOTFOUND ".into()));
    }
    assert!(postfix.ask("aliases", "post1@example.com").starts_with("TEMP there is no such map"));
    assert_eq!(slapd.searches("(mail="), before, "the directory was asked");
    let several = usher.wait_log("mail is deferred", |line| line["reason"] == "several entries have this address");
    let cause = several["cause"].as_str().unwrap();
    assert!(cause.contains("uid=twin1,") && cause.contains("uid=twin2,"), "{several}");
    // The name in the filter is a value and no part of it.
    assert_eq!(postfix.transport("*@example.com"), "NOTFOUND ");
    assert_eq!(postfix.transport("post1)(uid=*@example.com"), "NOTFOUND ");
    let counted = |map, result| usher.metric("usher_socketmap_requests_total", &[("map", map), ("result", result)]);
    assert_eq!((counted("transport", "ok"), counted("recipient", "temp"), counted("other", "temp")), (8.0, 1.0, 1.0));
    assert_eq!(usher.metric("usher_socketmap_connections", &[]), 1.0);
    let (_, page) = usher.http("/");
    assert!(page.contains("Answers since the start") && page.contains("Connections of Postfix"), "{page}");
}

/// A shared mailbox, which no login name finds: its entry is followed all the same, and a refresh does not take it for
/// deleted.
#[test]
fn entry_that_only_the_mail_filter_finds_is_followed() {
    let slapd = directory(&[]);
    let dn = "cn=team,ou=people,dc=example,dc=com";
    slapd.modify(&format!(
        "dn: {dn}\nchangetype: add\nobjectClass: organizationalRole\nobjectClass: extensibleObject\ncn: team\n\
         mail: team@example.com\nmailHost: server3\n"
    ));
    let usher = start(delivering(&slapd).set("/directory/filter", "(uid={login})").set("/cache/ttl", "1h"));
    let mut postfix = Postfix::of(&usher);
    assert_eq!(postfix.transport("team@example.com"), TO_3);
    slapd.modify(&format!("dn: {dn}\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n"));
    usher.wait_log("route changed", |line| line["dn"] == dn);
    assert_eq!(postfix.transport("team@example.com"), TO_4);
    let deleted = usher.metric("usher_directory_changes_total", &[("kind", "delete")]);
    assert_eq!(deleted, 0.0);
}

#[test]
fn answer_is_cached_apart_from_logins_and_follows_changes() {
    // One user's address is another one's login name.
    let slapd = directory(&[
        with_mail("cross1", Some("server3"), &["cross2"]),
        with_mail("move1", Some("server3"), &["move1@example.com"]),
        with_mail("cross@example.com", Some("server4"), &["other@example.com"]),
        with_mail("other", Some("server3"), &["cross@example.com"]),
    ]);
    let usher = start(delivering(&slapd).set("/directory/filter", "(uid={login})"));
    let mut postfix = Postfix::of(&usher);
    assert_eq!(postfix.transport("cross@example.com"), TO_3);
    assert_eq!(postfix.transport("other@example.com"), TO_4);
    assert_eq!(usher.command(&["cache", "show", "uid=other,ou=people,dc=example,dc=com"]).code, 0);
    // It proves no user: the first login is a bind.
    Imap::tls(usher.imaps_port()).login("cross@example.com", "wrong").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.login("cross@example.com")["dn"], User::new("cross@example.com", None).dn().replace("\\40", "@"));
    for _ in 0..3 {
        assert_eq!(postfix.transport("move1@example.com"), TO_3);
    }
    assert_eq!(searches(&slapd, "move1@example.com"), 1, "it is cached");
    let mover = User::new("move1", None);
    slapd.set(&mover, "mailHost", Some("server4"));
    usher.wait_log("route changed", |line| line["dn"] == mover.dn());
    assert_eq!(postfix.transport("move1@example.com"), TO_4);
    slapd.set(&mover, "mail", Some("moved1@example.com"));
    usher.wait_metric("usher_directory_changes_total", &[("kind", "other")], 1.0);
    assert_eq!(postfix.transport("move1@example.com"), "NOTFOUND ", "the address is no longer its own");
    assert_eq!(postfix.transport("moved1@example.com"), TO_4);
    slapd.set(&mover, HOLD, Some("moving"));
    usher.wait_metric("usher_directory_changes_total", &[("kind", "hold")], 1.0);
    assert_eq!(postfix.transport("moved1@example.com"), "TEMP the mailbox is held: it is being moved");
    assert_eq!(postfix.ask("recipient", "moved1@example.com"), "OK moved1@example.com");
    slapd.set(&mover, HOLD, None);
    usher.wait_metric("usher_directory_changes_total", &[("kind", "release")], 1.0);
    assert_eq!(postfix.transport("moved1@example.com"), TO_4);
    // An administrator drops it by its address.
    let before = searches(&slapd, "moved1@example.com");
    assert!(usher.command(&["cache", "show", "moved1@example.com"]).succeeded().stdout.contains("mail for"));
    assert!(usher.command(&["cache", "drop", "moved1@example.com"]).succeeded().stdout.contains("1 user dropped"));
    assert_eq!(postfix.transport("moved1@example.com"), TO_4);
    assert_eq!(searches(&slapd, "moved1@example.com"), before + 1);
    // It is no decision of a login.
    assert_eq!(usher.metric("usher_decisions_total", &[("by", "cache")]), 0.0);
}

#[test]
fn disabled_user_gets_mail_unless_configured() {
    let disabled = format!(
        "dn: uid=gone1,ou=people,{SUFFIX}\nobjectClass: inetOrgPerson\nobjectClass: extensibleObject\ncn: x\nsn: x\n\
         uid: gone1\nmail: gone1@example.com\nmailHost: server3\nnsAccountLock: TRUE\n\n"
    );
    let schema = "attributetype ( 1.3.6.1.4.1.4203.666.1.99 NAME 'nsAccountLock' SYNTAX \
                  1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )\n";
    let slapd = Slapd::with(Options {
        modules: &["syncprov"],
        database: SYNCPROV,
        global: schema,
        entries: &disabled,
        ..Options::default()
    });
    for (keep, transport, recipient) in [("keep", TO_3, "OK gone1@example.com"), ("reject", "NOTFOUND ", "NOTFOUND ")] {
        let usher = start(delivering(&slapd).set("/socketmap/delivery_when_disabled", keep));
        let mut postfix = Postfix::of(&usher);
        for _ in 0..2 {
            assert_eq!(postfix.transport("gone1@example.com"), transport, "{keep}");
            assert_eq!(postfix.ask("recipient", "gone1@example.com"), recipient, "{keep}");
        }
        // A mailbox that is being moved is never rejected.
        slapd.set(&User::new("gone1", None), HOLD, Some("moving"));
        usher.wait_metric("usher_directory_changes_total", &[("kind", "hold")], 1.0);
        assert!(postfix.transport("gone1@example.com").starts_with("TEMP the mailbox is held"), "{keep}");
        assert_eq!(postfix.ask("recipient", "gone1@example.com"), "OK gone1@example.com", "{keep}");
        slapd.set(&User::new("gone1", None), HOLD, None);
    }
}

#[test]
fn outage_defers_what_is_not_cached() {
    let mut slapd = directory(&[
        with_mail("known1", Some("server3"), &["known1@example.com"]),
        with_mail("stranger1", Some("server3"), &["stranger1@example.com"]),
    ]);
    let config =
        delivering(&slapd).set("/cache/ttl", "100ms").set("/cache/stale", "1h").set("/directory/timeout", "1s");
    let usher = start(config.set("/directory/attempt_timeout", "500ms"));
    let mut postfix = Postfix::of(&usher);
    assert_eq!(postfix.transport("known1@example.com"), TO_3);
    slapd.stop();
    usher.wait_log("LDAP change notification lost", |_| true);
    for _ in 0..2 {
        assert_eq!(postfix.transport("known1@example.com"), TO_3, "cache.stale");
        assert_eq!(postfix.transport("stranger1@example.com"), "TEMP the directory is not available");
        assert_eq!(postfix.ask("recipient", "stranger1@example.com"), "TEMP the directory is not available");
        assert_eq!(postfix.ask("recipient", "unknown@example.com"), "TEMP the directory is not available");
    }
    let looked = usher.command(&["lookup", "known1@example.com"]).succeeded().stdout;
    assert!(looked.contains("by         stale"), "{looked}");
}

#[test]
fn canary_is_required_before_an_address_is_unknown() {
    let slapd = directory(&[with_mail("seen1", Some("server3"), &["seen1@example.com"])]);
    // What the service account may read is shown by the canary, the hold attribute too.
    slapd.set(&User::new("alice", None), HOLD, Some("canary"));
    for (mail_host, answer) in [("server3", "NOTFOUND "), ("server4", "TEMP the directory is not available")] {
        // A server with other data shows another canary.
        let canary = json!({"login": "alice", "mail_host": mail_host});
        let config = delivering(&slapd).set("/directory/canary", canary).set("/directory/watch", "off");
        let usher = Usher::start(config.set("/directory/timeout", "2s"));
        assert_eq!(Postfix::of(&usher).transport("unknown@example.com"), answer, "{mail_host}");
    }
}

#[test]
fn brake_keeps_the_route_of_users_that_were_asked_for() {
    let users: Vec<User> = (0..12)
        .map(|number| {
            let mails: &'static [&'static str] = Vec::leak(vec![&*String::leak(format!("brake{number}@example.com"))]);
            with_mail(&format!("brake{number}"), Some("server3"), mails)
        })
        .collect();
    let slapd = directory(&users);
    let usher = start(delivering(&slapd).set("/directory/brake", 3).set("/cache/ttl", "1h"));
    let mut postfix = Postfix::of(&usher);
    let address = |number: usize| format!("brake{number}@example.com");
    (0..10).for_each(|number| assert_eq!(postfix.transport(&address(number)), TO_3));
    // A script with a wrong filter moves some and deletes others.
    let moves = (0..5).map(|number| {
        format!("dn: {}\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n\n", users[number].dn())
    });
    let deletes = (5..9).map(|number| format!("dn: {}\nchangetype: delete\n\n", users[number].dn()));
    slapd.modify(&moves.chain(deletes).collect::<String>());
    usher.wait_metric("usher_directory_brake", &[], 9.0);
    for number in 0..10 {
        assert_eq!(postfix.transport(&address(number)), TO_3, "{number}");
        assert_eq!(postfix.ask("recipient", &address(number)), format!("OK {}", address(number)));
    }
    usher.command(&["confirm"]).succeeded();
    assert_eq!(postfix.transport(&address(0)), TO_4);
    assert_eq!(postfix.transport(&address(5)), "NOTFOUND ");
    assert_eq!(postfix.transport(&address(9)), TO_3);
}

#[test]
fn what_is_no_question_ends_the_connection() {
    let slapd = directory(&[]);
    let usher = start(delivering(&slapd).set("/socketmap/max_connections", 3));
    let closed = |reason| usher.metric("usher_socketmap_closed_total", &[("reason", reason)]);
    for (bytes, number) in [
        (&b"025:transport bob@example.com,"[..], 1.0),
        (b"GET / HTTP/1.1\r\n\r\n", 2.0),
        (b"100001:x", 3.0),
        (b"0:,", 4.0),
    ] {
        let mut postfix = Postfix::of(&usher);
        assert_eq!(postfix.transport("unknown@example.com"), "NOTFOUND ");
        postfix.0.write_all(bytes).unwrap();
        assert!(postfix.is_closed());
        usher.wait_metric("usher_socketmap_closed_total", &[("reason", "malformed")], number);
    }
    // A question in pieces is one, and several at once are answered in their order.
    let mut postfix = Postfix::of(&usher);
    for byte in b"27:transport alice@example.com,26:recipient b@example.com.au," {
        postfix.0.write_all(&[*byte]).unwrap();
    }
    assert_eq!((postfix.answer(), postfix.answer()), (TO_3.to_owned(), "NOTFOUND ".to_owned()));
    // Bytes that trickle in are no reason to wait for longer.
    let mut slow = Postfix::of(&usher);
    slow.0.write_all(b"29:transport").unwrap();
    usher.wait_metric("usher_socketmap_closed_total", &[("reason", "timeout")], 1.0);
    assert!(slow.is_closed());
    let mut others = [Postfix::of(&usher), Postfix::of(&usher)];
    others.iter_mut().for_each(|one| assert_eq!(one.transport("*"), "NOTFOUND "));
    assert!(Postfix::of(&usher).is_closed(), "more than max_connections");
    assert_eq!(closed("limit"), 1.0);
    assert_eq!(postfix.transport("alice@example.com"), TO_3, "the others are not harmed");
    drop(others);
    usher.wait_metric("usher_socketmap_connections", &[], 1.0);
    assert_eq!(Postfix::of(&usher).transport("*"), "NOTFOUND ");
}

#[test]
fn one_host_does_not_lock_another_out() {
    let slapd = directory(&[]);
    let usher = start(delivering(&slapd).set("/socketmap/max_connections", 4));
    let closed = |reason| usher.metric("usher_socketmap_closed_total", &[("reason", reason)]);
    let mut greedy: Vec<_> = (0..4).map(|_| Postfix::from([127, 0, 0, 2], &usher)).collect();
    for postfix in &mut greedy {
        assert_eq!(postfix.transport("alice@example.com"), TO_3);
    }
    // Half a question keeps no place either.
    greedy[0].0.write_all(b"27:trans").unwrap();
    let mut others: Vec<_> = (0..2).map(|_| Postfix::from([127, 0, 0, 3], &usher)).collect();
    for postfix in &mut others {
        assert_eq!(postfix.transport("alice@example.com"), TO_3, "another host gets its share");
    }
    usher.wait_metric("usher_socketmap_closed_total", &[("reason", "share")], 2.0);
    usher.wait_metric("usher_socketmap_connections", &[], 4.0);
    assert_eq!(closed("limit"), 0.0);
    assert!(Postfix::from([127, 0, 0, 2], &usher).is_closed(), "the greedy host gets none of them back");
    assert!(Postfix::from([127, 0, 0, 3], &usher).is_closed(), "two each");
    assert_eq!(closed("limit"), 2.0);
    let line = usher.wait_log("socketmap connection closed", |line| line["peer"] == "127.0.0.2");
    assert!(line["reason"].as_str().unwrap().contains("max_connections"), "{line}");
    for postfix in &mut others {
        assert_eq!(postfix.transport("alice@example.com"), TO_3);
    }
    drop((greedy, others));
    usher.wait_metric("usher_socketmap_connections", &[], 0.0);
}

#[test]
fn reload_changes_who_may_ask_and_where() {
    let slapd = directory(&[]);
    let mut usher = start(delivering(&slapd));
    let mut postfix = Postfix::of(&usher);
    assert_eq!(postfix.transport("alice@example.com"), TO_3);
    let mut reload = |pointer: &str, value: Value| {
        usher.config.change(pointer, value);
        usher.config.write();
        assert_eq!(usher.hup()["message"], "reloaded");
    };
    reload("/socketmap/domains", json!(["example.org"]));
    assert_eq!(postfix.transport("alice@example.com"), "NOTFOUND ", "the same connection");
    reload("/socketmap/domains", json!(["*.com"]));
    assert_eq!(postfix.transport("alice@example.com"), TO_3);
    reload("/socketmap/allow", json!(["192.0.2.1"]));
    write!(postfix.0, "11:transport *,").unwrap();
    assert!(postfix.is_closed(), "it may no longer ask");
    reload("/socketmap/allow", json!(["127.0.0.1"]));
    let mut postfix = Postfix::of(&usher);
    assert_eq!(postfix.transport("*"), "NOTFOUND ");
    let mut reload = |pointer: &str, value: Value| {
        usher.config.change(pointer, value);
        usher.config.write();
        assert_eq!(usher.hup()["message"], "reloaded");
    };
    let folder = crate::kit::process::folder("socketmap");
    let path = folder.join("usher.sock");
    let old_port = {
        let unix = json!({"path": path, "mode": "0666", "domains": ["example.com"]});
        reload("/socketmap", unix);
        port(&usher)
    };
    assert!(postfix.is_closed(), "the port is gone");
    assert!(TcpStream::connect(("127.0.0.1", old_port)).is_err());
    let mut by_socket = Postfix(UnixStream::connect(&path).unwrap());
    assert_eq!(by_socket.transport("alice@example.com"), TO_3);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    usher.config.change("/socketmap/mode", json!("0660"));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(by_socket.is_closed());
    assert_eq!(Postfix(UnixStream::connect(&path).unwrap()).transport("alice@example.com"), TO_3);
    usher.terminate();
    assert_eq!(usher.exit_code(), 0);
    assert!(!path.exists(), "the socket's file is removed");
}

#[test]
fn upgrade_hands_the_port_and_the_socket_over() {
    let slapd = directory(&[]);
    let folder = crate::kit::process::folder("socketmap");
    let path = folder.join("usher.sock");
    for place in [json!({"address": "127.0.0.1:0"}), json!({"path": path, "mode": "0660"})] {
        let is_unix = place.get("path").is_some();
        let mut settings = place;
        settings["domains"] = json!("example.com");
        if !is_unix {
            settings["address"] = json!(format!("127.0.0.1:{}", crate::kit::process::free_port()));
        }
        let usher = start(delivering(&slapd).set("/socketmap", settings));
        let key = "alice@example.com";
        let ask_once = || {
            if is_unix {
                Postfix(UnixStream::connect(&path).unwrap()).try_ask("transport", key)
            } else {
                Postfix::of(&usher).try_ask("transport", key)
            }
        };
        // Postfix, too, asks once more where its connection was closed.
        let ask = || ask_once().or_else(|_| ask_once()).unwrap();
        assert_eq!(ask(), TO_3);
        let inode = || std::fs::metadata(&path).map(|found| found.ino()).ok();
        let (before, mut kept) = (inode(), (!is_unix).then(|| Postfix::of(&usher)));
        if let Some(kept) = &mut kept {
            assert_eq!(kept.transport("*"), "NOTFOUND ");
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        let answers = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut answers = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    answers.push(ask());
                }
                answers
            });
            let said = usher.command(&["upgrade"]);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            said.succeeded();
            asking.join().unwrap()
        });
        let _successor = Successor::of(&usher, 2);
        assert!(answers.iter().all(|answer| answer == TO_3), "{answers:?}");
        if let Some(mut kept) = kept {
            assert!(kept.is_closed(), "the old process answers no more");
        }
        assert_eq!(usher.exit_code(), 0);
        assert_eq!(ask(), TO_3);
        assert_eq!(inode(), before, "the file is the same");
    }
}

#[test]
fn stale_socket_is_replaced_and_an_unsafe_folder_is_refused() {
    let slapd = directory(&[]);
    let folder = crate::kit::process::folder("socketmap");
    let path = folder.join("usher.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let settings = json!({"path": path, "mode": "0666", "domains": "example.com"});
    let config = delivering(&slapd).set("/socketmap", settings);
    let usher = start(config.clone());
    assert_eq!(Postfix(UnixStream::connect(&path).unwrap()).transport("alice@example.com"), TO_3);
    drop(usher);
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    config.write();
    let checked = crate::kit::usher::command(&config, &["check"], b"");
    assert_eq!(checked.code, 78, "{checked:?}");
    assert!(checked.stderr.contains("socketmap.path: others can write to"), "{}", checked.stderr);
}

#[test]
fn administrator_sees_what_postfix_is_told() {
    let slapd = directory(&[with_mail("seen2", Some("server4"), &["seen2@example.com"])]);
    let usher = start(delivering(&slapd));
    let looked = usher.command(&["lookup", "Seen2+x@example.com"]).succeeded().stdout;
    for line in [
        "transport  OK lmtp:inet:server4.example.com:24 (by its mail host)",
        "recipient  OK seen2@example.com (the entry exists)",
        "entry      uid=seen2,ou=people,dc=example,dc=com (mailHost: server4)",
        "found as   seen2@example.com",
        "backend    server4",
        "by         directory",
    ] {
        assert!(looked.lines().any(|shown| shown == line), "{line}: {looked}");
    }
    let json: Value =
        serde_json::from_str(&usher.command(&["lookup", "seen2@example.com", "--json"]).succeeded().stdout).unwrap();
    assert_eq!((&json["transport"]["result"], &json["by"]), (&json!("ok"), &json!("cache")));
    let unknown = usher.command(&["lookup", "unknown@example.com"]);
    assert_eq!(unknown.code, 67, "{unknown:?}");
    assert!(unknown.stdout.contains("transport  NOTFOUND (no entry has this address)"), "{unknown:?}");
    let foreign = usher.command(&["lookup", "seen2@example.org"]);
    assert!(foreign.stdout.contains("its domain is not in socketmap.domains"), "{foreign:?}");
    slapd.set(&User::new("seen2", None), HOLD, Some("moving"));
    usher.wait_metric("usher_directory_changes_total", &[("kind", "hold")], 1.0);
    let held = usher.command(&["lookup", "seen2@example.com"]);
    assert_eq!((held.code, held.stdout.contains("TEMP (the mailbox is held")), (1, true), "{held:?}");
    let none = Usher::start(Config::with_directory(&slapd).backend("server3", 9, &["server3"]));
    let refused = none.command(&["lookup", "seen2@example.com"]);
    assert_eq!((refused.code, refused.stderr.contains("`socketmap` is missing")), (64, true), "{refused:?}");
}

#[test]
fn wait_counts_the_age_of_the_last_answer() {
    let slapd = directory(&[with_mail("aged1", Some("server3"), &["aged1@example.com"])]);
    let usher = start(delivering(&slapd));
    assert_eq!(Postfix::of(&usher).transport("aged1@example.com"), TO_3);
    let user = User::new("aged1", None);
    slapd.set(&user, HOLD, Some("moving"));
    usher.wait_metric("usher_directory_changes_total", &[("kind", "hold")], 1.0);
    let early = usher.command(&["wait", "aged1", "--age", "1h", "--timeout", "1s"]);
    assert_eq!((early.code, early.stderr.contains("Postfix may have got a server")), (1, true), "{early:?}");
    // Without it the sessions alone count.
    usher.command(&["wait", "aged1", "--timeout", "1s"]).succeeded();
    let waited = usher.command(&["wait", "aged1", "--age", "2s", "--timeout", "30s"]).succeeded();
    assert!(waited.stdout.contains("has no session, and Postfix got no server for 2s"), "{waited:?}");
    // A question meanwhile is deferred, and counts for nothing.
    assert!(Postfix::of(&usher).transport("aged1@example.com").starts_with("TEMP"));
    usher.command(&["wait", "aged1", "--age", "1s", "--timeout", "5s"]).succeeded();
}
