//! The file of a Unix socket: made for its owner alone, and found again beside that of a process before.
//!
//! Its folder must be one where no other user can create or rename files (`sys/paths`); one that does not exist is
//! made, which the volume of a container needs, whose root belongs to all. There the socket is made in a new folder with mode 0700, gets its group and mode, and is renamed into place: no step goes by
//! a name that another user could have put there.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, chmodat, chownat, fchmod, mkdirat, open, openat, renameat, statat,
    unlinkat,
};
use rustix::process::geteuid;
use tokio::net::UnixListener;

use super::paths::check_folder;

/// The socket's name in the folder in which it is made.
const MADE: &str = "socket";

/// Which users may connect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketAccess<'a> {
    /// The file's group; `None`: that of the process.
    pub group: Option<&'a str>,
    /// The file's mode.
    pub mode: u32,
}

impl SocketAccess<'_> {
    /// Gives these permissions to a file in a folder where no other user can change it.
    fn give(self, folder: BorrowedFd<'_>, file: impl rustix::path::Arg + Copy) -> io::Result<()> {
        let group = self.group.map(super::group_id).transpose()?;
        chownat(folder, file, None, group.map(Gid::from_raw), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(chmodat(folder, file, Mode::from_raw_mode(self.mode), AtFlags::empty())?)
    }
}

/// A socket's file, which this process has made.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// The file that a process before has made for a socket that it has handed over, with these permissions from now
    /// on; `None`: there is no socket any more.
    ///
    /// # Errors
    /// The system's reason, or that others can write to its folder.
    pub(crate) fn adopt(path: &Path, access: SocketAccess<'_>) -> io::Result<Option<Self>> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        check_folder(folder, Some(geteuid().as_raw())).map_err(io::Error::other)?;
        let Ok(found) = rustix::fs::lstat(path) else { return Ok(None) };
        if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
            return Ok(None);
        }
        access.give(rustix::fs::CWD, path)?;
        Ok(Some(Self { path: path.to_owned(), id: id(&found) }))
    }

    /// Gives it a second name, under which this process answers once the first is a successor's.
    ///
    /// # Errors
    /// The system's reason, or that the file by this name is not the one that was made.
    pub(crate) fn move_aside(&self) -> io::Result<Self> {
        let kept = predecessor_path(&self.path, std::process::id());
        // What is there by this name belonged to a process that has ended.
        let _ = fs::remove_file(&kept);
        fs::hard_link(&self.path, &kept)?;
        let kept = Self { path: kept, id: self.id };
        if kept.is_there() {
            return Ok(kept);
        }
        let _ = fs::remove_file(&kept.path);
        Err(io::Error::other(format!("{} no longer belongs to this process", self.path.display())))
    }

    /// Takes the second name away again, and puts the file back where it was.
    pub(crate) fn move_back(&self, kept: &Self) {
        // Renaming does nothing if both are the same file still (rename(2)).
        let _ = fs::rename(&kept.path, &self.path);
        let _ = fs::remove_file(&kept.path);
    }

    /// Removes it, unless another process has put its own there.
    pub(crate) fn remove(&self) {
        if self.is_there() {
            // A socket that is left behind is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn is_there(&self) -> bool {
        rustix::fs::lstat(&self.path).is_ok_and(|found| id(&found) == self.id)
    }
}

fn id(found: &Stat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

/// Binds a socket with its permissions from the first moment, in place of a stale one, or of that of the process whose
/// `successor` this is.
///
/// # Errors
/// The system's reason, that others can write to its folder, or that another usher answers there.
pub(crate) fn bind(path: &Path, access: SocketAccess<'_>, successor: bool) -> io::Result<(UnixListener, SocketFile)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"));
    };
    let check = || check_folder(folder, Some(geteuid().as_raw())).map_err(io::Error::other);
    check()?;
    let is_new = fs::create_dir(folder).is_ok();
    if is_new {
        // Now it is known whose it is.
        check()?;
    }
    if !successor && std::os::unix::net::UnixStream::connect(path).is_ok() {
        let words = format!("another process is listening on {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
    }
    let folder_fd = open(folder, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if is_new {
        // Whatever the umask: the socket's own mode says which users may use it.
        fchmod(&folder_fd, Mode::from_raw_mode(0o755))?;
    }
    match statat(&folder_fd, name, AtFlags::SYMLINK_NOFOLLOW) {
        // A path that was meant for something else: replacing it would destroy a file.
        Ok(there) if FileType::from_raw_mode(there.st_mode) != FileType::Socket => {
            let words = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, words));
        }
        Ok(_) | Err(_) => {}
    }
    let workshop = Workshop::new(folder, &folder_fd, name)?;
    let listener = workshop.bind()?;
    access.give(workshop.inside.as_fd(), MADE)?;
    let made = statat(&workshop.inside, MADE, AtFlags::SYMLINK_NOFOLLOW)?;
    renameat(&workshop.inside, MADE, &folder_fd, name)?;
    Ok((listener, SocketFile { path: path.to_owned(), id: id(&made) }))
}

/// A new folder that only this process' user can enter; gone when dropped.
struct Workshop<'f> {
    folder: BorrowedFd<'f>,
    name: OsString,
    path: PathBuf,
    inside: OwnedFd,
}

impl<'f> Workshop<'f> {
    fn new(folder_path: &Path, folder: &'f OwnedFd, socket: &OsStr) -> io::Result<Self> {
        let mut name = socket.to_owned();
        name.push(".new");
        let folder = folder.as_fd();
        // One that a process left which ended in between.
        clear(folder, &name);
        mkdirat(folder, &name, Mode::RWXU)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let inside = openat(folder, &name, flags, Mode::empty())?;
        Ok(Self { folder, path: folder_path.join(&name), name, inside })
    }

    /// By the descriptor: the path in a socket's address has 107 bytes at the most, and the name in the new
    /// folder is longer than the configured one. By the path where /proc is not mounted.
    fn bind(&self) -> io::Result<UnixListener> {
        let by_descriptor = format!("/proc/self/fd/{}/{MADE}", self.inside.as_raw_fd());
        match UnixListener::bind(by_descriptor) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => UnixListener::bind(self.path.join(MADE)),
            bound => bound,
        }
    }
}

impl Drop for Workshop<'_> {
    fn drop(&mut self) {
        clear(self.folder, &self.name);
    }
}

/// Removes a [`Workshop`] as far as it is there, or a socket by its name.
fn clear(folder: BorrowedFd<'_>, name: &OsStr) {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::empty()) {
        Ok(inside) => {
            let _ = unlinkat(&inside, MADE, AtFlags::empty());
            let _ = unlinkat(folder, name, AtFlags::REMOVEDIR);
        }
        Err(_) => drop(unlinkat(folder, name, AtFlags::empty())),
    }
}

/// Where a process that handed its listeners over still answers for the sessions it has.
#[must_use]
fn predecessor_path(path: &Path, process: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{process}"));
    name.into()
}

/// The sockets of all predecessors beside this one, dead ones included, each with its process.
#[must_use]
pub(crate) fn predecessors(path: &Path) -> Vec<(u32, PathBuf)> {
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let one = |other: PathBuf| {
        let process = other.extension().and_then(|end| end.to_str()).and_then(|end| end.parse().ok())?;
        (predecessor_path(path, process) == other).then_some((process, other))
    };
    entries.filter_map(|entry| one(entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const OWN: SocketAccess<'_> = SocketAccess { group: None, mode: 0o600 };

    #[tokio::test]
    async fn stale_socket_is_replaced_and_other_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path, OWN, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

        fs::remove_file(&path).unwrap();
        let first = bind(&path, OWN, false).unwrap();
        assert_eq!(bind(&path, OWN, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let _second = bind(&path, OWN, false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[tokio::test]
    async fn folders_writable_by_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        for mode in [0o770, 0o777, 0o1777] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            let refused = bind(&path, OWN, false).unwrap_err().to_string();
            assert!(refused.contains("others can write to"), "{mode:o}: {refused}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn leftovers_of_an_ended_process_are_removed_and_a_long_path_fits() {
        let folder = tempfile::tempdir().unwrap();
        let room = 107 - folder.path().as_os_str().len() - 1;
        let path = folder.path().join("s".repeat(room));
        let left = folder.path().join(format!("{}.new", "s".repeat(room)));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(MADE), "").unwrap();
        drop(bind(&path, OWN, false).unwrap());
        assert!(!left.exists());
        // As an older version left it.
        fs::write(&left, "").unwrap();
        let (_listener, file) = bind(&path, OWN, false).unwrap();
        assert!(!left.exists() && path.exists());
        file.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn socket_of_another_process_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (first, old) = bind(&path, OWN, false).unwrap();
        let kept = old.move_aside().unwrap();
        drop(first);
        let (_second, new) = bind(&path, OWN, true).unwrap();
        old.remove();
        assert!(path.exists(), "it is the second one's");
        assert!(old.move_aside().is_err());
        kept.remove();
        new.remove();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
