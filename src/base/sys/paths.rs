//! Whether a folder is one where only trusted users can change what a name means.
//!
//! A file that is made, given its mode and renamed by name is usher's own at each step only if no other user
//! can replace it in between. That holds if every folder on the way from the root belongs to root or to usher's
//! user, and others cannot write there. Symbolic links are followed one at a time, so that the folder of each
//! link is checked too. path_resolution(7).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// As many symbolic links as Linux follows in one path.
const LINKS: usize = 40;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why a folder is not safe.
#[derive(Debug, Error)]
pub(crate) enum UnsafeFolder {
    /// Its group or all users can write there.
    #[error(
        "others can write to {} (mode {mode:04o}) and put their own files in place of usher's: {}",
        .folder.display(), remedy(.folder, *.mode)
    )]
    Writable {
        /// The folder.
        folder: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to another user.
    #[error(
        "{} belongs to user {uid}, which can replace usher's files: give it to root or to usher's user",
        .folder.display()
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It cannot be inspected.
    #[error("{} cannot be inspected: {source}", .folder.display())]
    Unreadable {
        /// The folder, or what is in its place.
        folder: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// What to do about a folder that others can write to. One with the sticky bit, such as /tmp, is shared on
/// purpose.
fn remedy(folder: &Path, mode: u32) -> String {
    if mode & STICKY == 0 {
        format!("run `chmod go-w {}`, or name a folder of usher's own such as /run/usher", folder.display())
    } else {
        "it is shared by all users; name a folder of usher's own such as /run/usher".to_owned()
    }
}

/// A folder on the way, and the owner of the entry through which the way leads on.
struct PathStep {
    folder: PathBuf,
    metadata: Metadata,
    next: Option<u32>,
    /// How many folders on the way do not exist below it.
    missing: usize,
}

/// Checks a folder and every folder on the way to it. `user` is the user usher runs as; where it is not known,
/// the owner of the folder itself. A folder that does not exist yet is as safe as the one it will be made in.
///
/// A folder with the sticky bit, such as /tmp or the root of a tmpfs, is safe to pass through: others can neither
/// rename nor remove what belongs to root or to `user` there, or what usher will make there. It is not safe as the
/// folder itself, where others can make names.
///
/// # Errors
/// The first folder that is not safe.
pub(crate) fn check_folder(folder: &Path, user: Option<u32>) -> Result<(), UnsafeFolder> {
    let way = path_steps(folder)?;
    let user = user.or_else(|| way.last().map(|last| last.metadata.uid()));
    let is_trusted = |uid: u32| uid == 0 || Some(uid) == user;
    for PathStep { folder, metadata, next, missing } in way {
        let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        if !is_trusted(uid) {
            return Err(UnsafeFolder::Foreign { folder, uid });
        }
        let is_kept = mode & STICKY != 0 && next.map_or(missing == 1, is_trusted);
        if mode & WRITABLE_BY_OTHERS != 0 && !is_kept {
            return Err(UnsafeFolder::Writable { folder, mode });
        }
    }
    Ok(())
}

/// Every folder that the system passes through on the way to this one, itself the last, as far as they exist.
fn path_steps(folder: &Path) -> Result<Vec<PathStep>, UnsafeFolder> {
    let unreadable = |folder: &Path| {
        let folder = folder.to_owned();
        move |source| UnsafeFolder::Unreadable { folder, source }
    };
    let absolute = std::path::absolute(folder).map_err(unreadable(folder))?;
    let mut left: VecDeque<OsString> = names(&absolute).collect();
    let root = || fs::symlink_metadata("/").map_err(unreadable(Path::new("/")));
    let (mut at, mut metadata) = (PathBuf::from("/"), root()?);
    let (mut way, mut links, mut missing) = (Vec::new(), 0, 0);
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            metadata = fs::symlink_metadata(&at).map_err(unreadable(&at))?;
            continue;
        }
        let path = at.join(&name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing = left.len() + 1;
                break;
            }
            Err(error) => return Err(unreadable(&path)(error)),
        };
        way.push(PathStep { folder: at.clone(), metadata: metadata.clone(), next: Some(found.uid()), missing: 0 });
        if found.is_symlink() {
            links += 1;
            if links > LINKS {
                return Err(unreadable(&path)(io::Error::other("too many symbolic links")));
            }
            let target = fs::read_link(&path).map_err(unreadable(&path))?;
            for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                left.push_front(name);
            }
            if target.is_absolute() {
                (at, metadata) = (PathBuf::from("/"), root()?);
            }
        } else if found.is_dir() {
            (at, metadata) = (path, found);
        } else {
            return Err(unreadable(&path)(io::ErrorKind::NotADirectory.into()));
        }
    }
    way.push(PathStep { folder: at, metadata, next: None, missing });
    Ok(way)
}

/// The names in a path, without its root.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use rustix::process::geteuid;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn check(folder: &Path) -> Result<(), UnsafeFolder> {
        check_folder(folder, Some(geteuid().as_raw()))
    }

    #[test]
    fn folders_writable_by_others_are_refused_anywhere_on_the_path() {
        let root = tempfile::tempdir().unwrap();
        let (upper, lower) = (root.path().join("upper"), root.path().join("upper/lower"));
        fs::create_dir_all(&lower).unwrap();
        for mode in [0o700, 0o750, 0o755, 0o711] {
            set_mode(&lower, mode);
            check(&lower).unwrap();
        }
        for mode in [0o770, 0o775, 0o777, 0o1777, 0o2770, 0o702] {
            set_mode(&lower, mode);
            let refused = check(&lower).unwrap_err();
            assert!(
                matches!(&refused, UnsafeFolder::Writable { folder, .. } if *folder == lower),
                "{mode:o} {refused}"
            );
            assert!(refused.to_string().contains(&format!("(mode {mode:04o})")), "{refused}");
            // Not `chmod go-w /tmp`.
            assert_eq!(refused.to_string().contains("chmod"), mode != 0o1777, "{refused}");
        }
        set_mode(&lower, 0o700);
        for mode in [0o770, 0o777] {
            set_mode(&upper, mode);
            let refused = check(&lower).unwrap_err();
            assert!(
                matches!(&refused, UnsafeFolder::Writable { folder, .. } if *folder == upper),
                "{mode:o} {refused}"
            );
        }
        // As /tmp: what is ours stays there.
        set_mode(&upper, 0o1777);
        check(&lower).unwrap();
        assert!(check(&lower.join("not/there/yet")).is_ok());
        check(&upper.join("absent")).unwrap();
        let deeper = check(&upper.join("absent/deeper"));
        assert!(matches!(deeper, Err(UnsafeFolder::Writable { .. })), "usher makes one folder, any user another");
        set_mode(&upper, 0o777);
        assert!(
            matches!(check(&upper.join("absent")), Err(UnsafeFolder::Writable { .. })),
            "any user could replace it"
        );
    }

    #[test]
    fn folder_of_every_link_on_the_path_is_checked() {
        let root = tempfile::tempdir().unwrap();
        let (open, good) = (root.path().join("open"), root.path().join("good"));
        fs::create_dir(&open).unwrap();
        fs::create_dir(&good).unwrap();
        symlink("../good", open.join("inner")).unwrap();
        symlink(open.join("inner"), root.path().join("outer")).unwrap();
        check(&root.path().join("outer")).unwrap();
        set_mode(&open, 0o777);
        let refused = check(&root.path().join("outer")).unwrap_err();
        assert!(matches!(&refused, UnsafeFolder::Writable { folder, .. } if *folder == open), "{refused}");
        symlink("circle", root.path().join("circle")).unwrap();
        assert!(matches!(check(&root.path().join("circle")), Err(UnsafeFolder::Unreadable { .. })));
        fs::write(root.path().join("file"), "").unwrap();
        assert!(matches!(check(&root.path().join("file/x")), Err(UnsafeFolder::Unreadable { .. })));
    }

    #[test]
    fn foreign_folder_and_foreign_file_in_a_sticky_folder_are_refused() {
        if !geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (shared, theirs) = (root.path().join("shared"), root.path().join("shared/theirs"));
        fs::create_dir_all(theirs.join("lower")).unwrap();
        set_mode(&shared, 0o1777);
        chown(&theirs, Some(65_534), None).unwrap();
        let refused = check(&theirs).unwrap_err();
        // Its owner may rename it, and put another one there.
        assert!(matches!(&refused, UnsafeFolder::Writable { folder, .. } if *folder == shared), "{refused}");
        set_mode(&shared, 0o755);
        let refused = check(&theirs.join("lower")).unwrap_err();
        assert!(matches!(&refused, UnsafeFolder::Foreign { uid: 65_534, .. }), "{refused}");
        check_folder(&theirs, Some(65_534)).unwrap();
        check_folder(&theirs, None).unwrap();
    }
}
