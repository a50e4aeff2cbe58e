//! Dovecot, which plays server3.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::certs::{Certificates, Pair};
use super::process::{Running, Server, folder, free_port, read_text, require, wait_for_port};
use super::users::{SERVICE_PASSWORD, all_users};
use super::wait_limit;

/// Frozen processes; they continue when it is dropped, so that they can also end.
pub(crate) struct Frozen(Vec<Pid>);

impl Frozen {
    /// Freezes a process and its children.
    pub(crate) fn of(master: Pid) -> Self {
        let mut processes = vec![master];
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            if parent.and_then(Pid::from_raw) == Some(master) {
                let child = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
                processes.push(child.expect("a folder with a stat is a process"));
            }
        }
        // A child that was about to exit may have ended by now, which is no error.
        processes.retain(|pid| kill_process(*pid, Signal::STOP).is_ok());
        assert!(processes.contains(&master), "the master is alive");
        Self(processes)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}

/// An SMTP server that accepts every message.
pub(crate) struct Relay {
    _running: Running,
    mail: PathBuf,
}

impl Relay {
    /// On this port.
    pub(crate) fn start(port: u16) -> Self {
        let mail = folder("relay");
        let listen = format!("127.0.0.1:{port}");
        // Debian's Python: the package is not installed for another.
        let command = ["/usr/bin/python3", "-m", "aiosmtpd", "-n", "-l", &listen, "-c", "aiosmtpd.handlers.Mailbox"];
        let command = command.map(String::from).into_iter().chain([mail.join("mail").display().to_string()]).collect();
        let log = mail.join("log");
        let running = Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" }.start().0;
        wait_for_port(port, &log);
        Self { _running: running, mail: mail.join("mail/new") }
    }

    /// Whether a message that contains this text has arrived.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.message(text).is_some()
    }

    /// A message that contains this text.
    pub(crate) fn message(&self, text: &str) -> Option<String> {
        let mut files = std::fs::read_dir(&self.mail).unwrap().map(|file| read_text(&file.unwrap().path()));
        files.find(|message| message.contains(text))
    }
}

/// A Dovecot with its own folder and ports.
pub(crate) struct Dovecot {
    folder: PathBuf,
    running: Option<Running>,
    /// Implicit TLS.
    pub(crate) imaps: u16,
    /// STARTTLS.
    pub(crate) imap: u16,
    /// ManageSieve, by STARTTLS.
    pub(crate) sieve: u16,
    /// Implicit TLS.
    pub(crate) pop3s: u16,
    /// STARTTLS.
    pub(crate) pop3: u16,
    /// Implicit TLS.
    pub(crate) submissions: u16,
    /// STARTTLS.
    pub(crate) submission: u16,
    /// The port of its relay: see [`Dovecot::relay`].
    relay: u16,
}

impl Dovecot {
    /// Every user has a mailbox here, whatever `mailHost` says.
    pub(crate) fn start(certificates: &Certificates, pair: &Pair, demand_client_certificate: bool) -> Self {
        Self::start_with(certificates, pair, demand_client_certificate, "")
    }

    /// As [`Dovecot::start`], with more lines of configuration.
    pub(crate) fn start_with(
        certificates: &Certificates,
        pair: &Pair,
        demand_client_certificate: bool,
        more: &str,
    ) -> Self {
        require(Path::new("/usr/sbin/dovecot"));
        let [imaps, imap, pop3s, pop3, submissions, submission, relay] = std::array::from_fn(|_| free_port());
        let (folder, running, sieve) = (folder("dovecot"), None, free_port());
        let dovecot = Self { folder, running, imaps, imap, sieve, pop3s, pop3, submissions, submission, relay };
        dovecot.configure(certificates, pair, demand_client_certificate, more)
    }

    fn configure(
        mut self,
        certificates: &Certificates,
        pair: &Pair,
        demand_client_certificate: bool,
        more: &str,
    ) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = &self.folder;
        // Dovecot refuses to access mail as root; without root everything runs as the current user.
        let me = rustix::process::getuid();
        let (mail_user, service_user) = match me.is_root() {
            true => ("mail_uid = nobody\nmail_gid = nogroup".to_owned(), String::new()),
            false => {
                let name = super::process::run("id", &["-un"], b"").succeeded().stdout;
                let group = super::process::run("id", &["-gn"], b"").succeeded().stdout;
                let users = format!(
                    "default_internal_user = {name}default_login_user = {name}default_internal_group = {group}"
                );
                let chroots = ["anvil", "imap-login", "pop3-login", "submission-login", "managesieve-login"]
                    .map(|service| format!("service {service} {{\n  chroot =\n}}\n"));
                (format!("mail_uid = {name}mail_gid = {group}"), users + &chroots.concat())
            }
        };
        let client_certificate = match demand_client_certificate {
            true => format!(
                "ssl_ca = <{}\nssl_require_crl = no\nssl_verify_client_cert = yes\nauth_ssl_require_client_cert = yes",
                certificates.ca().display()
            ),
            false => String::new(),
        };
        let config = format!(
            r#"base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
auth_verbose = yes
protocols = imap pop3 submission sieve
hostname = server3.example.com
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
listen = 127.0.0.1
ssl = required
ssl_cert = <{chain}
ssl_key = <{key}
{client_certificate}
auth_mechanisms = plain login
auth_username_chars =
auth_failure_delay = 0
login_greeting = server3 is Dovecot
imap_id_send = name server3
mail_location = maildir:{folder}/mail/%Lu
mail_fsync = never
mail_max_userip_connections = 1000
first_valid_uid = 1
first_valid_gid = 1
{mail_user}
{service_user}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {folder}/masters
  master = yes
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {folder}/passwords
}}
userdb {{
  driver = static
  args = home={folder}/mail/%Lu allow_all_users=yes
}}
# No penalty for an address that guesses: all of this comes from one.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service imap-login {{
  service_count = 0
  process_min_avail = 1
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service pop3-login {{
  service_count = 0
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
    ssl = yes
  }}
}}
service submission-login {{
  service_count = 0
  inet_listener submission {{
    port = {submission}
  }}
  inet_listener submissions {{
    port = {submissions}
    ssl = yes
  }}
}}
service managesieve-login {{
  service_count = 0
  inet_listener sieve {{
    port = {sieve}
  }}
}}
plugin {{
  sieve = file:~/sieve;active=~/active.sieve
}}
{more}
"#,
            folder = folder.display(),
            chain = pair.chain.display(),
            key = pair.key.display(),
            imap = self.imap,
            imaps = self.imaps,
            pop3 = self.pop3,
            pop3s = self.pop3s,
            sieve = self.sieve,
            submission = self.submission,
            submissions = self.submissions,
            relay = self.relay,
        );
        std::fs::write(folder.join("dovecot.conf"), config).unwrap();
        self.restore_passwords();
        std::fs::write(folder.join("masters"), format!("usher:{{PLAIN}}{SERVICE_PASSWORD}\n")).unwrap();
        std::fs::create_dir(folder.join("mail")).unwrap();
        std::fs::set_permissions(folder.join("mail"), std::fs::Permissions::from_mode(0o777)).unwrap();
        self.start_again();
        self
    }

    /// Every login is refused from now on: no user is known.
    pub(crate) fn lose_passwords(&self) {
        std::fs::write(self.folder.join("passwords"), "").unwrap();
    }

    /// Every user has its password.
    pub(crate) fn restore_passwords(&self) {
        // Dovecot escapes a name before it looks it up.
        let escape = |name: &str| name.replace('\\', "\\\\").replace('"', "\\\"").replace('\'', "\\'");
        let passwords: String = all_users()
            .iter()
            .map(|person| format!("{}:{{PLAIN}}{}\n", escape(&person.uid), person.password))
            .collect();
        std::fs::write(self.folder.join("passwords"), passwords).unwrap();
    }

    /// Starts its relay server, without which no submission login succeeds.
    pub(crate) fn relay(&self) -> Relay {
        Relay::start(self.relay)
    }

    /// Starts it on the same ports, after [`Dovecot::stop`].
    pub(crate) fn start_again(&mut self) {
        let config = self.folder.join("dovecot.conf").display().to_string();
        let command = ["/usr/sbin/dovecot", "-F", "-c", &config].map(String::from).to_vec();
        let log = self.folder.join("output");
        let server = Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" };
        self.running = Some(server.start().0);
        wait_for_port(self.imaps, &log);
        [self.imap, self.sieve, self.pop3, self.pop3s, self.submission, self.submissions]
            .into_iter()
            .for_each(|port| wait_for_port(port, &log));
    }

    /// StopOnDrop it with all its sessions.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// Freezes every process of it until the guard is dropped.
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen::of(self.running.as_ref().expect("it runs").pid())
    }

    /// Waits for a log line that contains all of these words, and returns it.
    pub(crate) fn wait_logged(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(15));
        loop {
            let logged = self.logged();
            if let Some(line) = logged.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "Dovecot never logged {words:?}:\n{logged}");
            // A log file offers no event to wait for.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a session of this user counts for `mail_max_userip_connections`: its client may get OK earlier.
    pub(crate) fn wait_counted(&self, protocol: &str, user: &str) {
        let service = if protocol == "managesieve" { "sieve" } else { protocol };
        let config = self.folder.join("dovecot.conf").display().to_string();
        let deadline = Instant::now() + wait_limit(Duration::from_secs(15));
        loop {
            let counted = super::process::run("doveadm", &["-c", &config, "who"], b"").succeeded().stdout;
            // username, number of sessions, service, processes, addresses.
            let is_counted = |line: &str| {
                let mut columns = line.split_whitespace();
                columns.next() == Some(user) && columns.nth(1) == Some(service)
            };
            if counted.lines().any(is_counted) {
                return;
            }
            assert!(Instant::now() < deadline, "Dovecot never counted {user} in {service}:\n{counted}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its log so far.
    pub(crate) fn logged(&self) -> String {
        read_text(&self.folder.join("output")) + &read_text(&self.folder.join("log"))
    }
}
