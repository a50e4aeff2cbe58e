//! Mail that follows its mailbox: a real Postfix asks usher, and two LMTP servers take the mail. A mailbox moves under a
//! stream of messages; each arrives, once, and none bounces.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::lmtp::Lmtp;
use crate::kit::postfix::Postfix;
use crate::kit::process::{free_port, read_text};
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::{Config, User, Usher, wait_limit};

const HOLD: &str = "description";

/// Two mail servers, the directory and usher, and a Postfix in front.
struct Setup {
    servers: [Lmtp; 2],
    slapd: Slapd,
    usher: Usher,
    postfix: Postfix,
}

/// The snippet of the manual: unknown recipients of a mail server are tried again.
fn documented(line: &str) -> String {
    let snippet = crate::snippets::of_language("main.cf").into_iter().find(|snippet| snippet.text.contains(line));
    snippet.unwrap_or_else(|| panic!("no snippet with {line}")).text
}

impl Setup {
    /// `by_socket`: Postfix asks over a Unix socket below its queue.
    fn new(by_socket: bool) -> Self {
        let bob = User { mails: &["bob2@example.com"], ..User::new("bob2", Some("server3")) };
        let entries = bob.ldif();
        let slapd = Slapd::with(Options {
            modules: &["syncprov"],
            database: SYNCPROV,
            entries: &entries,
            ..Options::default()
        });
        let servers = [Lmtp::start(&["bob2"]), Lmtp::start(&[])];
        let (folder, port) = (Postfix::folder(), free_port());
        let queue = Postfix::queue(&folder);
        let mut config = Config::with_directory(&slapd)
            .backend("server3", 9, &["server3"])
            .backend("server4", 9, &["server4"])
            .set("/directory/watch", "auto")
            .set("/directory/hold_attribute", HOLD);
        for (index, server) in servers.iter().enumerate() {
            config.change(
                &format!("/routing/backends/{index}/delivery"),
                json!(format!("lmtp:inet:127.0.0.1:{}", server.port)),
            );
        }
        let place = match by_socket {
            true => {
                std::fs::create_dir(queue.join("usher")).unwrap();
                json!({"path": queue.join("usher/socketmap"), "group": "daemon"})
            }
            false => json!({"address": format!("127.0.0.1:{port}")}),
        };
        config.change("/socketmap", place);
        config.change("/socketmap/domains", json!("example.com"));
        config.change("/socketmap/recipient_delimiter", json!("+"));
        let usher = Usher::start(config);
        usher.wait_log("LDAP change notification active", |_| true);
        let documented = documented("transport_maps = socketmap:");
        let asked = documented.replace("inet:127.0.0.1:9950", &format!("inet:127.0.0.1:{port}"));
        let asked = match by_socket {
            true => asked.replace(&format!("inet:127.0.0.1:{port}"), "unix:usher/socketmap"),
            false => asked,
        };
        let shipped =
            |name: &str| read_text(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/postfix").join(name));
        let lines = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let [in_manual, as_shipped]: [BTreeSet<String>; 2] = [&documented, &shipped("main.cf")].map(|text| lines(text));
        let blank = BTreeSet::from([String::new()]);
        assert_eq!(&in_manual - &blank, &as_shipped - &blank, "docs/directory.md and deploy/postfix/main.cf");
        std::fs::write(folder.join("lmtp_unknown"), shipped("lmtp_unknown")).unwrap();
        let filter = folder.join("lmtp_unknown").display().to_string();
        let asked = asked.replace("/etc/postfix/lmtp_unknown", &filter);
        let postfix = Postfix::start(folder, &asked);
        Self { servers, slapd, usher, postfix }
    }

    fn set(&self, attribute: &str, value: Option<&str>) {
        self.slapd.set(&User::new("bob2", None), attribute, value);
    }

    fn changed(&self, kind: &str) {
        self.usher.wait_metric("usher_directory_changes_total", &[("kind", kind)], 1.0);
    }

    /// Sends a message again and again until it is accepted, as mail servers do.
    fn send(&self, subject: &str) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(40));
        loop {
            let reply = self.postfix.send("Bob2+list@Example.com", subject);
            if reply.starts_with("250 ") {
                return;
            }
            assert!(reply.starts_with("451 "), "{subject}: {reply}");
            assert!(Instant::now() < deadline, "{subject} is never accepted: {reply}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn delivered(&self) -> [Vec<String>; 2] {
        [self.servers[0].subjects("bob2"), self.servers[1].subjects("bob2")]
    }
}

#[test]
fn mailbox_moves_under_a_stream_of_mail() {
    let setup = Setup::new(false);
    setup.send("first");
    setup.postfix.flush_all();
    assert_eq!(setup.delivered(), [vec!["first".to_owned()], vec![]]);
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let mut sent = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let subject = format!("stream-{}", sent.len());
                setup.send(&subject);
                sent.push(subject);
            }
            sent
        });
        // Postfix has asked where this one goes, and the old server takes its time.
        setup.postfix.wait_logged(&["status=sent", "to=<Bob2+list@Example.com>"]);
        let frozen = setup.servers[0].freeze();
        setup.send("late");
        setup.set(HOLD, Some("moving to server4"));
        setup.changed("hold");
        let waited = setup.usher.command(&["wait", "bob2", "--age", "1s", "--timeout", "20s"]).succeeded();
        assert!(waited.stdout.contains("has no session"), "{waited:?}");
        // The recipe would wait for the queue here: the message that is on its way shows what happens otherwise.
        assert!(setup.postfix.queued().contains("Bob2+list@Example.com"));
        setup.servers[0].set_users_frozen(&[]);
        setup.servers[1].set_users(&["bob2"]);
        setup.set("mailHost", Some("server4"));
        setup.set(HOLD, None);
        setup.changed("release");
        drop(frozen);
        setup.servers[0].set_users(&[]);
        // Whatever the old server is offered from now on it refuses, and Postfix asks again later.
        let deadline = Instant::now() + wait_limit(Duration::from_secs(40));
        while setup.servers[1].subjects("bob2").len() < 3 {
            assert!(Instant::now() < deadline, "no mail at the new server");
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        stream.join().unwrap()
    });
    setup.postfix.flush_all();
    let [old, new] = setup.delivered();
    let mut all: Vec<&str> = old.iter().chain(&new).map(String::as_str).collect();
    all.sort_unstable();
    let mut expected: Vec<&str> = sent.iter().map(String::as_str).chain(["first", "late"]).collect();
    expected.sort_unstable();
    assert_eq!(all, expected, "each message arrives once");
    let last = sent.last().unwrap();
    assert!(new.contains(last) && !old.contains(last), "{old:?} {new:?}");
    let logged = setup.postfix.logged();
    assert!(!logged.contains("status=bounced"), "a message bounced");
    let kinds: BTreeSet<&str> =
        logged.lines().filter_map(|line| line.split("status=").nth(1)?.split(' ').next()).collect();
    assert!(kinds.contains("sent"), "{kinds:?}");
    // An address without an entry is refused at once, and an outage of the directory refuses none.
    assert!(setup.postfix.send("unknown@example.com", "x").starts_with("550 5.1.1"));
}

#[test]
fn postfix_asks_over_a_socket_below_its_queue() {
    let mut setup = Setup::new(true);
    setup.send("by socket");
    setup.postfix.flush_all();
    assert_eq!(setup.delivered(), [vec!["by socket".to_owned()], vec![]]);
    // Postfix asks about addresses of others, too, and gets no answer about them.
    assert!(setup.postfix.send("someone@example.net", "x").starts_with("454 4.7.1"));
    // In an outage of the directory no address is refused for good.
    setup.slapd.stop();
    let reply = setup.postfix.send("unknown@example.com", "x");
    assert!(reply.starts_with("451 4."), "{reply}");
}

#[test]
fn recipe_of_a_move_waits_for_the_queue_and_flushes_it() {
    let setup = Setup::new(false);
    setup.send("before");
    setup.postfix.flush_all();
    setup.set(HOLD, Some("moving to server4"));
    setup.changed("hold");
    setup.usher.command(&["wait", "bob2", "--age", "1s", "--timeout", "20s"]).succeeded();
    // Mail that came in before and could not be delivered waits with a server that is no longer right.
    let shown = setup.postfix.queued();
    assert!(shown.contains("Mail queue is empty"), "{shown}");
    assert!(setup.postfix.send("bob2@example.com", "held").starts_with("451 4.3.0"), "accepted while it is held");
    setup.servers[0].set_users(&[]);
    setup.servers[1].set_users(&["bob2"]);
    setup.set("mailHost", Some("server4"));
    setup.set(HOLD, None);
    setup.changed("release");
    setup.send("after");
    setup.postfix.flush_all();
    assert_eq!(setup.delivered(), [vec!["before".to_owned()], vec!["after".to_owned()]]);
}
