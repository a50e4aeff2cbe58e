//! The same entry under many spellings: neither text nor time of a reply reveals that a spelling
//! matches an entry, and all of them share the guesses of one name.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::client::base64;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, Usher, password_of};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";
const HOME: [u8; 4] = [127, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 3];

/// Addresses of a name.
fn spelt(name: &str, n: usize) -> String {
    format!("{name}.{n}@example.com")
}

/// A directory in which alice has this many addresses.
fn slapd() -> Slapd {
    let slapd = Slapd::private();
    let mails: String = (0..=130).map(|n| format!("mail: {}\n", spelt("alice", n))).collect();
    slapd.modify(&format!("dn: {ALICE}\nchangetype: modify\nreplace: mail\n{mails}"));
    slapd
}

fn config(slapd: &Slapd, backend: &Scripted) -> Config {
    // After the free failures each waits four seconds.
    let rule = json!({"mode": "enforce", "free_failures": 5, "first_delay": "4s", "max_delay": "4s"});
    let config = Config::with_directory(slapd).scripted(backend).set("/limits/failed_logins", 100);
    config.set("/throttle/failed_logins_per_user", rule)
}

/// Wrong passwords, until the next would have to wait.
fn block(imap: &mut Imap, login: &str) {
    for guess in 0..5 {
        imap.login(login, &format!("guess {guess}")).is("NO [AUTHENTICATIONFAILED]");
    }
}

fn plain(login: &str, password: &str) -> String {
    base64(format!("\0{login}\0{password}").as_bytes())
}

#[test]
fn spellings_of_a_limited_name_give_no_additional_guesses() {
    let (slapd, backend) = (slapd(), Scripted::accepting());
    let usher = Usher::start(config(&slapd, &backend));
    Imap::tls_from(HOME, usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let mut guesser = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    block(&mut guesser, "alice");
    let (before, asked) = (slapd.binds(ALICE), Instant::now());
    let mut guessers: Vec<Imap> = (0..12).map(|_| Imap::tls_from(ELSEWHERE, usher.imaps_port())).collect();
    for n in 1..=120 {
        let imap = &mut guessers[n % 12];
        let guess = format!("one more guess {n}");
        imap.send(format!("a AUTHENTICATE PLAIN {}\r\n", plain(&spelt("alice", n), &guess)));
        if n % 12 == 0 {
            for imap in &mut guessers {
                imap.reply("a").is("NO [AUTHENTICATIONFAILED]");
            }
        }
    }
    let turns = 1 + asked.elapsed().as_secs() as usize / 4;
    let binds = slapd.binds(ALICE) - before;
    assert!(binds <= turns, "{binds} binds in {:?}", asked.elapsed());
    assert!(slapd.searches("alice") >= 6);
    let reported = usher.wait_log("login", |line| line["result"] == "limit");
    assert_eq!(
        (&reported["limited_by"], &reported["by"]),
        (&json!("failed_logins_per_user"), &json!("usher")),
        "{reported}"
    );
    // A user with earlier logins from this network is accepted, under an unused spelling.
    let mut home = Imap::tls_from(HOME, usher.imaps_port());
    home.authenticate("", &spelt("alice", 130), password_of("alice").as_bytes()).ok();
}

/// The share of pairs in which one took longer than the other: a half if they are
/// indistinguishable (the Mann-Whitney statistic).
fn longer(one: &[Duration], other: &[Duration]) -> f64 {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| one > other));
    let (longer, all) = pairs.fold((0.0, 0.0), |(longer, all), is| (longer + f64::from(u8::from(is)), all + 1.0));
    longer / all
}

#[test]
fn reply_time_does_not_reveal_that_a_spelling_matches_an_entry() {
    let (slapd, backend) = (slapd(), Scripted::accepting());
    let usher = Usher::start(config(&slapd, &backend).set("/limits/refusal_delay", "200ms"));
    let mut imap = Imap::tls_from(ELSEWHERE, usher.imaps_port());
    block(&mut imap, "alice");
    let mut ask = |login: &str, guess: &str| {
        let asked = Instant::now();
        let reply = imap.authenticate("", login, guess.as_bytes()).is("NO [AUTHENTICATIONFAILED]");
        (reply.tagged, asked.elapsed())
    };
    // Aliases and spellings of a limited name, and of an unknown one; each more than once.
    let (mut alias, mut unknown) = (Vec::new(), Vec::new());
    for n in 1..=8 {
        for guess in ["one", "another"] {
            let (words, took) = ask(&spelt("alice", n), guess);
            let (same_words, same) = ask(&spelt("unknown", n), guess);
            assert_eq!(words, same_words);
            alias.push(took);
            unknown.push(same);
        }
    }
    assert!(alias.iter().all(|took| *took < Duration::from_secs(3)), "{alias:?}");
    // With 16 of each, chance alone leaves this range once in ten thousand runs.
    let share = longer(&alias, &unknown);
    assert!((0.1..0.9).contains(&share), "{share}: {alias:?} {unknown:?}");
}
