//! A real store: Redis on loopback, and a way to it that is slow.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::process::{Running, Server, folder, free_port};

/// A Redis of a test.
pub(crate) struct Redis {
    pub(crate) port: u16,
    /// The port of TLS, if it has one.
    pub(crate) tls_port: Option<u16>,
    folder: PathBuf,
    arguments: Vec<String>,
    /// User and password of the test itself.
    account: Option<(String, String)>,
    server: Option<Running>,
}

impl Redis {
    /// Without a password.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With more arguments.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::prepared(arguments.iter().map(|word| (*word).to_owned()).collect(), None, None)
    }

    /// With TLS beside: chain, key and CA.
    pub(crate) fn with_tls(chain: &Path, key: &Path, ca: &Path) -> Self {
        let port = free_port();
        let mut arguments = vec!["--tls-port".to_owned(), port.to_string()];
        for (name, path) in [("--tls-cert-file", chain), ("--tls-key-file", key), ("--tls-ca-cert-file", ca)] {
            arguments.extend([name.to_owned(), path.display().to_string()]);
        }
        arguments.extend(["--tls-auth-clients", "no"].map(str::to_owned));
        Self::prepared(arguments, Some(port), None)
    }

    /// With an administrator of the test, and these lines of an ACL file.
    pub(crate) fn with_users(lines: &[&str]) -> Self {
        let folder = folder("redis-acl");
        let file = folder.join("users.acl");
        let admin = "user test on >test-password ~* &* +@all";
        std::fs::write(&file, [&["user default off", admin], lines, &[""]].concat().join("\n")).unwrap();
        let arguments = vec!["--aclfile".to_owned(), file.display().to_string()];
        Self::prepared(arguments, None, Some(("test".to_owned(), "test-password".to_owned())))
    }

    fn prepared(arguments: Vec<String>, tls_port: Option<u16>, account: Option<(String, String)>) -> Self {
        let (port, folder) = (free_port(), folder("redis"));
        let mut redis = Self { port, tls_port, folder, arguments, account, server: None };
        redis.start_again();
        redis
    }

    /// Starts it after [`Redis::stop`], with nothing in it.
    pub(crate) fn start_again(&mut self) {
        let mut command = ["redis-server", "--bind", "127.0.0.1", "--port"].map(str::to_owned).to_vec();
        command.push(self.port.to_string());
        command.extend(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"].map(str::to_owned));
        command.push(self.folder.display().to_string());
        command.extend(self.arguments.iter().cloned());
        let log = Some(self.folder.join("log"));
        let (server, _) = Server { command, environment: Vec::new(), log, end: "TERM" }.start();
        self.server = Some(server);
        let end = Instant::now() + Duration::from_secs(10);
        while self.try_command(&["PING"]).trim() != "PONG" {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "redis-server does not start: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it.
    pub(crate) fn stop(&mut self) {
        self.server = None;
    }

    /// It answers no more, and its connections stay.
    pub(crate) fn freeze(&self) {
        self.server.as_ref().unwrap().signal(Signal::STOP);
    }

    /// It answers again.
    pub(crate) fn thaw(&self) {
        self.server.as_ref().unwrap().signal(Signal::CONT);
    }

    /// Runs a command; its reply as redis-cli prints it.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let reply = self.try_command(words);
        assert!(!reply.starts_with("Could not connect"), "{reply}");
        reply.trim_end().to_owned()
    }

    fn try_command(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some((user, password)) = &self.account {
            command.args(["--no-auth-warning", "--user", user, "--pass", password]);
        }
        let output = command.args(words).output().expect("redis-cli runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Everything in it, keys and values, as text.
    pub(crate) fn content(&self) -> String {
        let script = "local all = {} for _, key in ipairs(redis.call('KEYS', '*')) do all[#all + 1] = key \
                      local kind = redis.call('TYPE', key).ok \
                      if kind == 'string' then all[#all + 1] = redis.call('GET', key) \
                      elseif kind == 'hash' then for _, part in ipairs(redis.call('HGETALL', key)) do all[#all + 1] = part end \
                      elseif kind == 'zset' then for _, part in ipairs(redis.call('ZRANGE', key, 0, -1)) do all[#all + 1] = part end \
                      end end return table.concat(all, '\\n')";
        self.command(&["EVAL", script, "0"])
    }
}

/// A way to a store that delays what the store answers, and records all that passes.
pub(crate) struct SlowWay {
    pub(crate) port: u16,
    delay: Arc<AtomicU64>,
    passed: Passed,
}

/// What has passed, each connection and direction by itself.
type Passed = Arc<Mutex<Vec<Vec<u8>>>>;

impl SlowWay {
    /// Without a delay at first.
    pub(crate) fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let delay = Arc::new(AtomicU64::new(0));
        let passed = Passed::default();
        let (delayed, recorded) = (Arc::clone(&delay), Arc::clone(&passed));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else { continue };
                let (delay, there, back) = (Arc::clone(&delayed), Arc::clone(&recorded), Arc::clone(&recorded));
                std::thread::spawn(move || carry(client_too, server_too, &AtomicU64::new(0), &there));
                std::thread::spawn(move || carry(server, client, &delay, &back));
            }
        });
        Self { port, delay, passed }
    }

    /// What has passed so far, each connection and direction by itself.
    pub(crate) fn passed(&self) -> Vec<Vec<u8>> {
        self.passed.lock().unwrap().clone()
    }

    /// From now on, every answer takes this much longer.
    pub(crate) fn delay(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: &AtomicU64, passed: &Passed) {
    let own = {
        let mut passed = passed.lock().unwrap();
        passed.push(Vec::new());
        passed.len() - 1
    };
    let mut buffer = [0; 16_384];
    while let Ok(length) = from.read(&mut buffer) {
        passed.lock().unwrap()[own].extend_from_slice(&buffer[..length]);
        std::thread::sleep(Duration::from_millis(delay.load(Ordering::Relaxed)));
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
