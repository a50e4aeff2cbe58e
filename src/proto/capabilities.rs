//! The capabilities that several servers have in common.
//!
//! Each element of a list is one capability: a name, or a name, a space and a value, such as `IDLE`, `SIZE
//! 10240000` or `SIEVE fileinto reject`. Case means nothing in either, nor the order of words. Pure functions:
//! the lists are kept by `backend`.

/// The longest capability that is kept, far above any that servers list.
pub(crate) const LONGEST: usize = 1024;
/// How much of a list is kept in total: it is part of each reply to a client.
pub(crate) const WHOLE: usize = 4096;

/// What is kept of a server's list: a capability that is longer than [`LONGEST`], and what is beyond [`WHOLE`]
/// in all, is left out, so that it is not advertised.
#[must_use]
pub(crate) fn bounded(list: impl Iterator<Item = String>) -> Vec<String> {
    let mut left = WHOLE;
    let fits = |one: &String| {
        let fits = one.len() <= LONGEST && one.len() <= left;
        left -= if fits { one.len() } else { 0 };
        fits
    };
    list.filter(fits).collect()
}

/// What all of these lists have in common: of numbers the smallest, of words those that are in every list.
#[must_use]
pub(crate) fn common(lists: &[&[String]]) -> Vec<String> {
    let Some((first, others)) = lists.split_first() else { return Vec::new() };
    let in_all = |one: &String| {
        let (name, value) = split(one);
        let values = others.iter().map(|other| other.iter().map(|one| split(one)).find(|(other, _)| is(other, name)));
        let value = values.into_iter().try_fold(value.to_owned(), |value, found| shared(name, &value, found?.1))?;
        Some(if value.is_empty() { name.to_owned() } else { format!("{name} {value}") })
    };
    first.iter().filter_map(in_all).collect()
}

/// What a list has beyond `common`.
#[must_use]
pub(crate) fn beyond<'a>(list: &'a [String], common: &[String]) -> Vec<&'a str> {
    let whole = |one: &&str| {
        let (name, value) = split(one);
        !common.iter().map(|other| split(other)).any(|(other, shared)| is(other, name) && same_words(shared, value))
    };
    list.iter().map(String::as_str).filter(whole).collect()
}

/// A capability's name.
#[must_use]
pub(crate) fn name(capability: &str) -> &str {
    split(capability).0
}

fn split(capability: &str) -> (&str, &str) {
    capability.split_once(' ').unwrap_or((capability, ""))
}

fn is(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn has(words: &str, word: &str) -> bool {
    words.split(' ').any(|one| is(one, word))
}

fn same_words(one: &str, other: &str) -> bool {
    one.split(' ').all(|word| has(other, word)) && other.split(' ').all(|word| has(one, word))
}

/// What two servers have in common of a capability that both list; `None` if that is nothing.
fn shared(name: &str, one: &str, other: &str) -> Option<String> {
    if is(name, "SIZE") {
        // Without a number, or with 0, the server reports no limit (RFC 1870 section 4): any limit is smaller.
        let limits = [one, other].map(|value| value.parse::<u64>().ok().filter(|limit| *limit > 0));
        let least = limits.into_iter().flatten().min();
        return Some(least.map_or_else(|| one.to_owned(), |least| least.to_string()));
    }
    if let (Ok(one), Ok(other)) = (one.parse::<u64>(), other.parse::<u64>()) {
        return Some(one.min(other).to_string());
    }
    let words: Vec<&str> = one.split(' ').filter(|word| !word.is_empty() && has(other, word)).collect();
    // Sieve without extensions is still Sieve (RFC 5804 section 1.7); nothing else is left then.
    let left = !words.is_empty() || same_words(one, other) || is(name, "SIEVE");
    left.then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(capabilities: &[&str]) -> Vec<String> {
        capabilities.iter().map(ToString::to_string).collect()
    }

    fn merged(lists: &[&[&str]]) -> Vec<String> {
        let lists: Vec<Vec<String>> = lists.iter().map(|capabilities| list(capabilities)).collect();
        let merge = |lists: &[Vec<String>]| common(&lists.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let there = merge(&lists);
        // Whoever is asked first, the same holds.
        let back = merge(&lists.iter().rev().cloned().collect::<Vec<_>>());
        assert!(there.len() == back.len() && beyond(&there, &back).is_empty(), "{there:?}, {back:?}");
        // What is common is in each list, and common to itself.
        assert_eq!(merge(&[there.clone(), there.clone()]), there);
        there
    }

    #[test]
    fn oversized_capabilities_are_omitted() {
        let long = |size| "x".repeat(size);
        let kept =
            |sizes: &[usize]| bounded(sizes.iter().map(|size| long(*size))).iter().map(String::len).collect::<Vec<_>>();
        assert_eq!(kept(&[59_000, 3, LONGEST, LONGEST + 1, 7]), [3, LONGEST, 7]);
        assert_eq!(kept(&[1000, 1000, 1000, 1000, 97, 96, 1]), [1000, 1000, 1000, 1000, 96]);
    }

    #[test]
    fn common_capabilities_are_those_of_every_backend() {
        assert_eq!(merged(&[]), list(&[]));
        assert_eq!(merged(&[&["IDLE", "ID"]]), ["IDLE", "ID"]);
        assert_eq!(merged(&[&["IDLE", "ID", "SORT"], &["id", "Idle"]]), ["IDLE", "ID"]);
        assert_eq!(merged(&[&["IDLE"], &["IDLE"], &[]]), list(&[]));
        assert_eq!(merged(&[&["AUTH=PLAIN"], &["AUTH=LOGIN"]]), list(&[]));
    }

    #[test]
    fn smallest_size_is_advertised() {
        assert_eq!(merged(&[&["SIZE 2000"], &["SIZE 1000"], &["SIZE 3000"]]), ["SIZE 1000"]);
        assert_eq!(merged(&[&["SIZE 0"], &["SIZE 1000"], &["SIZE"]]), ["SIZE 1000"]);
        assert_eq!(merged(&[&["SIZE 0"], &["SIZE 0"]]), ["SIZE 0"]);
        assert_eq!(merged(&[&["SIZE 99999999999999999999999"], &["SIZE 5"]]), ["SIZE 5"]);
        assert_eq!(merged(&[&["SIZE 1000"], &["PIPELINING"]]), list(&[]), "one of them does not know the parameter");
        assert_eq!(merged(&[&["MAXREDIRECTS 4"], &["MAXREDIRECTS 0"]]), ["MAXREDIRECTS 0"]);
    }

    #[test]
    fn capability_values_are_intersected() {
        let sieve = [&["SIEVE fileinto reject vacation"][..], &["SIEVE Vacation fileinto"]];
        assert_eq!(merged(&sieve), ["SIEVE fileinto vacation"]);
        assert_eq!(merged(&[&["SIEVE a"], &["SIEVE b"]]), ["SIEVE"]);
        assert_eq!(merged(&[&["SIEVE a"], &["SIEVE"]]), ["SIEVE"]);
        assert_eq!(merged(&[&["NOTIFY mailto"], &["NOTIFY xmpp"]]), list(&[]));
        assert_eq!(merged(&[&["NOTIFY"], &["NOTIFY mailto"]]), list(&[]));
        assert_eq!(merged(&[&["VERSION 1.0"], &["VERSION 1.0"]]), ["VERSION 1.0"]);
        assert_eq!(merged(&[&["LIMITS RCPTMAX=9 MAILMAX=5"], &["LIMITS MAILMAX=5"]]), ["LIMITS MAILMAX=5"]);
    }

    #[test]
    fn excess_capabilities_are_reported_unchanged() {
        let common = list(&["SIZE 10", "SIEVE a b", "IDLE"]);
        let full = list(&["idle", "Size 20", "SIEVE b a", "CHUNKING"]);
        assert_eq!(beyond(&full, &common), ["Size 20", "CHUNKING"]);
        assert_eq!(beyond(&list(&["SIEVE a b c"]), &common), ["SIEVE a b c"]);
        assert_eq!(name("SIEVE a b"), "SIEVE");
    }
}
