//! A running usher: changed certificates, files with wrong permissions, a shutdown that
//! is spread out.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::certs::{Leaf, Pair};
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::usher::Successor;
use crate::kit::{Config, Imap, User, Usher, password_of, shared, slapd};

fn login(usher: &Usher) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    imap
}

/// Copies this pair to the configured certificate files.
fn install(config: &Config, pair: &Pair) {
    config.file("served.key", std::fs::read(&pair.key).unwrap());
    config.file("served.pem", std::fs::read(&pair.chain).unwrap());
}

fn shown(usher: &Usher) -> rustls::pki_types::CertificateDer<'static> {
    Imap::tls(usher.imaps_port()).connection().peer_certificates().unwrap()[0].clone()
}

#[test]
fn renewed_certificate_is_used_without_a_signal_and_an_invalid_one_never() {
    let leaf = |name| shared().certificates.leaf(name, Leaf::server(&["usher.example.com"]));
    let (first, second, third) = (leaf("watched-1"), leaf("watched-2"), leaf("watched-3"));
    let expired = Leaf { expired: true, ..Leaf::server(&["usher.example.com"]) };
    let expired = shared().certificates.leaf("watched-expired", expired);
    let peer = Scripted::accepting();
    let config = Config::with_directory(slapd())
        .scripted(&peer)
        .set("/tls/certificates", json!([{"chain": "served.pem", "key": "served.key"}]))
        .set("/tls/reload_interval", "1s");
    install(&config, &first);
    let usher = Usher::start(config);
    let mut session = login(&usher);
    assert_eq!(shown(&usher), first.certificates()[0]);

    install(&usher.config, &second);
    usher.wait_metric("usher_certificate_reloads_total", &[("result", "ok")], 1.0);
    assert_eq!(shown(&usher), second.certificates()[0]);

    let refused = |word: &str| {
        let words = |line: &serde_json::Value| line["problem"].as_str().is_some_and(|problem| problem.contains(word));
        usher.wait_log("a changed file is invalid; its previous content stays active", words);
        usher.wait_metric("usher_certificate_last_reload_successful", &[], 0.0);
        assert_eq!(shown(&usher), second.certificates()[0], "{word}");
    };
    usher.config.file("served.pem", std::fs::read(&third.chain).unwrap());
    refused("does not belong");
    install(&usher.config, &expired);
    refused("expired");
    usher.config.file("served.pem", "nonsense");
    refused("holds no PEM certificate");
    std::fs::remove_file(usher.config.path("served.key")).unwrap();
    refused("cannot read");
    install(&usher.config, &first);
    usher.wait_metric("usher_certificate_last_reload_successful", &[], 1.0);
    assert_eq!(shown(&usher), first.certificates()[0]);
    session.command("NOOP").ok();
    assert_eq!(usher.metric("usher_config_last_reload_successful", &[]), 1.0);
}

/// One rule for every way in: by the check of the files, a command, SIGHUP and an upgrade.
#[test]
fn expired_certificate_replaces_none_in_force_unless_forced() {
    let leaf = |name, leaf| shared().certificates.leaf(name, leaf);
    let first = leaf("ruled-1", Leaf::server(&["usher.example.com"]));
    let expired = leaf("ruled-expired", Leaf { expired: true, ..Leaf::server(&["usher.example.com"]) });
    let peer = Scripted::accepting();
    let config = Config::with_directory(slapd())
        .scripted(&peer)
        .set("/tls/certificates", json!([{"chain": "served.pem", "key": "served.key"}]))
        .set("/tls/reload_interval", "1h");
    install(&config, &first);
    let usher = Usher::start(config);
    install(&usher.config, &expired);
    for command in ["reload", "upgrade"] {
        let said = usher.command(&[command]);
        assert_eq!(said.code, 1, "{said:#?}");
        let all = said.stdout + &said.stderr;
        assert!(all.contains("tls.certificates[0].chain") && all.contains("has expired: renew it"), "{command}: {all}");
        assert_eq!(shown(&usher), first.certificates()[0], "{command}");
    }
    usher.signal(rustix::process::Signal::HUP);
    usher.wait_nth_log(2, "reload failed; the previous configuration stays active", |_| true);
    assert_eq!(shown(&usher), first.certificates()[0]);
    // Whoever must.
    usher.command(&["reload", "--force"]).succeeded();
    usher.wait_log("certificate has expired and is still served: renew it", |_| true);
    // What is in force is not new: other changes are taken.
    usher.command(&["reload"]).succeeded();
}

/// The very remedy that the log names, which changes no content; until then the file is tried at each check, and logged
/// once.
#[test]
fn renewal_with_a_refused_mode_is_taken_after_chmod() {
    let leaf = |name| shared().certificates.leaf(name, Leaf::server(&["usher.example.com"]));
    let (first, second) = (leaf("mode-1"), leaf("mode-2"));
    let peer = Scripted::accepting();
    let config = Config::with_directory(slapd())
        .scripted(&peer)
        .set("/tls/certificates", json!([{"chain": "served.pem", "key": "served.key"}]))
        .set("/tls/reload_interval", "1s");
    install(&config, &first);
    let usher = Usher::start(config);
    install(&usher.config, &second);
    let key = usher.config.path("served.key");
    let mode = |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let line = usher.wait_log("a changed file is invalid; its previous content stays active", |line| {
        line["problem"].as_str().is_some_and(|problem| problem.contains("chmod 640"))
    });
    assert_eq!(shown(&usher), first.certificates()[0], "{line}");
    // Also if the reason is one that no content and no mode of the file shows.
    std::fs::rename(usher.config.path("served.pem"), usher.config.path("away.pem")).unwrap();
    usher.wait_log("a changed file is invalid; its previous content stays active", |line| {
        line["problem"].as_str().is_some_and(|problem| problem.contains("cannot read"))
    });
    std::fs::rename(usher.config.path("away.pem"), usher.config.path("served.pem")).unwrap();
    mode(0o640);
    usher.wait_metric("usher_certificate_last_reload_successful", &[], 1.0);
    assert_eq!(shown(&usher), second.certificates()[0]);
    let logged = usher.logged();
    let refusals = logged.iter().filter(|line| line["problem"].as_str().is_some_and(|text| text.contains("chmod 640")));
    assert!(refusals.count() <= 2, "each reason once, also when it comes back: {}", usher.log_text());
}

/// The running process has one file.
#[test]
fn reload_of_another_file_is_refused() {
    let usher = Usher::start(Config::shared());
    let other = usher.config.file("other.yaml", std::fs::read(usher.config.path("usher.yaml")).unwrap());
    let own = usher.config.path("usher.yaml");
    for command in ["reload", "upgrade"] {
        let said = crate::kit::process::run(
            crate::kit::usher::BINARY,
            &[command, "--config", &other.display().to_string()],
            b"",
        );
        assert_ne!(said.code, 0, "{said:#?}");
        assert!(said.stderr.contains(&format!("the running usher uses {}", own.display())), "{said:#?}");
    }
    // By another path to it.
    let link = usher.config.path("link.yaml");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    crate::kit::process::run(crate::kit::usher::BINARY, &["reload", "--config", &link.display().to_string()], b"")
        .succeeded();
    usher.wait_log("reloaded", |_| true);
    assert_eq!(usher.logged().iter().filter(|line| line["message"] == "reloaded").count(), 1);
}

#[test]
fn secrets_readable_by_others_are_refused_with_advice() {
    let config = Config::shared();
    let file = config.write();
    let password = config.path("ldap.password");
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o644)).unwrap();
    for command in [&["check"][..], &["run", "--allow-root"]] {
        let said = crate::kit::usher::command(&config, command, b"");
        assert_eq!(said.code, 78, "{said:#?}");
        let all = said.stdout + &said.stderr;
        let wanted = format!("run `chmod 640 {}`", password.display());
        let line = all.lines().find(|line| line.contains("directory.bind_password_file")).expect("its key is named");
        assert!(line.starts_with(&format!("{}:", file.display())) && line.contains(&wanted), "{all}");
    }
}

/// The client got a line before the connection was closed (RFC 3501 section 3.4).
fn says_goodbye(session: &mut Imap) {
    assert_eq!(session.line(), "* BYE Server shutting down, please reconnect");
    session.expect_clean_end();
}

#[test]
fn stop_of_a_few_sessions_takes_no_longer_than_they_need() {
    let peer = Scripted::accepting();
    let config = Config::with_directory(slapd()).scripted(&peer);
    let usher = Usher::start(config.set("/drain", json!({"deadline": "10m"})));
    let mut sessions: Vec<Imap> = (0..4).map(|_| login(&usher)).collect();
    let began = Instant::now();
    usher.terminate();
    sessions.iter_mut().for_each(says_goodbye);
    assert_eq!(usher.exit_code(), 0);
    // At 100 a second, and at most 4 s for a pause in what each does: three times that.
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[test]
fn sessions_are_closed_one_by_one_until_the_deadline() {
    let peer = Scripted::accepting();
    let config = Config::with_directory(slapd()).scripted(&peer);
    let usher = Usher::start(config.set("/drain", json!({"deadline": "3s", "max_closes_per_second": 2})));
    let mut sessions: Vec<Imap> = (0..8).map(|_| login(&usher)).collect();
    let began = Instant::now();
    usher.terminate();
    // Two a second until the deadline of three, then the rest at once.
    for (nth, soonest) in (1..).zip([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]) {
        let end = usher.wait_nth_log(nth, "end", |_| true);
        assert_eq!(end["cause"], "drain", "{end}");
        let after = began.elapsed().as_secs_f64();
        assert!(after >= soonest && after < soonest + 3.0, "end {nth} came after {after} s, not {soonest} s");
    }
    let ended = Instant::now();
    assert_eq!(usher.exit_code(), 0);
    assert!(ended.elapsed() < Duration::from_secs(5));
    // All of them politely, those at the deadline too.
    sessions.iter_mut().for_each(says_goodbye);
}

/// A duration of the configuration or of a unit file, in seconds.
pub(crate) fn seconds(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let scale = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        _ => panic!("{text}"),
    };
    number.parse::<u64>().unwrap() * scale
}

#[test]
fn systemd_unit_waits_for_the_drain_of_every_shipped_config() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = std::fs::read_to_string(root.join("deploy/usher.service")).unwrap();
    let limit = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).map(seconds).unwrap();
    let mut seen = 0;
    for folder in [root.to_owned(), root.join("deploy")] {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let config: serde_json::Value = serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            if config["listeners"].is_null() {
                continue;
            }
            let of = |key: &str, default: &str| seconds(config["drain"][key].as_str().unwrap_or(default));
            // Closing the last sessions takes at most five seconds.
            let needed = of("delay", "0s") + of("deadline", "30s") + 5;
            assert!(needed < limit, "{}: {needed} s, but TimeoutStopSec={limit}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 1, "the shipped configurations were found");
}

#[test]
fn systemd_unit_exposure_is_as_documented() {
    let unit = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/usher.service");
    let arguments = ["security", "--offline=true", "--no-pager", unit.to_str().unwrap()];
    let said = crate::kit::process::run("systemd-analyze", &arguments, b"").succeeded().stdout;
    let (_, level) = said.split_once("Overall exposure level for usher.service: ").expect("a level");
    let level: f64 = level.split(' ').next().unwrap().parse().unwrap();
    assert!(level <= 1.5, "{said}");
}

/// A line of `/proc/PID/status`.
fn status(usher: &Usher, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", usher.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

#[test]
fn new_privileges_and_core_dumps_are_disabled_except_for_debugging() {
    let usher = Usher::start(Config::shared());
    assert_eq!(status(&usher, "NoNewPrivs"), "1");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", usher.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let debugged = Usher::start(Config::shared().set("/process", json!({"debug": true})));
    debugged.wait_log("process.debug is set: debuggers and core dumps can read passwords", |_| true);
    assert_eq!(status(&debugged, "NoNewPrivs"), "1");
}

#[test]
fn root_is_refused_or_drops_to_a_user_that_can_bind_low_ports() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let config = Config::shared().set("/tls/certificates", json!([{"chain": "served.pem", "key": "served.key"}]));
    install(&config, &shared().usher);
    config.write();
    let refused = crate::kit::usher::command(&config, &["run"], b"");
    assert_eq!(refused.code, 78, "{refused:#?}");
    assert!(refused.stderr.contains("refusing to run as root: use the systemd unit or process.user"), "{refused:#?}");

    let mut usher = {
        let config = config.set("/process", json!({"user": "nobody"}));
        config.write();
        let folder = config.path("");
        for path in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).chain([folder.clone()]) {
            std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
        }
        Usher::start(config)
    };
    for (name, value) in [("Uid", "65534"), ("Gid", "65534")] {
        let ids = status(&usher, name);
        assert!(ids.split_whitespace().all(|id| id == value), "{name} {ids}");
    }
    assert_eq!(status(&usher, "Groups"), "");
    for set in ["CapEff", "CapPrm", "CapAmb"] {
        assert_eq!(
            u64::from_str_radix(&status(&usher, set), 16).unwrap(),
            1 << 10,
            "{set}: CAP_NET_BIND_SERVICE alone"
        );
    }
    // Every thread, not the first alone.
    for task in std::fs::read_dir(format!("/proc/{}/task", usher.pid())).unwrap().flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    }
    let mut session = login(&usher);
    let low = json!({"protocol": "imap", "address": "127.93.9.3:993", "tls": "implicit"});
    usher.config.change("/listeners/1", low);
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    drop(std::net::TcpStream::connect("127.93.9.3:993").unwrap());
    session.command("NOOP").ok();
    // The process can still count its open descriptors.
    assert!(usher.metric("process_open_fds", &[]) > 5.0);
}

#[test]
fn connection_limit_is_lowered_to_the_available_descriptors() {
    let config = Config::shared().set("/limits/connections", 1_000);
    let file = config.write().display().to_string();
    let limited = ["prlimit", "--nofile=600:600"];
    let check = [&limited[1..], &[crate::kit::usher::BINARY, "check", "--config", &file]].concat();
    let said = crate::kit::process::run(limited[0], &check, b"").succeeded();
    assert!(said.stderr.contains("limits.connections: needs 2256 open files"), "{said:#?}");
    let usher = Usher::start_under(config, &limited);
    assert_eq!(usher.metric("usher_connections_limit", &[]), 172.0);
    usher.wait_log("configuration warning", |line| line.to_string().contains("lowered to 172"));
    login(&usher);
}

/// A configuration with fixed ports, so that a second process listens where the first did.
fn with_ports(peer: &Scripted) -> (Config, u16) {
    Config::with_directory(slapd()).scripted(peer).with_ports()
}

#[test]
fn upgrade_under_load_loses_no_login_and_keeps_old_sessions() {
    let peer = Scripted::accepting();
    let (config, port) = with_ports(&peer);
    let usher = Usher::start(config);
    let mut session = login(&usher);
    let stop = AtomicBool::new(false);
    let successor = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    crate::kit::start_deadline();
                    let (mut logins, mut slowest) = (0, Duration::ZERO);
                    while !stop.load(Ordering::SeqCst) {
                        let began = Instant::now();
                        // Including the greeting.
                        let mut imap = Imap::tls(port);
                        slowest = slowest.max(began.elapsed());
                        imap.login("alice", &password_of("alice")).ok();
                        imap.command("LOGOUT").ok();
                        logins += 1;
                    }
                    (logins, slowest)
                })
            })
            .collect();
        usher.nth_login(9, "alice");
        usher.command(&["upgrade"]).succeeded();
        let successor = Successor::of(&usher, 2);
        let by_the_new = usher.logged().len();
        // Logins continue after it.
        let enough = usher.logged().iter().filter(|line| line["message"] == "login").count() + 20;
        usher.nth_login(enough, "alice");
        stop.store(true, Ordering::SeqCst);
        let done: Vec<(usize, Duration)> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        assert!(by_the_new > 0 && done.iter().all(|(_, slowest)| *slowest < Duration::from_secs(3)), "{done:?}");
        let refused = |line: &serde_json::Value| line["message"] == "login" && line["result"] != "ok";
        assert!(!usher.logged().iter().any(refused));
        successor
    });
    assert_ne!(successor.0.as_raw_nonzero().get(), usher.pid());
    // The old process still relays, and is queried by the same command.
    session.command("NOOP").ok();
    let mut newer = login(&usher);
    let said = usher.command(&["sessions", "--json"]).succeeded();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    // Each by the id in its log line, whichever process wrote it.
    let logged = usher.logged();
    for session in &listed {
        let is_its = |line: &&serde_json::Value| line["message"] == "login" && line["session"] == session["id"];
        assert_eq!(logged.iter().filter(is_its).count(), 1, "{session}");
    }
    assert_ne!(listed[0]["id"], listed[1]["id"]);
    // It ends with its last session, and the new one keeps serving.
    session.command("LOGOUT").ok();
    drop(session);
    assert_eq!(usher.exit_code(), 0);
    newer.command("NOOP").ok();
    login(&usher);
    assert_eq!(usher.http("/live").0, 200);
    assert!(usher.command(&["sessions"]).succeeded().stdout.contains("session"));
}

#[test]
fn old_process_drains_faster_at_one_signal_and_ends_at_the_next() {
    let peer = Scripted::accepting();
    let (config, _) = with_ports(&peer);
    let usher = Usher::start(config.set("/drain", json!({"deadline": "5m", "max_closes_per_second": 1})));
    let mut sessions: Vec<Imap> = (0..60).map(|_| login(&usher)).collect();
    usher.command(&["upgrade"]).succeeded();
    let _successor = Successor::of(&usher, 2);
    usher.terminate();
    usher.wait_log("draining faster", |_| true);
    says_goodbye(&mut sessions[0]);
    usher.terminate();
    assert_eq!(usher.exit_code(), 0);
    sessions[1..].iter_mut().for_each(says_goodbye);
    assert_eq!(usher.wait_log("end", |_| true)["cause"], "drain");
}

#[test]
fn old_process_says_nothing_of_servers_and_its_sessions_still_end_with_a_line() {
    let peer = Scripted::accepting();
    let options = Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() };
    let mut slapd = Slapd::with(options);
    let (config, _) = Config::with_directory(&slapd).scripted(&peer).with_ports();
    let usher = Usher::start(config.set("/directory/watch", "auto").set("/directory/hold_attribute", "description"));
    usher.wait_log("LDAP change notification active", |_| true);
    let mut session = login(&usher);
    usher.command(&["upgrade"]).succeeded();
    let _successor = Successor::of(&usher, 2);
    let old = |line: &serde_json::Value| line["usher_pid"] == usher.pid();
    usher.wait_log("LDAP change notification active", |line| !old(line));
    let bob = User::new("bob", None);
    for (value, message) in
        [(Some("moving"), "user is held by the directory"), (None, "user is no longer held by the directory")]
    {
        slapd.set(&bob, "description", value);
        usher.wait_log(message, |line| !old(line));
    }
    slapd.stop();
    let down = usher.wait_log("directory server marked down", |_| true);
    assert!(!old(&down), "{down}");
    slapd.start_again();
    usher.wait_log("directory server up again", |_| true);
    session.command("LOGOUT").ok();
    drop(session);
    assert_eq!(usher.exit_code(), 0);
    let logged = usher.logged();
    let after =
        logged.iter().skip_while(|line| line["message"] != "draining after an upgrade").filter(|line| old(line));
    let messages: Vec<_> = after.map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["draining after an upgrade", "end", "stopped"]);
}

#[test]
fn process_without_its_successor_stops_at_once() {
    let peer = Scripted::accepting();
    let (config, _) = with_ports(&peer);
    let usher = Usher::start(config.set("/drain/deadline", "5m"));
    let mut session = login(&usher);
    usher.command(&["upgrade"]).succeeded();
    let successor = Successor::of(&usher, 2);
    // As configured: what the upgrade passed on is not shown.
    let shown = std::fs::read_to_string(format!("/proc/{}/cmdline", successor.0.as_raw_nonzero())).unwrap();
    let (program, arguments) = shown.split_once('\0').unwrap();
    assert!(program.ends_with("/usher"), "{shown:?}");
    assert_eq!(arguments, format!("run\0--config\0{}\0", usher.config.path("usher.yaml").display()));
    let status = format!("/proc/{}/status", successor.0.as_raw_nonzero());
    drop(successor);
    // A process that is not the parent gets no event for its exit, which is the exit of its last thread.
    let ended = |status: String| status.contains("State:\tZ") && status.contains("Threads:\t1\n");
    while std::fs::read_to_string(&status).is_ok_and(|status| !ended(status)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    session.command("NOOP").ok();
    // As systemd does before it restarts the service.
    usher.terminate();
    usher.wait_log("the new process has exited; the remaining sessions are closed", |_| true);
    says_goodbye(&mut session);
    assert_eq!(usher.exit_code(), 0);
}

#[test]
fn failed_upgrade_changes_nothing() {
    let peer = Scripted::accepting();
    let (config, _) = with_ports(&peer);
    let usher = Usher::start(config);
    let mut session = login(&usher);
    let good = std::fs::read(usher.config.path("usher.yaml")).unwrap();
    let mut bad = usher.config.clone();
    bad.change("/tls/certificates/0/chain", "missing.pem");
    let bad = std::fs::read(bad.write()).unwrap();
    usher.config.file("usher.yaml", bad);
    let said = usher.command(&["upgrade"]);
    assert_eq!(said.code, 1, "{said:#?}");
    assert!(said.stderr.contains("the old process continues"), "{said:#?}");
    assert!(said.stderr.contains("tls.certificates[0].chain") && said.stderr.contains("missing.pem"), "{said:#?}");
    // Also if it fails before it has taken anything over.
    usher.config.file("usher.yaml", [&good[..], b"unknown_key: 1\n"].concat());
    let said = usher.command(&["upgrade", "--json"]);
    assert!(said.code == 1 && said.stdout.contains("unknown_key: unknown key"), "{said:#?}");
    usher.config.file("usher.yaml", good);
    session.command("NOOP").ok();
    login(&usher);
    usher.command(&["reload"]).succeeded();
    let left = std::fs::read_dir(usher.config.path(""))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("control.sock"));
    assert_eq!(left.count(), 1, "no second control socket stays");
}

#[test]
fn signal_during_an_upgrade_stops_both_processes() {
    let peer = Scripted::accepting();
    let (config, _) = with_ports(&peer);
    let program = config.path("program");
    let binary = crate::kit::usher::BINARY;
    std::fs::hard_link(binary, &program).or_else(|_| std::fs::copy(binary, &program).map(drop)).unwrap();
    let by_that_name = ["bash", "-c", "exec \"$0\" \"${@:2}\"", program.to_str().unwrap()];
    let usher = Usher::start_under(config, &by_that_name);
    std::fs::remove_file(&program).unwrap();
    usher
        .config
        .file("program", "#!/bin/sh\necho '{\"message\": \"I never serve\", \"pid\": '$$'}'\nexec sleep 1000\n");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = std::thread::scope(|scope| {
        let asked = scope.spawn(|| usher.command(&["upgrade"]));
        let successor = usher.wait_log("I never serve", |_| true)["pid"].clone();
        usher.terminate();
        assert_eq!(usher.exit_code(), 0);
        assert!(!std::path::Path::new(&format!("/proc/{successor}")).exists(), "{successor} lives");
        asked.join().unwrap()
    });
    assert_eq!(said.code, 1, "{said:#?}");
    assert!(said.stderr.contains("stopped by a signal"), "{said:#?}");
}

/// Runs usher with a socket as its descriptor 3; the shell stands in for systemd, whose LISTEN_PID
/// is the process itself.
fn activated(config: Config, socket: std::net::TcpListener, name: &str) -> Usher {
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let listen = format!("LISTEN_FDS=1 LISTEN_FDNAMES={name} LISTEN_PID=$$");
    let script = format!("exec 3<&{number} {number}<&-; {listen} exec \"$@\"");
    Usher::start_under(config, &["bash", "-c", &script, "bash"])
}

#[test]
fn sockets_opened_by_systemd_are_used() {
    let peer = Scripted::accepting();
    let (config, port) = with_ports(&peer);
    let socket = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let usher = activated(config, socket, "usher.socket");
    login(&usher);
}

#[test]
fn named_socket_is_used_at_any_address_by_the_successor_too() {
    let peer = Scripted::accepting();
    let (config, configured) = with_ports(&peer);
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let usher = activated(config.set("/listeners/0/socket", "imaps"), socket, "imaps");
    assert_eq!(usher.imaps_port(), port);
    assert!(std::net::TcpStream::connect(("127.0.0.1", configured)).is_err(), "no server listens there");
    login(&usher);
    usher.command(&["upgrade"]).succeeded();
    let _successor = Successor::of(&usher, 2);
    assert_eq!(usher.exit_code(), 0);
    login(&usher);
    assert!(std::net::TcpStream::connect(("127.0.0.1", configured)).is_err(), "no server listens there");
}

#[test]
fn logins_behind_haproxy_succeed_while_one_instance_drains() {
    let peer = Scripted::accepting();
    let ((one, first), (two, second), (three, third)) = (with_ports(&peer), with_ports(&peer), with_ports(&peer));
    let drain = json!({"delay": "3s", "deadline": "2s"});
    let with_header =
        |config: Config| config.set("/listeners/0/proxy_header", "required").set("/listeners/0/trusted", "127.0.0.1");
    let ushers = [with_header(one).set("/drain", drain), with_header(two), with_header(three)].map(Usher::start);
    for usher in &ushers {
        usher.wait_log("ready", |_| true);
    }
    let port = crate::kit::process::free_port();
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy.cfg");
    let mut text = std::fs::read_to_string(shipped).unwrap();
    let side = |usher: &Usher| usher.side_port().rsplit(':').next().unwrap().to_owned();
    // All clients have one address here, so they must be balanced round robin.
    for (from, to) in [
        ("bind :993", format!("bind 127.0.0.1:{port}")),
        ("balance source\n    hash-type consistent", "balance roundrobin".to_owned()),
        ("check port 9930", "check".to_owned()),
        ("usher1 192.0.2.11", format!("usher1 127.0.0.1:{first} port {}", side(&ushers[0]))),
        ("usher2 192.0.2.12", format!("usher2 127.0.0.1:{second} port {}", side(&ushers[1]))),
        ("usher3 192.0.2.13", format!("usher3 127.0.0.1:{third} port {}", side(&ushers[2]))),
        ("maxconn 60000", "maxconn 1000".to_owned()),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, &to);
    }
    let config = ushers[0].config.file("haproxy.cfg", text).display().to_string();
    let command = ["haproxy", "-db", "-f", &config].map(String::from).to_vec();
    let server = crate::kit::process::Server {
        command,
        environment: vec![],
        log: Some(ushers[0].config.path("haproxy.log")),
        end: "TERM",
    };
    let (_haproxy, _output) = server.start();
    crate::kit::process::wait_for_port(port, &ushers[0].config.path("haproxy.log"));

    let log_in = || {
        let mut imap = Imap::tls_from([127, 0, 0, 77], port);
        imap.login("alice", &password_of("alice")).ok();
        imap
    };
    let mut sessions = vec![log_in(), log_in(), log_in()];
    // A late first check may keep one of them down for a second.
    while ushers.iter().any(|usher| usher.metric("usher_sessions", &[]) < 1.0) {
        sessions.push(log_in());
    }
    // Behind the load balancer the client address is kept, and the balancer's checks have no effect.
    for usher in &ushers {
        assert_eq!(usher.login("alice")["client"], "127.0.0.77");
        assert_eq!(usher.metric("usher_proxy_headers_total", &[("result", "missing")]), 0.0);
    }
    ushers[0].terminate();
    // Before, during and after the drain of the first.
    let mut later = 0;
    while ushers[0].logged().iter().all(|line| line["message"] != "stopped") {
        log_in().command("NOOP").ok();
        later += 1;
    }
    assert!(later > 10, "{later}");
    for _ in 0..4 {
        log_in().command("NOOP").ok();
    }
    drop(sessions);
}
