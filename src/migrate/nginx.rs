//! The users.txt of an nginx recipe: one name per line; the users in it are routed to another server.
//!
//! The recipe's script finds names by PHP's `strpos($users, $user)`, which looks for the name anywhere in
//! the file: "ann" is found where "joanna" stands. Here a name is the whole line, and what `strpos` would
//! have found besides can be asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The largest list that is read: a million long names.
pub(crate) const LARGEST: u64 = 64 << 20;
/// Bytes of a gram of the index.
const GRAM: usize = 3;

/// The names of a file.
#[derive(Debug, Default)]
pub(crate) struct Recipe {
    /// The names in their order, each once, without blanks around them.
    pub names: Vec<Name>,
    /// Lines without a name.
    pub blank: Vec<usize>,
    /// Lines whose name stood in an earlier one: the line, and the earlier one.
    pub duplicates: Vec<(usize, usize)>,
    /// Lines that are no UTF-8.
    pub not_text: Vec<usize>,
    /// Lines with blanks before or behind the name, which a script that compares whole lines would miss.
    pub padded: Vec<usize>,
    by_name: HashMap<String, usize>,
    index: Index,
}

/// A name and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// The name as the file has it.
    pub text: String,
    /// Its line, from 1.
    pub line: usize,
}

impl Recipe {
    /// Reads a file, or standard input for `-`.
    ///
    /// # Errors
    /// It cannot be read, or is larger than [`LARGEST`].
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            io::stdin().lock().take(LARGEST + 1).read_to_end(&mut bytes)?;
        } else {
            File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
        }
        if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST) {
            return Err(io::Error::other("larger than 64 MiB: is this a list of users?"));
        }
        Ok(Self::parse(&bytes))
    }

    /// Reads the lines. Where they differ in case alone they are one name, as in a directory.
    #[must_use]
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut recipe = Self::default();
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        if bytes.is_empty() {
            return recipe;
        }
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let number = at + 1;
            let Ok(line) = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)) else {
                recipe.not_text.push(number);
                continue;
            };
            let name = line.trim();
            if name.is_empty() {
                recipe.blank.push(number);
                continue;
            }
            if name != line {
                recipe.padded.push(number);
            }
            match recipe.by_name.get(&key(name)).and_then(|at| recipe.names.get(*at)) {
                Some(earlier) => recipe.duplicates.push((number, earlier.line)),
                None => {
                    recipe.by_name.insert(key(name), recipe.names.len());
                    recipe.names.push(Name { text: name.to_owned(), line: number });
                }
            }
        }
        recipe.index = Index::of(&recipe.names);
        recipe
    }

    /// Which of the names this is, in any case.
    #[must_use]
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(&key(name)).copied()
    }

    /// The name within which `strpos` finds this one, which is no name of the file itself.
    #[must_use]
    pub(crate) fn within(&self, name: &str) -> Option<&Name> {
        if self.position(name).is_some() { None } else { self.index.find(&self.names, name) }
    }
}

/// How names are compared: uid and mail are caseIgnoreMatch in every directory's schema.
fn key(name: &str) -> String {
    name.trim().to_lowercase()
}

/// Which names hold a gram of three bytes: so that 50,000 names are looked for in a file of 50,000
/// without reading all of it for each.
#[derive(Debug, Default)]
struct Index {
    /// A gram and the position of a name that has it, sorted.
    grams: Vec<([u8; GRAM], u32)>,
}

impl Index {
    fn of(names: &[Name]) -> Self {
        let mut grams: Vec<([u8; GRAM], u32)> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let Ok(at) = u32::try_from(at) else { break };
            grams.extend(name.text.as_bytes().windows(GRAM).filter_map(|gram| Some((gram.try_into().ok()?, at))));
        }
        grams.sort_unstable();
        grams.dedup();
        Self { grams }
    }

    /// The first name that holds this text.
    fn find<'a>(&self, names: &'a [Name], text: &str) -> Option<&'a Name> {
        if text.len() < GRAM {
            return names.iter().find(|name| name.text.contains(text));
        }
        let having = |gram: &[u8]| {
            let begins = self.grams.partition_point(|(known, _)| known.as_slice() < gram);
            let rest = self.grams.get(begins..).unwrap_or_default();
            rest.get(..rest.partition_point(|(known, _)| known.as_slice() == gram)).unwrap_or_default()
        };
        let rarest = text.as_bytes().windows(GRAM).map(having).min_by_key(|found| found.len())?;
        let mut found = rarest.iter().filter_map(|(_, at)| names.get(usize::try_from(*at).ok()?));
        found.find(|name| name.text.contains(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(recipe: &Recipe) -> Vec<&str> {
        recipe.names.iter().map(|name| name.text.as_str()).collect()
    }

    #[test]
    fn name_is_one_line() {
        let recipe = Recipe::parse(b"\xef\xbb\xbfjoanna\r\nbob\n\n Bob\nb\xe4r\n  \njos\xc3\xa9 \n");
        assert_eq!(texts(&recipe), ["joanna", "bob", "josé"]);
        assert_eq!(recipe.names[2].line, 7);
        assert_eq!((recipe.blank, recipe.duplicates), (vec![3, 6], vec![(4, 2)]));
        assert_eq!((recipe.not_text, recipe.padded), (vec![5], vec![4, 7]));
        assert!(Recipe::parse(b"").names.is_empty() && Recipe::parse(b"\n").blank.is_empty());
    }

    #[test]
    fn additional_strpos_matches_are_reported() {
        let recipe = Recipe::parse(b"joanna\nbob\nbobby\nx@example.com\n");
        let within = |name: &str| recipe.within(name).map(|name| name.text.as_str());
        assert_eq!(within("ann"), Some("joanna"));
        assert_eq!(within("o"), Some("joanna"));
        assert_eq!(within("example"), Some("x@example.com"));
        assert_eq!(within("bbb"), None);
        // A name of the file itself was meant; strpos minds the case.
        for name in ["bob", "BOB", "Ann", "joanna2", ""] {
            assert_eq!(within(name).filter(|_| !name.is_empty()), None, "{name}");
        }
    }

    #[test]
    fn index_matches_a_plain_search() {
        let file: String = (0..400).map(|n| format!("user{}{}\n", n * 7919 % 1000, n % 3)).collect();
        let recipe = Recipe::parse(file.as_bytes());
        for n in 0..2_000 {
            let name = format!("{n}");
            let plain = recipe.names.iter().any(|known| known.text.contains(&name));
            assert_eq!(recipe.within(&name).is_some(), plain, "{name}");
        }
    }
}
