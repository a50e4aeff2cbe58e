//! Which directories may have a login name: the domain behind its last `@` decides.
//!
//! Only the text of the domain counts, its ASCII letters in either case: nothing is decoded, completed or stripped, so
//! that a name which merely looks like one of a domain belongs to no directory.

use std::collections::HashMap;

use crate::config::{Directory, DomainPattern, WindowsDomain};

/// The directories, by the domains that they claim.
#[derive(Debug)]
pub(crate) struct Domains {
    /// The only directory takes every name.
    is_open: bool,
    exact: HashMap<String, Vec<usize>>,
    suffixes: Vec<(String, usize)>,
    without: Vec<usize>,
    /// By the names of Windows domains, in small letters.
    windows: HashMap<String, usize>,
}

/// The directories that may have a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Candidates<'a, T> {
    /// No one does.
    None,
    /// This one.
    One(&'a T),
    /// These, in the order of the configuration.
    Several(Vec<&'a T>),
}

impl Domains {
    /// Of these directories.
    #[must_use]
    pub(crate) fn new(directories: &[Directory]) -> Self {
        let is_open = matches!(directories, [only] if !only.is_one_of_several());
        let windows = directories.iter().enumerate();
        let windows =
            windows.flat_map(|(at, one)| one.windows_domains.iter().map(move |known| (known.name.clone(), at)));
        let (exact, suffixes, without) = Default::default();
        let mut all = Self { is_open, exact, suffixes, without, windows: windows.collect() };
        for (at, pattern) in
            directories.iter().enumerate().flat_map(|(at, one)| one.domains.iter().map(move |it| (at, it)))
        {
            match pattern {
                DomainPattern::None => all.without.push(at),
                DomainPattern::Exact(domain) => all.exact.entry(domain.clone()).or_default().push(at),
                DomainPattern::Suffix(suffix) => all.suffixes.push((suffix.clone(), at)),
            }
        }
        all
    }

    /// Those of `all`, which are in the order of the configuration, that may have this name.
    #[must_use]
    pub(crate) fn candidates<'a, T>(&self, name: &str, all: &'a [T]) -> Candidates<'a, T> {
        if self.is_open {
            return all.first().map_or(Candidates::None, Candidates::One);
        }
        if !self.windows.is_empty()
            && let Some((domain, _)) = WindowsDomain::split(name)
            && let Some(at) = self.windows.get(&domain.to_ascii_lowercase())
        {
            return chosen(&[*at], all);
        }
        let Some((_, domain)) = name.rsplit_once('@') else { return chosen(&self.without, all) };
        let domain = domain.to_ascii_lowercase();
        let exact = self.exact.get(&domain).map(Vec::as_slice).unwrap_or_default();
        // `*.example.org` is below the domain, and not the domain itself.
        let is_below =
            |suffix: &str| domain.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
        let mut below = self.suffixes.iter().filter(|(suffix, _)| is_below(suffix)).map(|(_, at)| *at).peekable();
        if below.peek().is_none() {
            return chosen(exact, all);
        }
        let mut places: Vec<usize> = below.chain(exact.iter().copied()).collect();
        places.sort_unstable();
        places.dedup();
        chosen(&places, all)
    }
}

fn chosen<'a, T>(places: &[usize], all: &'a [T]) -> Candidates<'a, T> {
    match places {
        [] => Candidates::None,
        [one] => all.get(*one).map_or(Candidates::None, Candidates::One),
        several => Candidates::Several(several.iter().filter_map(|at| all.get(*at)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(lists: &[&[&str]]) -> (Domains, Vec<usize>) {
        let pattern = |text: &&str| match text.strip_prefix("*.") {
            _ if text.is_empty() => DomainPattern::None,
            Some(suffix) => DomainPattern::Suffix(suffix.to_owned()),
            None => DomainPattern::Exact((*text).to_owned()),
        };
        let directory =
            |list: &&[&str]| Directory { domains: list.iter().map(pattern).collect(), ..Directory::for_tests() };
        let directories: Vec<_> = lists.iter().map(directory).collect();
        (Domains::new(&directories), (0..lists.len()).collect())
    }

    fn places(lists: &[&[&str]], name: &str) -> Vec<usize> {
        let (domains, all) = domains(lists);
        match domains.candidates(name, &all) {
            Candidates::None => Vec::new(),
            Candidates::One(one) => vec![*one],
            Candidates::Several(several) => several.into_iter().copied().collect(),
        }
    }

    #[test]
    fn only_directory_without_domains_takes_every_name() {
        for name in ["alice", "alice@example.com", "alice@", "@", "a@b@c", "\u{fc}@\u{fc}"] {
            assert_eq!(places(&[&[]], name), [0], "{name}");
        }
    }

    #[test]
    fn domain_behind_the_last_at_sign_chooses() {
        let lists: &[&[&str]] = &[&["example.com", ""], &["example.net", "*.example.org"], &["*.deep.example.org"]];
        for (name, expected) in [
            ("alice", vec![0]),
            ("alice@example.com", vec![0]),
            ("alice@EXAMPLE.Com", vec![0]),
            ("alice@example.net@example.com", vec![0]),
            ("alice@example.com@example.net", vec![1]),
            ("alice@example.net", vec![1]),
            ("alice@a.example.org", vec![1]),
            ("alice@a.b.example.org", vec![1]),
            ("alice@a.deep.example.org", vec![1, 2]),
            ("\u{fc}ser@example.net", vec![1]),
        ] {
            assert_eq!(places(lists, name), expected, "{name}");
        }
    }

    #[test]
    fn name_that_only_looks_like_one_of_a_domain_has_no_directory() {
        let lists: &[&[&str]] = &[&["example.com", "kelvin.example"], &["*.example.org"]];
        for name in [
            "alice",
            "alice@",
            "@",
            "alice@example.com.",
            "alice@.example.com",
            "alice@ example.com",
            "alice@example.com ",
            "alice@example.com\u{200b}",
            "alice@sub.example.com",
            "alice@example.org",
            "alice@.example.org",
            "alice@a.example.org.",
            "alice@aexample.org",
            "alice@ex\u{430}mple.com",
            "alice@\u{212a}elvin.example",
            "alice@xn--exmple-cua.com",
            "alice%example.com",
            "alice\u{ff20}example.com",
            "EXAMPLE\\alice",
        ] {
            assert_eq!(places(lists, name), [0_usize; 0], "{name}");
        }
    }

    #[test]
    fn windows_domain_before_the_backslash_chooses_before_any_other() {
        let filter = crate::proto::ldap::template::parse_filter("(sAMAccountName={local})").unwrap();
        let windows = |name: &str| vec![WindowsDomain { name: name.to_owned(), filter: filter.clone() }];
        let exact = |domain: &str| vec![DomainPattern::None, DomainPattern::Exact(domain.to_owned())];
        let directories = [("corp", "corp.example"), ("other", "other.example")].map(|(name, domain)| Directory {
            domains: exact(domain),
            windows_domains: windows(name),
            ..Directory::for_tests()
        });
        let (domains, all) = (Domains::new(&directories), [0, 1]);
        for (name, expected) in [
            ("CORP\\alice", Candidates::One(&0)),
            ("other\\alice", Candidates::One(&1)),
            // It is found by no filter, but not in another directory either.
            ("corp\\alice@other.example", Candidates::One(&0)),
            ("none\\alice@other.example", Candidates::One(&1)),
            ("none\\alice", Candidates::Several(vec![&0, &1])),
            ("corp.example\\alice", Candidates::Several(vec![&0, &1])),
            ("corp/alice", Candidates::Several(vec![&0, &1])),
        ] {
            assert_eq!(domains.candidates(name, &all), expected, "{name}");
        }
    }

    #[test]
    fn domain_of_several_directories_is_of_each_once() {
        let lists: &[&[&str]] = &[&["example.com", "*.com"], &["example.com"], &[""], &["", "*.example.com"]];
        assert_eq!(places(lists, "alice@example.com"), [0, 1]);
        assert_eq!(places(lists, "alice@a.example.com"), [0, 3]);
        assert_eq!(places(lists, "alice"), [2, 3]);
    }
}
