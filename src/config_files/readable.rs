//! Whether the user that usher runs as can read what root can: root checks a configuration, and no file is closed to root.
//!
//! With `process.user` usher switches to that user. Without it root does not run usher, the unit of the package does, as
//! its own user.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{paths, secrets};
use crate::base::privileges::User;
use crate::base::sys;
use crate::config::{Config, Problem};

/// The configuration of the shipped unit, and its user.
const PACKAGED: (&str, &str) = ("/etc/usher/config.yaml", "usher");

/// The user that usher will run as, as far as root can know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServiceUser {
    /// The one that was asked about, that of `process.user`, or `User=` of the unit: what it cannot read is a mistake.
    Named(String),
    /// That of the shipped unit, which is not installed here.
    Packaged(String),
}

impl ServiceUser {
    /// Of a configuration; `None`: nothing says which.
    #[must_use]
    pub(crate) fn of(config: &Config) -> Option<Self> {
        let of_the_unit = || {
            let user = unit_user(&UNIT_FOLDERS.map(Path::new));
            let user = user.map_or_else(|| Self::Packaged(PACKAGED.1.to_owned()), Self::Named);
            (config.file == Path::new(PACKAGED.0)).then_some(user)
        };
        config.process.user.clone().map(Self::Named).or_else(of_the_unit)
    }
}

/// The user of a unit that names none.
const ROOT: &str = "root";
/// Where units are, the one that counts most first (systemd.unit(5)).
const UNIT_FOLDERS: [&str; 3] = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"];

/// `User=` of usher's unit: of its last drop-in, or of the unit itself. Without one, or where an empty value resets what was said
/// before, it is root (systemd.exec(5)). `None`: there is no unit.
fn unit_user(folders: &[&Path]) -> Option<String> {
    let user_in = |path: &PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let user = text.lines().filter_map(|line| line.trim().strip_prefix("User=")).next_back()?.trim();
        Some(if user.is_empty() { ROOT } else { user }.to_owned())
    };
    let mut parts: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let found = fs::read_dir(folder.join("usher.service.d")).into_iter().flatten().flatten();
        let found = found.map(|part| part.path()).filter(|part| part.extension().is_some_and(|kind| kind == "conf"));
        // A file in an earlier folder replaces one of the same name.
        let is_new = |part: &PathBuf| !parts.iter().any(|known| known.file_name() == part.file_name());
        parts.extend(found.filter(is_new).collect::<Vec<_>>());
    }
    parts.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
    let unit = folders.iter().map(|folder| folder.join("usher.service")).find(|path| path.exists())?;
    Some(parts.iter().rev().find_map(user_in).or_else(|| user_in(&unit)).unwrap_or_else(|| ROOT.to_owned()))
}

/// The files of a configuration that this user cannot read. This process must be root.
///
/// # Errors
/// There is no such user, or this process cannot become it.
pub(crate) fn unreadable(config: &Config, user: &ServiceUser) -> io::Result<Vec<Problem>> {
    let (ServiceUser::Named(name) | ServiceUser::Packaged(name)) = user;
    let account = User::find(name, config.process.group.as_deref())?;
    let mut files: Vec<(String, &Path)> = secrets(config);
    for path in std::iter::once(config.file.as_path()).chain(config.place.part_files()).chain(paths(config)) {
        if !files.iter().any(|(_, known)| *known == path) {
            files.push((String::new(), path));
        }
    }
    // Of a folder with files of backends, which is listed as well.
    let mut folders: Vec<&Path> = config.place.part_files().filter_map(Path::parent).collect();
    folders.dedup();
    let (closed, unlisted) = account.run_as(|| {
        let closed: Vec<_> = files.iter().map(|(_, path)| Closed::of(path)).collect();
        let unlisted: Vec<_> = folders.into_iter().filter(|folder| is_refused(fs::read_dir(folder))).collect();
        (closed, unlisted)
    })?;
    let group = account.group_name();
    let problem = |((key, path), closed): (&(String, &Path), Option<Closed>)| {
        let path = path.display();
        let advice = match closed? {
            Closed::Folder(folder) => {
                format!("its folder {0} is closed: run `chgrp {group} {0} && chmod g+x {0}`", folder.display())
            }
            Closed::File => format!("run `chgrp {group} {path} && chmod 640 {path}`"),
        };
        Some(config.problem(key, format!("the user {name} cannot read {path}: {advice}")))
    };
    let unlisted = unlisted.into_iter().map(|folder| {
        let folder = folder.display();
        let message =
            format!("the user {name} cannot list {folder}: run `chgrp {group} {folder} && chmod g+rx {folder}`");
        config.problem("routing.backends_from", message)
    });
    Ok(files.iter().zip(closed).filter_map(problem).chain(unlisted).collect())
}

fn is_refused<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// What keeps this thread from reading a file.
#[derive(Debug)]
enum Closed {
    Folder(PathBuf),
    File,
}

impl Closed {
    /// `None` if nothing does, or the file has another fault.
    fn of(path: &Path) -> Option<Self> {
        if !is_refused(sys::open_regular(path)) {
            return None;
        }
        // A folder is closed if what is in it cannot even be looked at.
        let inner: Vec<&Path> = path.ancestors().collect();
        let folder = inner.iter().rev().find(|path| is_refused(fs::symlink_metadata(path)));
        Some(folder.and_then(|path| path.parent()).map_or(Self::File, |folder| Self::Folder(folder.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_of_the_unit_is_that_of_its_last_drop_in() {
        let base = std::env::temp_dir().join(format!("usher-unit-{}", std::process::id()));
        let (etc, lib) = (base.join("etc"), base.join("lib"));
        for (folder, file, text) in [
            (&lib, "usher.service", "[Service]\nUser=usher\n"),
            (&lib, "usher.service.d/20-b.conf", "[Service]\nUser=second\n"),
            (&etc, "usher.service.d/10-a.conf", "[Service]\n User=first \n"),
            (&etc, "usher.service.d/30-other.conf", "[Service]\nLimitNOFILE=1\n"),
            (&etc, "usher.service.d/40.conf~", "[Service]\nUser=backup\n"),
        ] {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(unit_user(&[&etc, &lib]).as_deref(), Some("second"));
        fs::write(etc.join("usher.service.d/50-reset.conf"), "[Service]\nUser=\n").unwrap();
        assert_eq!(unit_user(&[&etc, &lib]).as_deref(), Some("root"));
        fs::remove_file(etc.join("usher.service.d/50-reset.conf")).unwrap();
        fs::write(etc.join("usher.service.d/20-b.conf"), "").unwrap();
        assert_eq!(unit_user(&[&etc, &lib]).as_deref(), Some("first"));
        fs::remove_dir_all(etc).unwrap();
        fs::remove_dir_all(lib.join("usher.service.d")).unwrap();
        assert_eq!(unit_user(&[&base.join("etc"), &lib]).as_deref(), Some("usher"));
        fs::write(lib.join("usher.service"), "[Service]\nExecStart=/usr/bin/usher run\n").unwrap();
        assert_eq!(unit_user(&[&lib]).as_deref(), Some("root"));
        fs::remove_dir_all(base).unwrap();
        assert_eq!(unit_user(&[&lib]), None);
    }
}
