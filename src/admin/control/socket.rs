//! The socket's file: made for its owner alone, and found again beside that of a process before.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::config;

/// Binds the control socket with its permissions from the first moment, in place of a stale one, or
/// of that of the process whose `successor` this is.
///
/// # Errors
/// The system's reason, or that another usher answers there.
pub fn bind(settings: &config::Control, successor: bool) -> io::Result<UnixListener> {
    let path = &settings.path;
    if !successor && std::os::unix::net::UnixStream::connect(path).is_ok() {
        let words = format!("another process answers on {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
    }
    match fs::symlink_metadata(path) {
        // A path that was meant for something else: replacing it would destroy a file.
        Ok(there) if !there.file_type().is_socket() => {
            let words = format!("{} is there and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, words));
        }
        Ok(_) | Err(_) => {}
    }
    // Bound under another name and moved into place only when its mode is right.
    let mut unready = OsString::from(path);
    unready.push(".new");
    let unready = Path::new(&unready);
    match fs::remove_file(unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Nobody else from its first moment on, whatever the process' own mask is.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(unready);
    rustix::process::umask(mask);
    let listener = bound?;
    let mode = match &settings.group {
        None => 0o600,
        Some(group) => {
            std::os::unix::fs::chown(unready, None, Some(crate::sys::group_id(group)?))?;
            0o660
        }
    };
    fs::set_permissions(unready, Permissions::from_mode(mode))?;
    fs::rename(unready, path)?;
    Ok(listener)
}

/// Where a process that handed its listeners over still answers for the sessions it has.
#[must_use]
pub fn predecessor_path(path: &Path, process: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{process}"));
    name.into()
}

/// The sockets of all predecessors beside this one, dead ones included.
#[must_use]
pub(super) fn predecessors(path: &Path) -> Vec<PathBuf> {
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let is_one = |other: &PathBuf| {
        let process = other.extension().and_then(|end| end.to_str()).and_then(|end| end.parse().ok());
        process.is_some_and(|process| predecessor_path(path, process) == *other)
    };
    entries.map(|entry| entry.path()).filter(is_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let settings = config::Control { path: folder.path().join("control.sock"), group: None };
        fs::write(&settings.path, "precious").unwrap();
        assert_eq!(bind(&settings, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&settings.path).unwrap(), "precious");

        fs::remove_file(&settings.path).unwrap();
        let first = bind(&settings, false).unwrap();
        assert_eq!(bind(&settings, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let _second = bind(&settings, false).unwrap();
        assert_eq!(fs::metadata(&settings.path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
