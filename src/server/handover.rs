//! Listening sockets that outlive a process: handed to a successor by `usher upgrade`, or kept by
//! systemd (socket activation).
//!
//! The old process starts the new one, with a Unix socket as its standard input, and sends the
//! listening sockets through it (SCM_RIGHTS, unix(7)): the way is open to these two alone, and what
//! waits to be accepted waits in the same queue for both. Only when the new one serves does the old
//! one stop accepting. Sockets are known by their addresses. sd_listen_fds(3).

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};
use sd_notify::NotifyState;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Server, StopSignals};
use crate::admin::control;
use crate::snapshot::Stage;
use crate::sys;

/// Sockets in one message: below SCM_MAX_FD, which is 253.
const MOST: usize = 250;
/// What goes with the sockets, and back when the new process serves.
const SIGN: &[u8] = b"u";
/// From the start of the new process until it serves.
const START: Duration = Duration::from_secs(45);

/// Sockets that listened before this process began.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    sockets: Vec<TcpListener>,
    upgrade: bool,
}

impl Inherited {
    /// Takes them from the process that runs now, or from systemd.
    ///
    /// # Errors
    /// They do not arrive.
    pub(super) fn receive(upgrade: bool) -> io::Result<Self> {
        let sockets = if upgrade { receive_from(io::stdin().as_fd())? } else { sys::activated()? };
        Ok(Self { sockets: sockets.into_iter().map(TcpListener::from).collect(), upgrade })
    }

    /// The one that listens at this address.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let fits = |socket: &TcpListener| socket.local_addr().is_ok_and(|own| own == address);
        let found = self.sockets.iter().position(fits)?;
        Some(self.sockets.swap_remove(found))
    }

    /// Whether another process serves until this one does.
    pub(super) fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Tells the old process that this one serves now; closes what nobody wants.
    pub(super) fn serving(self) {
        for socket in &self.sockets {
            warn!(address = ?socket.local_addr().ok(), "this socket was handed over, but no listener has its address");
        }
        // If the old process is gone, nobody waits for this.
        if self.upgrade {
            let _ = send(io::stdin().as_fd(), SIGN, SendFlags::NOSIGNAL);
        }
    }
}

fn receive_from(way: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut sign = [0; SIGN.len()];
    let received = recvmsg(way, &mut [IoSliceMut::new(&mut sign)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes != SIGN.len() || sign != SIGN {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            sockets.extend(more);
        }
    }
    Ok(sockets)
}

fn send_to(way: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MOST} listeners")));
    }
    sendmsg(way, &[IoSlice::new(SIGN)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

impl Server {
    /// Starts the new process and waits until it serves; this one then has to leave. If the new one
    /// fails, nothing has changed.
    pub(super) async fn upgrade(&mut self) -> Result<(), Vec<String>> {
        info!(program = %self.program.display(), "upgrading");
        let kept = self.step_aside().map_err(|error| vec![format!("the control socket cannot step aside: {error}")])?;
        let outcome = self.start_successor().await;
        match &outcome {
            Ok(process) => {
                info!(process, "the new process serves");
                // From the main process alone this is believed (NotifyAccess=main).
                let _ = sd_notify::notify(&[NotifyState::MainPid(*process)]);
                self.control = kept;
                Ok(())
            }
            Err(error) => {
                error!(%error, "the upgrade failed; this process goes on");
                self.step_back(kept.as_deref());
                Err(vec![error.to_string()])
            }
        }
    }

    async fn start_successor(&self) -> io::Result<u32> {
        let (ours, theirs) = UnixStream::pair()?;
        let listening = self.listeners.values().chain(&self.side_port);
        let sockets: Vec<BorrowedFd<'_>> = listening.map(|one| one.socket.as_fd()).collect();
        send_to(ours.as_fd(), &sockets)?;
        let mut command = Command::new(&self.program);
        // Whatever this process may be, that one may be.
        command.args(["run", "--take-over", "--allow-root", "--config"]).arg(&self.file);
        let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn();
        // The command holds the other end, whose closing tells that the new process has ended.
        drop(command);
        let mut child = child?;
        let process = child.id();
        let served = tokio::task::spawn_blocking(move || await_sign(ours, &mut child)).await;
        served.map_err(io::Error::other)??;
        Ok(process)
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

/// Waits until the new process serves; ends it if it does not.
fn await_sign(mut way: UnixStream, child: &mut Child) -> io::Result<()> {
    way.set_read_timeout(Some(START))?;
    let mut sign = [0; SIGN.len()];
    match way.read_exact(&mut sign) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let status = child.wait()?;
            Err(io::Error::other(format!("the new process ended with {status}; the log has its reasons")))
        }
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(io::Error::other(format!("the new process did not serve within {START:?}: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_pass_with_what_waits_in_them_and_are_known_by_their_addresses() {
        let (old, new) = UnixStream::pair().unwrap();
        let sockets: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let mut client = std::net::TcpStream::connect(addresses[1]).unwrap();
        let handed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        send_to(old.as_fd(), &handed).unwrap();
        drop(sockets);
        let received = receive_from(new.as_fd()).unwrap();
        let mut inherited =
            Inherited { sockets: received.into_iter().map(TcpListener::from).collect(), upgrade: false };
        assert!(inherited.take(SocketAddr::from(([127, 0, 0, 1], 1))).is_none());
        let (accepted, _) = inherited.take(addresses[1]).unwrap().accept().unwrap();
        drop(accepted);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it was accepted, then closed");
        assert!(inherited.take(addresses[1]).is_none(), "taken once");
        assert_eq!(inherited.sockets.len(), 2);
    }

    #[test]
    fn a_process_that_ends_at_once_is_a_failed_upgrade() {
        let (old, new) = UnixStream::pair().unwrap();
        let mut child = Command::new("false").stdin(Stdio::from(OwnedFd::from(new))).spawn().unwrap();
        let error = await_sign(old, &mut child).unwrap_err();
        assert!(error.to_string().contains("exit status: 1"), "{error}");
    }

    #[test]
    fn nothing_arrives_from_a_process_that_is_gone() {
        let (old, new) = UnixStream::pair().unwrap();
        drop(old);
        assert!(receive_from(new.as_fd()).is_err());
    }
}
