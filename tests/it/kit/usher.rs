//! usher under test: the real binary as a process, its log, its side port and its commands.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::config::Config;
use super::process::{Output, Running, Server, run};
use super::wait_limit;

/// The binary that cargo built for these tests.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_usher");

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    more: Condvar,
    /// Held by a test that leaves the log unread.
    unread: Mutex<()>,
}

/// The last line of a log.
const ENDED: &str = "(usher ended)";

/// A running usher.
pub(crate) struct Usher {
    pub(crate) config: Config,
    running: Running,
    log: Arc<Log>,
    addresses: Vec<(String, String)>,
    side_port: String,
}

impl Usher {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(config: Config) -> Self {
        Self::start_with(config, vec![])
    }

    /// As [`Usher::start`], with these environment variables.
    pub(crate) fn start_with(config: Config, environment: Vec<(&str, String)>) -> Self {
        let mut usher = Self::spawn(config, environment, &[]);
        usher.wait_log("started", |_| true);
        usher.read_addresses();
        usher
    }

    /// As [`Usher::start`], by a command that prepares the process and then executes usher.
    pub(crate) fn start_under(config: Config, command: &[&str]) -> Self {
        let mut usher = Self::spawn(config, vec![], command);
        usher.wait_log("started", |_| true);
        usher.read_addresses();
        usher
    }

    /// Starts it and waits for its sockets only: its directory may be down.
    pub(crate) fn start_unready(config: Config) -> Self {
        let mut usher = Self::spawn(config, vec![], &[]);
        usher.wait_log("side port listening", |_| true);
        usher.wait_nth_log(2, "listening", |_| true);
        usher.read_addresses();
        usher
    }

    fn spawn(config: Config, environment: Vec<(&str, String)>, under: &[&str]) -> Self {
        super::start_deadline();
        let file = config.write().display().to_string();
        let run = [BINARY, "run", "--allow-root", "--config", &file];
        let command = under.iter().chain(&run).map(ToString::to_string).collect();
        let server = Server { command, environment, log: None, end: "KILL" };
        let (running, output) = server.start();
        let log = Arc::new(Log::default());
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).into_owned();
                let (priority, text) = super::log_line::priority(text);
                // Output that is not a log line is kept, such as a panic message.
                let value = serde_json::from_str(&text).ok().or_else(|| super::log_line::parse(&text));
                let mut value = value.unwrap_or(Value::String(text));
                if let (Some(priority), Value::Object(line)) = (priority, &mut value) {
                    line.insert("journal_priority".into(), priority.into());
                }
                drop(written.unread.lock());
                written.lines.lock().unwrap().push(value);
                written.more.notify_all();
            }
            written.lines.lock().unwrap().push(Value::String(ENDED.into()));
            written.more.notify_all();
        });
        Self { config, running, log, addresses: Vec::new(), side_port: String::new() }
    }

    fn read_addresses(&mut self) {
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        for line in self.logged() {
            match line["message"].as_str() {
                Some("listening") => self.addresses.push((text(&line, "tls"), text(&line, "address"))),
                Some("side port listening") => self.side_port = text(&line, "address"),
                _ => {}
            }
        }
    }

    /// The port of the first listener with implicit TLS.
    pub(crate) fn imaps_port(&self) -> u16 {
        self.port("implicit")
    }

    /// The port of the first listener with STARTTLS.
    pub(crate) fn imap_port(&self) -> u16 {
        self.port("starttls")
    }

    fn port(&self, tls: &str) -> u16 {
        let found = self.addresses.iter().find(|(kind, _)| kind == tls);
        let (_, address) = found.unwrap_or_else(|| panic!("no {tls} listener in {:?}", self.addresses));
        address.parse::<std::net::SocketAddr>().unwrap().port()
    }

    /// Every address it listens on, from its log.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.addresses.iter().map(|(_, address)| address.clone()).collect()
    }

    /// The side port's address.
    pub(crate) fn side_port(&self) -> &str {
        &self.side_port
    }

    /// Leaves the log unread, and its pipe full, until the guard is dropped.
    pub(crate) fn log_unread(&self) -> MutexGuard<'_, ()> {
        self.log.unread.lock().unwrap()
    }

    /// The numbers of full and resumed TLS handshakes with a backend, in IMAP.
    pub(crate) fn backend_handshakes(&self, backend: &str) -> (f64, f64) {
        let of = |resumed| {
            let labels = [("backend", backend), ("protocol", "imap"), ("resumed", resumed)];
            self.metric("usher_backend_handshakes_total", &labels)
        };
        (of("no"), of("yes"))
    }

    /// Every line logged so far.
    pub(crate) fn logged(&self) -> Vec<Value> {
        self.log.lines.lock().unwrap().clone()
    }

    /// Waits for a line with this message that matches the predicate, past or future.
    pub(crate) fn wait_log(&self, message: &str, predicate: impl Fn(&Value) -> bool) -> Value {
        self.wait_nth_log(1, message, predicate)
    }

    /// Waits for the nth such line, counted from 1.
    pub(crate) fn wait_nth_log(&self, nth: usize, message: &str, predicate: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(20));
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            let fits = |line: &&Value| line["message"] == message && predicate(line);
            if let Some(line) = lines.iter().filter(fits).nth(nth - 1) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.last().is_some_and(|line| line == ENDED) {
                drop(lines); // the log is printed while panicking
                panic!("usher never logged `{message}` {nth} times as wanted");
            }
            lines = self.log.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// The nth `login` event of a name, as typed.
    pub(crate) fn nth_login(&self, nth: usize, login: &str) -> Value {
        self.wait_nth_log(nth, "login", |line| line["login"] == login)
    }

    /// The first `login` event of a name, as typed.
    pub(crate) fn login(&self, login: &str) -> Value {
        self.nth_login(1, login)
    }

    /// Every log line as text, to search for what must not be there.
    pub(crate) fn log_text(&self) -> String {
        self.logged().iter().map(|line| format!("{line}\n")).collect()
    }

    /// A GET on the side port: status and body.
    pub(crate) fn http(&self, path: &str) -> (u16, String) {
        fetch(&self.side_port, path)
    }

    /// Every series of `/metrics` with its value.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, body) = self.http("/metrics");
        assert_eq!(status, 200, "{body}");
        let series = body.lines().filter(|line| !line.starts_with('#'));
        series
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.into(), value.parse().unwrap()))
            .collect()
    }

    /// The sum of the series of a metric that have these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let metrics = self.metrics();
        let mut found = metrics.iter().filter(|(series, _)| {
            series.split('{').next() == Some(name) && wanted.iter().all(|label| series.contains(label))
        });
        let first = found.next().unwrap_or_else(|| panic!("no series {name} with {labels:?}")).1;
        found.fold(*first, |sum, (_, value)| sum + value)
    }

    /// Waits until the sum of these series has this value.
    pub(crate) fn wait_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.wait_metric_until(name, labels, |now| (now - value).abs() < 0.5);
    }

    /// Waits until a metric satisfies the condition.
    pub(crate) fn wait_metric_until(&self, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(15));
        loop {
            let now = self.metric(name, labels);
            if wanted(now) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} {labels:?} stays {now}");
            // A metric offers no event to wait for.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs another command of the binary on the same configuration file.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        command(&self.config, arguments, b"")
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.running.signal(Signal::TERM);
    }

    /// Any signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Writes the current configuration, reloads it by SIGHUP, and waits for the result.
    pub(crate) fn hup(&self) -> Value {
        let answers = |line: &Value| line["message"].as_str().is_some_and(|message| message.starts_with("reload"));
        let before = self.logged().iter().filter(|line| answers(line)).count();
        self.running.signal(Signal::HUP);
        let deadline = Instant::now() + wait_limit(Duration::from_secs(20));
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().filter(|line| answers(line)).nth(before) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                panic!("usher never answered SIGHUP");
            }
            lines = self.log.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits for its end.
    pub(crate) fn exit_code(&self) -> i32 {
        self.running.exit_code()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.running.pid().as_raw_nonzero().get()
    }

    /// Its resident memory.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// A GET over plain HTTP: status and body.
pub(crate) fn fetch(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the port accepts");
    stream.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
    // Version 1.0: no answer comes in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {answer:?}")), body.to_owned())
}

/// The process that said the nth `started`; it is ended when this is dropped.
pub(crate) struct Successor(pub(crate) rustix::process::Pid);

impl Successor {
    pub(crate) fn of(usher: &Usher, nth: usize) -> Self {
        let line = usher.wait_nth_log(nth, "started", |_| true);
        let pid = line["process"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        Self(rustix::process::Pid::from_raw(pid.unwrap()).unwrap())
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
    }
}

/// Runs `usher COMMAND --config FILE ...` to its end.
pub(crate) fn command(config: &Config, arguments: &[&str], input: &[u8]) -> Output {
    let file = config.path("usher.yaml").display().to_string();
    let (name, rest) = arguments.split_first().expect("a command");
    run(BINARY, &[&[name, "--config", &file], rest].concat(), input)
}

impl Drop for Usher {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- usher's log:\n{}---", self.log_text());
        }
    }
}
