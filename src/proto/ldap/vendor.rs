//! What the servers of each vendor mean by a result whose code alone does not say it: one table, with the source of
//! each row.
//!
//! A row is chosen by the code and by words of the server's text. It explains, names an account state, or takes a code
//! that seems to concern the entry for what it is, a demand on the connection. No row accepts, and none makes a wrong
//! password of another code.

use crate::outcome::AccountState;

/// Whose servers send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    OpenLdap,
    Ds389,
    ActiveDirectory,
    EDirectory,
}

impl Vendor {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OpenLdap => "OpenLDAP",
            Self::Ds389 => "389-DS",
            Self::ActiveDirectory => "Active Directory",
            Self::EDirectory => "eDirectory",
        }
    }
}

/// What of the text chooses the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing: what this vendor's servers mean by the code whatever the text.
    Code,
    /// These words.
    Words(&'static str),
    /// This sub-code in the text of Active Directory and Samba (winerror.h).
    Data(u32),
    /// This number, negative, in the text of eDirectory.
    Nds(u32),
}

/// What the row adds to the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Words only.
    AsCode,
    /// The account may not log in; whether that is reported only after a correct password.
    Account(AccountState, bool),
    /// There is no such account.
    NoAccount,
    /// The server demands TLS of every user.
    Tls,
    /// The server demands a bind before a search.
    ServiceAccount,
}

impl Meaning {
    /// Whether it concerns every user, and so says nothing about the entry of a request.
    pub(crate) const fn is_about_connection(self) -> bool {
        matches!(self, Self::Tls | Self::ServiceAccount)
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VendorResult {
    pub(crate) vendor: Vendor,
    pub(crate) codes: &'static [u32],
    pub(crate) mark: Mark,
    pub(crate) meaning: Meaning,
    /// The same in words.
    pub(crate) words: &'static str,
    pub(crate) source: &'static str,
}

const fn row(
    vendor: Vendor,
    codes: &'static [u32],
    mark: Mark,
    meaning: Meaning,
    (words, source): (&'static str, &'static str),
) -> VendorResult {
    VendorResult { vendor, codes, mark, meaning, words, source }
}

use AccountState as State;
use Mark::{Code, Data, Nds, Words};
use Meaning::{Account, AsCode, NoAccount, ServiceAccount, Tls};
use Vendor::{ActiveDirectory, Ds389, EDirectory, OpenLdap};

const SLAPD: &str = "slapd.conf(5)";
const NS_SLAPD: &str = "389-DS, ldap/servers/slapd";
const MS_ADTS: &str = "[MS-ADTS] 3.1.1.3.1";
const WINERROR: &str = "winerror.h";
const TID: &str = "Novell TID 10067240";

/// The table: of each vendor ascending by code, rows with words before those without.
pub(crate) const VENDOR_RESULTS: &[VendorResult] = &[
    row(OpenLdap, &[4], Code, AsCode, ("`sizelimit`, or a `limits` line for the service account, is reached", SLAPD)),
    row(OpenLdap, &[8], Words("strong(er) authentication required"), Tls, ("`require strong`", SLAPD)),
    row(
        OpenLdap,
        &[8],
        Words("SASL authentication required"),
        AsCode,
        ("`require sasl`: no password can be checked", SLAPD),
    ),
    row(
        OpenLdap,
        &[8],
        Words("authentication required"),
        ServiceAccount,
        ("`require authc`: no anonymous search", SLAPD),
    ),
    row(OpenLdap, &[13], Words("confidentiality required"), Tls, ("`security` demands TLS", SLAPD)),
    row(OpenLdap, &[48], Words("anonymous bind disallowed"), ServiceAccount, ("`disallow bind_anon`", SLAPD)),
    row(
        OpenLdap,
        &[48],
        Code,
        AsCode,
        ("the entry has no userPassword, with some backends", "slapd, bind.c of a backend"),
    ),
    row(
        OpenLdap,
        &[53],
        Words("unwilling to perform simple authentication"),
        AsCode,
        ("`disallow bind_simple`: no password can be checked", SLAPD),
    ),
    row(Ds389, &[4], Code, AsCode, ("`nsslapd-sizelimit`, or the account's `nsSizeLimit`, is reached", NS_SLAPD)),
    row(Ds389, &[13], Words("requires a secure connection"), Tls, ("`nsslapd-require-secure-binds`", NS_SLAPD)),
    row(
        Ds389,
        &[19],
        Words("Exceed password retry limit"),
        Account(State::Locked, false),
        ("locked after wrong passwords", NS_SLAPD),
    ),
    row(
        Ds389,
        &[48],
        Words("Anonymous access is not allowed"),
        ServiceAccount,
        ("`nsslapd-allow-anonymous-access: off`", NS_SLAPD),
    ),
    row(Ds389, &[48], Code, AsCode, ("the entry has no userPassword", NS_SLAPD)),
    row(Ds389, &[53], Words("Minimum SSF not met"), Tls, ("`nsslapd-minssf` demands TLS", NS_SLAPD)),
    row(
        Ds389,
        &[53],
        Words("Account inactivated"),
        Account(State::Disabled, false),
        ("`nsAccountLock`: disabled by an administrator, or by its role", NS_SLAPD),
    ),
    row(
        ActiveDirectory,
        &[1],
        Words("a successful bind must be completed"),
        ServiceAccount,
        ("no anonymous search; also after a search that left the domain", MS_ADTS),
    ),
    row(ActiveDirectory, &[4], Code, AsCode, ("`MaxPageSize` (1,000) is reached", MS_ADTS)),
    row(
        ActiveDirectory,
        &[8],
        Words("requires binds to turn on integrity checking"),
        Tls,
        ("LDAP signing is required: no simple bind without TLS", MS_ADTS),
    ),
    row(ActiveDirectory, &[49], Data(0x525), NoAccount, ("ERROR_NO_SUCH_USER", WINERROR)),
    row(ActiveDirectory, &[49], Data(0x52e), AsCode, ("ERROR_LOGON_FAILURE: wrong password", WINERROR)),
    row(
        ActiveDirectory,
        &[49],
        Data(0x530),
        Account(State::OutsideLogonHours, true),
        ("ERROR_INVALID_LOGON_HOURS", WINERROR),
    ),
    row(
        ActiveDirectory,
        &[49],
        Data(0x531),
        Account(State::WrongWorkstation, true),
        ("ERROR_INVALID_WORKSTATION", WINERROR),
    ),
    row(
        ActiveDirectory,
        &[49],
        Data(0x532),
        Account(State::PasswordExpired, true),
        ("ERROR_PASSWORD_EXPIRED", WINERROR),
    ),
    row(ActiveDirectory, &[49], Data(0x533), Account(State::Disabled, true), ("ERROR_ACCOUNT_DISABLED", WINERROR)),
    row(ActiveDirectory, &[49], Data(0x701), Account(State::AccountExpired, true), ("ERROR_ACCOUNT_EXPIRED", WINERROR)),
    row(
        ActiveDirectory,
        &[49],
        Data(0x773),
        Account(State::PasswordMustChange, true),
        ("ERROR_PASSWORD_MUST_CHANGE", WINERROR),
    ),
    // Reported for a right and for a wrong password.
    row(ActiveDirectory, &[49], Data(0x775), Account(State::Locked, false), ("ERROR_ACCOUNT_LOCKED_OUT", WINERROR)),
    row(
        EDirectory,
        &[13],
        Code,
        Tls,
        ("\"Require TLS for Simple Binds with Password\" of the LDAP Group", "eDirectory administration guide"),
    ),
    // Which of these states are reported only after a correct password differs between versions.
    row(EDirectory, &[49, 53], Nds(197), Account(State::Locked, false), ("login lockout: intruder detection", TID)),
    row(
        EDirectory,
        &[49, 53],
        Nds(217),
        AsCode,
        ("maximum logins exceeded: as many connections as the entry permits", TID),
    ),
    row(EDirectory, &[49, 53], Nds(218), Account(State::OutsideLogonHours, false), ("bad login time", TID)),
    row(
        EDirectory,
        &[49, 53],
        Nds(220),
        Account(State::Disabled, false),
        ("log account expired: disabled by an administrator, or expired", TID),
    ),
    row(
        EDirectory,
        &[49, 53],
        Nds(222),
        Account(State::PasswordExpired, false),
        ("bad password: the password has expired, and no grace login is left", TID),
    ),
    row(EDirectory, &[49], Nds(669), AsCode, ("failed authentication: wrong password", TID)),
];

/// The text that precedes a sub-code of Active Directory and Samba.
const SUB_CODE: &str = "AcceptSecurityContext error, data ";
/// The text that precedes a number of eDirectory.
const NDS: &str = "NDS error:";

/// The row that the server's text chooses; `None`: the code stands alone.
pub(crate) fn of(code: u32, text: &str) -> Option<&'static VendorResult> {
    let (data, nds) = (sub_code(text), nds_number(text));
    VENDOR_RESULTS.iter().filter(|row| row.codes.contains(&code)).find(|row| match row.mark {
        Mark::Code => false,
        Mark::Words(words) => text.contains(words),
        Mark::Data(number) => data == Some(number),
        Mark::Nds(number) => nds == Some(number),
    })
}

/// What servers may mean by a result, in words: what its text says, or what the code says at each vendor's.
pub(crate) fn words(code: u32, text: &str) -> Option<String> {
    let said = |row: &VendorResult| format!("{}: {}", row.vendor.name(), row.words);
    if let Some(row) = of(code, text) {
        return Some(said(row));
    }
    let by_code = VENDOR_RESULTS.iter().filter(|row| row.mark == Mark::Code && row.codes.contains(&code));
    let words: Vec<_> = by_code.map(said).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// The sub-code in a text of Active Directory.
pub(crate) fn sub_code(text: &str) -> Option<u32> {
    let (_, behind) = text.split_once(SUB_CODE)?;
    let digits = behind.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    u32::from_str_radix(digits, 16).ok()
}

/// The number in a text of eDirectory, such as `NDS error: login lockout (-197)`.
fn nds_number(text: &str) -> Option<u32> {
    let (_, behind) = text.split_once(NDS)?;
    let (_, number) = behind.split_once("(-")?;
    let (digits, _) = number.split_once(')')?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ldap::result::{self, BindMeaning};

    #[test]
    fn text_chooses_the_row() {
        let meaning = |code, text: &str| of(code, text).map(|row| (row.vendor, row.meaning));
        assert_eq!(meaning(53, "NDS error: login lockout (-197)"), Some((EDirectory, Account(State::Locked, false))));
        assert_eq!(
            meaning(53, "NDS error: log account expired (-220)"),
            Some((EDirectory, Account(State::Disabled, false)))
        );
        assert_eq!(meaning(49, "NDS error: failed authentication (-669)"), Some((EDirectory, AsCode)));
        assert_eq!(meaning(8, "authentication required"), Some((OpenLdap, ServiceAccount)));
        assert_eq!(meaning(13, "stronger TLS confidentiality required"), Some((OpenLdap, Tls)));
        assert_eq!(meaning(53, "Minimum SSF not met."), Some((Ds389, Tls)));
        let data = "80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 533, v2580";
        assert_eq!(meaning(49, data), Some((ActiveDirectory, Account(State::Disabled, true))));
        for (code, text) in [
            (52, "NDS error: login lockout (-197)"),
            (53, "login lockout (-197)"),
            (53, "NDS error: login lockout (197)"),
            (53, "NDS error: (-99999999999)"),
            (53, "NDS error: (-197"),
            (53, data),
            (48, ""),
        ] {
            assert_eq!(meaning(code, text), None, "{code} {text}");
        }
    }

    #[test]
    fn words_are_those_of_the_text_or_of_each_vendor() {
        assert_eq!(words(53, "Minimum SSF not met.").as_deref(), Some("389-DS: `nsslapd-minssf` demands TLS"));
        let of_code = words(4, "").unwrap();
        let vendors = ["OpenLDAP: ", "; 389-DS: ", "; Active Directory: "];
        assert!(vendors.iter().all(|vendor| of_code.contains(vendor)), "{of_code}");
        assert_eq!((words(53, ""), words(0, ""), words(4_711, "x")), (None, None, None));
    }

    /// What concerns all users stands beside a code that decides nothing by itself, or that seems to concern the entry:
    /// never beside a wrong password.
    #[test]
    fn no_row_accepts_and_none_takes_an_outage_for_a_wrong_password() {
        for row in VENDOR_RESULTS {
            for code in row.codes {
                let bind = result::of(*code).bind;
                assert_ne!(bind, BindMeaning::Accepted, "{row:?}");
                if row.meaning.is_about_connection() {
                    assert_ne!(bind, BindMeaning::WrongPassword, "{row:?}");
                }
                if row.meaning == NoAccount {
                    assert_eq!(bind, BindMeaning::WrongPassword, "{row:?}");
                }
            }
            let mark = match row.mark {
                Mark::Words(words) => words.len(),
                Mark::Code | Mark::Data(_) | Mark::Nds(_) => usize::MAX,
            };
            assert!(mark > 16 && !row.words.is_empty() && !row.source.is_empty(), "{row:?}");
        }
    }

    #[test]
    fn manual_has_the_table() {
        let manual = include_str!("../../../docs/directory.md");
        for row in VENDOR_RESULTS {
            let codes: Vec<_> = row.codes.iter().map(ToString::to_string).collect();
            let mark = match row.mark {
                Mark::Code => String::new(),
                Mark::Words(words) => format!("\"{words}\""),
                Mark::Data(number) => format!("`data {number:x}`"),
                Mark::Nds(number) => format!("`(-{number})`"),
            };
            let meaning = match row.meaning {
                Meaning::AsCode => "as the code alone",
                Meaning::Account(state, _) => state.label(),
                Meaning::NoAccount => "unknown_user",
                Meaning::Tls => "directory_unavailable; the advice is TLS",
                Meaning::ServiceAccount => "directory_unavailable; the advice is `bind_dn`",
            };
            let codes = codes.join(", ");
            let line =
                format!("| {} | {codes} | {mark} | {} | {meaning} | {} |", row.vendor.name(), row.words, row.source);
            assert!(manual.contains(&line), "docs/directory.md lacks:\n{line}");
        }
    }
}
