//! UNAUTHENTICATE in a relayed ManageSieve session: a client could log in again, bypassing usher. It ends the
//! session in any form; everything else passes unchanged.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, Once};
use std::time::Duration;

use crate::kit::client::Tls;
use crate::kit::scripted::Scripted;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Sieve, Usher, cyrus, dovecot, password_of, wait_limit};

const REFUSED_BYE: &str = "BYE \"UNAUTHENTICATE is not available here\"";

/// bob's scripts are on the real timsieved.
fn timsieved() -> Config {
    static MAILBOX: Once = Once::new();
    MAILBOX.call_once(|| {
        let tls = Tls { server_name: "server4.example.com", ..Tls::default() };
        Imap::try_tls(cyrus().imaps, &tls).unwrap().authenticate("", "bob", password_of("bob").as_bytes()).ok();
    });
    let config = Config::shared().speaking("managesieve", &[dovecot().sieve, cyrus().sieve]);
    (0..2).fold(config, |config, index| config.set(&format!("/routing/backends/{index}/managesieve/tls"), "starttls"))
}

fn bob(usher: &Usher) -> Sieve {
    let mut sieve = Sieve::tls(usher.imaps_port());
    assert!(sieve.authenticate("bob", &password_of("bob")).starts_with("OK"));
    sieve
}

#[test]
fn unauthenticate_ends_the_session_at_timsieved() {
    let usher = Usher::start(timsieved());
    let mut sieve = bob(&usher);
    let listed = sieve.command("CAPABILITY");
    assert!(listed.iter().any(|line| line.starts_with("\"UNAUTHENTICATE\"")), "it has the command: {listed:?}");
    assert_eq!(sieve.command("UNAUTHENTICATE"), [REFUSED_BYE]);
    sieve.expect_clean_end();
    let end = usher.wait_log("end", |_| true);
    assert_eq!(end["cause"], "forbidden_command", "{end}");
    assert_eq!(usher.metric("usher_sessions_ended_total", &[("cause", "forbidden_command")]), 1.0);
}

/// timsieved may react to these in any way: none leads to a session of another user.
#[test]
fn unauthenticate_in_disguise_never_reaches_timsieved() {
    let usher = Usher::start(timsieved());
    let tricks = [
        "unauthenticate\r\n",
        "UnAuthenticate\n",
        "NONSENSE {999+}\r\nUNAUTHENTICATE\r\n",
        "PUTSCRIPT \"a\" {99999999+}\r\nUNAUTHENTICATE\r\n",
        // Refused for lack of a plus, and the "script" is read as commands.
        "PUTSCRIPT \"a\" {99}\r\nkeep;\r\nUNAUTHENTICATE\r\n",
        "NOOP \"\nUNAUTHENTICATE\r\n",
        "LISTSCRIPTS \"\r\nUNAUTHENTICATE\r\n\"\r\n",
        "LISTSCRIPTS\r\nNOOP\r\nUNAUTHENTICATE\r\nNOOP\r\n",
        // timsieved continues after the invalid byte and executes the command.
        ";UNAUTHENTICATE\r\n",
        "NOOP\u{1}unauthenticate\r\n",
        "HAVESPACE \"a\" 5UNAUTHENTICATE\r\n",
        "NONSENSE {99+}\r\n\u{fffd}UNAUTHENTICATE\r\n",
        "PUTSCRIPT \"a\" {3+}\r\nabc;UNAUTHENTICATE\r\n",
    ];
    for (number, trick) in tricks.into_iter().enumerate() {
        bob(&usher).send(trick);
        let end = usher.wait_nth_log(number + 1, "end", |_| true);
        assert_eq!(end["cause"], "forbidden_command", "{trick:?}: {end}");
    }
}

#[test]
fn unauthenticate_is_found_after_uploaded_scripts() {
    let usher = Usher::start(timsieved());
    let script = "# UNAUTHENTICATE.\r\n# a comment about it\r\nkeep;\r\n";
    let mut sieve = bob(&usher);
    let put = sieve.command(&format!("PUTSCRIPT \"about\" {{{}+}}\r\n{script}", script.len()));
    assert!(put.last().unwrap().starts_with("OK"), "{put:?}");
    let read = sieve.command("GETSCRIPT \"about\"");
    assert!(read[0].ends_with(script), "{read:?}");
    assert_eq!(sieve.command("UNAUTHENTICATE"), [REFUSED_BYE]);
}

/// A server that lists `more`; returns the lines it received.
fn listing(more: &'static str) -> (Scripted, Usher, Receiver<String>) {
    let (sender, heard) = channel();
    let sender = Mutex::new(sender);
    let server = Scripted::tls(move |peer| {
        peer.send(format!("\"IMPLEMENTATION\" \"scripted\"\r\n\"SASL\" \"PLAIN\"\r\n{more}\"SIEVE\" \"\"\r\nOK\r\n"));
        while let Some(line) = peer.line() {
            let _ = sender.lock().unwrap().send(line);
            peer.send("OK\r\n");
        }
        let _ = sender.lock().unwrap().send("(end)".to_owned());
    });
    let usher = Usher::start(Config::shared().speaking("managesieve", &[server.port]));
    (server, usher, heard)
}

fn alice(usher: &Usher) -> Sieve {
    let mut sieve = Sieve::tls(usher.imaps_port());
    assert!(sieve.authenticate("alice", &password_of("alice")).starts_with("OK"));
    sieve
}

/// All lines that the server received in the next session.
fn all(heard: &Receiver<String>) -> Vec<String> {
    let next = || heard.recv_timeout(wait_limit(Duration::from_secs(10))).unwrap();
    std::iter::from_fn(|| Some(next()).filter(|line| line != "(end)")).collect()
}

#[test]
fn advertised_unauthenticate_is_found_in_any_fragmentation() {
    let (_server, usher, heard) = listing("\"unauthenticate\"\r\n");
    for pieces in [
        &["UNAUTHENTICATE\r\n"][..],
        &["UNAUTH", "ENTICATE", "\r", "\n"],
        &["NOOP\r\nunAUTH", "enticate\r\nAUTHENTICATE \"PLAIN\" \"x\"\r\n"],
        &["PUTSCRIPT \"a\" {4", "+}\r\nkeep\r", "\nUNAUTHENTICATE", "\n"],
        &["PUTSCRIPT \"a\" {4}\r", "\nkeep\r\nUNAUTHENTI", "CATE \r\n"],
    ] {
        let mut sieve = alice(&usher);
        for piece in pieces {
            sieve.send(piece);
            // So that each is read separately.
            std::thread::sleep(Duration::from_millis(50));
        }
        let heard = all(&heard);
        assert!(heard[0].starts_with("AUTHENTICATE") && heard[1] == "NOOP", "{heard:?}");
        let said = |line: &&String| line.trim().eq_ignore_ascii_case("UNAUTHENTICATE") || line.starts_with("AUTH");
        assert_eq!(heard.iter().skip(1).find(said), None, "{pieces:?}");
    }
    // Pipelined after the login, before the relay starts.
    let mut sieve = Sieve::tls(usher.imaps_port());
    let message = crate::kit::client::base64(format!("\0alice\0{}", password_of("alice")).as_bytes());
    sieve.send(format!("AUTHENTICATE \"PLAIN\" \"{message}\"\r\nUNAUTHENTICATE\r\n"));
    assert_eq!(all(&heard).len(), 2, "the login and usher's NOOP");
}

#[test]
fn sessions_are_not_scanned_without_the_capability() {
    let (_server, usher, heard) = listing("");
    let mut sieve = alice(&usher);
    assert_eq!(sieve.command("UNAUTHENTICATE"), ["OK"]);
    drop(sieve);
    assert_eq!(all(&heard).last().unwrap(), "UNAUTHENTICATE");
}

#[test]
fn check_reports_the_unauthenticate_capability() {
    let config = timsieved();
    config.write();
    let said = command(&config, &["check", "--connect"], b"").succeeded();
    assert!(said.stdout.contains("the server takes UNAUTHENTICATE"), "{said:#?}");
}
