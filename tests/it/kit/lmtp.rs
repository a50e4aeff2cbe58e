//! Dovecot as a mail server that takes mail by LMTP and knows its own users only.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::dovecot::Frozen;
use super::process::{Running, Server, folder, free_port, read_text, require, run, wait_for_port};

/// A Dovecot with its own folder and port.
pub(crate) struct Lmtp {
    folder: PathBuf,
    running: Running,
    pub(crate) port: u16,
}

impl Lmtp {
    /// With these users.
    pub(crate) fn start(users: &[&str]) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        require(Path::new("/usr/lib/dovecot/lmtp"));
        let (folder, port) = (folder("lmtp"), free_port());
        let here = folder.display();
        // Dovecot refuses to access mail as root; without root everything runs as the current user.
        let is_root = rustix::process::getuid().is_root();
        let (mail, internal) = match is_root {
            true => ("mail_uid = nobody\nmail_gid = nogroup\n".to_owned(), String::new()),
            false => {
                let name = run("id", &["-un"], b"").succeeded().stdout;
                let group = run("id", &["-gn"], b"").succeeded().stdout;
                let internal = format!(
                    "default_internal_user = {name}default_login_user = {name}default_internal_group = {group}\
                     service anvil {{\n  chroot =\n}}\n"
                );
                (format!("mail_uid = {name}mail_gid = {group}"), internal)
            }
        };
        let config = format!(
            "base_dir = {here}/run\nstate_dir = {here}/state\nlog_path = {here}/log\nprotocols = lmtp\nssl = no\n\
             listen = 127.0.0.1\nhostname = server.example.com\npostmaster_address = postmaster@example.com\n\
             mail_location = maildir:{here}/mail/%Ln\nmail_fsync = never\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n\
             {mail}{internal}userdb {{\n  driver = passwd-file\n  args = username_format=%Ln {here}/users\n}}\n\
             passdb {{\n  driver = passwd-file\n  args = username_format=%Ln {here}/users\n}}\n\
             service lmtp {{\n  inet_listener lmtp {{\n    port = {port}\n  }}\n}}\n"
        );
        std::fs::write(folder.join("dovecot.conf"), config).unwrap();
        std::fs::create_dir(folder.join("mail")).unwrap();
        std::fs::set_permissions(folder.join("mail"), std::fs::Permissions::from_mode(0o777)).unwrap();
        write_users(&folder, users);
        let file = folder.join("dovecot.conf").display().to_string();
        let command = ["/usr/sbin/dovecot", "-F", "-c", &file].map(String::from).to_vec();
        let log = folder.join("output");
        let running = Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" }.start().0;
        wait_for_port(port, &log);
        Self { folder, running, port }
    }

    /// Freezes its processes until the guard is dropped.
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen::of(self.running.pid())
    }

    /// As [`Lmtp::set_users`], while it is frozen.
    pub(crate) fn set_users_frozen(&self, users: &[&str]) {
        write_users(&self.folder, users);
    }

    /// From now on it has these users.
    pub(crate) fn set_users(&self, users: &[&str]) {
        write_users(&self.folder, users);
        // It would read the file again at its next change of a second.
        self.running.signal(Signal::HUP);
    }

    /// The subjects of a user's messages.
    pub(crate) fn subjects(&self, user: &str) -> Vec<String> {
        let new = self.folder.join("mail").join(user).join("new");
        let Ok(files) = std::fs::read_dir(new) else { return Vec::new() };
        let texts = files.flatten().map(|file| read_text(&file.path()));
        let subject = |text: String| text.lines().find_map(|line| line.strip_prefix("Subject: ").map(str::to_owned));
        texts.filter_map(subject).collect()
    }

    /// Its log so far.
    pub(crate) fn logged(&self) -> String {
        read_text(&self.folder.join("output")) + &read_text(&self.folder.join("log"))
    }
}

fn write_users(folder: &Path, users: &[&str]) {
    let lines: String = users.iter().map(|user| format!("{user}:{{PLAIN}}secret::::::\n")).collect();
    std::fs::write(folder.join("users"), lines).unwrap();
}

impl Drop for Lmtp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Dovecot's log:\n{}---", self.logged());
        }
    }
}
