//! Parses entries (RFC 4511 section 4.5.2), bounded and without panics: the attributes of a login decision, and
//! the digests that distinguish versions.

use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::{Arc, LazyLock};

use ldap3::asn1::StructureTag;

use crate::base::credential::CertificateDigest;
use crate::directory::fault::{MAX_DN, MAX_VALUE, MAX_VALUES};
use crate::directory::ldap::ranges::{self, Rest};
use crate::directory::{Entry, EntryFault, EntryId, Networks, Realm, ReportedEntry};
use crate::proto::ldap::attributes::AttributeRole;
use crate::proto::ldap::ber::tagged;

/// An administrator's lock, which does not expire (draft-behera-ldap-password-policy-10 section 5.3.3).
const LOCKED_FOR_EVER: &[u8] = b"000001010000Z";
/// ADS_UF_ACCOUNTDISABLE of userAccountControl.
const ACCOUNT_DISABLED: u32 = 2;

/// BER tags.
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// The requested attributes and their roles.
#[derive(Debug, Default, Clone)]
pub(crate) struct Attributes {
    pub(super) roles: Vec<(String, AttributeRole)>,
    /// The directory that returns them.
    pub(super) realm: Realm,
    /// See [`crate::directory::EntryVersion::named_by_dn`].
    pub(super) named_by_dn: bool,
    /// The values of the allow attribute that allow something, in small letters: no others are kept.
    pub(super) allow_values: Vec<String>,
    /// The rest of the allow attribute, if nothing else is read.
    pub(super) rest: Option<Rest>,
    /// The only principal name that an entry may have.
    pub(super) principal: Option<String>,
}

impl Attributes {
    /// None, for a request whose answer is whether there is an entry (RFC 4511 section 4.5.1.8).
    pub(super) fn none() -> Self {
        Self { roles: vec![("1.1".to_owned(), AttributeRole::LoginActivity)], ..Self::default() }
    }

    /// What is left of the allow attribute.
    pub(super) fn only(&self, rest: &Rest) -> Self {
        Self {
            roles: vec![(rest.attribute.clone(), AttributeRole::Allow)],
            principal: None,
            realm: self.realm,
            named_by_dn: self.named_by_dn,
            allow_values: self.allow_values.clone(),
            rest: Some(rest.clone()),
        }
    }

    /// Each name once.
    pub(crate) fn names(&self) -> Vec<&str> {
        if let Some(rest) = &self.rest {
            return vec![&rest.description];
        }
        let mut names: Vec<&str> = Vec::with_capacity(self.roles.len());
        for (name, _) in &self.roles {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name);
            }
        }
        names
    }
}

/// An attribute's description and values.
pub(crate) type Values = (Vec<u8>, Vec<Vec<u8>>);

/// The DN and the attributes of a SearchResultEntry; `None` if it is malformed.
pub(crate) fn parts(message: StructureTag) -> Option<(String, Vec<Values>)> {
    let mut parts = message.expect_constructed()?.into_iter();
    let dn = String::from_utf8(parts.next()?.expect_primitive()?).ok()?;
    let mut attributes = Vec::new();
    for attribute in parts.next()?.expect_constructed()? {
        let mut parts = attribute.expect_constructed()?.into_iter();
        let description = parts.next()?.expect_primitive()?;
        let values = parts.next()?.expect_constructed()?.into_iter();
        attributes.push((description, values.map(StructureTag::expect_primitive).collect::<Option<_>>()?));
    }
    Some((dn, attributes))
}

/// The same for the raw content of a SearchResultEntry.
fn parts_of(content: &[u8]) -> Option<(&str, Vec<Values>)> {
    let (dn, rest) = tagged(content, OCTET_STRING)?;
    let (mut list, _) = tagged(rest, SEQUENCE)?;
    let mut attributes = Vec::new();
    while !list.is_empty() {
        let (attribute, behind) = tagged(list, SEQUENCE)?;
        list = behind;
        let (description, rest) = tagged(attribute, OCTET_STRING)?;
        let (mut set, _) = tagged(rest, SET)?;
        let mut values = Vec::new();
        while !set.is_empty() {
            let (value, behind) = tagged(set, OCTET_STRING)?;
            set = behind;
            values.push(value.to_vec());
        }
        attributes.push((description.to_vec(), values));
    }
    Some((std::str::from_utf8(dn).ok()?, attributes))
}

/// As [`read_entry`], for the raw content of a message.
pub(crate) fn read_message(content: &[u8], wanted: &Attributes) -> Option<Shown> {
    let (dn, attributes) = parts_of(content)?;
    shown(dn, &attributes, wanted)
}

/// Parses an entry; `None` if it is malformed. One that exceeds a limit may have been filled by its owner: it
/// has a fault, and does not count as a server failure.
pub(crate) fn read_entry(message: StructureTag, wanted: &Attributes) -> Option<Shown> {
    let (dn, attributes) = parts(message)?;
    shown(&dn, &attributes, wanted)
}

/// An entry, and what of its allow attribute is left to be read.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) reported: ReportedEntry,
    pub(crate) rest: Option<Rest>,
    /// It has another principal name than the request asked for.
    pub(crate) is_other: bool,
}

/// What is wanted of an entry's attributes, with a fault if one of them is out of bounds; `None` if its pieces are not in
/// order.
pub(crate) fn shown(dn: &str, attributes: &[Values], wanted: &Attributes) -> Option<Shown> {
    let kept = (0..=MAX_DN.min(dn.len())).rev().find_map(|end| dn.get(..end)).unwrap_or_default();
    let mut entry = Entry::unread(wanted.realm, kept.into());
    entry.fault = (kept.len() < dn.len()).then(|| Box::new(EntryFault::LongDn));
    entry.version.named_by_dn = wanted.named_by_dn;
    let mut reported = ReportedEntry { entry, modified: None, modified_by: None };
    let before = wanted.rest.as_ref();
    let (mut extent, mut rest) = (before.map(|rest| rest.extent).unwrap_or_default(), None);
    let mut is_continued = before.is_none();
    // A directory compares names without accents, width or case: `jose` finds the entry of `josé`.
    let mut is_other = before.is_none() && wanted.principal.is_some();
    for (description, values) in attributes {
        let (name, range) = (base_name(description), ranges::of(description));
        for (name, role) in wanted.roles.iter().filter(|(wanted, _)| name.eq_ignore_ascii_case(wanted.as_bytes())) {
            if let (AttributeRole::Principal, Some(principal)) = (role, &wanted.principal) {
                let is_same = |value: &Vec<u8>| {
                    std::str::from_utf8(value).is_ok_and(|value| value.to_lowercase() == principal.to_lowercase())
                };
                is_other &= !values.iter().any(is_same);
            }
            if *role == AttributeRole::Allow {
                extent.add(values);
                allow(&mut reported.entry, name, values, &wanted.allow_values);
                if let Some(range) = range {
                    rest = Rest::after(name, before, range, values.len(), extent).ok()?;
                    is_continued = true;
                }
                if !extent.is_within() || rest.as_ref().is_some_and(|rest| !rest.extent.is_within()) {
                    not_read(&mut reported.entry, EntryFault::TooLarge(name.as_str().into()));
                    rest = None;
                }
                continue;
            }
            if range.is_some_and(|range| range.last.is_some()) {
                reported.cut(*role, name);
            }
            reported.take(*role, name, values);
        }
    }
    is_continued.then_some(Shown { reported, rest, is_other })
}

/// Takes over the values that allow something.
fn allow(entry: &mut Entry, attribute: &str, values: &[Vec<u8>], wanted: &[String]) {
    let texts = values.iter().filter_map(|value| std::str::from_utf8(value).ok());
    let known = texts.map(|text| text.trim().to_lowercase()).filter(|text| wanted.contains(text));
    add_allowed(entry, attribute, known);
}

/// Takes over values of which each allows something.
pub(super) fn add_allowed(entry: &mut Entry, attribute: &str, values: impl IntoIterator<Item = String>) {
    for value in values {
        if !entry.allowed.contains(&value) {
            // In any order, and in any pieces.
            entry.version.policy_digest ^= digest(attribute.as_bytes(), &[value.clone().into_bytes()]);
            entry.allowed.push(value);
        }
    }
}

/// Of an allow attribute that is not read completely, nothing counts.
pub(super) fn not_read(entry: &mut Entry, fault: EntryFault) {
    entry.allowed.clear();
    entry.fault.get_or_insert_with(|| Box::new(fault));
}

/// The values of one attribute as names; none if they are out of bounds.
pub(crate) fn names_of(attributes: &[Values], attribute: &str) -> Vec<String> {
    let mut list = Vec::new();
    for (description, values) in attributes {
        let is_named = base_name(description).eq_ignore_ascii_case(attribute.as_bytes());
        if is_named && names(attribute, values, &mut list).is_err() {
            return Vec::new();
        }
    }
    list
}

impl ReportedEntry {
    /// Notes that a server returns a part of an attribute only: the others could be the ones that count.
    fn cut(&mut self, role: AttributeRole, attribute: &str) {
        let fault = EntryFault::TooManyValues(attribute.into());
        if role == AttributeRole::Networks {
            self.entry.networks = Some(Arc::new(Networks::Unusable(fault)));
        } else if matches!(role, AttributeRole::MailHost | AttributeRole::Login) {
            self.entry.fault.get_or_insert_with(|| Box::new(fault));
        }
    }

    /// Takes over an attribute.
    fn take(&mut self, role: AttributeRole, attribute: &str, values: &[Vec<u8>]) {
        let Self { entry, modified, modified_by } = self;
        let version = &mut entry.version;
        let name = attribute.as_bytes();
        let mut list = |list: &mut Vec<String>| {
            if let Err(fault) = names(attribute, values, list) {
                entry.fault.get_or_insert_with(|| Box::new(fault));
            }
        };
        let first = values.first().map(Vec::as_slice).unwrap_or_default();
        let text = || (first.len() <= MAX_VALUE).then(|| String::from_utf8_lossy(first).into_owned());
        match role {
            AttributeRole::MailHost => list(&mut entry.mail_hosts),
            AttributeRole::Login => list(&mut entry.logins),
            // See `shown`.
            AttributeRole::Allow | AttributeRole::Principal => {}
            // More are left out: they are not accepted.
            AttributeRole::Certificate => {
                version.policy_digest ^= digest(name, values);
                let values = values.iter().filter(|value| !value.is_empty());
                entry.certificates.extend(values.take(MAX_VALUES).map(|value| CertificateDigest::of(value)));
            }
            // Values beyond the bounds name no one; the mailbox's own user is not concerned by them.
            AttributeRole::Grant => {
                version.policy_digest ^= digest(name, values);
                let _ = names(attribute, values, &mut entry.grants);
            }
            // Of another name, or one that is read as an allow attribute too would cancel itself out.
            AttributeRole::Compared => {
                version.policy_digest ^= digest(&[b"compared ", name].concat(), values);
            }
            AttributeRole::Hold => version.held |= values.iter().any(|value| !value.is_empty()),
            AttributeRole::Networks => {
                entry.networks = Some(Networks::read(entry.networks.as_deref(), attribute, values))
            }
            AttributeRole::Password => {
                version.password_changed = Some(version.password_changed.unwrap_or_default() ^ digest(name, values))
            }
            AttributeRole::Locked if values.iter().any(|value| value.starts_with(LOCKED_FOR_EVER)) => {
                (version.disabled, version.locked, version.has_policy_attributes) = (true, true, true);
            }
            AttributeRole::Policy => version.password_policy ^= digest(name, values),
            AttributeRole::Failures | AttributeRole::FailureCount => {
                let count = digest(name, values);
                version.failures = Some(version.failures.unwrap_or_default() ^ count);
                version.has_policy_attributes |= role == AttributeRole::Failures;
                version.login_activity ^= count;
            }
            AttributeRole::Lockout | AttributeRole::Locked => {
                version.has_policy_attributes |= role == AttributeRole::Locked;
                // Active Directory writes 0 when it unlocks.
                version.locked |= values.iter().any(|value| value != b"0");
                version.lockout ^= digest(name, values);
            }
            AttributeRole::DisabledFlag => version.disabled |= first.eq_ignore_ascii_case(b"true"),
            AttributeRole::UserAccountControl => {
                let flags = std::str::from_utf8(first).ok().and_then(|flags| flags.parse::<u32>().ok());
                version.disabled |= flags.is_some_and(|flags| flags & ACCOUNT_DISABLED != 0);
            }
            AttributeRole::Expires => version.expire(values.iter().filter_map(|value| filetime(value))),
            AttributeRole::ExpiresDay => version.expire(values.iter().filter_map(|value| day(value))),
            AttributeRole::ExpiresTime => version.expire(values.iter().filter_map(|value| generalized(value))),
            AttributeRole::LoginActivity => version.login_activity ^= digest(name, values),
            // 389-DS knows both, and its content synchronization goes by its own.
            AttributeRole::Id if version.id.is_none() || name.eq_ignore_ascii_case(b"nsUniqueId") => {
                version.id = EntryId::parse(first).or(version.id);
            }
            AttributeRole::Id => {}
            AttributeRole::Guid => version.id = version.id.or(EntryId::from_bytes(first)),
            AttributeRole::Csn => version.revision = text().map(Into::into),
            AttributeRole::Modified => {
                *modified = text();
                // A CSN says the same more exactly.
                if version.revision.as_ref().is_none_or(|version| !version.contains('#')) {
                    version.revision = modified.clone().map(Into::into);
                }
            }
            AttributeRole::Modifier => *modified_by = text(),
            // Whatever else is wrong with it, this is why.
            AttributeRole::Alias => {
                if entry.fault.as_deref() != Some(&EntryFault::LongDn) {
                    entry.fault = Some(Box::new(EntryFault::Alias(text().map(Into::into))));
                }
            }
        }
    }
}

/// Appends values as names.
///
/// # Errors
/// There are too many, or one is too long: cutting a name short, or a list, would make another name or a unique one
/// of it.
fn names(attribute: &str, values: &[Vec<u8>], list: &mut Vec<String>) -> Result<(), EntryFault> {
    for value in values {
        if list.len() >= MAX_VALUES {
            return Err(EntryFault::TooManyValues(attribute.into()));
        }
        if value.len() > MAX_VALUE {
            // An attribute with a value is not one without, which could be taken for hidden.
            list.push(String::new());
            return Err(EntryFault::LongValue(attribute.into()));
        }
        // What is not UTF-8 keeps its replacement characters and so matches no name.
        list.push(String::from_utf8_lossy(value).into_owned());
    }
    Ok(())
}

impl crate::directory::EntryVersion {
    /// The earliest end counts.
    fn expire(&mut self, ends: impl Iterator<Item = i64>) {
        self.expires = self.expires.into_iter().chain(ends).min();
    }
}

fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// accountExpires: steps of 100 ns since 1601, as Unix seconds; `None`: never ([MS-ADTS] 2.2.9 of ADA1).
fn filetime(value: &[u8]) -> Option<i64> {
    const STEPS_PER_SECOND: i64 = 10_000_000;
    /// From 1601 to 1970.
    const EPOCH: i64 = 11_644_473_600;
    let steps = number(value).filter(|steps| *steps > 0 && *steps != i64::MAX)?;
    Some(steps / STEPS_PER_SECOND - EPOCH)
}

/// shadowExpire: days since 1970, as Unix seconds; `None`: never (shadow(5): empty, and 0 is not to be used).
fn day(value: &[u8]) -> Option<i64> {
    number(value).filter(|days| *days > 0)?.checked_mul(24 * 60 * 60)
}

/// A generalized time in UTC (RFC 4517 section 3.3.13) with at least its seconds, as Unix seconds; `None` for
/// 1970, which means never to Kerberos.
fn generalized(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let digits = text.strip_suffix('Z')?.split(['.', ',']).next()?;
    if digits.len() != 14 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| digits.get(from..to)?.parse::<i64>().ok();
    let (year, month, date) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&date) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 of a date of the Gregorian calendar; a year begins in March here, with the leap day last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let year = year.rem_euclid(400);
    let days = era * 146_097 + year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + date - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    (seconds != 0).then_some(seconds)
}

/// The key of this process's digests: an outsider cannot search for collisions.
pub(crate) static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A keyed digest of an attribute's values, in any order. Comparable within this process only.
fn digest(name: &[u8], values: &[Vec<u8>]) -> u64 {
    let mut sorted: Vec<&Vec<u8>> = values.iter().collect();
    sorted.sort_unstable();
    let mut hasher = KEY.build_hasher();
    name.to_ascii_lowercase().hash(&mut hasher);
    sorted.hash(&mut hasher);
    hasher.finish()
}

/// The attribute type of an attribute description: `mailHost` of `mailHost;lang-de`.
fn base_name(description: &[u8]) -> &[u8] {
    description.split(|byte| *byte == b';').next().unwrap_or(description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_expiry_is_read_in_each_form() {
        assert_eq!(filetime(b"133484256000000000"), Some(1_703_952_000));
        assert_eq!(filetime(b"9223372036854775806"), Some(910_692_730_085));
        for never in ["0", "9223372036854775807", "-1", "", "tomorrow", "99999999999999999999"] {
            assert_eq!(filetime(never.as_bytes()), None, "{never}");
        }
        assert_eq!(day(b"19722"), Some(1_703_980_800));
        for never in ["-1", "0", "", "x", "9223372036854775807"] {
            assert_eq!(day(never.as_bytes()), None, "{never}");
        }
        assert_eq!(generalized(b"20231230160000Z"), Some(1_703_952_000));
        assert_eq!(generalized(b"20240229000000.5Z"), Some(1_709_164_800));
        assert_eq!(generalized(b"19691231235959Z"), Some(-1));
        assert_eq!(generalized(b"19700102000000Z"), Some(86_400));
        for never in ["19700101000000Z", "20231230160000", "20231330160000Z", "2023123016Z", "", "20231230160000+01"] {
            assert_eq!(generalized(never.as_bytes()), None, "{never}");
        }
    }

    #[test]
    fn earliest_account_expiry_counts() {
        let mut version = crate::directory::EntryVersion::default();
        version.expire([7, 5].into_iter());
        version.expire([6].into_iter());
        version.expire([].into_iter());
        assert_eq!(version.expires, Some(5));
        assert_eq!(
            (version.account_state(4), version.account_state(5)),
            (None, Some(crate::outcome::AccountState::AccountExpired))
        );
        version.expires = Some(-1);
        assert!(version.account_state(0).is_some());
    }

    #[test]
    fn certificates_are_read_with_and_without_the_option_binary() {
        let roles = vec![("userCertificate".to_owned(), AttributeRole::Certificate)];
        let wanted = Attributes { roles, ..Attributes::default() };
        let listed = |description: &str, values: &[&[u8]]| {
            let values = values.iter().map(|value| value.to_vec()).collect();
            shown("uid=a", &[(description.as_bytes().to_vec(), values)], &wanted).unwrap().reported.entry
        };
        for description in ["userCertificate;binary", "userCertificate", "USERCERTIFICATE;BINARY"] {
            let entry = listed(description, &[b"one", b"", b"other"]);
            assert_eq!(entry.certificates.len(), 2, "{description}");
            assert!(entry.lists(CertificateDigest::of(b"one")) && !entry.lists(CertificateDigest::of(b"")));
        }
        assert!(listed("userCertificates", &[b"one"]).certificates.is_empty());
        let many: Vec<Vec<u8>> = (0..100).map(|number: u8| vec![number + 1]).collect();
        let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
        assert_eq!(listed("userCertificate;binary", &many).certificates.len(), MAX_VALUES);
    }
}
