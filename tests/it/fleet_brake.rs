//! The brake of a fleet: a wrong mass edit moves no user at any node, also where each node alone sees too little of it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::process::write_secret;
use crate::kit::redis::Redis;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::{Config, Imap, User, Usher, password_of};

/// What is promised is asserted at three times its value.
const BACK: Duration = Duration::from_secs(6);

/// A followed directory, two mail servers, and a store.
struct Setup {
    slapd: Slapd,
    servers: [Scripted; 2],
    store: Redis,
    brake: u32,
}

impl Setup {
    fn new(users: &[String], brake: u32) -> Self {
        let entries: String = users.iter().map(|name| User::new(name, Some("server3")).ldif()).collect();
        let options = Options { modules: &["syncprov"], database: SYNCPROV, entries: &entries, ..Options::default() };
        let servers = [Scripted::accepting(), Scripted::accepting()];
        Self { slapd: Slapd::with(options), servers, store: Redis::start(), brake }
    }

    fn config(&self, node: &str) -> Config {
        use base64::Engine as _;
        let config = Config::with_directory(&self.slapd)
            .backend("server3", self.servers[0].port, &["server3"])
            .backend("server4", self.servers[1].port, &["server4"])
            .set("/routing/backends/1/imap/server_name", "server3.example.com")
            .set("/directory/watch", "auto")
            .set("/directory/brake", self.brake)
            .set("/cache/ttl", "1h")
            .set("/drain/max_closes_per_second", 5);
        let line = base64::engine::general_purpose::STANDARD.encode([1; 48]) + "\n";
        write_secret(&config.path("fleet.secret"), line);
        let url = format!("redis://127.0.0.1:{}", self.store.port);
        config.set("/fleet", json!({"name": "mail", "node": node, "store": url, "secret_file": "fleet.secret"}))
    }

    fn start(&self, node: &str) -> Usher {
        let usher = Usher::start(self.config(node));
        usher.wait_log("LDAP change notification active", |_| true);
        usher.wait_metric("usher_fleet_up", &[], 1.0);
        usher
    }

    fn fleet<const N: usize>(&self) -> [Usher; N] {
        let mut number = 0;
        let ushers = [(); N].map(|()| {
            number += 1;
            self.start(&format!("mx{number}"))
        });
        ushers.iter().for_each(|usher| usher.wait_metric("usher_fleet_members", &[], N as f64));
        ushers
    }

    fn edit(&self, users: &[String], host: &str) {
        let change = |name: &String| {
            let dn = User::new(name, None).dn();
            format!("dn: {dn}\nchangetype: modify\nreplace: mailHost\nmailHost: {host}\n\n")
        };
        self.slapd.modify(&users.iter().map(change).collect::<String>());
    }
}

fn users(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("mass{number}")).collect()
}

fn log_in(usher: &Usher, name: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(name, &password_of(name)).ok();
    imap
}

/// Each once, some at a time.
fn log_in_all(usher: &Usher, names: &[String]) {
    std::thread::scope(|scope| {
        for part in names.chunks(names.len().div_ceil(4).max(1)) {
            scope.spawn(move || part.iter().for_each(|name| drop(log_in(usher, name))));
        }
    });
}

/// The backend of the nth login of this name.
fn server(usher: &Usher, nth: usize, name: &str) -> String {
    drop(log_in(usher, name));
    usher.nth_login(nth, name)["backend"].as_str().unwrap_or_default().to_owned()
}

fn is_unavailable(usher: &Usher, name: &str) {
    Imap::tls(usher.imaps_port()).login(name, &password_of(name)).is("NO [UNAVAILABLE]");
}

fn held(usher: &Usher, here: usize, anywhere: usize) {
    usher.wait_metric("usher_directory_brake", &[], here as f64);
    usher.wait_metric("usher_fleet_brake", &[], anywhere as f64);
}

#[test]
fn edit_of_a_thousand_entries_moves_no_known_user_at_any_node() {
    let names = users(1_000);
    let setup = Setup::new(&names, 400);
    let ushers: [Usher; 3] = setup.fleet();
    // Of each node fewer than it would hold back alone; a hundred are known nowhere.
    let known: Vec<&[String]> = names[..900].chunks(300).collect();
    let strangers = &names[900..];
    std::thread::scope(|scope| {
        for (usher, known) in ushers.iter().zip(&known) {
            scope.spawn(move || log_in_all(usher, known));
        }
    });
    let sessions: Vec<_> = (0..3)
        .flat_map(|at| known[at][..20].iter().map(|name| log_in(&ushers[at], name)).collect::<Vec<_>>())
        .collect();
    setup.edit(&names, "server4");
    let edited = Instant::now();
    // One that starts meanwhile.
    let later = setup.start("mx4");
    for usher in &ushers {
        held(usher, 300, 900);
    }
    assert!(edited.elapsed() < BACK + Duration::from_secs(2), "with the start: {:?}", edited.elapsed());
    held(&later, 0, 900);
    for (at, usher) in ushers.iter().enumerate() {
        let other = known[(at + 1) % 3];
        for index in (0..300).step_by(30) {
            let nth = if index < 20 { 3 } else { 2 };
            assert_eq!(server(usher, nth, &known[at][index]), "server3", "{}", known[at][index]);
            is_unavailable(usher, &other[index]);
        }
        assert_eq!(server(usher, 1, &strangers[at]), "server4");
        let ended = usher
            .metrics()
            .iter()
            .filter(|(name, _)| name.contains("sessions_ended") && name.contains("moved"))
            .map(|(_, count)| count)
            .sum::<f64>();
        assert!(ended <= 15.0, "{ended}");
    }
    is_unavailable(&later, &known[0][0]);
    is_unavailable(&later, &known[2][299]);
    assert_eq!(server(&later, 1, &strangers[9]), "server4");
    let content = setup.store.content();
    assert!(!content.contains("mass") && !content.contains("server"), "{}", content.len());

    let said = ushers[1].command(&["confirm"]).succeeded();
    assert_eq!(said.stdout, "300 changes applied\n");
    let confirmed = Instant::now();
    for usher in ushers.iter().chain([&later]) {
        held(usher, 0, 0);
    }
    assert!(confirmed.elapsed() < BACK, "{:?}", confirmed.elapsed());
    for (at, usher) in ushers.iter().enumerate() {
        assert_eq!(server(usher, 2, &known[at][40]), "server4");
        assert_eq!(server(usher, 1, &known[(at + 1) % 3][45]), "server4");
    }
    assert_eq!(server(&later, 2, &known[0][0]), "server4");
    drop(sessions);
}

#[test]
fn brake_of_all_goes_off_when_the_values_are_restored() {
    let names = users(6);
    let setup = Setup::new(&names, 3);
    let [one, two] = setup.fleet();
    log_in_all(&one, &names[..2]);
    log_in_all(&two, &names[2..4]);
    setup.edit(&names, "server4");
    held(&one, 2, 4);
    held(&two, 2, 4);
    one.wait_log("route changed", |line| line["reverted_by_brake"] == true);
    let said = one.command(&["explain", &names[0], "--running", "--fleet", "--json"]);
    let nodes: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let [here, there] = [0, 1].map(|node| nodes[node]["answer"].clone());
    assert_eq!(
        (&here["brake"], &here["backend"], &here["result"]),
        (&json!("local"), &json!("server3"), &json!("routed"))
    );
    assert_eq!((&there["brake"], &there["result"]), (&json!("fleet"), &json!("directory_unavailable")), "{there}");
    assert_eq!(said.code, 1);
    let said = one.command(&["explain", &names[0], "--running", "--fleet"]);
    for words in ["stays at server3 until `usher confirm`", "another node holds back a change of this user"] {
        assert!(said.stdout.contains(words), "{}", said.stdout);
    }
    setup.edit(&names, "server3");
    for usher in [&one, &two] {
        held(usher, 0, 0);
        usher.wait_log("brake released: the directory is back in its previous state", |_| true);
        names.iter().for_each(|name| drop(log_in(usher, name)));
    }
    // It counts again.
    std::thread::sleep(Duration::from_millis(100));
    setup.edit(&names, "server4");
    held(&one, 6, 6);
    held(&two, 6, 6);
}

#[test]
fn without_a_store_each_node_acts_alone_and_a_brake_that_is_on_stays() {
    let names = users(8);
    let mut setup = Setup::new(&names, 3);
    let [one, two] = setup.fleet();
    log_in_all(&one, &names[..2]);
    log_in_all(&two, &names[2..4]);
    setup.edit(&names[..4], "server4");
    held(&one, 2, 4);
    held(&two, 2, 4);
    setup.store.stop();
    for usher in [&one, &two] {
        usher.wait_metric("usher_fleet_up", &[], 0.0);
    }
    assert_eq!(server(&one, 2, &names[0]), "server3");
    is_unavailable(&one, &names[2]);
    // Confirmed at one node, which the other hears of later.
    one.command(&["confirm"]).succeeded();
    assert_eq!(server(&one, 3, &names[0]), "server4");
    assert_eq!(server(&two, 2, &names[2]), "server3");
    setup.store.start_again();
    held(&two, 0, 0);
    two.wait_log("confirmed at another node of the fleet", |_| true);
    assert_eq!(server(&two, 3, &names[2]), "server4");
    // Alone, each sees too little.
    setup.store.stop();
    for usher in [&one, &two] {
        usher.wait_metric("usher_fleet_up", &[], 0.0);
    }
    log_in_all(&one, &names[4..6]);
    log_in_all(&two, &names[6..]);
    setup.edit(&names[4..], "server4");
    for name in &names[4..] {
        let usher = if names[4..6].contains(name) { &one } else { &two };
        usher.wait_log("route changed", |line| line["dn"] == json!(User::new(name, None).dn()));
    }
    assert_eq!((one.metric("usher_directory_brake", &[]), two.metric("usher_directory_brake", &[])), (0.0, 0.0));
}

#[test]
fn restarted_node_learns_that_the_brake_is_on_also_from_an_emptied_store() {
    let names = users(5);
    let setup = Setup::new(&names, 3);
    let [one, two] = setup.fleet();
    log_in_all(&one, &names[..2]);
    log_in_all(&two, &names[2..4]);
    setup.edit(&names[..4], "server4");
    held(&one, 2, 4);
    held(&two, 2, 4);
    two.signal(rustix::process::Signal::KILL);
    let again = setup.start("mx2");
    held(&again, 0, 4);
    // What the killed one knew is known nowhere: these users wait, rather than go to the wrong place.
    is_unavailable(&again, &names[2]);
    is_unavailable(&one, &names[2]);
    setup.store.command(&["FLUSHALL"]);
    let newest = setup.start("mx3");
    held(&newest, 0, 2);
    is_unavailable(&newest, &names[0]);
    assert_eq!(server(&one, 2, &names[0]), "server3");
    newest.command(&["confirm", "--for", "10m"]).succeeded();
    for usher in [&one, &again, &newest] {
        held(usher, 0, 0);
    }
    // One that starts within that time knows it.
    let last = setup.start("mx4");
    last.wait_log("confirmed at another node of the fleet", |_| true);
    log_in_all(&last, &names);
    setup.edit(&names, "server3");
    for name in &names[..4] {
        last.wait_log("route changed", |line| line["dn"] == json!(User::new(name, None).dn()));
    }
    assert_eq!(last.metric("usher_directory_brake", &[]), 0.0);
}

#[test]
fn owner_of_the_store_sends_no_held_user_elsewhere_for_long_and_names_nobody() {
    let names = users(5);
    let setup = Setup::new(&names, 3);
    let [one, two] = setup.fleet();
    log_in_all(&one, &names[..2]);
    log_in_all(&two, &names[2..4]);
    setup.edit(&names[..4], "server4");
    held(&one, 2, 4);
    held(&two, 2, 4);
    let on_all = |what: &str| {
        let script = format!(
            "for _, key in ipairs(redis.call('KEYS', 'usher:mail:b:*')) do \
             if redis.call('TYPE', key).ok == 'zset' then {what} end end return 1"
        );
        assert_eq!(setup.store.command(&["EVAL", &script, "0"]), "1");
    };
    // Garbage, which is no user.
    on_all("redis.call('ZADD', key, 1, 'x', 2, string.rep('y', 24), 3, '')");
    is_unavailable(&one, &names[2]);
    assert_eq!(server(&one, 2, &names[0]), "server3");
    // What is removed is there again.
    on_all("redis.call('DEL', key)");
    held(&one, 2, 4);
    held(&two, 2, 4);
    is_unavailable(&one, &names[2]);
    is_unavailable(&two, &names[0]);
    // Something else in its place: each node keeps its own users.
    on_all("redis.call('SET', key, 'x')");
    assert_eq!(server(&one, 3, &names[0]), "server3");
    assert_eq!(server(&two, 2, &names[2]), "server3");
    one.command(&["confirm"]).succeeded();
    held(&one, 0, 0);
    held(&two, 0, 0);
    assert_eq!(server(&two, 3, &names[2]), "server4");
}
