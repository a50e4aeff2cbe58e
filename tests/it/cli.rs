//! The commands check, explain, sessions and reload, and their exit codes.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::kit::certs::Leaf;
use crate::kit::process::run;
use crate::kit::slapd::Slapd;
use crate::kit::users::{METACHARACTERS, SERVICE_PASSWORD};
use crate::kit::usher::{BINARY, command};
use crate::kit::{Config, Imap, Usher, password_of, shared};

/// A mistake as `check` reports it: the line of the key, the key, and a part of the message.
fn refuses(config: &Config, key: &str, word: &str) {
    let file = config.write();
    let said = command(config, &["check"], b"");
    assert_eq!(said.code, 78, "{said:#?}");
    let start = format!("{}:", file.display());
    let all = format!("{}{}", said.stdout, said.stderr);
    let line = all.lines().find(|line| line.starts_with(&start) && line.contains(key) && line.contains(word));
    let line = line.unwrap_or_else(|| panic!("no line about {key} with `{word}`:\n{all}"));
    let number = line[start.len()..].split(':').next().unwrap();
    assert!(number.parse::<u32>().is_ok(), "a line number follows the file: {line}");
}

#[test]
fn valid_file_passes_check() {
    let config = Config::shared();
    config.write();
    command(&config, &["check"], b"").succeeded();
}

#[test]
fn all_mistakes_are_reported_at_once_with_line_and_key() {
    let config = Config::shared()
        .set("/listeners/0/port", 993)
        .set("/directory/timeout", "5 parsecs")
        .set("/cache/ttl", 300)
        .set("/routing/backends/1/imap/tls", "none");
    for key in ["listeners[0].port", "directory.timeout", "cache.ttl", "routing.backends[1].imap.tls"] {
        refuses(&config, key, "");
    }
    let run = command(&config, &["run"], b"");
    assert_eq!(run.code, 78, "{run:#?}");
}

#[test]
fn files_named_by_the_config_are_checked() {
    let config = Config::shared();
    refuses(&config.clone().set("/tls/certificates/0/chain", "missing.pem"), "tls.certificates[0]", "missing.pem");
    let other = shared().certificates.leaf("mismatched", Leaf::server(&["usher.example.com"]));
    refuses(&config.clone().set("/tls/certificates/0/key", json!(other.key)), "tls.certificates[0]", "");
    let garbage = config.file("garbage.pem", "not PEM at all");
    refuses(&config.clone().set("/directory/ca", json!(garbage)), "directory.ca", "");
    refuses(&config.clone().set("/directory/bind_password_file", "nowhere"), "directory.bind_password_file", "nowhere");
    let empty = config.file("empty.password", "\n");
    refuses(&config.set("/directory/bind_password_file", json!(empty)), "directory.bind_password_file", "");
}

#[test]
fn unsafe_or_circular_configuration_is_refused() {
    let config = Config::shared();
    let password = config.file("backend.password", SERVICE_PASSWORD);
    let service = json!({"login": "usher", "password_file": password});
    refuses(
        &config.clone().set("/routing/backends/0/service", service),
        "routing.backends[0].service",
        "login_attribute",
    );
    refuses(
        &config.clone().set("/directory/servers", json!(["ldap://ldap.example.com"])),
        "directory.servers",
        "plaintext",
    );
    let looped = config.clone().set("/listeners/0/address", "127.0.0.1:4993");
    refuses(
        &looped.set("/routing/backends/0/imap/address", "127.0.0.1:4993"),
        "routing.backends[0].imap.address",
        "own",
    );
    refuses(&config.clone().set("/routing/backends/0/timeout", "6s"), "routing.backends[0].timeout", "10");
    refuses(&config.set("/directory/bind_password", "inline"), "directory.bind_password", "");
}

/// Why proxy authorization requires `login_attribute`: a user that may write a mail alias into their own
/// entry could otherwise log in as any user, with their own password.
#[test]
fn alias_is_no_identity_with_proxy_authorization() {
    let slapd = Slapd::private();
    let backend = crate::kit::scripted::Scripted::accepting();
    // anna writes "bob" into her own mail attribute and logs in by that name.
    let anna = crate::kit::User::new("anna", None);
    slapd.set(&anna, "mail", Some("bob-the-boss"));
    let config = Config::with_directory(&slapd).scripted(&backend).set("/directory/login_attribute", "uid");
    let password = config.file("backend.password", SERVICE_PASSWORD);
    let usher =
        Usher::start(config.set("/routing/backends/0/service", json!({"login": "usher", "password_file": password})));
    Imap::tls(usher.imaps_port()).login("bob-the-boss", &password_of("anna")).ok();
    assert_eq!(backend.next_login(), format!("anna\0usher\0{SERVICE_PASSWORD}"), "the login is that of her entry");
}

fn explain(config: &Config, arguments: &[&str], input: &str) -> (i32, Value) {
    let said = command(config, &[&["explain"], arguments, &["--json"]].concat(), input.as_bytes());
    let value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    (said.code, value)
}

#[test]
fn explain_shows_the_backend_of_a_name() {
    let config = Config::shared();
    config.write();
    let said = command(&config, &["explain", "alice"], b"").succeeded();
    for word in ["(|(uid=alice)(mail=alice))", "uid=alice,ou=people,dc=example,dc=com", "server3"] {
        assert!(said.stdout.contains(word), "{word}: {said:#?}");
    }
    for (login, code) in [
        ("alice", 0),
        ("bob", 0),
        (METACHARACTERS, 0),
        ("unknown", 67),
        ("carol", 65),
        ("dave", 65),
        ("twin@example.com", 65),
    ] {
        let (exit, value) = explain(&config, &[login], "");
        assert_eq!(exit, code, "{login}: {value}");
        assert!(!value.to_string().contains("secret"), "{value}");
    }
    let (_, value) = explain(&config, &["bob"], "");
    let text = value.to_string();
    assert!(text.contains("server4") && text.contains("uid=bob,ou=people"), "{text}");
}

#[test]
fn explain_reports_an_unavailable_directory() {
    let mut slapd = Slapd::private();
    let config = Config::with_directory(&slapd).backend("server3", 1, &["server3"]);
    slapd.stop();
    config.write();
    assert_eq!(explain(&config, &["alice"], "").0, 69);
}

#[test]
fn explain_without_a_service_account_requires_the_password() {
    let config = Config::shared().user_dn("uid={login},ou=people,dc=example,dc=com");
    config.write();
    let (code, value) = explain(&config, &["alice"], "");
    assert_ne!(code, 0, "it cannot know: {value}");
    assert!(value.to_string().contains("uid=alice,ou=people,dc=example,dc=com"), "{value}");
    let (code, value) = explain(&config, &["alice", "--password-stdin"], &format!("{}\n", password_of("alice")));
    assert_eq!(code, 0, "{value}");
    assert!(value.to_string().contains("server3"), "{value}");
    let (code, _) = explain(&config, &["alice", "--password-stdin"], "wrong\n");
    assert_ne!(code, 0);
}

#[test]
fn sessions_command_lists_open_sessions() {
    let usher = Usher::start(Config::shared());
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    let said = usher.command(&["sessions"]).succeeded();
    assert!(said.stdout.contains("alice") && said.stdout.contains("server3"), "{said:#?}");
    let said = usher.command(&["sessions", "--json"]).succeeded();
    let value: Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(value.to_string().contains("\"alice\""), "{value}");
    imap.command("LOGOUT").ok();
    drop(imap);
    usher.wait_metric("usher_sessions", &[], 0.0);
    let said = usher.command(&["sessions"]).succeeded();
    assert!(!said.stdout.contains("alice"), "{said:#?}");
}

#[test]
fn control_socket_is_restricted_to_its_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let usher = Usher::start(Config::shared());
    let mode = std::fs::metadata(usher.config.path("control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
}

#[test]
fn commands_without_a_running_process_fail() {
    let config = Config::shared();
    config.write();
    assert_ne!(command(&config, &["reload"], b"").code, 0);
    assert_ne!(command(&config, &["sessions"], b"").code, 0);
}

#[test]
fn run_is_the_default_command() {
    let config = Config::shared();
    let file = config.write_text("listeners: {}\n").display().to_string();
    assert_eq!(run(BINARY, &["--config", &file], b"").code, 78);
}

#[test]
fn systemd_is_notified_of_readiness_and_stop() {
    let config = Config::shared();
    let path = config.path("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let expect_notice = |word: &str| {
        let mut buffer = [0; 4096];
        loop {
            let n = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no notice {word}: {error}"));
            if String::from_utf8_lossy(&buffer[..n]).lines().any(|line| line == word) {
                return;
            }
        }
    };
    let usher = Usher::start_with(config, vec![("NOTIFY_SOCKET", path.display().to_string())]);
    expect_notice("READY=1");
    usher.terminate();
    expect_notice("STOPPING=1");
}

/// A command of this usher whose standard output, and as `both` says standard error, is read by no process.
fn without_reader(usher: &Usher, arguments: &[&str], both: bool) -> std::process::Child {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (name, rest) = arguments.split_first().unwrap();
    let mut command = std::process::Command::new(BINARY);
    command.arg(name);
    if !name.starts_with('-') {
        command.arg("--config").arg(usher.config.path("usher.yaml"));
    }
    let errors = if both { writer.try_clone().unwrap().into() } else { std::process::Stdio::piped() };
    command.args(rest).stdin(std::process::Stdio::null()).stdout(writer).stderr(errors).spawn().unwrap()
}

#[test]
fn every_command_ends_quietly_when_its_reader_is_gone() {
    let usher = Usher::start(Config::shared());
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    for line in [
        "--help",
        "--version",
        "check",
        "check --connect",
        "check --connect --json",
        "explain alice",
        "explain alice --json",
        "explain --all",
        "explain --all --csv",
        "explain --all --json",
        "sessions",
        "sessions --json",
        "sessions --count=user",
        "kick --all --dry-run",
        "status",
        "status --json",
        "backends",
        "backends --json",
        "cache show alice",
        "reload",
        "reload --json",
        "drain --ready-only",
        "man",
        "completions bash",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        for both in [false, true] {
            let ended = without_reader(&usher, &arguments, both).wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&ended.stderr);
            // As a shell reports a program that SIGPIPE has ended.
            assert_eq!(ended.status.code(), Some(141), "{line}: {errors}");
            assert!(!errors.contains("panicked") && !errors.contains("Broken pipe"), "{line}: {errors}");
        }
    }
    let mut trace = without_reader(&usher, &["trace", "--client", "127.0.0.0/8"], false);
    usher.wait_log("admin command", |line| line["cmd"] == "trace");
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    assert_eq!(trace.wait().unwrap().code(), Some(141));
    imap.command("NOOP").ok();
}

#[test]
fn help_and_version_are_printed() {
    assert!(run(BINARY, &["--help"], b"").succeeded().stdout.contains("check"));
    assert!(run(BINARY, &["--version"], b"").succeeded().stdout.contains(env!("CARGO_PKG_VERSION")));
}

/// Makes every file that a configuration names, by the key that names it.
pub(crate) fn make_files(value: &Value, folder: &Path) {
    let write = |name: &Value, from: &[u8]| {
        let path = folder.join(name.as_str().unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::kit::process::write_secret(&path, from);
    };
    let read = |path: &Path| std::fs::read(path).unwrap();
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match key.as_str() {
                    "chain" => write(value, &read(&shared().usher.chain)),
                    "key" if value.is_string() => write(value, &read(&shared().usher.key)),
                    "ca" | "client_ca" => write(value, &read(&shared().certificates.ca())),
                    key if key.ends_with("_file") => write(value, b"a password\n"),
                    _ => make_files(value, folder),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| make_files(item, folder)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_shipped_config_passes_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut shipped = 0;
    for folder in [root.to_owned(), root.join("deploy")] {
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            let yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            // A file with listeners is a configuration of usher; the others are for other programs.
            if !yaml || !text.contains("\nlisteners:") && !text.starts_with("listeners:") {
                continue;
            }
            let config = Config::with_url("ldap://127.0.0.1");
            config.write_text(&text);
            let value: Value = serde_yaml::from_str(&text).unwrap();
            make_files(&value, &config.path(""));
            let said = command(&config, &["check"], b"");
            assert_eq!(said.code, 0, "{}: {said:#?}", file.display());
            shipped += 1;
        }
    }
    assert!(shipped > 0, "config.example.yaml is missing");
}

/// Runs a command on a terminal of its own, and prints what the terminal got.
const ON_A_TERMINAL: &str = r#"
import os, pty, sys
process, terminal = pty.fork()
if process == 0:
    os.execv(sys.argv[1], sys.argv[1:])
shown = b""
try:
    while part := os.read(terminal, 4096):
        shown += part
except OSError:
    pass
os.waitpid(process, 0)
sys.stdout.buffer.write(shown)
"#;

#[test]
fn waits_are_shown_on_a_terminal_alone_and_not_with_quiet() {
    let usher = Usher::start(Config::shared());
    let config = usher.config.path("usher.yaml").display().to_string();
    usher.signal(Signal::STOP);
    // It goes on when the terminal has shown that the command waits.
    let shown = |more: &[&str]| {
        let words = [&["-c", ON_A_TERMINAL, BINARY, "status", "--config", &config][..], more].concat();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2_500));
                usher.signal(Signal::CONT);
            });
            run("python3", &words, b"").succeeded().stdout
        })
    };
    let text = shown(&[]);
    assert!(text.contains("waiting for the running usher, 1 s") && text.contains("process "), "{text:?}");
    usher.signal(Signal::STOP);
    let text = shown(&["--quiet"]);
    assert!(!text.contains("waiting") && text.contains("process "), "{text:?}");
}

#[test]
fn check_answers_in_json_also_without_the_servers() {
    let config = Config::shared();
    config.write();
    let said = command(&config, &["check", "--json"], b"").succeeded();
    let value: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&value["ok"], &value["problems"]), (&json!(true), &json!([])), "{said:?}");
    let config = config.set("/cache/ttl", "soon");
    config.write();
    let said = command(&config, &["check", "--json"], b"");
    let value: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((said.code, &value["ok"], &value["problems"][0]["key"]), (78, &json!(false), &json!("cache.ttl")));
    assert!(value["problems"][0]["line"].as_u64().unwrap() > 1, "{value}");
    // Advice can be left out, the document not.
    let arguments =
        ["init", "--ldap", "ldaps://ldap1.example.com", "--base", "dc=x", "--backend", "a=a.example.com:993"];
    let more = ["--certificate", "/c.pem", "--key", "/k.pem", "-q"];
    let said = run(BINARY, &[&arguments[..], &more].concat(), b"").succeeded();
    assert!(said.stderr.is_empty() && said.stdout.contains("a.example.com"), "{said:?}");
}
