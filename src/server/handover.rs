//! Listening sockets that outlive a process: handed to a successor by `usher upgrade`, or kept by
//! systemd (socket activation).
//!
//! The old process starts the new one, with a Unix socket as its standard input, and sends the
//! listening sockets through it (SCM_RIGHTS, unix(7)): the way is open to these two alone, and what
//! waits to be accepted waits in the same queue for both. Only when the new one serves does the old
//! one stop accepting. A socket is known by a name, which is systemd's (FileDescriptorName=) or the
//! configured address, and by where it listens. sd_listen_fds_with_names(3).

use std::cmp::Reverse;
use std::io::{self, IoSlice, IoSliceMut};
use std::iter;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};
use sd_notify::NotifyState;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Next, Server, StopSignals};
use crate::admin::control;
use crate::snapshot::Stage;
use crate::sys;

/// Sockets in one message: below SCM_MAX_FD, which is 253.
const MOST: usize = 250;
/// What goes with the sockets, and back when the new process serves.
const SIGN: &[u8] = b"u";
/// From the start of the new process until it serves.
const START: Duration = Duration::from_secs(45);

/// Between the names that go with the sockets; none has one.
const SEPARATOR: char = '\n';
/// Names are an address with its port, or 64 letters at the most.
const NAMES: usize = MOST * 80;

/// Sockets that listened before this process began, each by its name.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    sockets: Vec<(String, TcpListener)>,
    upgrade: bool,
}

impl Inherited {
    /// Takes them from the process that runs now, or from systemd.
    ///
    /// # Errors
    /// They do not arrive.
    pub(super) fn receive(upgrade: bool) -> io::Result<Self> {
        let sockets = if upgrade { receive_from(io::stdin().as_fd())? } else { sys::activated()? };
        Ok(Self { sockets: sockets.into_iter().map(|(name, socket)| (name, socket.into())).collect(), upgrade })
    }

    /// The one with this name, wherever it listens; if several have it (a socket unit may open
    /// several) and if none has it, the one that was configured or listens at this address.
    pub(super) fn take(&mut self, address: SocketAddr, name: Option<&str>) -> Option<TcpListener> {
        let configured = address.to_string();
        let fitness = |(its, socket): &(String, TcpListener)| {
            let named = name == Some(its);
            let there = *its == configured || socket.local_addr().is_ok_and(|own| own == address);
            (named || there).then_some((named, there))
        };
        let fitting = self.sockets.iter().enumerate().filter_map(|(at, socket)| Some((fitness(socket)?, at)));
        // Of those that fit alike, the one that systemd opened first.
        let (_, found) = fitting.max_by_key(|(fitness, at)| (*fitness, Reverse(*at)))?;
        Some(self.sockets.remove(found).1)
    }

    /// Whether another process serves until this one does.
    pub(super) fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Tells the old process that this one serves now; closes what nobody wants.
    pub(super) fn serving(self) {
        for (name, socket) in &self.sockets {
            let address = socket.local_addr().ok();
            warn!(name, ?address, "this socket was handed over, but no listener has its name or address");
        }
        // If the old process is gone, nobody waits for this.
        if self.upgrade {
            let _ = send(io::stdin().as_fd(), SIGN, SendFlags::NOSIGNAL);
        }
    }
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
    pub(super) async fn upgrade(&mut self, stop: &mut StopSignals) -> (Result<(), Vec<String>>, Next) {
        info!(program = %self.program.display(), "upgrading");
        let kept = match self.step_aside() {
            Ok(kept) => kept,
            Err(error) => return (Err(vec![format!("the control socket cannot step aside: {error}")]), Next::Serve),
        };
        let (outcome, otherwise) = tokio::select! {
            // What has begun to serve is not taken back.
            biased;
            outcome = self.start_successor() => (outcome, Next::Serve),
            () = stop.recv() => (Err(io::Error::other("a signal says stop")), Next::Stop),
        };
        match outcome {
            Ok(process) => {
                info!(process, "the new process serves");
                // From the main process alone this is believed (NotifyAccess=main).
                let _ = sd_notify::notify(&[NotifyState::MainPid(process)]);
                self.control = kept;
                (Ok(()), Next::Leave)
            }
            Err(error) => {
                error!(%error, "the upgrade failed; this process goes on");
                self.step_back(kept.as_deref());
                (Err(vec![error.to_string()]), otherwise)
            }
        }
    }

    async fn start_successor(&self) -> io::Result<u32> {
        let (ours, theirs) = UnixStream::pair()?;
        let sockets = self.listeners.iter().map(|((address, ..), one)| (address.to_string(), one.socket.as_fd()));
        let admin = self.shared.snapshot.load().config.admin.address.to_string();
        let sockets = sockets.chain(self.side_port.as_ref().map(|one| (admin, one.socket.as_fd())));
        send_to(ours.as_fd(), &sockets.collect::<Vec<_>>())?;
        let mut command = Command::new(&self.program);
        // Whatever this process may be, that one may be.
        command.args(["run", "--take-over", "--allow-root", "--config"]).arg(&self.file);
        let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn();
        // The command holds the other end, whose closing tells that the new process has ended.
        drop(command);
        let mut successor = Successor(Some(child?));
        await_sign(ours, &mut successor).await?;
        successor.serves().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Makes a second name for the control socket, under which this process answers when the first
    /// is the new one's.
    fn step_aside(&self) -> io::Result<Option<PathBuf>> {
        let Some(path) = &self.control else { return Ok(None) };
        let kept = control::predecessor_path(path, std::process::id());
        // What is there by this name belonged to a process that has ended.
        let _ = std::fs::remove_file(&kept);
        std::fs::hard_link(path, &kept)?;
        Ok(Some(kept))
    }

    fn step_back(&self, kept: Option<&Path>) {
        if let (Some(path), Some(kept)) = (&self.control, kept) {
            // Renaming does nothing if both are the same socket still (rename(2)).
            let _ = std::fs::rename(kept, path);
            let _ = std::fs::remove_file(kept);
        }
    }

    /// Ends this process after an upgrade: whoever is about to log in may do so, then sessions are
    /// closed slowly.
    pub(super) async fn leave_to_successor(mut self, stop: &mut StopSignals) {
        let config = self.shared.snapshot.load().config.clone();
        let deadline = config.drain.upgrade_deadline;
        info!(sessions = self.shared.registry.count(), ?deadline, "draining after an upgrade");
        self.listeners.clear();
        self.side_port = None;
        self.shared.stage.send_replace(Stage::Leaving);
        let conversations = config.limits.conversation_timeout;
        let stopped = tokio::select! {
            _ = timeout(conversations, self.shared.vacated()) => false,
            () = stop.recv() => true,
        };
        self.shared.stage.send_replace(Stage::Draining);
        let rate = config.drain.max_closes_per_second;
        self.close_sessions(if stopped { config.drain.deadline } else { deadline }, rate, config.drain.deadline, stop)
            .await;
        self.finish().await;
    }
}

/// The new process; ended when this is dropped before it serves.
struct Successor(Option<Child>);

impl Successor {
    /// Lets it live; its process id.
    fn serves(mut self) -> Option<u32> {
        self.0.take().map(|child| child.id())
    }

    /// How it ended. To be asked when it has let go of its standard input, which is its last act.
    fn ended(&mut self) -> io::Result<ExitStatus> {
        let mut child = self.0.take().ok_or(io::ErrorKind::NotFound)?;
        // Does nothing to a process that is ending.
        child.kill()?;
        child.wait()
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.ended();
    }
}

/// Waits until the new process serves.
async fn await_sign(way: UnixStream, successor: &mut Successor) -> io::Result<()> {
    way.set_nonblocking(true)?;
    let mut way = tokio::net::UnixStream::from_std(way)?;
    let mut sign = [0; SIGN.len()];
    match timeout(START, way.read_exact(&mut sign)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let status = successor.ended()?;
            Err(io::Error::other(format!("the new process ended with {status}; the log has its reasons")))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other(format!("the new process did not serve within {START:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Listening sockets by these names, and where they listen.
    fn listening<const N: usize>(names: [&str; N]) -> (Inherited, [SocketAddr; N]) {
        let sockets = names.map(|name| (name.to_owned(), TcpListener::bind("127.0.0.1:0").unwrap()));
        let mut addresses = sockets.iter().map(|(_, socket)| socket.local_addr().unwrap());
        let addresses = [(); N].map(|()| addresses.next().unwrap());
        (Inherited { sockets: sockets.into(), upgrade: false }, addresses)
    }

    #[test]
    fn sockets_pass_with_what_waits_in_them_and_with_their_names() {
        let (old, new) = UnixStream::pair().unwrap();
        let (Inherited { sockets, .. }, addresses) = listening(["127.0.0.1:0", "[::]:993", ""]);
        let mut client = std::net::TcpStream::connect(addresses[1]).unwrap();
        let handed: Vec<_> = sockets.iter().map(|(name, socket)| (name.clone(), socket.as_fd())).collect();
        send_to(old.as_fd(), &handed).unwrap();
        drop(sockets);
        let received = receive_from(new.as_fd()).unwrap();
        let sockets = received.into_iter().map(|(name, socket)| (name, TcpListener::from(socket))).collect();
        let mut inherited = Inherited { sockets, upgrade: true };
        let elsewhere = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(inherited.take(elsewhere, None).is_none());
        let as_configured = inherited.take("[::]:993".parse().unwrap(), None).unwrap();
        let (accepted, _) = as_configured.accept().unwrap();
        drop(accepted);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it was accepted, then closed");
        assert!(inherited.take(addresses[1], None).is_none(), "taken once");
        let where_it_listens = inherited.take(addresses[2], None).unwrap();
        assert_eq!(where_it_listens.local_addr().unwrap(), addresses[2]);
        assert_eq!(inherited.sockets.len(), 1);
    }

    #[test]
    fn a_socket_is_known_by_its_name_before_its_address() {
        let (mut inherited, at) = listening(["imaps", "usher", "usher", "imap"]);
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 993));
        let mut take = |address, name| inherited.take(address, name).map(|socket| socket.local_addr().unwrap());
        assert_eq!(take(elsewhere, Some("nobody's")), None);
        assert_eq!(take(at[3], Some("imaps")), Some(at[0]), "the name says more than the address");
        assert_eq!(take(at[3], Some("imaps")), Some(at[3]), "without one of its name, by its address");
        assert_eq!(take(at[2], Some("usher")), Some(at[2]), "of several of the name the one at the address");
        assert_eq!(take(elsewhere, Some("usher")), Some(at[1]));
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_is_a_failed_upgrade() {
        let (old, new) = UnixStream::pair().unwrap();
        let child = Command::new("false").stdin(Stdio::from(OwnedFd::from(new))).spawn().unwrap();
        let error = await_sign(old, &mut Successor(Some(child))).await.unwrap_err();
        assert!(error.to_string().contains("exit status: 1"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_never_serves_is_ended() {
        let (old, new) = UnixStream::pair().unwrap();
        let child = Command::new("sleep").arg("1000").stdin(Stdio::from(OwnedFd::from(new))).spawn().unwrap();
        let process = child.id();
        let mut successor = Successor(Some(child));
        let error = await_sign(old, &mut successor).await.unwrap_err();
        assert!(error.to_string().contains("did not serve within 45s"), "{error}");
        drop(successor);
        assert!(!Path::new(&format!("/proc/{process}")).exists());
    }

    #[test]
    fn nothing_arrives_from_a_process_that_is_gone() {
        let (old, new) = UnixStream::pair().unwrap();
        drop(old);
        assert!(receive_from(new.as_fd()).is_err());
    }
}
