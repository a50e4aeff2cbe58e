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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServiceUser<'a> {
    /// That of `process.user`: what it cannot read is a mistake.
    Configured(&'a str),
    /// That of the shipped unit, which a drop-in may replace.
    OfTheUnit(&'a str),
}

impl<'a> ServiceUser<'a> {
    /// Of a configuration; `None`: nothing says which.
    #[must_use]
    pub(crate) fn of(config: &'a Config) -> Option<Self> {
        let of_the_unit = (config.file == Path::new(PACKAGED.0)).then_some(Self::OfTheUnit(PACKAGED.1));
        config.process.user.as_deref().map(Self::Configured).or(of_the_unit)
    }
}

/// The files of a configuration that this user cannot read. This process must be root.
///
/// # Errors
/// There is no such user, or this process cannot become it.
pub(crate) fn unreadable(config: &Config, user: ServiceUser<'_>) -> io::Result<Vec<Problem>> {
    let (ServiceUser::Configured(name) | ServiceUser::OfTheUnit(name)) = user;
    let account = User::find(name, config.process.group.as_deref())?;
    let mut files: Vec<(String, &Path)> = secrets(config);
    for path in std::iter::once(config.file.as_path()).chain(config.place.part_files()).chain(paths(config)) {
        if !files.iter().any(|(_, known)| *known == path) {
            files.push((String::new(), path));
        }
    }
    let closed = account.run_as(|| files.iter().map(|(_, path)| Closed::of(path)).collect::<Vec<_>>())?;
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
    Ok(files.iter().zip(closed).filter_map(problem).collect())
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
        let refused =
            |result: io::Result<()>| result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        if !refused(sys::open_regular(path).map(|_| ())) {
            return None;
        }
        // A folder is closed if what is in it cannot even be looked at.
        let inner: Vec<&Path> = path.ancestors().collect();
        let folder = inner.iter().rev().find(|path| refused(fs::symlink_metadata(path).map(|_| ())));
        Some(folder.and_then(|path| path.parent()).map_or(Self::File, |folder| Self::Folder(folder.to_owned())))
    }
}
