//! `usher check --connect`: its findings about healthy and faulty servers.

use serde_json::{Value, json};

use crate::kit::certs::Leaf;
use crate::kit::process::{Server, folder, free_port, wait_for_port};
use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::SERVICE_DN;
use crate::kit::usher::command;
use crate::kit::{Config, cyrus, dovecot, password_of, shared, slapd};

/// Runs it; returns the exit code and the report.
fn inspect(config: &Config, arguments: &[&str]) -> (i32, Value) {
    config.write();
    let said = command(config, &[&["check", "--connect", "--json"], arguments].concat(), b"");
    let value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    (said.code, value)
}

/// The finding with this name about a server, given by name and protocol.
#[track_caller]
fn finding(report: &Value, kind: &str, name: &str, check: &str) -> Value {
    let subjects = report["subjects"].as_array().unwrap().iter();
    let mut subjects = subjects.filter(|subject| subject["kind"] == kind && subject["name"] == name);
    let found = subjects.find_map(|subject| {
        subject["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == check).cloned()
    });
    found.unwrap_or_else(|| panic!("nothing about {check} of {kind} {name}: {report:#}"))
}

#[track_caller]
fn is(finding: &Value, state: &str, words: &[&str]) {
    assert_eq!(finding["state"], state, "{finding:#}");
    let text = finding.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {finding:#}");
}

/// Checks a directory; the mail server is healthy.
fn directory_of(config: &Config, check: &str) -> (i32, Value) {
    let url = serde_yaml::from_str::<Value>(&std::fs::read_to_string(config.write()).unwrap()).unwrap();
    let url = url["directory"]["servers"][0].as_str().unwrap().to_owned();
    let (code, report) = inspect(config, &[]);
    (code, finding(&report, "directory", &url, check))
}

/// Checks a mail server, as server3; the directory is healthy.
fn backend_of(config: &Config, check: &str) -> (i32, Value) {
    let (code, report) = inspect(config, &[]);
    (code, finding(&report, "backend", "server3", check))
}

#[test]
fn real_servers_pass_every_check() {
    let config = Config::shared().set("/routing/backends/0/imap/forward", "id");
    let (code, report) = inspect(&config, &["--sample", "alice@example.com"]);
    assert_eq!((code, &report["ok"]), (0, &json!(true)), "{report:#}");
    let url = slapd().tls_url();
    let directory = |check| finding(&report, "directory", &url, check);
    is(&directory("connection"), "ok", &["TLS", "ldap.example.com", "usher test CA", "2049-01-01"]);
    is(&directory("service bind"), "ok", &[SERVICE_DN]);
    is(&directory("base"), "ok", &["dc=example,dc=com"]);
    is(&directory("filter"), "ok", &["mail=alice@example.com", "uid=alice,ou=people", "server3"]);
    is(&directory("mail host"), "ok", &["mailHost is shown"]);
    is(&directory("size limit"), "ok", &["users are shown"]);
    for (name, greeting) in [("server3", "server3 is Dovecot"), ("server4", "Cyrus IMAP")] {
        let backend = |check| finding(&report, "backend", name, check);
        is(&backend("tcp"), "ok", &[]);
        is(&backend("tls"), "ok", &["TLS 1.3", &format!("{name}.example.com"), "days"]);
        is(&backend("greeting"), "ok", &[greeting]);
        is(&backend("mechanisms"), "ok", &["PLAIN"]);
        is(&backend("capabilities"), "ok", &["IMAP4rev1"]);
        is(&backend("login"), "ok", &["ready to send"]);
    }
    // Dovecot and Cyrus have different capabilities, and only the common ones are advertised.
    is(&finding(&report, "protocol", "imap", "advertised"), "ok", &["usher's own capabilities"]);
    is(&finding(&report, "protocol", "imap", "differs"), "note", &["server3", "IDLE"]);

    // The same as text, without any password.
    let said = command(&config, &["check", "--connect"], b"").succeeded();
    for words in ["backend server3 imap 127.0.0.1:", "ok       greeting      ", "0 problems, 0 warnings"] {
        assert!(said.stdout.contains(words), "{words}: {said:#?}");
    }
    assert!(!said.stdout.contains(&password_of("alice")) && !said.stdout.contains("service secret"));
    assert!(!said.stderr.contains("checked"), "no progress where there is no terminal: {said:#?}");
}

#[test]
fn other_protocols_are_checked_too() {
    let config = Config::shared().speaking("pop3", &[dovecot().pop3s]).set(
        "/routing/backends/1/managesieve",
        json!({"address": format!("127.0.0.1:{}", cyrus().sieve), "tls": "starttls", "server_name": "server4.example.com"}),
    );
    let (code, report) = inspect(&config, &[]);
    assert_eq!(code, 0, "{report:#}");
    let of = |name: &str, protocol: &str| {
        let mut all = report["subjects"].as_array().unwrap().iter();
        all.find(|subject| subject["name"] == name && subject["protocol"] == protocol).unwrap().to_string()
    };
    let pop3 = of("server3", "pop3");
    assert!(pop3.contains("+OK server3 is Dovecot") && pop3.contains("PLAIN"), "{pop3}");
    let sieve = of("server4", "managesieve");
    assert!(sieve.contains("TLS 1.3") && sieve.contains("PLAIN"), "{sieve}");
}

#[test]
fn capabilities_of_only_some_servers_are_a_warning() {
    // It has no SIZE, which Dovecot has.
    let server = Scripted::tls(|peer| {
        peer.send("220 scripted\r\n");
        while peer.line().is_some() {
            peer.send("250-scripted\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n");
        }
    });
    let config = Config::shared().speaking("submission", &[server.port, dovecot().submissions]);
    let config = config.set("/routing/backends/1/submission/server_name", "server3.example.com");
    let (code, report) = inspect(&config, &[]);
    assert_eq!(code, 0, "{report:#}");
    let differs = finding(&report, "protocol", "submission", "differs");
    is(&differs, "warning", &["server4: ", "8BITMIME", "`capabilities`"]);
}

#[test]
fn mismatched_certificates_are_reported_with_advice() {
    let wrong_ca = Config::shared().set("/routing/backends/0/ca", json!(shared().certificates.wrong_ca()));
    let (code, found) = backend_of(&wrong_ca, "tls");
    assert_eq!(code, 69);
    is(&found, "problem", &["no known authority", "`ca` must name"]);

    let wrong_name = Config::shared().set("/routing/backends/0/imap/server_name", "server9.example.com");
    let (code, found) = backend_of(&wrong_name, "tls");
    assert_eq!(code, 69);
    is(&found, "problem", &["not for server9.example.com", "server3.example.com", "server_name"]);

    let certificates = &shared().certificates;
    let names = &["server3.example.com"];
    let expired = certificates.leaf("inspect-expired", Leaf { expired: true, ..Leaf::server(names) });
    let server = Scripted::tls_as(&expired, |peer| {
        peer.send(GREETING);
    });
    let config = Config::with_directory(slapd()).scripted(&server);
    let (code, found) = backend_of(&config, "tls");
    assert_eq!(code, 69);
    is(&found, "problem", &["expired on", "renew"]);
    // A pin takes precedence over the date.
    let pinned = config.without("/routing/backends/0/ca").set("/routing/backends/0/pin_sha256", json!([expired.pin]));
    let (_, found) = backend_of(&pinned, "tls");
    is(&found, "ok", &["2021-01-01", "pin"]);
    let other = pinned.set("/routing/backends/0/pin_sha256", json!([shared().server4.pin]));
    let (code, found) = backend_of(&other, "tls");
    assert_eq!(code, 69);
    is(&found, "problem", &["not pinned", &expired.pin]);
}

#[test]
fn certificate_near_expiry_is_a_warning() {
    let names = &["server3.example.com"];
    let soon = shared().certificates.leaf("inspect-soon", Leaf { days: Some(5), ..Leaf::server(names) });
    let server = Scripted::tls_as(&soon, |peer| {
        peer.send(GREETING);
        peer.reply_to_everything();
    });
    let config = Config::with_directory(slapd()).scripted(&server);
    let (code, found) = backend_of(&config, "tls");
    assert_eq!(code, 0, "it works");
    is(&found, "warning", &["(5 days)", "renew"]);
    // usher's own certificate is reported too, without a connection.
    let own = shared().certificates.leaf("inspect-own", Leaf { days: Some(5), ..Leaf::server(&["usher.example.com"]) });
    let config = config.certificate(&own);
    config.write();
    let said = command(&config, &["check"], b"").succeeded();
    assert!(said.stderr.contains("inspect-own.pem ends until"), "{said:#?}");
}

#[test]
fn unreachable_or_misbehaving_mail_servers_are_reported() {
    let closed = Config::with_directory(slapd()).backend("server3", free_port(), &["server3"]);
    let (code, found) = backend_of(&closed, "tcp");
    assert_eq!(code, 69);
    is(&found, "problem", &["refused", "is the mail server running"]);

    let silent = Scripted::tls(|peer| peer.wait_for_end());
    let config = Config::with_directory(slapd()).scripted(&silent).set("/routing/backends/0/timeout", "500ms");
    let (code, found) = backend_of(&config, "greeting");
    assert_eq!(code, 69);
    is(&found, "problem", &["no greeting within 12s", "too slow", "exempt usher's address"]);

    let disabled = Scripted::tls(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] no\r\n");
        peer.wait_for_end();
    });
    let (code, found) = backend_of(&Config::with_directory(slapd()).scripted(&disabled), "mechanisms");
    assert_eq!(code, 69);
    is(&found, "problem", &["no usable mechanism", "PLAIN"]);

    let odd = Scripted::tls(|peer| {
        peer.send("HTTP/1.1 400 Bad Request\u{1b}[2J\r\n");
    });
    let (_, report) = inspect(&Config::with_directory(slapd()).scripted(&odd), &[]);
    let greeting = finding(&report, "backend", "server3", "greeting");
    assert!(greeting["found"].as_str().unwrap().contains(r"\u{1b}[2J"), "no terminal is moved: {greeting}");
    is(&finding(&report, "backend", "server3", "login"), "problem", &["port of this protocol"]);

    let implicit = Config::shared().set("/routing/backends/0/imap/address", format!("127.0.0.1:{}", dovecot().imap));
    is(&backend_of(&implicit, "tls").1, "problem", &["does not speak TLS here", "starttls"]);
    let nowhere = Config::shared().set("/routing/backends/0/imap/address", "nowhere.invalid:993");
    let (code, found) = backend_of(&nowhere, "name");
    assert_eq!(code, 69);
    is(&found, "problem", &["cannot be resolved", "resolver"]);
}

/// No user name or password is sent, and the probe account only if probes log in.
#[test]
fn only_the_probe_account_logs_in() {
    let server = Scripted::accepting();
    let config = Config::with_directory(slapd()).scripted(&server);
    is(&backend_of(&config, "login").1, "ok", &["ready to send"]);
    assert!(!server.transcript().contains("AUTHENTICATE"), "{}", server.transcript());
    let password = config.file("probe.password", "probe secret");
    let account = json!({"login": "prober", "password_file": password});
    let config = config.set("/routing/backends/0/probe", "login").set("/routing/backends/0/probe_account", account);
    is(&backend_of(&config, "login").1, "ok", &["the probe account logged in"]);
    assert_eq!(server.next_login(), "\0prober\0probe secret");
}

#[test]
fn unreachable_directory_is_reported() {
    let good = || Config::with_directory(slapd()).backend("server3", dovecot().imaps, &["server3"]);
    let config = good().set("/directory/ca", json!(shared().certificates.wrong_ca()));
    let (code, found) = directory_of(&config, "connection");
    assert_eq!(code, 69);
    is(&found, "problem", &["no known authority", "directory.ca"]);

    let config = good().set("/directory/servers/0", format!("ldaps://127.0.0.1:{}", free_port()));
    is(&directory_of(&config, "connection").1, "problem", &["refused", "is the directory running"]);
    let config = good().set("/directory/servers/0", format!("ldaps://127.0.0.1:{}", slapd().port));
    assert_eq!(directory_of(&config, "connection").1["state"], "problem");

    let other = shared().certificates.leaf("inspect-ldap", Leaf::server(&["ldap.example.net"]));
    let named = Slapd::with(Options { pair: Some(&other), ..Options::default() });
    let config = Config::with_directory(&named).backend("server3", dovecot().imaps, &["server3"]);
    is(&directory_of(&config, "connection").1, "problem", &["ldap.example.net", "directory.servers"]);

    let config = good();
    let wrong = config.file("wrong.password", "wrong");
    let config = config.set("/directory/bind_password_file", json!(wrong));
    let (code, found) = directory_of(&config, "service bind");
    assert_eq!(code, 69);
    is(&found, "problem", &[SERVICE_DN, "result 49", "wrong.password"]);
}

/// OpenSSL with TLS 1.1 alone, as a directory and as a mail server.
#[test]
fn server_with_old_tls_only_is_reported_with_its_own_advice() {
    let (pair, port) = (&shared().ldap, free_port());
    let (port_text, chain) = (port.to_string(), pair.chain.display().to_string());
    let key = pair.key.display().to_string();
    let words = ["openssl", "s_server", "-quiet", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-accept", &port_text];
    let command = words.into_iter().chain(["-cert", &chain, "-key", &key]).map(String::from).collect();
    let log = folder("s_server").join("log");
    let _running = Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" }.start().0;
    wait_for_port(port, &log);

    let config = Config::with_directory(slapd()).backend("server3", port, &["server3"]);
    let config = config.set("/directory/servers/0", format!("ldaps://127.0.0.1:{port}"));
    let (code, found) = directory_of(&config, "connection");
    assert_eq!(code, 69);
    is(&found, "problem", &["no common TLS version", "enable TLS 1.2 there"]);
    let config = Config::with_directory(slapd()).backend("server3", port, &["server3"]);
    let (_, found) = backend_of(&config, "tls");
    is(&found, "problem", &["no common TLS version", "enable TLS 1.2 there"]);
    // An alert is TLS: it is no matter of a PROXY header.
    assert!(!found.to_string().contains("PROXY"), "{found}");
}

#[test]
fn advice_to_try_openssl_has_the_host_and_port_of_the_server() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let config = Config::with_directory(slapd()).backend("server3", dovecot().imaps, &["server3"]);
    let at = |url: String| config.clone().set("/directory/servers/0", url);
    let (code, found) = directory_of(&at(format!("ldaps://127.0.0.1:{port}")), "connection");
    assert_eq!(code, 69);
    is(&found, "problem", &[&format!("openssl s_client -connect 127.0.0.1:{port}`")]);
    let config = at(format!("ldap://127.0.0.1:{port}")).set("/directory/starttls", true);
    let expected = format!("openssl s_client -connect 127.0.0.1:{port} -starttls ldap`");
    is(&directory_of(&config, "connection").1, "problem", &[&expected]);
}

#[test]
fn directory_that_hides_entries_is_reported() {
    let good = || Config::with_directory(slapd()).backend("server3", dovecot().imaps, &["server3"]);
    let (code, found) = directory_of(&good().set("/directory/base", "ou=nowhere,dc=example,dc=com"), "base");
    assert_eq!(code, 69);
    is(&found, "problem", &["ou=nowhere", "result 32", "directory.base"]);
    let config = good().set("/directory/filter", "(employeeNumber={login})");
    is(&directory_of(&config, "filter").1, "problem", &["(employeeNumber=*)", "no user could log in"]);

    let hidden = Slapd::with(Options { access: "access to attrs=mailHost by * none\n", ..Options::default() });
    let config = Config::with_directory(&hidden).backend("server3", dovecot().imaps, &["server3"]);
    let (code, found) = directory_of(&config, "mail host");
    assert_eq!(code, 69);
    is(&found, "problem", &["no user shows mailHost", "access to attrs"]);
    let config = config.set("/routing/default", "server3");
    is(&directory_of(&config, "mail host").1, "warning", &["all users go to server3"]);

    let config = good().set("/directory/canary", json!({"login": "alice", "mail_host": "server4"}));
    let (code, found) = directory_of(&config, "canary");
    assert_eq!(code, 69);
    is(&found, "problem", &["its mail host is server3, not server4"]);
    let config = good().set("/directory/canary", json!({"login": "alice", "mail_host": "server3"}));
    is(&directory_of(&config, "canary").1, "ok", &[]);
}

#[test]
fn change_notification_and_limits_are_tested_rather_than_assumed() {
    let followed = |slapd: &Slapd| {
        let config = Config::with_directory(slapd).backend("server3", dovecot().imaps, &["server3"]);
        config.set("/directory/watch", "auto")
    };
    let able = Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() });
    is(&directory_of(&followed(&able), "live changes").1, "ok", &["content synchronization"]);

    // slapd lists the control even if this database does not support it.
    let unable = Slapd::private();
    let (code, found) = directory_of(&followed(&unable), "live changes");
    assert_eq!(code, 0);
    is(&found, "note", &["polling every 30 s", "syncprov"]);
    let (code, found) = directory_of(&followed(&unable).set("/directory/watch", "sync"), "live changes");
    assert_eq!(code, 69);
    is(&found, "problem", &["`watch: sync` wants it"]);

    let limits = format!("limits dn.exact=\"{SERVICE_DN}\" size.soft=5 size.hard=5 size.prtotal=5\n");
    let limited = Slapd::with(Options { database: &limits, ..Options::default() });
    let (code, found) = directory_of(&followed(&limited), "size limit");
    assert_eq!(code, 69);
    is(&found, "problem", &["first 5 users", "limits dn.exact"]);
}

#[test]
fn sample_user_is_looked_up_like_a_login() {
    let config = Config::shared();
    let url = slapd().tls_url();
    let sample = |login: &str| {
        let (code, report) = inspect(&config, &["--sample", login]);
        (code, finding(&report, "directory", &url, "filter"))
    };
    let (code, found) = sample("unknown");
    assert_eq!(code, 69);
    is(&found, "problem", &["uid=unknown", "finds no entry"]);
    let (code, found) = sample("twin@example.com");
    assert_eq!(code, 69);
    is(&found, "problem", &["several entries"]);
    let (code, found) = sample("carol");
    assert_eq!(code, 0);
    is(&found, "warning", &["no mailHost", "usher explain carol"]);
    config.write();
    assert_eq!(command(&config, &["check", "--connect", "--sample", ""], b"").code, 64);
    assert_eq!(command(&config, &["check", "--sample", "alice"], b"").code, 64);
}

#[test]
fn lockout_policy_yields_a_limit_below_it() {
    let policy = |name: &str, failures: u32| {
        format!(
            "dn: cn={name},ou=policies,dc=example,dc=com\nobjectClass: device\nobjectClass: pwdPolicy\ncn: {name}
pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: {failures}\npwdFailureCountInterval: 900\n\n"
        )
    };
    let unit = "dn: ou=policies,dc=example,dc=com\nobjectClass: organizationalUnit\nou: policies\n\n";
    let entries = format!("{unit}{}{}", policy("lax", 9), policy("strict", 5));
    let slapd = Slapd::with(Options {
        modules: &["ppolicy"],
        database: "overlay ppolicy\nppolicy_default \"cn=strict,ou=policies,dc=example,dc=com\"\n",
        entries: &entries,
        ..Options::default()
    });
    let mut config = Config::with_directory(&slapd).backend("server3", dovecot().imaps, &["server3"]);
    let (_, found) = directory_of(&config, "lock-out");
    is(&found, "note", &["cn=strict", "after 5 wrong passwords within 15m", "limit: 3", "forget_every: 15m"]);
    for (limit, every, state) in [(3, "15m", "ok"), (3, "1m", "warning"), (5, "15m", "warning")] {
        config.change("/throttle/failed_logins_per_user", json!({"limit": limit}));
        config.change("/throttle/forget_every", every);
        is(&directory_of(&config, "lock-out").1, state, &["cn=strict"]);
    }
}
