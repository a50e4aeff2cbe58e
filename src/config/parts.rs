//! The files of `routing.backends_from`: backends that automation writes, one file for each service that has some.
//!
//! They are read with the config file and become items of `routing.backends`, behind those of the config file, so that
//! all are checked as one; only a mistake is placed in the file that it is in.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::locate::Lines;
use super::{LARGEST_FILE, Place, Problem, TextDigest, document, utf8};
use crate::base::sys;

/// More files than any installation has backends.
const FILES: usize = 1_000;

/// How often the folder is read until two readings are the same.
const READINGS: usize = 5;

/// A config file, and the files that it includes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// The config file's text.
    pub(super) text: String,
    /// The folder and its files, sorted by name; `None`: there is no `backends_from`.
    pub(super) folder: Option<Result<Folder, Unread>>,
}

/// The folder of `backends_from`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) files: Vec<(PathBuf, String)>,
    /// Names that end in `.yml`.
    pub(super) ignored: Vec<String>,
}

/// Why the folder is not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unread {
    /// The file with the fault; `None`: the folder itself.
    file: Option<PathBuf>,
    message: String,
}

impl Unread {
    /// As a mistake of the key, or of the file.
    pub(super) fn problem(&self, of_the_key: impl FnOnce(&str) -> Problem) -> Problem {
        match &self.file {
            Some(file) => Problem { file: file.clone(), line: None, key: String::new(), message: self.message.clone() },
            None => of_the_key(&self.message),
        }
    }
}

impl Sources {
    /// Reads the folder that the text names, if it names one.
    pub(super) fn of(text: String, file: &Path) -> Self {
        let folder = folder_key(&text).map(|name| {
            Folder::read(&std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).with_file_name(name))
        });
        Self { text, folder }
    }

    /// Of the config file and of all that it includes.
    pub(super) fn digest(&self) -> TextDigest {
        let Some(folder) = &self.folder else { return TextDigest::of(self.text.as_bytes()) };
        let mut all = TextDigest::of(self.text.as_bytes()).as_bytes().to_vec();
        match folder {
            Ok(folder) => {
                for (file, text) in &folder.files {
                    all.extend(TextDigest::of(file.as_os_str().as_encoded_bytes()).as_bytes());
                    all.extend(TextDigest::of(text.as_bytes()).as_bytes());
                }
            }
            Err(unread) => all.extend(unread.message.as_bytes()),
        }
        TextDigest::of(&all)
    }
}

/// Adds the backends of the folder to those of the config file. Returns warnings.
///
/// # Errors
/// Files that have none.
pub(super) fn include(
    place: &mut Place,
    root: &mut Value,
    folder: Result<Folder, Unread>,
) -> Result<Vec<Problem>, Vec<Problem>> {
    const KEY: &str = "routing.backends_from";
    let folder = folder.map_err(|unread| vec![unread.problem(|message| place.problem(KEY, message))])?;
    let ignored = folder.ignored.iter().map(|name| {
        place
            .problem(KEY, format!("{} is not read: only names that end in .yaml are", folder.path.join(name).display()))
    });
    let ignored = ignored.collect();
    // A mistake of this key is reported with all others.
    let Some(Value::Mapping(routing)) = root.get_mut("routing") else { return Ok(ignored) };
    let mut backends = match routing.get("backends") {
        None => Vec::new(),
        Some(Value::Sequence(own)) => own.clone(),
        Some(_) => return Ok(ignored),
    };
    let mut problems = Vec::new();
    for (file, text) in folder.files {
        let (own, value) = document(&file, &text);
        match value.map(|value| Part::add(file, own.lines, value, &mut backends)) {
            Ok(Ok(part)) => place.parts.push(part),
            Ok(Err(part)) => {
                let message = "expected backends as `routing.backends` has them: a list, or the keys of one; for none \
                               write `[]`, or remove the file";
                problems.push(part.problem(String::new(), message));
            }
            Err(more) => problems.extend(more),
        }
    }
    if !backends.is_empty() {
        routing.insert("backends".into(), Value::Sequence(backends));
    }
    if problems.is_empty() { Ok(ignored) } else { Err(problems) }
}

/// The value of `routing.backends_from`, if it is a usable path.
fn folder_key(text: &str) -> Option<String> {
    // Most files have none, and are parsed once.
    if !text.contains("backends_from") {
        return None;
    }
    let root: Value = serde_yaml::from_str(text).ok()?;
    let name = root.get("routing")?.get("backends_from")?.as_str()?;
    let is_usable = !name.is_empty() && !name.starts_with(['~', '$']) && !name.chars().any(char::is_control);
    is_usable.then(|| name.to_owned())
}

impl Folder {
    /// Reads until nothing changes: files that are replaced together (Kubernetes' `..data`) must not be met halfway.
    fn read(path: &Path) -> Result<Self, Unread> {
        let mut before = Self::read_once(path);
        for _ in 1..READINGS {
            let now = Self::read_once(path);
            if now == before {
                return now;
            }
            before = now;
        }
        Err(Unread { file: None, message: "its files change while they are read: try again".to_owned() })
    }

    fn read_once(path: &Path) -> Result<Self, Unread> {
        let of_the_folder = |message: String| Unread { file: None, message };
        let unreadable = |error: io::Error| {
            of_the_folder(format!("{} cannot be read: {error}; {}", path.display(), sys::unreadable_advice(&error)))
        };
        let mut folder = Self { path: path.to_owned(), ..Self::default() };
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let has_end = |end: &str| Path::new(&name).extension() == Some(OsStr::new(end));
            // Editors and Kubernetes keep files of their own there.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if has_end("yaml") {
                names.push(name);
            } else if has_end("yml") {
                folder.ignored.push(name.to_string_lossy().into_owned());
            }
            if names.len() > FILES || folder.ignored.len() > FILES {
                return Err(of_the_folder(format!("more than {FILES} files: is this the right folder?")));
            }
        }
        names.sort();
        folder.ignored.sort();
        let mut left = LARGEST_FILE;
        for name in names {
            let file = path.join(name);
            let of_the_file = |message: String| Unread { file: Some(file.clone()), message };
            let mut bytes = Vec::new();
            let read = sys::open_regular(&file).and_then(|(file, _)| file.take(left + 1).read_to_end(&mut bytes));
            read.map_err(|error| of_the_file(format!("cannot be read: {error}; {}", sys::unreadable_advice(&error))))?;
            let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            left = left
                .checked_sub(size)
                .ok_or_else(|| of_the_folder("its files are larger than 1 MiB together".to_owned()))?;
            folder.files.push((file.clone(), utf8(bytes).map_err(of_the_file)?));
        }
        Ok(folder)
    }
}

/// A file with backends, and where they are among all.
#[derive(Debug)]
pub(super) struct Part {
    file: PathBuf,
    lines: Lines,
    /// The place of its first backend in `routing.backends`.
    first: usize,
    count: usize,
    is_list: bool,
}

impl Part {
    /// Adds a file's backends to all. `Err`: what the file is instead.
    pub(super) fn add(file: PathBuf, lines: Lines, value: Value, all: &mut Vec<Value>) -> Result<Self, Self> {
        let first = all.len();
        let part = |count, is_list| Self { file, lines, first, count, is_list };
        match value {
            Value::Sequence(backends) => {
                let count = backends.len();
                all.extend(backends);
                Ok(part(count, true))
            }
            Value::Mapping(_) => {
                all.push(value);
                Ok(part(1, false))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Tagged(_) => {
                Err(part(0, false))
            }
        }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// A mistake at a key of this file.
    pub(super) fn problem(&self, key: String, message: impl Into<String>) -> Problem {
        let line = if key.is_empty() { None } else { self.lines.of(&key) };
        Problem { file: self.file.clone(), line, key, message: message.into() }
    }

    /// The key within this file, of one of all backends.
    pub(super) fn key(&self, key: &str) -> Option<String> {
        let (number, rest) = key.strip_prefix("routing.backends[")?.split_once(']')?;
        let number: usize = number.parse().ok()?;
        let nth = number.checked_sub(self.first).filter(|nth| *nth < self.count)?;
        Some(match self.is_list {
            true => format!("[{nth}]{rest}"),
            false => rest.strip_prefix('.').unwrap_or(rest).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
