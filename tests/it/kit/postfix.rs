//! Postfix as the mail server in front of the mail servers: the Debian package's files, in a folder of its own.
//! Requires root, as Postfix does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::process::{Output, Running, Server, folder, free_port, read_text, run, unpacked, wait_for_port};
use super::wait_limit;

/// Users and a group that every Debian has: Postfix wants one of its own for each.
const OWNER: &str = "daemon";
const GROUP: &str = "games";

const MASTER: &str = "pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
lmtp unix - - n - - lmtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
";

/// A Postfix with its own folder, queue and port.
pub(crate) struct Postfix {
    folder: PathBuf,
    _running: Running,
    pub(crate) port: u16,
}

impl Postfix {
    /// The folder of its queue: relative paths of Unix sockets begin here.
    pub(crate) fn queue(folder: &Path) -> PathBuf {
        folder.join("queue")
    }

    /// A new folder for one.
    pub(crate) fn folder() -> PathBuf {
        let folder = folder("postfix");
        for part in ["etc", "data", "queue"] {
            std::fs::create_dir(folder.join(part)).unwrap();
        }
        folder
    }

    /// Starts it in this folder, with these lines in main.cf.
    pub(crate) fn start(folder: PathBuf, main: &str) -> Self {
        assert!(rustix::process::getuid().is_root(), "Postfix requires root");
        let files = unpacked("postfix");
        let of = |part: &str| files.join(part).display().to_string();
        let (here, port) = (folder.display().to_string(), free_port());
        let queue = Self::queue(&folder);
        let folders: &[(&str, &str, &str)] = &[
            ("active bounce corrupt defer deferred flush hold incoming private saved trace", OWNER, "700"),
            ("maildrop", &format!("{OWNER}:{GROUP}"), "1730"),
            ("public", &format!("{OWNER}:{GROUP}"), "2710"),
            ("pid", "root", "755"),
        ];
        for (names, owner, mode) in folders {
            for name in names.split(' ') {
                let path = queue.join(name).display().to_string();
                std::fs::create_dir(&path).unwrap();
                run("chown", &[owner, &path], b"").succeeded();
                run("chmod", &[mode, &path], b"").succeeded();
            }
        }
        run("chown", &[OWNER, &folder.join("data").display().to_string()], b"").succeeded();
        let own = format!(
            "compatibility_level = 3.6\nqueue_directory = {here}/queue\ncommand_directory = {commands}\n\
             daemon_directory = {daemons}\ndata_directory = {here}/data\nshlib_directory = {libraries}\n\
             meta_directory = {here}/etc\nmail_owner = {OWNER}\nsetgid_group = {GROUP}\ndefault_privs = nobody\n\
             import_environment = MAIL_CONFIG MAIL_DEBUG LD_LIBRARY_PATH\nmaillog_file = {here}/maillog\n\
             maillog_file_prefixes = {here}\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
             myhostname = mx.example.com\nmydestination =\nalias_maps =\nalias_database =\n\
             mynetworks = 192.0.2.0/24\nsmtputf8_enable = no\n",
            commands = of("usr/sbin"),
            daemons = of("usr/lib/postfix/sbin"),
            libraries = of("usr/lib/postfix"),
        );
        std::fs::write(folder.join("etc/main.cf"), own + main).unwrap();
        let master = format!("127.0.0.1:{port} inet n - n - - smtpd\n{MASTER}");
        std::fs::write(folder.join("etc/master.cf"), master).unwrap();
        let command = vec![of("usr/lib/postfix/sbin/master"), "-c".into(), format!("{here}/etc"), "-d".into()];
        let environment = vec![("LD_LIBRARY_PATH", of("usr/lib/postfix")), ("MAIL_CONFIG", format!("{here}/etc"))];
        let output = folder.join("output");
        let server = Server { command, environment, log: Some(output.clone()), end: "TERM" };
        let running = server.start().0;
        wait_for_port(port, &output);
        Self { folder, _running: running, port }
    }

    /// Its log so far.
    pub(crate) fn logged(&self) -> String {
        read_text(&self.folder.join("maillog"))
    }

    /// Waits for a line of its log with all of these.
    pub(crate) fn wait_logged(&self, needles: &[&str]) -> String {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(30));
        loop {
            let logged = self.logged();
            if let Some(line) = logged.lines().find(|line| needles.iter().all(|needle| line.contains(needle))) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "Postfix never logged {needles:?}:\n{logged}");
            // A log file offers no event to wait for.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn postqueue(&self, argument: &str) -> Output {
        let files = unpacked("postfix");
        let libraries = format!("LD_LIBRARY_PATH={}", files.join("usr/lib/postfix").display());
        let program = files.join("usr/sbin/postqueue").display().to_string();
        let etc = self.folder.join("etc").display().to_string();
        run("env", &[&libraries, &program, "-c", &etc, argument], b"")
    }

    /// What `postqueue -p` shows.
    pub(crate) fn queued(&self) -> String {
        self.postqueue("-p").succeeded().stdout
    }

    /// `postqueue -f`, until the queue is empty.
    pub(crate) fn flush_all(&self) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(40));
        loop {
            let queued = self.queued();
            if queued.contains("Mail queue is empty") {
                return;
            }
            assert!(Instant::now() < deadline, "the queue is never empty: {queued}\n{}", self.logged());
            self.postqueue("-f").succeeded();
            // The queue offers no event to wait for.
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Sends a message by SMTP, and returns the first reply that is no success, or that to the message.
    pub(crate) fn send(&self, to: &str, text: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(wait_limit(Duration::from_secs(30)))).unwrap();
        let mut replies = BufReader::new(stream.try_clone().unwrap());
        let mut reply = || {
            loop {
                let mut line = String::new();
                replies.read_line(&mut line).unwrap();
                if line.as_bytes().get(3) != Some(&b'-') {
                    return line.trim_end().to_owned();
                }
            }
        };
        let mut last = reply();
        let message = format!("Subject: {text}\r\n\r\n{text}\r\n.");
        let commands = [
            "EHLO client.example.net".to_owned(),
            "MAIL FROM:<sender@example.net>".to_owned(),
            format!("RCPT TO:<{to}>"),
            "DATA".to_owned(),
            message,
        ];
        for command in commands {
            assert!(!last.is_empty(), "Postfix has closed the connection:\n{}", self.logged());
            if !last.starts_with(['2', '3']) {
                break;
            }
            write!(stream, "{command}\r\n").unwrap();
            last = reply();
        }
        let _ = write!(stream, "QUIT\r\n");
        last
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Postfix's log:\n{}---", self.logged());
        }
    }
}
