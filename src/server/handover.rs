//! Listening sockets that outlive a process: handed to a successor by `usher upgrade`, or kept by
//! systemd (socket activation).
//!
//! The old process starts the new one, with a Unix socket as its standard input, and sends the
//! listening sockets through it (SCM_RIGHTS, unix(7)): the way is open to these two alone, and what
//! waits to be accepted waits in the same queue for both. Only when the new one serves does the old
//! one stop accepting. A socket is known by a name, which is systemd's (FileDescriptorName=) or the
//! configured address, and by where it listens. sd_listen_fds_with_names(3).

use std::io::{self, IoSlice, IoSliceMut};
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv,
    recvmsg, send, sendmsg, sockopt::socket_peercred,
};
use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tracing::field::display;
use tracing::{error, info, warn};

use super::changed_files::newly_expired_files;
use super::sockets::OpenSocket;
use super::{Next, Server, StopSignals};
use crate::admin::control::OrderResult;
use crate::base::clock::unix_now;
use crate::base::sys;
use crate::base::sys::socket_file::SocketFile;
use crate::process::Stage;
use crate::sessions::maintenance::Drain;
use crate::trace::TraceEnd;

/// Sockets in one message: below SCM_MAX_FD, which is 253.
const MOST: usize = 250;
/// Makes a process that starts another leave it to the service manager.
const DETACH: &str = "--detach";
/// Passes a drained backend and its rate to the new process.
const DRAINED: &str = "--drained";
/// What of the arguments concerns the upgrade alone, for the process that serves: `ps` shows the configured command.
const TAKE_OVER: &str = "USHER_TAKE_OVER";
/// Names the process that hears why its successor fails. One of an older program, which takes any byte for success, does
/// not name itself.
const REPORTS_TO: &str = "USHER_REPORTS_TO";
/// Begins the reason of a failure.
const FAILED: &[u8] = b"!";
/// The longest reason.
const LONGEST_REASON: u64 = 8 * 1024;
/// What goes with the sockets, and back when the new process serves.
const SIGN: &[u8] = b"u";
/// From the start of the new process until it serves.
const START: Duration = Duration::from_secs(45);

/// Why there is no upgrade in a container, of which this process is the first: everything in it ends with it.
const FIRST_PROCESS: &str = "usher is PID 1, and its container ends with it: start a container with the new image \
                             instead (in Kubernetes: set the image of the Deployment, or `kubectl rollout restart \
                             deployment/usher`)";

/// Between the names that go with the sockets; none has one.
const SEPARATOR: char = '\n';
/// Names are an address with its port, or 64 letters at the most.
const NAMES: usize = MOST * 80;

/// Sockets that listened before this process began.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) sockets: Vec<OpenSocket>,
    upgrade: bool,
}

impl Inherited {
    /// Takes them from the process that runs now, or from systemd.
    ///
    /// # Errors
    /// They do not arrive.
    pub(super) fn receive(upgrade: bool) -> io::Result<Self> {
        let sockets = if upgrade {
            let way = io::stdin();
            send(way.as_fd(), &std::process::id().to_be_bytes(), SendFlags::NOSIGNAL)?;
            receive_from(way.as_fd())?
        } else {
            sys::activated()?
        };
        let sockets = sockets.into_iter().map(|(name, socket)| OpenSocket { name, socket: socket.into() });
        Ok(Self { sockets: sockets.collect(), upgrade })
    }

    /// Whether another process serves until this one does.
    pub(super) fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Signals to the old process that this one serves now; closes sockets without a listener.
    ///
    /// # Errors
    /// The old process has given this one up, and serves itself.
    pub(super) fn serving(self) -> io::Result<()> {
        for OpenSocket { name, socket } in &self.sockets {
            let address = socket.local_addr().ok().map(display);
            warn!(name, address, "inherited socket matches no listener");
        }
        if self.upgrade {
            send(io::stdin().as_fd(), SIGN, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }
}

/// Starts this program once more and leaves it alone: whose parent has ended is the service manager's
/// child, which so hears of its end, even while the old process lives.
///
/// # Errors
/// It cannot be started.
pub(crate) fn detach(file: &Path, drained: &[(String, u32)]) -> io::Result<()> {
    let drained: Vec<_> = drained.iter().map(|(backend, rate)| format!("{backend}={rate}")).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--config"]).arg(file).env(TAKE_OVER, drained.join(&SEPARATOR.to_string()));
    command.spawn().map(drop)
}

/// The drained backends, as arguments, if another process has started this one to take over.
pub(crate) fn take_over() -> Option<Vec<String>> {
    let drained = std::env::var(TAKE_OVER).ok()?;
    Some(drained.split(SEPARATOR).filter(|one| !one.is_empty()).map(str::to_owned).collect())
}

/// Reports to the old process why this one does not serve. `is_known`: it has the id of this one.
pub(crate) fn report_failure(is_known: bool, reason: &str) {
    let way = io::stdin();
    let asked = std::env::var(REPORTS_TO).ok().and_then(|process| process.parse().ok());
    // The variable may be left of an upgrade before.
    let peer = socket_peercred(way.as_fd()).ok().map(|peer| peer.pid.as_raw_nonzero().get());
    if asked.is_none() || asked != peer {
        return;
    }
    let id = if is_known { Vec::new() } else { std::process::id().to_be_bytes().to_vec() };
    // Whoever has stopped waiting needs no reason.
    let _ = send(way.as_fd(), &[&id, FAILED, reason.as_bytes()].concat(), SendFlags::NOSIGNAL);
}

fn receive_from(way: BorrowedFd<'_>) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; SIGN.len() + NAMES];
    let received = recvmsg(way, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let text = text.get(..received.bytes).and_then(|text| text.strip_prefix(SIGN));
    let names = String::from_utf8_lossy(text.ok_or(io::ErrorKind::UnexpectedEof)?);
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            sockets.extend(more);
        }
    }
    let names = names.split(SEPARATOR).map(str::to_owned).chain(iter::repeat(String::new()));
    Ok(iter::zip(names, sockets).collect())
}

fn send_to(way: BorrowedFd<'_>, sockets: &[(String, BorrowedFd<'_>)]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let (names, sockets): (Vec<&str>, Vec<_>) = sockets.iter().map(|(name, socket)| (&**name, *socket)).unzip();
    if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MOST} listeners")));
    }
    let names = names.join(&SEPARATOR.to_string());
    sendmsg(way, &[IoSlice::new(SIGN), IoSlice::new(names.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

impl Server {
    /// Starts the new process and waits until it serves; this one then has to leave. If the new one
    /// fails, or a signal says stop, nothing has changed.
    pub(super) async fn upgrade(&mut self, stop: &mut StopSignals) -> (OrderResult, Next) {
        if std::process::id() == 1 {
            warn!("upgrade refused: {FIRST_PROCESS}");
            return (Err(vec![FIRST_PROCESS.to_owned()]), Next::Serve);
        }
        // Nothing would compare what the new process reads with what is in force here.
        let current = self.shared.snapshot.load_full();
        let expired = self.reader.read(move || newly_expired_files(&current)).await.unwrap_or_default();
        if !expired.is_empty() {
            expired.iter().for_each(|problem| error!(%problem, "upgrade refused"));
            return (Err(expired.iter().map(ToString::to_string).collect()), Next::Serve);
        }
        info!(program = %self.program.display(), "upgrading");
        let kept = match self.control.as_ref().map(SocketFile::move_aside).transpose() {
            Ok(kept) => kept,
            Err(error) => {
                return (
                    Err(vec![format!("the control socket cannot be moved for the new process: {error}")]),
                    Next::Serve,
                );
            }
        };
        let (outcome, otherwise) = tokio::select! {
            // What has begun to serve is not taken back.
            biased;
            outcome = self.start_successor() => (outcome, Next::Serve),
            () = stop.recv() => (Err(io::Error::other("stopped by a signal")), Next::Stop("signal")),
        };
        match outcome {
            Ok((process, way)) => {
                info!(process, "new process serving");
                // From the main process alone this is believed (NotifyAccess=main).
                let _ = sd_notify::notify(&[NotifyState::MainPid(process)]);
                self.control = kept;
                let config = &self.shared.snapshot.load().config;
                let stay = config.limits.prelogin_timeout + config.drain.upgrade_deadline;
                let _ = self.shared.ends_at.set(unix_now() + stay.as_secs());
                (Ok(self.upgraded(process)), Next::Leave(way))
            }
            Err(error) => {
                error!(%error, "upgrade failed; this process continues");
                if let (Some(control), Some(kept)) = (&self.control, &kept) {
                    control.move_back(kept);
                }
                (Err(vec![error.to_string()]), otherwise)
            }
        }
    }

    /// What `usher upgrade` prints: sessions stay with this process until its deadline.
    fn upgraded(&self, process: u32) -> String {
        let (sessions, own) = (self.shared.registry.count(), std::process::id());
        if sessions == 0 {
            return format!("upgraded: PID {process} serving; no sessions stay with PID {own}");
        }
        let until = self.shared.ends_at.get().copied().unwrap_or_default();
        let (hours, minutes) = (until % 86_400 / 3_600, until % 3_600 / 60);
        let (sessions, stay) =
            if sessions == 1 { ("1 session".to_owned(), "stays") } else { (format!("{sessions} sessions"), "stay") };
        format!("upgraded: PID {process} serving; {sessions} {stay} with PID {own} until {hours:02}:{minutes:02} UTC")
    }

    async fn start_successor(&self) -> io::Result<(u32, UpgradeChannel)> {
        let (ours, theirs) = UnixStream::pair()?;
        let all = self.listeners.iter().map(|((address, ..), listening)| (*address, listening));
        let admin = self.shared.snapshot.load().config.admin.address;
        let all = all.chain(self.side_port.as_ref().map(|listening| (admin, listening)));
        let all = all.chain(self.auth_http.as_ref().map(|(address, listening)| (*address, listening)));
        let all = all.map(|(address, listening)| (address.to_string(), listening));
        let all = all.chain(self.socketmap.as_ref().map(|postfix| (postfix.name(), &postfix.listening)));
        let sockets = all.flat_map(|(name, listening)| listening.sockets().map(move |socket| (name.clone(), socket)));
        send_to(ours.as_fd(), &sockets.collect::<Vec<_>>())?;
        let mut command = Command::new(&self.program);
        // Whatever this process may be, that one may be.
        command.args(["run", DETACH, "--take-over", "--allow-root", "--config"]).arg(&self.file);
        for (backend, Drain { rate, .. }) in self.shared.maintenance.drains() {
            command.arg(DRAINED).arg(format!("{backend}={rate}"));
        }
        command.env(REPORTS_TO, std::process::id().to_string()).env_remove(TAKE_OVER);
        let starter = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn();
        // The command holds the other end, which closes when the new process ends.
        drop(command);
        let mut successor = Successor { starter: starter?, process: None };
        let way = await_sign(ours, &mut successor).await?;
        let process = successor.process.take().ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((process, way))
    }

    /// Ends this process after an upgrade: whoever is about to log in may do so, then sessions are
    /// closed slowly. A signal means faster, another one means now.
    pub(super) async fn leave_to_successor(&mut self, way: UpgradeChannel, stop: &mut StopSignals) {
        let config = self.shared.snapshot.load().config.clone();
        let deadline = config.drain.upgrade_deadline;
        info!(sessions = self.shared.registry.count(), ?deadline, "draining after an upgrade");
        if let Some(postfix) = &mut self.socketmap {
            postfix.leave_file();
        }
        self.close_listeners();
        self.side_port = None;
        self.shared.log.leave_servers_to_successor();
        self.shared.stage.send_replace(Stage::Leaving);
        self.shared.traces.end_all(TraceEnd::Upgrade);
        let conversations = config.limits.prelogin_timeout;
        let stopped = tokio::select! {
            _ = timeout(conversations, self.shared.connections_closed()) => false,
            () = stop.recv() => true,
        };
        self.shared.stage.send_replace(Stage::Draining);
        let rate = config.drain.max_closes_per_second;
        let stopped = stopped || self.close_sessions((deadline, rate), deadline, stop).await;
        if stopped && way.successor_is_gone() {
            // The service manager waits for this process before it starts the service again.
            warn!("the new process has exited; the remaining sessions are closed");
        } else if stopped {
            info!(sessions = self.shared.registry.count(), deadline = ?config.drain.deadline, "draining faster");
            self.close_sessions((Duration::ZERO, rate), config.drain.deadline, stop).await;
        }
        self.finish("upgrade").await;
    }
}

/// What is left of the way to the new process, which holds its end as long as it lives.
#[derive(Debug)]
pub(super) struct UpgradeChannel(UnixStream);

impl UpgradeChannel {
    fn successor_is_gone(&self) -> bool {
        let mut more = [0];
        matches!(recv(self.0.as_fd(), &mut more, RecvFlags::DONTWAIT), Ok((0, _)))
    }
}

/// A new process that does not serve yet; ended when this is dropped.
struct Successor {
    /// What starts it.
    starter: Child,
    /// Its id, once it has sent it.
    process: Option<u32>,
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.starter.kill().and_then(|()| self.starter.wait());
        let process = self.process.and_then(|process| i32::try_from(process).ok()).and_then(Pid::from_raw);
        if let Some(process) = process {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// Waits until the new process serves.
async fn await_sign(way: UnixStream, successor: &mut Successor) -> io::Result<UpgradeChannel> {
    way.set_nonblocking(true)?;
    let mut way = tokio::net::UnixStream::from_std(way)?;
    let signs = async {
        successor.process = Some(way.read_u32().await?);
        let mut sign = [0; SIGN.len()];
        way.read_exact(&mut sign).await?;
        if sign == *SIGN {
            return Ok::<_, io::Error>(None);
        }
        let mut reason = Vec::new();
        // However it ends: what it has not read of the sockets makes it a reset.
        let _ = (&mut way).take(LONGEST_REASON).read_to_end(&mut reason).await;
        Ok(Some(String::from_utf8_lossy(&reason).into_owned()))
    };
    match timeout(START, signs).await {
        Ok(Ok(None)) => Ok(UpgradeChannel(way.into_std()?)),
        Ok(Ok(Some(reason))) => {
            successor.process = None;
            Err(io::Error::other(format!("the new process has exited: {}", reason.trim_end())))
        }
        Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            // It has let go of the way: by now its id may be another's.
            successor.process = None;
            Err(io::Error::other("the new process has exited; see its log"))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other(format!("the new process did not serve within {START:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn sockets_are_handed_over_with_pending_data_and_names() {
        let (old, new) = UnixStream::pair().unwrap();
        let sockets = ["127.0.0.1:0", "[::]:993", ""].map(|name| (name, TcpListener::bind("127.0.0.1:0").unwrap()));
        let addresses: Vec<_> = sockets.iter().map(|(_, socket)| socket.local_addr().unwrap()).collect();
        let mut client = std::net::TcpStream::connect(addresses[1]).unwrap();
        let handed: Vec<_> = sockets.iter().map(|(name, socket)| ((*name).to_owned(), socket.as_fd())).collect();
        send_to(old.as_fd(), &handed).unwrap();
        drop(sockets);
        let received = receive_from(new.as_fd()).unwrap();
        let received: Vec<_> = received.into_iter().map(|(name, socket)| (name, TcpListener::from(socket))).collect();
        let named: Vec<_> = received.iter().map(|(name, socket)| (&**name, socket.local_addr().unwrap())).collect();
        assert_eq!(named, [("127.0.0.1:0", addresses[0]), ("[::]:993", addresses[1]), ("", addresses[2])]);
        let (accepted, _) = received[1].1.accept().unwrap();
        drop(accepted);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it was accepted, then closed");
    }

    /// A program with the other end of the way as its standard input, as a successor.
    fn successor(program: &str, argument: &str) -> (UnixStream, Successor) {
        let (old, new) = UnixStream::pair().unwrap();
        let mut command = Command::new(program);
        let starter = command.arg("-c").arg(argument).stdin(Stdio::from(OwnedFd::from(new))).spawn().unwrap();
        (old, Successor { starter, process: None })
    }

    fn lives(process: u32) -> bool {
        // A process that has ended and was not waited for yet has no command line.
        std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty())
    }

    #[tokio::test]
    async fn process_that_ends_at_once_is_a_failed_upgrade() {
        let (old, mut successor) = successor("sh", "exit 1");
        let error = await_sign(old, &mut successor).await.unwrap_err();
        assert!(error.to_string().contains("has exited"), "{error}");
    }

    #[tokio::test]
    async fn process_that_says_why_it_fails_is_quoted() {
        let tell = "import os; os.write(0, os.getpid().to_bytes(4, 'big') + b'!c.yaml:3: tls: no file\\n')";
        let (old, mut fails) = successor("python3", tell);
        let error = await_sign(old, &mut fails).await.unwrap_err();
        assert_eq!(error.to_string(), "the new process has exited: c.yaml:3: tls: no file");
        assert_eq!(fails.process, None, "its id may be another's");
        // However long it is.
        let tell = "import os, sys; os.write(0, os.getpid().to_bytes(4, 'big') + b'!'); [os.write(0, b'x' * 1000) for _ in range(20)]";
        let (old, mut fails) = successor("python3", tell);
        let error = await_sign(old, &mut fails).await.unwrap_err();
        assert!(error.to_string().len() < 9_000, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn process_that_never_serves_is_ended() {
        let (old, mut successor) = successor("sh", "exec sleep 1000");
        let process = successor.starter.id();
        let error = await_sign(old, &mut successor).await.unwrap_err();
        assert!(error.to_string().contains("did not serve within 45s"), "{error}");
        drop(successor);
        assert!(!lives(process));
    }

    #[tokio::test]
    async fn orphaned_process_is_ended_unless_it_serves() {
        // As the new process does it: its id, in the order of networks, and then the sign.
        let tell = "import os, time; os.write(0, os.getpid().to_bytes(4, 'big')); time.sleep(1000)";
        let (old, mut given_up) = successor("python3", tell);
        assert!(
            timeout(Duration::from_secs(10), async {
                while given_up.process.is_none() {
                    let _ =
                        timeout(Duration::from_millis(100), await_sign(old.try_clone().unwrap(), &mut given_up)).await;
                }
            })
            .await
            .is_ok()
        );
        let process = given_up.process.unwrap();
        assert!(lives(process));
        drop(given_up);
        assert!(!lives(process));

        let tell = "import os, sys; os.write(0, os.getpid().to_bytes(4, 'big') + b'u'); sys.stdin.read(1)";
        let (old, mut serves) = successor("python3", tell);
        let way = await_sign(old, &mut serves).await.unwrap();
        assert_eq!(serves.process, Some(serves.starter.id()));
        assert!(!way.successor_is_gone());
        drop(serves);
        assert!(way.successor_is_gone());
    }

    #[test]
    fn ended_process_sends_nothing() {
        let (old, new) = UnixStream::pair().unwrap();
        drop(old);
        assert!(receive_from(new.as_fd()).is_err());
    }
}
