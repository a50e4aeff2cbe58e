//! The listener for Postfix: opened, handed over and closed like the others. A Unix socket is handed over with its
//! file, so that Postfix finds a socket under its path at any time.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;

use tokio::net::UnixListener;
use tracing::info;

use super::listening::Listening;
use super::sockets::OpenSocket;
use super::{Server, StartError};
use crate::base::sys::socket_file::{self, SocketAccess, SocketFile};
use crate::base::tasks::Task;
use crate::config::{SocketmapPlace, UnixPlace};
use crate::frontend::socketmap::{self, SocketmapListener};

/// The sockets for Postfix.
#[derive(Debug)]
pub(super) struct OpenedSocketmap {
    pub(super) place: SocketmapPlace,
    pub(super) sockets: Vec<(SocketmapListener, OwnedFd)>,
    pub(super) file: Option<SocketFile>,
}

/// The listener that is open.
pub(super) struct PostfixListening {
    pub(super) place: SocketmapPlace,
    pub(super) listening: Listening,
    /// The file of a Unix socket, unless it is a successor's.
    file: Option<SocketFile>,
}

impl PostfixListening {
    /// The name under which a successor gets its sockets.
    pub(super) fn name(&self) -> String {
        name(&self.place)
    }

    /// Its address, unless it is a Unix socket.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match &self.place {
            SocketmapPlace::Address(address) => Some(*address),
            SocketmapPlace::Unix(_) => None,
        }
    }

    /// Takes away the file of its socket.
    pub(super) fn remove_file(&mut self) {
        if let Some(file) = self.file.take() {
            file.remove();
        }
    }

    /// The file of its socket is a successor's.
    pub(super) fn leave_file(&mut self) {
        self.file = None;
    }
}

fn name(place: &SocketmapPlace) -> String {
    match place {
        SocketmapPlace::Address(address) => address.to_string(),
        SocketmapPlace::Unix(unix) => format!("unix:{}", unix.path.display()),
    }
}

/// Adopts or binds a Unix socket. `successor`: of a process that answers there.
pub(super) fn open_unix(
    place: &UnixPlace,
    inherited: &mut Vec<OpenSocket>,
    successor: bool,
) -> Result<OpenedSocketmap, StartError> {
    let bind_error =
        |source| StartError::Bind { key: "socketmap.path".to_owned(), what: place.path.display().to_string(), source };
    let access = SocketAccess { group: place.group.as_deref(), mode: place.mode };
    let mut open = || {
        let name = name(&SocketmapPlace::Unix(place.clone()));
        let handed_over = inherited.iter().position(|open| open.name == name).map(|at| inherited.remove(at));
        let adopted = match handed_over {
            Some(open) => SocketFile::adopt(&place.path, access)?.map(|file| (OwnedFd::from(open.socket), file)),
            None => None,
        };
        let (listener, file) = match adopted {
            Some((socket, file)) => {
                let socket = StdUnixListener::from(socket);
                socket.set_nonblocking(true)?;
                (UnixListener::from_std(socket)?, file)
            }
            None => socket_file::bind(&place.path, access, successor)?,
        };
        let once_more = listener.as_fd().try_clone_to_owned()?;
        Ok((listener, once_more, file))
    };
    let (listener, once_more, file) = open().map_err(bind_error)?;
    info!(path = %place.path.display(), "socketmap listening");
    Ok(OpenedSocketmap {
        place: SocketmapPlace::Unix(place.clone()),
        sockets: vec![(SocketmapListener::Unix(listener), once_more)],
        file: Some(file),
    })
}

impl Server {
    pub(super) fn answer_postfix(&mut self, opened: Option<OpenedSocketmap>) {
        let Some(OpenedSocketmap { place, sockets, file }) = opened else { return };
        let mut listening = Listening::default();
        for (listener, socket) in sockets {
            let (shared, listener) = (Arc::clone(&self.shared), Arc::new(listener));
            let accepting = self
                .supervisor
                .keep_while(Task::Socketmap, move || socketmap::serve(Arc::clone(&listener), Arc::clone(&shared)));
            listening.add(accepting, socket);
        }
        self.socketmap = Some(PostfixListening { place, listening, file });
    }
}
