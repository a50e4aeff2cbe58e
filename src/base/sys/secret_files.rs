//! Whether others than usher can read a file with a secret, and the advice if so.
//!
//! Modes that let other users read are refused (systemd's credentials and `root:usher 0640` are not such), with one
//! exception: no other user reaches a file below a folder that is closed to others (path_resolution(7)), as with secrets
//! that a container runtime mounts with mode 0444. A folder that a group may pass is closed only if the group may read
//! the file anyway. Such a mount cannot be changed from inside, so that the advice
//! there names the setting of the mount instead of chmod. A mount is recognized as read-only (statvfs(3)), and a
//! Kubernetes volume by its `..data` link, of which every file of the volume is a part.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::{Uid, getegid, geteuid, getgroups};

/// Reading for the group is as intended.
const BEYOND_GROUP_READ: u32 = 0o027;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const PASSABLE_FOR_OTHERS: u32 = 0o001;
const PASSABLE_FOR_GROUP: u32 = 0o010;

/// A file with a secret whose mode lets others read or change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exposure {
    path: PathBuf,
    mode: u32,
    place: Place,
    /// A folder above it that others cannot pass, and its mode.
    closed: Option<(PathBuf, u32)>,
}

/// Where a file is, as far as its mode can be changed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    KubernetesVolume,
    ReadOnly,
    Writable,
}

impl Exposure {
    /// Whether the file may be used nevertheless: others could only read it, and cannot reach it.
    #[must_use]
    pub(crate) fn is_harmless(&self) -> bool {
        self.closed.is_some() && self.mode & WRITABLE_BY_OTHERS == 0
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, mode, place, closed } = self;
        let path = path.display();
        match closed {
            Some((folder, closed)) if self.is_harmless() => {
                let folder = folder.display();
                write!(
                    f,
                    "{path} has mode {mode:04o}, accepted because {folder} (mode {closed:04o}) is closed to others: "
                )?;
            }
            Some(_) | None => write!(f, "{path} holds a secret that others can read or change (mode {mode:04o}): ")?,
        }
        match place {
            Place::Writable => write!(f, "run `chmod 640 {path}`"),
            Place::KubernetesVolume => {
                f.write_str("set `defaultMode: 0440` at the volume, and `fsGroup` of the pod to usher's group")
            }
            Place::ReadOnly => f.write_str(
                "its mount is read-only: for a container set `defaultMode: 0440` at the volume, and `fsGroup` of the \
                 pod to usher's group (in Docker `mode: 0440` and `gid` of the secret); elsewhere set mode 0640 where \
                 the mount can be written",
            ),
        }
    }
}

/// Whether users other than the owner and (for reading) the group may read or change a file with a secret.
#[must_use]
pub(crate) fn exposure(path: &Path, file: &Metadata) -> Option<Exposure> {
    let mode = file.mode() & 0o7777;
    if mode & BEYOND_GROUP_READ == 0 {
        return None;
    }
    // Others come by the real path, whatever links lead there.
    let real = fs::canonicalize(path).ok();
    let closed =
        real.as_deref().and_then(|real| closed_folder(real, (file.uid(), file.gid()), &Reader::this_process()));
    let place = place(path, real.as_deref().unwrap_or(path));
    Some(Exposure { path: path.to_owned(), mode, place, closed })
}

/// Who reads secrets.
struct Reader {
    user: Uid,
    groups: Vec<u32>,
}

impl Reader {
    fn this_process() -> Self {
        let groups = getgroups().unwrap_or_default().into_iter().chain([getegid()]);
        Self { user: geteuid(), groups: groups.map(|group| group.as_raw()).collect() }
    }
}

/// The nearest folder above that others cannot pass, of an owner, and for a group that may pass it, that may read the
/// file anyway. root does not know the user that usher will run as (User= of the unit), and accepts any.
fn closed_folder(real: &Path, (owner, group): (u32, u32), reader: &Reader) -> Option<(PathBuf, u32)> {
    let Reader { user, groups } = reader;
    let is_trusted = |uid: u32| uid == 0 || user.is_root() || uid == user.as_raw() || uid == owner;
    let is_trusted_group = |gid: u32| gid == 0 || user.is_root() || gid == group || groups.contains(&gid);
    real.ancestors().skip(1).find_map(|folder| {
        let found = fs::symlink_metadata(folder).ok()?;
        let closed = found.mode() & PASSABLE_FOR_OTHERS == 0
            && is_trusted(found.uid())
            && (found.mode() & PASSABLE_FOR_GROUP == 0 || is_trusted_group(found.gid()));
        closed.then(|| (folder.to_owned(), found.mode() & 0o7777))
    })
}

fn place(path: &Path, real: &Path) -> Place {
    // FILE -> ..data/FILE, and ..data -> ..TIME: what is mounted is replaced as a whole (atomic_writer.go).
    let is_volume = |folder: &Path| fs::symlink_metadata(folder.join("..data")).is_ok_and(|data| data.is_symlink());
    let beside = path.parent().is_some_and(is_volume);
    let within = real.ancestors().skip(1).any(|folder| {
        let name = folder.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("..") && folder.parent().is_some_and(is_volume)
    });
    if beside || within {
        return Place::KubernetesVolume;
    }
    let is_read_only = statvfs(path).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY));
    if is_read_only { Place::ReadOnly } else { Place::Writable }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn found(path: &Path) -> Option<Exposure> {
        exposure(path, &fs::metadata(path).unwrap())
    }

    /// A folder open to others with a file in a folder of its own.
    fn file() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        set_mode(root.path(), 0o755);
        let path = root.path().join("secrets/key");
        fs::create_dir(root.path().join("secrets")).unwrap();
        set_mode(&root.path().join("secrets"), 0o755);
        fs::write(&path, "secret").unwrap();
        (root, path)
    }

    #[test]
    fn secrets_are_accepted_for_owner_and_group_read() {
        let (_root, path) = file();
        for mode in [0o400, 0o600, 0o440, 0o640] {
            set_mode(&path, mode);
            assert_eq!(found(&path), None, "{mode:o}");
        }
        for mode in [0o644, 0o604, 0o660, 0o601, 0o444, 0o777] {
            set_mode(&path, mode);
            let exposure = found(&path).unwrap();
            assert!(!exposure.is_harmless(), "{mode:o}");
            let words = format!("can read or change (mode {mode:04o}): run `chmod 640 {}`", path.display());
            assert!(exposure.to_string().ends_with(&words), "{exposure}");
        }
    }

    #[test]
    fn readable_secret_is_accepted_below_a_folder_that_is_closed_to_others() {
        let (root, path) = file();
        let folder = path.parent().unwrap();
        for closed in [folder, root.path()] {
            for mode in [0o700, 0o750, 0o500, 0o770, 0o754] {
                set_mode(closed, mode);
                for (mode, harmless) in [(0o444, true), (0o644, true), (0o604, true), (0o660, false), (0o666, false)] {
                    set_mode(&path, mode);
                    assert_eq!(found(&path).unwrap().is_harmless(), harmless, "{mode:o}");
                }
                set_mode(&path, 0o444);
                let text = found(&path).unwrap().to_string();
                let closed = fs::canonicalize(closed).unwrap();
                let words = format!("accepted because {} (mode {mode:04o}) is closed to others: run", closed.display());
                assert!(text.contains(&words), "{text}");
            }
            set_mode(closed, 0o755);
        }
        // A link from a closed folder opens nothing and closes nothing.
        let private = root.path().join("private");
        fs::create_dir(&private).unwrap();
        set_mode(&private, 0o700);
        symlink(&path, private.join("link")).unwrap();
        assert!(!found(&private.join("link")).unwrap().is_harmless());
    }

    #[test]
    fn folder_of_a_third_user_closes_nothing() {
        let (_root, path) = file();
        let folder = path.parent().unwrap();
        set_mode(folder, 0o700);
        let real = fs::canonicalize(&path).unwrap();
        let owner = fs::metadata(folder).unwrap().uid();
        let closed = |file, user| {
            let reader = Reader { user: Uid::from_raw(user), groups: Vec::new() };
            closed_folder(&real, (file, 65_533), &reader).is_some()
        };
        assert!(closed(owner, 65_534) && closed(65_533, owner) && closed(65_533, 0));
        assert_eq!(closed(65_533, 65_534), owner == 0);
    }

    #[test]
    fn folder_that_a_foreign_group_may_pass_closes_nothing() {
        let (_root, path) = file();
        let folder = path.parent().unwrap();
        // Another group than root's: the right to set one belongs to root, or to a member.
        let _ = std::os::unix::fs::chown(folder, None, Some(65_532));
        let real = fs::canonicalize(&path).unwrap();
        let (owner, group) = (fs::metadata(folder).unwrap().uid(), fs::metadata(folder).unwrap().gid());
        let closed = |file, groups: &[u32], user| {
            let reader = Reader { user: Uid::from_raw(user), groups: groups.to_vec() };
            closed_folder(&real, (owner, file), &reader).is_some()
        };
        for mode in [0o750, 0o710, 0o770] {
            set_mode(folder, mode);
            assert_eq!(closed(65_531, &[65_530], 65_534), group == 0, "{mode:o}");
            assert!(closed(group, &[], 65_534) && closed(65_531, &[65_530, group], 65_534) && closed(65_531, &[], 0));
        }
        set_mode(folder, 0o700);
        assert!(closed(65_531, &[], 65_534));
    }

    #[test]
    fn advice_in_a_kubernetes_volume_names_the_volume() {
        let (root, _) = file();
        let (data, link) = (root.path().join("..2026_11_30"), root.path().join("ldap.password"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("ldap.password"), "secret").unwrap();
        set_mode(&data.join("ldap.password"), 0o644);
        symlink("..2026_11_30", root.path().join("..data")).unwrap();
        symlink("..data/ldap.password", &link).unwrap();
        // Directly, through a folder of keys in it, and by a link to it from elsewhere.
        fs::create_dir(data.join("tls")).unwrap();
        fs::write(data.join("tls/key"), "secret").unwrap();
        set_mode(&data.join("tls/key"), 0o644);
        symlink("..data/tls", root.path().join("tls")).unwrap();
        symlink(&link, root.path().join("secrets/elsewhere")).unwrap();
        for path in [link.clone(), root.path().join("tls/key"), root.path().join("secrets/elsewhere")] {
            let text = found(&path).unwrap().to_string();
            let words = "(mode 0644): set `defaultMode: 0440` at the volume, and `fsGroup` of the pod to usher's group";
            assert!(text.ends_with(words) && !text.contains("chmod"), "{text}");
        }
        set_mode(root.path(), 0o700);
        let text = found(&link).unwrap().to_string();
        assert!(text.contains("is closed to others: set `defaultMode: 0440`"), "{text}");
    }

    #[test]
    fn advice_on_a_read_only_mount_is_not_chmod() {
        let place = Place::ReadOnly;
        let exposure = Exposure { path: "/run/secrets/key".into(), mode: 0o444, place, closed: None };
        let text = exposure.to_string();
        assert!(text.contains("`defaultMode: 0440`") && !text.contains("chmod"), "{text}");
        // /proc/sys is one where this runs in a container, and sysfs mostly.
        let read_only = statvfs("/sys/kernel").unwrap().f_flag.contains(StatVfsMountFlags::RDONLY);
        let here = super::place(Path::new("/sys/kernel/notes"), Path::new("/sys/kernel/notes"));
        assert_eq!(here, if read_only { Place::ReadOnly } else { Place::Writable });
    }
}
