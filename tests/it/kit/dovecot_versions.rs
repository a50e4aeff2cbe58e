//! Dovecot 2.3 and 2.4, in the form of configuration that each has. 2.4 comes from a later Debian and runs in a folder
//! of its own, by chroot.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::dovecot::Relay;
use super::process::{Output, Running, Server, folder, free_port, read_text, require, run, unpacked, wait_for_port};
use super::users::SERVICE_PASSWORD;
use super::{Config, password_of, shared, slapd, start_deadline, wait_limit};

/// A version of Dovecot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V23,
    V24,
}

/// Both.
pub(crate) const VERSIONS: [Version; 2] = [Version::V23, Version::V24];

/// A program of Dovecot 2.4 in its own root, where this folder is `/data`; the mounts end with it.
const CHROOT: &str = "root=$1 && mount --bind \"$2\" \"$root/data\" && mount --bind /dev \"$root/dev\" && \
                      mount -t proc proc \"$root/proc\" && shift 2 && exec chroot \"$root\" \"$@\"";

impl Version {
    /// How the documentation marks its configuration.
    pub(crate) fn language(self) -> &'static str {
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

    /// What it says of these lines.
    pub(crate) fn doveconf(self, text: &str) -> Output {
        let folder = folder("doveconf");
        std::fs::write(folder.join("dovecot.conf"), format!("{}{text}", self.head())).unwrap();
        self.run(&folder, &["/usr/bin/doveconf", "-n", "-c", &format!("{}/dovecot.conf", self.sees(&folder))])
    }
}

/// A Dovecot of either version, with alice's password and the service account as master user.
pub(crate) struct VersionedDovecot {
    version: Version,
    folder: PathBuf,
    _running: Running,
    /// Implicit TLS.
    pub(crate) imaps: u16,
    /// Implicit TLS.
    pub(crate) pop3s: u16,
    /// Implicit TLS; a login needs its relay.
    pub(crate) submissions: u16,
    /// ManageSieve, by STARTTLS.
    pub(crate) sieve: u16,
    imap: u16,
    relay: u16,
}

impl VersionedDovecot {
    /// With these lines, in which `/etc/dovecot` is its folder.
    pub(crate) fn start(version: Version, more: &str) -> Self {
        Self::start_with(version, more, &[])
    }

    /// As [`VersionedDovecot::start`], with these files below `/etc/dovecot`.
    pub(crate) fn start_with(version: Version, more: &str, files: &[(&str, &str)]) -> Self {
        start_deadline();
        require(Path::new("/usr/sbin/dovecot"));
        let folder = folder("dovecot-versions");
        let [imaps, imap, pop3s, submissions, sieve, relay] = std::array::from_fn(|_| free_port());
        let base = version.sees(&folder);
        for (name, source) in [("cert.pem", &shared().server3.chain), ("key.pem", &shared().server3.key)] {
            std::fs::copy(source, folder.join(name)).unwrap();
        }
        std::fs::create_dir(folder.join("mail")).unwrap();
        std::fs::set_permissions(folder.join("mail"), std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::write(folder.join("passwords"), format!("alice:{{PLAIN}}{}\n", password_of("alice"))).unwrap();
        let hash = run("doveadm", &["pw", "-s", "SHA512-CRYPT", "-p", SERVICE_PASSWORD], b"").succeeded().stdout;
        std::fs::write(folder.join("usher.master"), format!("usher:{hash}")).unwrap();
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.replace("/etc/dovecot", &base)).unwrap();
        }
        // Its process of authentication is no root.
        run("chmod", &["-R", "go+rX", &folder.display().to_string()], b"").succeeded();
        let listener = |name: &str, plain: &str, port: u16, implicit: &str, tls_port: u16| {
            let implicit = match implicit {
                "" => String::new(),
                name => format!("  inet_listener {name} {{\n    port = {tls_port}\n    ssl = yes\n  }}\n"),
            };
            format!("service {name}-login {{\n  inet_listener {plain} {{\n    port = {port}\n  }}\n{implicit}}}\n")
        };
        let listeners = listener("imap", "imap", imap, "imaps", imaps)
            + &listener("pop3", "pop3", 0, "pop3s", pop3s)
            + &listener("submission", "submission", 0, "submissions", submissions)
            + &listener("managesieve", "sieve", sieve, "", 0);
        let common = format!(
            "base_dir = {base}/run\nstate_dir = {base}/state\nlog_path = {base}/log\nlisten = 127.0.0.1\nssl = required\n\
             mail_uid = nobody\nmail_gid = nogroup\nfirst_valid_uid = 1\nfirst_valid_gid = 1\nauth_verbose = yes\n\
             hostname = server3.example.com\nsubmission_relay_host = 127.0.0.1\nsubmission_relay_port = {relay}\n\
             {listeners}"
        );
        let own = match version {
            Version::V23 => format!(
                "protocols = imap pop3 submission sieve\nssl_cert = <{base}/cert.pem\nssl_key = <{base}/key.pem\n\
                 mail_location = maildir:{base}/mail/%u\nuserdb {{\n  driver = static\n  \
                 args = home={base}/mail/%u allow_all_users=yes\n}}\n"
            ),
            Version::V24 => format!(
                "protocols {{\n  imap = yes\n  pop3 = yes\n  submission = yes\n  sieve = yes\n}}\n\
                 ssl_server_cert_file = {base}/cert.pem\n\
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
        for port in [imaps, imap, pop3s, submissions, sieve] {
            wait_for_port(port, &output);
        }
        Self { version, folder, _running: running, imaps, pop3s, submissions, sieve, imap, relay }
    }

    /// Starts its relay server, without which no submission login succeeds.
    pub(crate) fn relay(&self) -> Relay {
        Relay::start(self.relay)
    }

    /// Its log so far.
    pub(crate) fn logged(&self) -> String {
        read_text(&self.folder.join("output")) + &read_text(&self.folder.join("log"))
    }

    /// Waits for a log line with these words.
    pub(crate) fn wait_logged(&self, words: &[&str]) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(15));
        loop {
            let logged = self.logged();
            if logged.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return;
            }
            assert!(Instant::now() < deadline, "Dovecot never logged {words:?}:\n{logged}");
            // A log file offers no event to wait for.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The reply to a login in clear text from this address.
    pub(crate) fn login_in_clear(&self, from: Ipv4Addr) -> String {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.imap)).into()).unwrap();
        socket.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
        let mut stream = std::net::TcpStream::from(socket);
        stream.write_all(format!("a LOGIN alice {}\r\n", password_of("alice")).as_bytes()).unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.into_iter().find(|line| line.starts_with("a ")).unwrap_or_default()
    }

    /// A configuration with it as server3, for IMAP.
    pub(crate) fn config(&self) -> Config {
        Config::with_directory(slapd()).backend("server3", self.imaps, &["server3"])
    }

    /// A configuration with it as server3, for the four protocols: a listener with implicit TLS each, in this order.
    pub(crate) fn config_of_all(&self) -> Config {
        let protocols = ["imap", "pop3", "submission", "managesieve"];
        let listeners = protocols.map(|name| json!({"protocol": name, "address": "127.0.0.1:0", "tls": "implicit"}));
        let mut config = self.config().set("/listeners", json!(listeners));
        for (name, port, tls) in [
            ("pop3", self.pop3s, "implicit"),
            ("submission", self.submissions, "implicit"),
            ("managesieve", self.sieve, "starttls"),
        ] {
            let address = format!("127.0.0.1:{port}");
            let endpoint = json!({"address": address, "tls": tls, "server_name": "server3.example.com"});
            config.change(&format!("/routing/backends/0/{name}"), endpoint);
        }
        config
    }

    /// The addresses that have a penalty.
    pub(crate) fn penalties(&self) -> String {
        let config = format!("{}/dovecot.conf", self.version.sees(&self.folder));
        self.version.run(&self.folder, &["/usr/bin/doveadm", "-c", &config, "penalty"]).succeeded().stdout
    }
}
