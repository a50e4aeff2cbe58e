//! Lines that the documentation shows for mail servers: each is loaded by the program it is for, in the version it
//! is for, and does there what the text says. Dovecot 2.4 comes from a later Debian and runs in a folder of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::kit::process::{Output, Running, Server, folder, free_port, read_text, require, run, wait_for_port};
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::{Config, Imap, Usher, password_of, shared, slapd, start_deadline, wait_limit};

/// A fenced block of the documentation.
struct Snippet {
    place: String,
    heading: String,
    language: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every block of every page.
fn snippets() -> Vec<Snippet> {
    let pages = std::fs::read_dir(root().join("docs")).unwrap().flatten().map(|entry| entry.path());
    let mut pages: Vec<PathBuf> = pages.filter(|page| page.extension().is_some_and(|kind| kind == "md")).collect();
    pages.push(root().join("README.md"));
    pages.sort();
    let mut all: Vec<Snippet> = Vec::new();
    for page in pages {
        let (mut heading, mut open) = (String::new(), None::<Snippet>);
        for (number, line) in std::fs::read_to_string(&page).unwrap().lines().enumerate() {
            let line = line.trim_start();
            match (open.take(), line.strip_prefix("```")) {
                (Some(snippet), Some(_)) => all.push(snippet),
                (Some(mut snippet), None) => {
                    snippet.text += &format!("{line}\n");
                    open = Some(snippet);
                }
                (None, Some(language)) => {
                    let place = format!("{}:{}", page.display(), number + 1);
                    open = Some(Snippet {
                        place,
                        heading: heading.clone(),
                        language: language.to_owned(),
                        text: String::new(),
                    });
                }
                (None, None) if line.starts_with('#') => line.clone_into(&mut heading),
                (None, None) => {}
            }
        }
    }
    all
}

fn of_language(language: &str) -> Vec<Snippet> {
    let found: Vec<Snippet> = snippets().into_iter().filter(|snippet| snippet.language == language).collect();
    assert!(!found.is_empty(), "no snippet for {language}");
    found
}

/// The one block of this language that has this line.
fn with_line(version: Version, line: &str) -> String {
    let found = of_language(version.language()).into_iter().find(|snippet| snippet.text.contains(line));
    found.unwrap_or_else(|| panic!("no snippet with {line}")).text
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    V23,
    V24,
}

const VERSIONS: [Version; 2] = [Version::V23, Version::V24];

/// What `tests/run` has unpacked.
fn unpacked(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name(name);
    require(&folder.join("complete"));
    folder
}

/// A program of Dovecot 2.4 in its own root, where this folder is `/data`; the mounts end with it.
const CHROOT: &str = "root=$1 && mount --bind \"$2\" \"$root/data\" && mount --bind /dev \"$root/dev\" && \
                      mount -t proc proc \"$root/proc\" && shift 2 && exec chroot \"$root\" \"$@\"";

impl Version {
    fn language(self) -> &'static str {
        match self {
            Self::V23 => "dovecot-2.3",
            Self::V24 => "dovecot-2.4",
        }
    }

    /// What its configuration begins with.
    fn head(self) -> &'static str {
        match self {
            Self::V23 => "",
            Self::V24 => "dovecot_config_version = 2.4.1\ndovecot_storage_version = 2.4.1\n",
        }
    }

    /// Where its processes see the folder.
    fn sees(self, folder: &Path) -> String {
        if self == Self::V23 { folder.display().to_string() } else { "/data".to_owned() }
    }

    fn command(self, folder: &Path, command: &[&str]) -> Vec<String> {
        let chroot = || {
            let root = unpacked("dovecot-2.4").display().to_string();
            let folder = folder.display().to_string();
            ["unshare", "--mount", "sh", "-c", CHROOT, "sh", &root, &folder].map(str::to_owned).to_vec()
        };
        let start = if self == Self::V23 { Vec::new() } else { chroot() };
        start.into_iter().chain(command.iter().map(|word| (*word).to_owned())).collect()
    }

    fn run(self, folder: &Path, command: &[&str]) -> Output {
        let command = self.command(folder, command);
        let arguments: Vec<&str> = command.iter().skip(1).map(String::as_str).collect();
        run(&command[0], &arguments, b"")
    }

    fn doveconf(self, text: &str) -> Output {
        let folder = folder("doveconf");
        std::fs::write(folder.join("dovecot.conf"), format!("{}{text}", self.head())).unwrap();
        self.run(&folder, &["/usr/bin/doveconf", "-n", "-c", &format!("{}/dovecot.conf", self.sees(&folder))])
    }
}

#[test]
fn dovecot_snippets_are_loaded_by_their_version() {
    for version in VERSIONS {
        for snippet in of_language(version.language()) {
            let output = version.doveconf(&snippet.text);
            assert_eq!(output.code, 0, "{}: {output:#?}", snippet.place);
            // doveconf prints what differs from its defaults, in the same form.
            for line in
                snippet.text.lines().map(str::trim).filter(|line| line.contains(" = ") && !line.contains("mode"))
            {
                assert!(output.stdout.contains(line), "{}: {line}: {output:#?}", snippet.place);
            }
        }
    }
}

#[test]
fn dovecot_snippets_stand_in_pairs_and_are_marked() {
    let all = snippets();
    let marked: Vec<&Snippet> = all.iter().filter(|snippet| snippet.language.starts_with("dovecot")).collect();
    assert!(marked.len() >= 12, "{}", marked.len());
    for pair in marked.chunks(2) {
        let languages: Vec<&str> = pair.iter().map(|snippet| &*snippet.language).collect();
        assert_eq!(languages, ["dovecot-2.3", "dovecot-2.4"], "{}", pair[0].place);
        assert_eq!(pair[0].heading, pair[1].heading, "{}", pair[0].place);
    }
    let words =
        ["passdb", "inet_listener", "service imap", "login_trusted_networks", "haproxy_trusted", "service_count"];
    // What a command prints is no configuration.
    let others =
        all.iter().filter(|snippet| !snippet.language.starts_with("dovecot-2.") && !snippet.text.starts_with("$ "));
    for snippet in others {
        let is_dovecot = words.iter().any(|word| snippet.text.contains(word));
        assert!(!is_dovecot, "{}: mark it as dovecot-2.3 or dovecot-2.4", snippet.place);
    }
    let removed = marked.iter().filter(|snippet| snippet.text.contains("service_count"));
    assert!(removed.into_iter().all(|snippet| snippet.language == "dovecot-2.3"));
}

#[test]
fn dovecot_refuses_what_the_manual_says_it_refuses() {
    for version in VERSIONS {
        let output = version.doveconf("service imap-login { process_min_avail = 2 }\n");
        assert_ne!(output.code, 0);
        assert!(output.stderr.contains("Garbage after '{'"), "{output:#?}");
    }
    let output = Version::V24.doveconf(&with_line(Version::V23, "service_count"));
    assert!(output.code != 0 && output.stderr.contains("Unknown setting: service_count"), "{output:#?}");
    let output = Version::V23.doveconf(&with_line(Version::V24, "restart_request_count"));
    assert!(
        output.code != 0 && output.stderr.contains("Unknown setting: service { restart_request_count"),
        "{output:#?}"
    );
}

#[test]
fn cyrus_snippets_are_known_to_cyrus() {
    let cyrus = unpacked("cyrus");
    let folder = folder("cyr_info");
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("cyrus.conf"), "START {\n}\nSERVICES {\n}\nEVENTS {\n}\n").unwrap();
    let head = "configdirectory: /var/lib/cyrus\ndefaultpartition: default\npartition-default: /var/spool/cyrus\n";
    let architecture = run("gcc", &["-print-multiarch"], b"").succeeded().stdout;
    let libraries = cyrus.join("usr/lib").join(architecture.trim());
    let libraries = format!("LD_LIBRARY_PATH={}", libraries.display());
    let program = cyrus.join("usr/lib/cyrus/bin/cyr_info").display().to_string();
    let unknown = |text: &str| {
        std::fs::write(path("imapd.conf"), format!("{head}{text}")).unwrap();
        let arguments = [&libraries, &program, "-C", &path("imapd.conf"), "-M", &path("cyrus.conf"), "conf-lint"];
        run("env", &arguments, b"").succeeded().stdout
    };
    assert!(unknown("maxlogins_per_hots: 0\n").contains("maxlogins_per_hots"));
    for snippet in of_language("imapd.conf") {
        assert_eq!(unknown(&snippet.text), "", "{}", snippet.place);
    }
}

#[test]
fn postfix_snippets_are_known_to_postfix() {
    let postfix = unpacked("postfix");
    let folder = folder("postconf");
    std::fs::write(folder.join("master.cf"), "").unwrap();
    let libraries = format!("LD_LIBRARY_PATH={}", postfix.join("usr/lib/postfix").display());
    let (program, path) = (postfix.join("usr/sbin/postconf").display().to_string(), folder.display().to_string());
    let warnings = |text: &str| {
        std::fs::write(folder.join("main.cf"), format!("compatibility_level = 3.6\n{text}")).unwrap();
        run("env", &[&libraries, &program, "-c", &path, "-n"], b"").succeeded().stderr
    };
    assert!(warnings("smtpd_authorised_xclient_hosts = 192.0.2.10\n").contains("unused parameter"));
    for snippet in of_language("main.cf") {
        assert_eq!(warnings(&snippet.text), "", "{}", snippet.place);
    }
}

/// A Dovecot of either version, with alice's password and the service account as master user.
struct Dovecot {
    version: Version,
    folder: PathBuf,
    _running: Running,
    imaps: u16,
    imap: u16,
}

impl Dovecot {
    fn start(version: Version, more: &str) -> Self {
        start_deadline();
        require(Path::new("/usr/sbin/dovecot"));
        let folder = folder("dovecot-snippets");
        let [imaps, imap] = [(); 2].map(|()| free_port());
        let base = version.sees(&folder);
        for (name, source) in [("cert.pem", &shared().server3.chain), ("key.pem", &shared().server3.key)] {
            std::fs::copy(source, folder.join(name)).unwrap();
        }
        std::fs::create_dir(folder.join("mail")).unwrap();
        std::fs::set_permissions(folder.join("mail"), std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::write(folder.join("passwords"), format!("alice:{{PLAIN}}{}\n", password_of("alice"))).unwrap();
        let hash = run("doveadm", &["pw", "-s", "SHA512-CRYPT", "-p", SERVICE_PASSWORD], b"").succeeded().stdout;
        std::fs::write(folder.join("usher.master"), format!("usher:{hash}")).unwrap();
        let common = format!(
            "base_dir = {base}/run\nstate_dir = {base}/state\nlog_path = {base}/log\nlisten = 127.0.0.1\nssl = required\n\
             mail_uid = nobody\nmail_gid = nogroup\nfirst_valid_uid = 1\nfirst_valid_gid = 1\nauth_verbose = yes\n\
             service imap-login {{\n  inet_listener imap {{\n    port = {imap}\n  }}\n  inet_listener imaps {{\n    \
             port = {imaps}\n    ssl = yes\n  }}\n}}\n"
        );
        let own = match version {
            Version::V23 => format!(
                "protocols = imap\nssl_cert = <{base}/cert.pem\nssl_key = <{base}/key.pem\n\
                 mail_location = maildir:{base}/mail/%u\nuserdb {{\n  driver = static\n  \
                 args = home={base}/mail/%u allow_all_users=yes\n}}\n"
            ),
            Version::V24 => format!(
                "protocols {{\n  imap = yes\n}}\nssl_server_cert_file = {base}/cert.pem\n\
                 ssl_server_key_file = {base}/key.pem\nmail_driver = maildir\nmail_path = {base}/mail/%{{user}}\n\
                 userdb static {{\n  fields {{\n    home = {base}/mail/%{{user}}\n  }}\n  \
                 userdb_static_allow_all_users = yes\n}}\n"
            ),
        };
        let passwords = match version {
            Version::V23 => format!("passdb {{\n  driver = passwd-file\n  args = {base}/passwords\n}}\n"),
            Version::V24 => format!("passdb passwd-file {{\n  passwd_file_path = {base}/passwords\n}}\n"),
        };
        let more = more.replace("/etc/dovecot", &base);
        let config = format!("{}{common}{own}{more}{passwords}", version.head());
        std::fs::write(folder.join("dovecot.conf"), config).unwrap();
        let command = version.command(&folder, &["/usr/sbin/dovecot", "-F", "-c", &format!("{base}/dovecot.conf")]);
        let output = folder.join("output");
        let running = Server { command, environment: vec![], log: Some(output.clone()), end: "TERM" }.start().0;
        wait_for_port(imaps, &output);
        wait_for_port(imap, &output);
        Self { version, folder, _running: running, imaps, imap }
    }

    /// Waits for a log line with these words.
    fn wait_logged(&self, words: &[&str]) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(15));
        loop {
            let logged = read_text(&self.folder.join("log"));
            if logged.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return;
            }
            assert!(Instant::now() < deadline, "Dovecot never logged {words:?}:\n{logged}");
            // A log file offers no event to wait for.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The reply to a login in clear text from this address.
    fn login_in_clear(&self, from: Ipv4Addr) -> String {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.imap)).into()).unwrap();
        socket.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
        let mut stream = std::net::TcpStream::from(socket);
        stream.write_all(format!("a LOGIN alice {}\r\n", password_of("alice")).as_bytes()).unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.into_iter().find(|line| line.starts_with("a ")).unwrap_or_default()
    }

    fn config(&self) -> Config {
        Config::with_directory(slapd()).backend("server3", self.imaps, &["server3"])
    }

    /// The addresses that have a penalty.
    fn penalties(&self) -> String {
        let config = format!("{}/dovecot.conf", self.version.sees(&self.folder));
        self.version.run(&self.folder, &["/usr/bin/doveadm", "-c", &config, "penalty"]).succeeded().stdout
    }
}

/// usher's address towards Dovecot: a connection within one address is trusted always.
const OWN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);

#[test]
fn documented_master_user_logs_in_for_users() {
    for version in VERSIONS {
        let dovecot = Dovecot::start(version, &with_line(version, "master = yes"));
        let config = dovecot.config().set("/directory/login_attribute", "uid");
        let password = config.file("server3.password", SERVICE_PASSWORD);
        let service = json!({"login": "usher", "password_file": password});
        let usher = Usher::start(config.set("/routing/backends/0/service", service));
        // Dovecot does not know her password, and the directory does.
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("anna", "wrong").is("NO [AUTHENTICATIONFAILED]");
        imap.login("anna", &password_of("anna")).ok();
        imap.command("SELECT INBOX").ok();
        dovecot.wait_logged(&["aster user logging in as anna"]);
    }
}

#[test]
fn documented_trust_forwards_the_client_and_ends_the_penalty() {
    for version in VERSIONS {
        let trust = with_line(version, "login_trusted_networks").replace("192.0.2.10 192.0.2.11", &OWN.to_string());
        for (more, forward) in [("", "none"), (&*trust, "id")] {
            let dovecot = Dovecot::start(version, more);
            let config = dovecot.config().set("/routing/backends/0/source", OWN.to_string());
            let usher = Usher::start(config.set("/routing/backends/0/imap/forward", forward));
            // The directory accepts her password, and Dovecot does not.
            let mut imap = Imap::tls(usher.imaps_port());
            imap.login("anna", &password_of("anna")).is("NO [UNAVAILABLE]");
            assert_eq!(usher.login("anna")["result"], "backend_rejected");
            assert_eq!(dovecot.penalties().contains(&OWN.to_string()), forward == "none", "{}", dovecot.penalties());
            if forward == "id" {
                Imap::tls_from([127, 0, 0, 77], usher.imaps_port()).login("alice", &password_of("alice")).ok();
                dovecot.wait_logged(&["user=<alice>", "rip=127.0.0.77"]);
            }
        }
    }
}

#[test]
fn documented_port_without_tls_is_open_to_one_peer() {
    for (version, trusts) in [(Version::V23, true), (Version::V24, false)] {
        let line = if version == Version::V23 { "disable_plaintext_auth = no" } else { "auth_allow_cleartext = yes" };
        let snippet = with_line(version, line).replace("192.0.2.20", &OWN.to_string());
        let dovecot = Dovecot::start(version, &snippet);
        assert!(dovecot.login_in_clear(OWN).starts_with("a OK "));
        let other = dovecot.login_in_clear(Ipv4Addr::new(127, 0, 0, 11));
        assert!(other.starts_with("a NO [PRIVACYREQUIRED]"), "{other}");
        let dovecot = Dovecot::start(version, &format!("login_trusted_networks = {OWN}\n"));
        assert_eq!(dovecot.login_in_clear(OWN).starts_with("a OK "), trusts);
    }
}
