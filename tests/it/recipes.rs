//! The recipes of the documentation, with the programs that they are for. fail2ban, rsyslog and logrotate are unpacked
//! by `tests/run`, not installed.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::certs::Leaf;
use crate::kit::dirsrv::DirSrv;
use crate::kit::dovecot_versions::{VERSIONS, VersionedDovecot};
use crate::kit::process::{
    Output, Running, Server, folder, free_port, read_text, run, unpacked, wait_for_port, write_secret,
};
use crate::kit::samba::{DOMAIN, Samba};
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::{SERVICE_PASSWORD, SUFFIX};
use crate::kit::usher::BINARY;
use crate::kit::{Config, Imap, User, Usher, password_of, shared, wait_limit};
use crate::snippets::{of_language, with_line};

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// The one block of the documentation in this language that contains this.
fn block(language: &str, part: &str) -> String {
    let found = of_language(language).into_iter().filter(|snippet| snippet.text.contains(part));
    let [one] = found.collect::<Vec<_>>().try_into().ok().unwrap_or_else(|| panic!("not one {language} with {part}"));
    one.text
}

/// Starts a command that runs until the value is dropped.
fn start(command: &[&str], environment: Vec<(&str, String)>, log: &Path) -> Running {
    let command = command.iter().map(ToString::to_string).collect();
    Server { command, environment, log: Some(log.to_owned()), end: "TERM" }.start().0
}

/// Waits until the text is as wanted: a file offers no event to wait for.
fn wait_text(read: impl Fn() -> String, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + wait_limit(Duration::from_secs(15));
    loop {
        let text = read();
        if wanted(&text) {
            return text;
        }
        assert!(Instant::now() < deadline, "not as wanted:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a script of the documentation with `usher` as a command, for this configuration.
fn script(text: &str, config: &Path, at: &Path) -> Output {
    let commands = folder("commands");
    // The subcommand first, as `--config` belongs behind it.
    let usher = format!("#!/bin/sh\nname=$1; shift; exec {BINARY} \"$name\" --config {} \"$@\"\n", config.display());
    std::fs::write(commands.join("usher"), usher).unwrap();
    run("chmod", &["755", &commands.join("usher").display().to_string()], b"").succeeded();
    let head = format!("set -eu\nPATH={}:$PATH\ncd {}\n", commands.display(), at.display());
    run("sh", &["-c", &(head + text)], b"")
}

// fail2ban

/// A name that looks like fields of a guess from elsewhere.
const FORGED: &str = r#"x" result="wrong_password" client=203.0.113.9 login session=1"#;

/// An usher that logs in this format and these addresses, and its own lines in a file.
fn logging(format: &str, addresses: &str) -> (Usher, PathBuf) {
    let file = folder("log").join("usher.log");
    let tee = ["bash", "-c", "exec \"$@\" > >(tee \"$0\")", &file.display().to_string()].map(str::to_owned);
    let config = Config::shared().set("/log", json!({"format": format, "level": "info", "client_address": addresses}));
    let usher = Usher::start_under(config.set("/limits/failed_logins", 50), &tee.each_ref().map(|word| &**word));
    (usher, file)
}

fn fail2ban(program: &str, arguments: &[&str]) -> Output {
    let unpacked = unpacked("fail2ban");
    let libraries = format!("PYTHONPATH={}", unpacked.join("usr/lib/python3/dist-packages").display());
    let program = unpacked.join("usr/bin").join(program).display().to_string();
    // Elsewhere than in UTC, which usher's lines are in.
    run("env", &[&["TZ=America/New_York", &libraries, "/usr/bin/python3", &program], arguments].concat(), b"")
}

/// The addresses that the shipped filter finds in a log.
fn found_by_filter(log: &Path) -> Vec<String> {
    let (settings, filter) = (unpacked("fail2ban").join("etc/fail2ban"), shipped("fail2ban/filter.d/usher.conf"));
    let [settings, log, filter] = [&settings, log, &filter].map(|path| path.display().to_string());
    let output = fail2ban("fail2ban-regex", &["-c", &settings, "-o", "row", &log, &filter]).succeeded();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    // A row: address, seconds since 1970, more.
    let row = |line: &str| {
        let (address, rest) = line.strip_prefix("['")?.split_once("',")?;
        // With a fraction, or without.
        let seconds: f64 = rest.trim_start().split_once(',')?.0.parse().ok()?;
        assert!((now - seconds).abs() < 300.0, "the time of {line} is read wrongly");
        Some(address.to_owned())
    };
    output.stdout.lines().filter_map(row).collect()
}

#[test]
fn fail2ban_counts_guesses_in_both_formats_and_nothing_else() {
    for format in ["text", "json"] {
        let (usher, file) = logging(format, "full");
        let refused = |last: u8, name: &str, password: &str| {
            let mut imap = Imap::tls_from([127, 0, 0, last], usher.imaps_port());
            imap.authenticate("", name, password.as_bytes()).is("NO [AUTHENTICATIONFAILED]");
        };
        refused(71, "alice", "wrong");
        refused(72, "nobody", "wrong");
        refused(73, FORGED, "wrong");
        // The same wrong password again, and logins that are no guesses.
        refused(74, "alice", "wrong");
        refused(75, "alice", "");
        Imap::tls_from([127, 0, 0, 76], usher.imaps_port()).login("carol", &password_of("carol")).is("NO");
        Imap::tls_from([127, 0, 0, 77], usher.imaps_port()).login("alice", &password_of("alice")).ok();
        usher.nth_login(4, "alice");
        assert_eq!(usher.nth_login(2, "alice")["by"], "negative");
        let text = wait_text(|| read_text(&file), |text| text.matches("login_backend").count() > 0);
        let guesses = ["127.0.0.71", "127.0.0.72", "127.0.0.73"];
        assert_eq!(found_by_filter(&file), guesses, "{format}");
        // As the journal's lines and syslog's are given to the filter.
        // Syslog's own time has no zone: it is the machine's.
        let time = |words: &[&str]| run("env", words, b"").succeeded().stdout.trim().to_owned();
        for now in [time(&["TZ=America/New_York", "date", "+%b %e %H:%M:%S"]), time(&["date", "+%FT%T.123456%:z"])] {
            let lines: String = text.lines().map(|line| format!("{now} mx1 usher[4711]: {line}\n")).collect();
            let syslog = file.with_file_name("syslog");
            std::fs::write(&syslog, lines).unwrap();
            assert_eq!(found_by_filter(&syslog), guesses, "{format}: {now}");
        }
    }
}

#[test]
fn fail2ban_bans_no_network_where_the_log_has_no_addresses() {
    for format in ["text", "json"] {
        let (usher, file) = logging(format, "network");
        Imap::tls_from([127, 0, 0, 71], usher.imaps_port()).login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
        wait_text(|| read_text(&file), |text| text.contains("wrong_password"));
        assert!(found_by_filter(&file).is_empty(), "{format}: {}", read_text(&file));
    }
}

#[test]
fn fail2ban_accepts_the_jail() {
    let settings = folder("fail2ban");
    let copy = |from: PathBuf| {
        run("cp", &["-r", &format!("{}/.", from.display()), &settings.display().to_string()], b"").succeeded();
    };
    copy(unpacked("fail2ban").join("etc/fail2ban"));
    let before = fail2ban("fail2ban-client", &["-c", &settings.display().to_string(), "-d"]).succeeded();
    assert!(!before.stdout.contains("usher"), "{before:#?}");
    copy(shipped("fail2ban"));
    let after = fail2ban("fail2ban-client", &["-c", &settings.display().to_string(), "-d"]).succeeded();
    for part in [
        "['add', 'usher', 'systemd']",
        "['set', 'usher', 'addjournalmatch', '_SYSTEMD_UNIT=usher.service']",
        "'110,143,465,587,993,995,4190'",
        "['start', 'usher']",
    ] {
        assert!(after.stdout.contains(part), "{part}: {after:#?}");
    }
}

// rsyslog and logrotate

#[test]
fn rsyslog_writes_the_lines_and_logrotate_loses_none() {
    let place = folder("rsyslog");
    let path = |name: &str| place.join(name).display().to_string();
    let unpacked_rsyslog = unpacked("rsyslog");
    let architecture = run("gcc", &["-print-multiarch"], b"").succeeded().stdout;
    let libraries = unpacked_rsyslog.join("usr/lib").join(architecture.trim());
    let file = "/var/log/usher.log";
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("target=\"127.0.0.1\" port=\"{}\"", host.local_addr().unwrap().port());
    let forward = block("rsyslog", "omfwd").replace("target=\"loghost.example.com\" port=\"514\"", &port);
    let snippet = block("rsyslog", "$programname").replace(file, &path("usher.log"));
    let snippet = snippet.replace("  stop\n", &format!("{forward}  stop\n"));
    assert!(snippet.contains(&port), "{snippet}");
    let config = format!(
        "global(workDirectory=\"{place}\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         input(type=\"imuxsock\" Socket=\"{place}/dev-log\")\n{snippet}*.* {place}/others.log\n",
        place = place.display()
    );
    std::fs::write(place.join("rsyslog.conf"), config).unwrap();
    let program = unpacked_rsyslog.join("usr/sbin/rsyslogd").display().to_string();
    let environment = vec![("LD_LIBRARY_PATH", libraries.display().to_string())];
    let modules = libraries.join("rsyslog").display().to_string();
    let words = [&program, "-n", "-M", &modules, "-f", &path("rsyslog.conf"), "-i", &path("pid")];
    let daemon = start(&words, environment, &place.join("output"));
    wait_text(|| place.join("dev-log").exists().to_string(), |text| text == "true");

    let tee = format!("exec \"$@\" > >(tee >(logger -t usher -u {}))", path("dev-log"));
    let config = Config::shared().set("/log", json!({"format": "text", "level": "info"}));
    let usher = Usher::start_under(config, &["bash", "-c", &tee, "bash"]);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let log = place.join("usher.log");
    let is_login = |name: &str, text: &str| {
        text.lines().any(|line| {
            let parsed = crate::kit::log_line::parse(line);
            parsed.is_some_and(|line| line["message"] == "login" && line["login"] == name)
        })
    };
    wait_text(|| read_text(&log), |text| is_login("alice", text));
    assert!(!read_text(&place.join("others.log")).contains("login"), "it stops at the file");
    let (stream, _) = host.accept().unwrap();
    stream.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
    let mut sent = std::io::BufReader::new(stream).lines().map_while(Result::ok);
    assert!(
        sent.any(|line| line.contains("usher") && line.contains(" login session=")),
        "the other host has the login"
    );

    // The shipped script sends rsyslogd a HUP by its process id.
    let hup = format!("kill -HUP {}", daemon.pid().as_raw_nonzero());
    let rotate = block("logrotate", file).replace(file, &path("usher.log"));
    let rotate = rotate.replace("/usr/lib/rsyslog/rsyslog-rotate", &hup);
    write_secret(&place.join("logrotate.conf"), rotate);
    let logrotate = unpacked("logrotate").join("usr/sbin/logrotate").display().to_string();
    run(&logrotate, &["-f", "-s", &path("state"), &path("logrotate.conf")], b"").succeeded();
    assert!(is_login("alice", &read_text(&place.join("usher.log.1"))));
    Imap::tls(usher.imaps_port()).login("anna", &password_of("anna")).ok();
    let text = wait_text(|| read_text(&log), |text| is_login("anna", text));
    assert!(!is_login("alice", &text), "{text}");
}

#[test]
fn session_in_the_log_is_as_long_as_documented() {
    // docs/capacity.md: 600 bytes, as JSON 750, with names and addresses a little longer than here.
    for (format, most) in [("text", 650), ("json", 800)] {
        let (usher, file) = logging(format, "full");
        for nth in 1..=2 {
            Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
            usher.wait_nth_log(nth, "end", |_| true);
        }
        let text = wait_text(|| read_text(&file), |text| text.matches("duration_ms").count() == 2);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("alice")).collect();
        let [.., login, end] = lines[..] else { panic!("{text}") };
        assert!(login.contains("cache") && end.contains("duration_ms"), "{text}");
        let bytes = login.len() + end.len() + 2;
        assert!((most / 2..=most).contains(&bytes), "{format}: {bytes} bytes:\n{login}\n{end}");
    }
}

// Certificates

#[test]
fn certbot_hook_installs_the_files_and_applies_them() {
    let config = Config::shared();
    let target = config.path("tls");
    let live = folder("live");
    let lineage = live.join("mail.example.com");
    std::fs::create_dir(&lineage).unwrap();
    let renew = |name: &str| {
        let pair = shared().certificates.leaf(name, Leaf::server(&["usher.example.com", "127.0.0.1"]));
        std::fs::copy(&pair.chain, lineage.join("fullchain.pem")).unwrap();
        std::fs::copy(&pair.key, lineage.join("privkey.pem")).unwrap();
        pair.certificates().remove(0)
    };
    let group = run("id", &["-gn"], b"").succeeded().stdout;
    let user = run("id", &["-un"], b"").succeeded().stdout;
    let hook = std::fs::read_to_string(shipped("certbot/usher")).unwrap();
    assert_eq!(hook.matches("-o root -g usher").count(), 2);
    let hook = hook.replace("/etc/usher/tls ", &format!("{} ", target.display()));
    let hook = hook.replace("-o root -g usher", &format!("-o {} -g {}", user.trim(), group.trim()));
    let file = config.path("usher.yaml");
    let deploy =
        |lineage: &Path| script(&format!("export RENEWED_LINEAGE={}\n{hook}", lineage.display()), &file, &live);

    let first = renew("certbot-first");
    let config = config.set("/tls/certificates", json!([{"chain": "tls/fullchain.pem", "key": "tls/privkey.pem"}]));
    config.write();
    // usher does not run yet, and another certificate does not concern it.
    deploy(&lineage).succeeded();
    let other = live.join("www.example.com");
    std::fs::create_dir(&other).unwrap();
    deploy(&other).succeeded();
    let modes = run("stat", &["-c", "%a", &target.join("privkey.pem").display().to_string()], b"").succeeded();
    assert_eq!(modes.stdout.trim(), "640");

    let usher = Usher::start(config);
    let served = || {
        let imap = Imap::tls(usher.imaps_port());
        imap.connection().peer_certificates().unwrap()[0].clone().into_owned()
    };
    assert_eq!(served(), first);
    let second = renew("certbot-second");
    deploy(&lineage).succeeded();
    assert_eq!(served(), second);
    // What is refused stays out, and certbot hears of it.
    std::fs::copy(&shared().usher.key, lineage.join("privkey.pem")).unwrap();
    let refused = deploy(&lineage);
    assert_eq!(refused.code, 1, "{refused:#?}");
    assert_eq!(served(), second);
}

#[test]
fn haproxy_leads_challenges_to_certbot_and_nothing_else() {
    let place = folder("acme");
    let challenges = place.join(".well-known/acme-challenge");
    std::fs::create_dir_all(&challenges).unwrap();
    std::fs::write(challenges.join("token"), "proof").unwrap();
    std::fs::write(place.join("secret"), "secret").unwrap();
    let [front, back] = [(); 2].map(|()| free_port());
    let root = place.display().to_string();
    let words = ["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "-d", &root, &back.to_string()];
    let _certbot = start(&words, vec![], &place.join("http"));
    wait_for_port(back, &place.join("http"));
    let lines = block("haproxy", "acme-challenge").replace("bind :80", &format!("bind 127.0.0.1:{front}"));
    let lines = lines.replace("mx1.example.com:8888", &format!("127.0.0.1:{back}"));
    let timeouts = "defaults\n    timeout connect 5s\n    timeout client 10s\n    timeout server 10s\n";
    std::fs::write(place.join("haproxy.cfg"), format!("{timeouts}{lines}")).unwrap();
    let config = place.join("haproxy.cfg").display().to_string();
    let checked = run("haproxy", &["-c", "-f", &config], b"").succeeded();
    assert!(!checked.stderr.contains("[WARNING]"), "{checked:#?}");
    let _haproxy = start(&["haproxy", "-db", "-f", &config], vec![], &place.join("haproxy"));
    wait_for_port(front, &place.join("haproxy"));
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:{front}{path}");
        run("curl", &["-s", "--path-as-is", "-w", " %{http_code}", &url], b"").succeeded().stdout
    };
    assert_eq!(get("/.well-known/acme-challenge/token"), "proof 200");
    assert_eq!(get("/secret"), " 404");
}

// A department

/// The value of `attribute` in each line of LDIF that has it.
fn values(text: &str, attribute: &str) -> Vec<String> {
    let prefix = format!("{attribute}: ");
    text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
}

#[test]
fn shipped_schemas_are_those_of_the_documentation() {
    let [documented] = of_language("slapd-schema").try_into().ok().expect("one block");
    let documented: Vec<_> = documented.text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
    for (file, names) in [
        ("openldap.ldif", ["olcAttributeTypes", "olcObjectClasses"]),
        ("389-ds.ldif", ["attributeTypes", "objectClasses"]),
    ] {
        let text = std::fs::read_to_string(shipped("schema").join(file)).unwrap();
        assert_eq!(names.map(|name| values(&text, name)).concat(), documented, "{file}");
    }
}

/// slapd with its configuration in cn=config, as a database that root of the tests may change.
fn with_cn_config(entries: &str) -> Slapd {
    // The kit's own database is {1} then, as on Debian.
    let global = "database config\nrootdn cn=config\nrootpw config\n";
    let options = Options { modules: &["syncprov"], database: SYNCPROV, global, entries, ..Options::default() };
    Slapd::with(options)
}

#[test]
fn department_moves_under_a_hold() {
    let mover = format!(
        "dn: cn=mover,ou=services,{SUFFIX}\nobjectClass: applicationProcess\nobjectClass: simpleSecurityObject\n\
         cn: mover\nuserPassword: mover\n\n"
    );
    let names = ["alice", "anna", "gruen"];
    let slapd = with_cn_config(&mover);
    let load = |file: &str| {
        let file = shipped("schema").join(file).display().to_string();
        run("ldapmodify", &["-x", "-a", "-H", &slapd.url(), "-D", "cn=config", "-w", "config", "-f", &file], b"")
            .succeeded();
    };
    load("openldap.ldif");
    load("openldap-access.ldif");
    names.iter().for_each(|name| slapd.set(&User::new(name, None), "departmentNumber", Some("42")));

    let servers = [Scripted::accepting(), Scripted::accepting()];
    let config = Config::with_directory(&slapd)
        .backend("server3", servers[0].port, &["server3"])
        .backend("server4", servers[1].port, &["server4", "server4.example.com"])
        .set("/routing/backends/1/imap/server_name", "server3.example.com")
        .set("/directory/watch", "auto")
        .set("/directory/brake", 2)
        .set("/directory/hold_attribute", "mailHold")
        .set("/directory/hold_timeout", "1s");
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    let login = |name: &str| {
        let mut imap = Imap::tls(usher.imaps_port());
        let reply = imap.login(name, &password_of(name));
        (imap, reply)
    };
    let mut sessions: Vec<_> = names.iter().map(|name| login(name).0).collect();

    let place = folder("department");
    write_secret(&place.join("mover.password"), "mover");
    write_secret(&place.join("admin.password"), "root");
    let file = usher.config.path("usher.yaml");
    let at = |text: &str| {
        let text = text.replace("cn=admin,", "cn=root,");
        script(&format!("export LDAPURI={}\n{text}", slapd.url()), &file, &place).succeeded()
    };
    at(&block("sh", "objectClass: usherUser"));
    let department = std::fs::read_to_string(place.join("department")).unwrap();
    assert_eq!(department.lines().count(), names.len(), "{department}");
    at(&block("sh", "do usher wait"));
    for imap in &mut sessions {
        assert!(imap.line().starts_with("* BYE "));
    }
    for name in names {
        login(name).1.is("NO [UNAVAILABLE]");
        assert_eq!(usher.nth_login(2, name)["result"], "hold");
    }
    // Others go on, and no user may lift the hold.
    login("bob").1.ok();
    let alice = User::new("alice", None);
    let lift = format!("dn: {}\nchangetype: modify\ndelete: mailHold\n", alice.dn());
    let own = ["-x", "-H", &slapd.url(), "-D", &alice.dn(), "-w", &alice.password];
    assert_eq!(run("ldapmodify", &own, lift.as_bytes()).code, 50, "insufficientAccessRights");

    at(&block("sh", "usher confirm --for 30m\nwhile"));
    for name in names {
        usher.wait_log("route changed", |line| {
            line["dn"] == User::new(name, None).dn() && line["new_backend"] == "server4"
        });
        login(name).1.ok();
        assert_eq!(usher.nth_login(3, name)["backend"], "server4");
    }
    assert_eq!(usher.metric("usher_directory_brake", &[]), 0.0);
}

#[test]
fn schema_and_access_are_loaded_by_389_ds() {
    let (alice, mover) = (User::new("alice", Some("server3")), User { ou: "services", ..User::new("mover", None) });
    let server = DirSrv::start(&[], &[alice.clone(), mover.clone()]);
    let file = std::fs::read_to_string(shipped("schema/389-ds.ldif")).unwrap();
    // The kit's account is a user.
    let file = file.replace("cn=mover,ou=services,dc=example,dc=com", &mover.dn());
    server.modify(&file);
    let url = server.url();
    let hold = format!("dn: {}\nchangetype: modify\nreplace: mailHold\nmailHold: moving\n", alice.dn());
    let by = |account: &User| {
        let words = ["-x", "-H", &url, "-D", &account.dn(), "-w", &account.password];
        run("ldapmodify", &words, hold.as_bytes()).code
    };
    assert_eq!(by(&alice), 50, "insufficientAccessRights");
    assert_eq!(by(&mover), 0);
    let words = ["-x", "-LLL", "-H", &url, "-D", &mover.dn(), "-w", &mover.password, "-b", &alice.dn(), "(mailHold=*)"];
    assert!(run("ldapsearch", &words, b"").succeeded().stdout.contains("mailHold: moving"));
}

#[test]
fn schema_is_loaded_by_a_domain_controller() {
    let samba = Samba::start();
    samba.add("alice", "");
    let file = std::fs::read_to_string(shipped("schema/active-directory.ldif")).unwrap();
    samba.modify(&file.replace("DC=ad,DC=example,DC=com", DOMAIN));
    samba.replace("alice", "mailHold", "moving");
}

// A small office

/// Debian's access rules, and an empty tree.
fn office_database(folder: &Path) -> String {
    format!(
        "database mdb\nsuffix \"dc=office\"\nrootdn \"cn=admin,dc=office\"\nrootpw admin\ndirectory {}\n\
         maxsize 67108864\naccess to attrs=userPassword by self write by anonymous auth by * none\naccess to * by * read\n",
        folder.display()
    )
}

#[test]
fn small_office_serves_from_one_machine() {
    let slapd = Slapd::with(Options { database: &office_database(&folder("office")), ..Options::default() });
    let entries = block("ldif", "cn=usher,ou=services").replace("dc=example,dc=com", "dc=office");
    let hash = |password: &str| run("slappasswd", &["-s", password], b"").succeeded().stdout;
    let service = format!("cn: usher\nuserPassword: {}", hash(SERVICE_PASSWORD).trim());
    let entries = entries.replace("cn: usher\nuserPassword: ...", &service);
    let entries =
        entries.replace("userPassword: ...", &format!("userPassword: {}", hash(&password_of("alice")).trim()));
    let root = "dn: dc=office\nobjectClass: dcObject\nobjectClass: organization\ndc: office\no: Office\n\n";
    let words = ["-x", "-H", &slapd.socket_url(), "-D", "cn=admin,dc=office", "-w", "admin"];
    run("ldapadd", &words, format!("{root}{entries}").as_bytes()).succeeded();

    let text = block("yaml", "name: office").replace("dc=example,dc=com", "dc=office");
    for version in VERSIONS {
        // The kit has listeners of these names already.
        let port = free_port();
        let lines = with_line(version, "inet_listener imaps {").replace("10993", &port.to_string());
        let lines = lines.replace("protocols = imap\n", "").replace("inet_listener imap", "inet_listener office_imap");
        let lines = lines.replace(&format!("port = {port}"), &format!("port = {port}\n    ssl = yes"));
        let dovecot = VersionedDovecot::start(version, &(lines + &with_line(version, "master = yes")));
        wait_for_port(port, Path::new("dovecot"));

        let config = dovecot.config();
        config.file("dovecot.password", SERVICE_PASSWORD);
        let socket = slapd.socket_url();
        let replaced = [
            ("[::]:993", "127.0.0.1:0"),
            ("[::]:143", "127.0.0.1:0"),
            ("127.0.0.1:9930", "127.0.0.1:0"),
            ("ldapi://%2Frun%2Fslapd%2Fldapi", &socket),
            ("127.0.0.1:10993", &format!("127.0.0.1:{port}")),
            ("server_name: mail.example.com", "server_name: server3.example.com"),
            ("/run/usher/control.sock", "control.sock"),
        ];
        let text = replaced.iter().fold(text.clone(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let config = config
            .replaced(serde_yaml::from_str(&text).unwrap())
            .certificate(&shared().usher)
            .set("/routing/backends/0/ca", shared().certificates.ca().display().to_string())
            .set("/log", json!({"format": "json", "level": "debug"}));
        let usher = Usher::start(config);
        let check = usher.command(&["check", "--connect"]);
        assert!(check.stdout.contains("\n0 problems"), "{check:#?}\n{}", dovecot.logged());
        Imap::tls(usher.imaps_port()).login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("alice@example.com", &password_of("alice")).ok();
        imap.command("SELECT INBOX").ok();
        dovecot.wait_logged(&["aster user logging in as alice"]);
    }
}
