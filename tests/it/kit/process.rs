//! Child processes that never outlive the tests.
//!
//! Each server runs under a small shell that waits for it and holds a pipe from this process:
//! when the pipe closes, because the test is over or the test process died in whatever way, the
//! shell ends the server. Their folders go the same way.

use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::wait_limit;

/// Only the soft limit of descriptors is lowered, for servers that make tables of that size; whoever
/// needs more may raise it again.
///
/// `$1` log file or nothing, `$2` the signal that ends the server. The inner shell prints the server's process
/// id on the first line of standard output.
const GUARDIAN: &str = r#"
log=$1 signal=$2
shift 2
ulimit -S -n 4096
exec 3<&0
sh -c 'log=$1; shift; echo $$; exec 3<&-; if [ -n "$log" ]; then exec "$@" >>"$log" 2>&1; else exec "$@" 2>&1; fi' \
    sh "$log" "$@" </dev/null &
pid=$!
( cat <&3; kill "-$signal" $pid; kill -CONT $pid; sleep 5; kill -KILL $pid ) >/dev/null 2>&1 &
watcher=$!
wait $pid
code=$?
kill $watcher
exit $code
"#;

/// The command of a server and the signal that ends it.
pub(crate) struct Server<'a> {
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(&'a str, String)>,
    /// The file of its output; `None`: the reader that `start` returns.
    pub(crate) log: Option<PathBuf>,
    /// `TERM` or `KILL`.
    pub(crate) end: &'a str,
}

/// A running server.
pub(crate) struct Running {
    pid: Pid,
    pipe: Option<ChildStdin>,
    exit: Mutex<Receiver<ExitStatus>>,
}

impl Server<'_> {
    /// Starts it; the reader has its output if no log file takes it.
    pub(crate) fn start(self) -> (Running, BufReader<ChildStdout>) {
        use std::os::unix::process::CommandExt as _;
        let log = self.log.map(|path| path.display().to_string()).unwrap_or_default();
        let mut guardian: Child = Command::new("sh")
            .args(["-c", GUARDIAN, "guardian", &log, self.end])
            .args(&self.command)
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()) // the shell's messages about killed jobs
            .process_group(0) // a Ctrl-C in the terminal must not end the guardian before its cleanup
            .spawn()
            .expect("sh starts");
        let mut output = BufReader::new(guardian.stdout.take().unwrap());
        let pipe = guardian.stdin.take();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let pid = line.trim().parse().ok().and_then(Pid::from_raw).expect("the guardian prints a process id");
        let (sender, exit) = channel();
        std::thread::spawn(move || sender.send(guardian.wait().unwrap()));
        (Running { pid, pipe, exit: Mutex::new(exit) }, output)
    }
}

impl Running {
    /// The server's process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the server is alive");
    }

    /// Waits for its exit; the code is 128 + n if signal n ended it.
    pub(crate) fn exit_code(&self) -> i32 {
        let status = self
            .exit
            .lock()
            .unwrap()
            .recv_timeout(wait_limit(Duration::from_secs(30)))
            .expect("the process ends in time");
        status.code().expect("the guardian is not killed")
    }

    /// Kills it and waits for its exit.
    pub(crate) fn stop(&mut self) {
        self.pipe = None;
        let _ = self.exit.lock().unwrap().recv_timeout(Duration::from_secs(15));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes a file readable by its owner only, as usher requires for keys and passwords.
pub(crate) fn write_secret(path: &Path, content: impl AsRef<[u8]>) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A new folder for a server or a test, readable by every user (Cyrus runs as its own). All of them
/// are removed when the test process ends, in any way.
pub(crate) fn folder(name: &str) -> PathBuf {
    static ROOT: OnceLock<(PathBuf, Child)> = OnceLock::new();
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (root, _janitor) = ROOT.get_or_init(|| {
        use std::os::unix::process::CommandExt as _;
        let root = tempfile::Builder::new().prefix("usher-it-").tempdir_in(fast_folder()).unwrap().keep();
        open_to_all(&root);
        // Servers that are about to exit may write once more: hence twice.
        let script = "cat >/dev/null; rm -rf \"$1\"; sleep 7; rm -rf \"$1\"";
        let janitor = Command::new("sh")
            .args(["-c", script, "janitor", &root.display().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        (root, janitor.expect("sh starts"))
    });
    let folder = root.join(format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir(&folder).unwrap();
    open_to_all(&folder);
    folder
}

/// In memory if there is space and programs may run (Cyrus is copied there), unless `TMPDIR` names
/// a folder. On a disk still busy with the compiler's output, a server may wait for longer
/// than usher waits for it.
fn fast_folder() -> PathBuf {
    use rustix::fs::{StatVfsMountFlags, statvfs};
    let has_room = |memory: &Path| {
        statvfs(memory).is_ok_and(|found| {
            found.f_bavail.saturating_mul(found.f_frsize) > 4 << 30 && !found.f_flag.contains(StatVfsMountFlags::NOEXEC)
        })
    };
    let memory = Path::new("/dev/shm");
    if std::env::var_os("TMPDIR").is_none() && has_room(memory) { memory.into() } else { std::env::temp_dir() }
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// How many ports a process reserves at a time.
const BLOCK: u16 = 20;

/// An unused port on loopback, outside the range that the kernel gives to clients, so
/// that a stopped server finds it free when restarted.
///
/// A server listens some time after its port was chosen: without a reservation, another test process could choose it
/// too, and a test would talk to the other one's server. Blocks of ports are reserved by the name of a socket, which
/// lives as long as this process.
pub(crate) fn free_port() -> u16 {
    static RESERVED: Mutex<(Vec<u16>, usize)> = Mutex::new((Vec::new(), 0));
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..20_000 {
        let (ports, next) = &mut *reserved;
        if *next == ports.len() {
            ports.extend(reserve_block());
            // All blocks are reserved: a port of this process may be free again.
            *next %= ports.len().max(1);
        }
        let Some(port) = ports.get(*next).copied() else { break };
        *next += 1;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on loopback");
}

fn reserve_block() -> Range<u16> {
    let start = u16::try_from(std::process::id() % 500).unwrap();
    for block in (0..500).map(|block| (start + block) % 500) {
        let name = format!("usher-test-ports-{block}");
        let name = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        if let Ok(listener) = UnixListener::bind_addr(&name) {
            std::mem::forget(listener);
            let first = 20_000 + block * BLOCK;
            return first..first + BLOCK;
        }
    }
    0..0
}

/// Waits until the port accepts connections.
pub(crate) fn wait_for_port(port: u16, log: &Path) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if std::time::Instant::now() > deadline {
            panic!("nothing listens on port {port}; {}:\n{}", log.display(), read_text(log));
        }
        // A server that is about to listen offers no event to wait for.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The text of a file, or the reason why it cannot be read.
pub(crate) fn read_text(path: &Path) -> String {
    std::fs::read(path).map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The output of a finished command.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Panics with its output unless it succeeded.
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }
}

/// Runs a command to its end, at most 50 s, with this standard input.
pub(crate) fn run(program: &str, arguments: &[&str], input: &[u8]) -> Output {
    use std::io::Write as _;
    let mut child = Command::new("timeout")
        .args(["-k", "1", "50", program])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout (coreutils) starts");
    let mut stdin = child.stdin.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input)));
        let errors = scope.spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).map(|_| text).unwrap_or_default()
        });
        let mut text = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut text).unwrap();
        let code = child.wait().unwrap().code().unwrap_or(-1);
        assert_ne!(code, 127, "{program} is missing: run ./tests/run, which installs what the tests need");
        let lossy = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Output { code, stdout: lossy(text), stderr: lossy(errors.join().unwrap()) }
    })
}

/// Panics if a server's program is missing: a test is never skipped silently.
pub(crate) fn require(program: &Path) {
    assert!(program.exists(), "{} is missing: run ./tests/run, which installs what the tests need", program.display());
}

/// What `tests/run` has unpacked under this name.
pub(crate) fn unpacked(name: &str) -> PathBuf {
    // Unit tests, which have none, unpack nothing.
    let temporary = option_env!("CARGO_TARGET_TMPDIR").unwrap_or_default();
    let folder = Path::new(temporary).with_file_name(name);
    require(&folder.join("complete"));
    folder
}
