//! Filters and DNs in the configuration, with their placeholders.
//!
//! A template is parsed here once; what a user types is escaped into it by the directory and never
//! becomes one. The shape is checked with a sample in place of each placeholder that is sound as a
//! value and as nothing else, so that no login can choose an attribute. RFC 4514 (DN), 4515
//! (filter).

use super::model::{Template, TemplatePart};
use super::names::is_descr;

/// Stands for what a user types: an escaped octet, a value in a filter and in a DN, but no
/// attribute in either.
const SAMPLE: &str = "\\2a";

/// Deeper filters are refused before the recursive parser sees them; real ones nest to 4 or 5.
const DEEPEST_FILTER: usize = 32;

/// Why a text is no template for finding a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    #[error("unknown placeholder {{{}}}: there are {{login}}, {{local}} and {{domain}}", .0.escape_debug())]
    Unknown(String),
    #[error("a brace without its partner: a literal brace is written \\7b or \\7d")]
    Brace,
    #[error("a backslash may not stand before a placeholder")]
    Backslash,
    #[error("it names no user: put {{login}} (the name as typed) or {{local}} (what is before the @) into it")]
    NoLogin,
    #[error("not a filter (RFC 4515): parentheses around every part, no blanks between, placeholders in values only")]
    NotAFilter,
    #[error("the filter nests too deep: 32 levels are the limit")]
    TooDeep,
    #[error("the same for every user: no placeholder and no brace; a literal brace is written \\7b or \\7d")]
    Fixed,
    #[error(
        "not a DN (RFC 4514) like uid={{local}},ou=people,dc=example,dc=com, placeholders in values only, nor a \
         principal name like {{login}}@ad.example.com"
    )]
    NotADnTemplate,
    #[error("not a DN (RFC 4514) like ou=people,dc=example,dc=com")]
    NotADn,
}

/// Reads a filter template.
pub(super) fn filter(text: &str) -> Result<Template, TemplateError> {
    let template = parse(text)?;
    if nesting(text) > DEEPEST_FILTER {
        return Err(TemplateError::TooDeep);
    }
    // The library also takes a bare `uid=x`, which RFC 4515 does not.
    let sample = sample(&template);
    if sample.starts_with('(') && ldap3::parse_filter(&sample).is_ok() {
        Ok(template)
    } else {
        Err(TemplateError::NotAFilter)
    }
}

/// Reads a filter that is the same for every user.
pub(super) fn fixed_filter(text: &str) -> Result<String, TemplateError> {
    if text.contains(['{', '}']) {
        return Err(TemplateError::Fixed);
    }
    if nesting(text) > DEEPEST_FILTER {
        return Err(TemplateError::TooDeep);
    }
    if text.starts_with('(') && ldap3::parse_filter(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err(TemplateError::NotAFilter)
    }
}

/// Who to bind as, made from a login name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UserName {
    /// A DN.
    Dn(Template),
    /// A principal name of Active Directory.
    Principal(Template),
}

/// Reads a template for a DN, or for a principal name such as `{login}@ad.example.com`.
pub(super) fn user_dn(text: &str) -> Result<UserName, TemplateError> {
    let template = parse(text)?;
    let sample = sample(&template);
    if is_dn(&sample) {
        return Ok(UserName::Dn(template));
    }
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    // Where its placeholders stand has no escape: only plain letters are ever put there.
    match sample.replace(SAMPLE, "x").split_once('@') {
        Some((name, domain)) if plain(name) && plain(domain) => Ok(UserName::Principal(template)),
        Some(_) | None => Err(TemplateError::NotADnTemplate),
    }
}

/// Checks a base DN; the empty one is the root of the tree (an Active Directory global catalog).
pub(super) fn base_dn(text: &str) -> Result<String, TemplateError> {
    if text.is_empty() || is_dn(text) { Ok(text.to_owned()) } else { Err(TemplateError::NotADn) }
}

/// Checks a service account's name: a DN, or the `name@domain` that Active Directory also binds.
pub(super) fn bind_name(text: &str) -> Result<String, TemplateError> {
    let principal = |(name, domain): (&str, &str)| !name.is_empty() && !domain.is_empty() && !text.contains([',', '=']);
    if is_dn(text) || text.split_once('@').is_some_and(principal) {
        Ok(text.to_owned())
    } else {
        Err(TemplateError::NotADn)
    }
}

/// Splits a text at its placeholders.
fn parse(text: &str) -> Result<Template, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').ok_or(TemplateError::Brace)?;
        if before.contains('}') || name.contains('{') {
            return Err(TemplateError::Brace);
        }
        // `\` + an escaped name would be read as something else than the name.
        if before.ends_with('\\') {
            return Err(TemplateError::Backslash);
        }
        if !before.is_empty() {
            parts.push(TemplatePart::Text(before.to_owned()));
        }
        parts.push(match name {
            "login" => TemplatePart::Login,
            "local" => TemplatePart::Local,
            "domain" => TemplatePart::Domain,
            other => return Err(TemplateError::Unknown(other.chars().take(40).collect())),
        });
        rest = behind;
    }
    if rest.contains('}') {
        return Err(TemplateError::Brace);
    }
    if !parts.iter().any(|part| matches!(part, TemplatePart::Login | TemplatePart::Local)) {
        return Err(TemplateError::NoLogin);
    }
    if !rest.is_empty() {
        parts.push(TemplatePart::Text(rest.to_owned()));
    }
    Ok(Template { parts })
}

/// The text with the sample in place of each placeholder.
fn sample(template: &Template) -> String {
    let texts = template.parts.iter().map(|part| match part {
        TemplatePart::Text(text) => text.as_str(),
        TemplatePart::Login | TemplatePart::Local | TemplatePart::Domain => SAMPLE,
    });
    texts.collect()
}

/// How deep the parentheses go.
fn nesting(text: &str) -> usize {
    let depth = text.bytes().scan(0_usize, |depth, byte| {
        match byte {
            b'(' => *depth += 1,
            b')' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    depth.max().unwrap_or(0)
}

/// Whether a text has the shape of a DN: `type=value`, joined by `+` and `,`. Quoted values of
/// RFC 2253 are refused, as RFC 4514 does.
fn is_dn(text: &str) -> bool {
    split(text, b',').all(|rdn| split(rdn, b'+').all(is_type_and_value))
}

fn is_type_and_value(text: &str) -> bool {
    let Some((kind, value)) = text.split_once('=') else { return false };
    let kind = kind.trim_matches(' ');
    let numeric = |oid: &str| oid.split('.').all(|arc| !arc.is_empty() && arc.bytes().all(|b| b.is_ascii_digit()));
    (is_descr(kind) || (kind.contains('.') && numeric(kind))) && is_value(value.trim_start_matches(' '))
}

fn is_value(value: &str) -> bool {
    if let Some(hex) = value.strip_prefix('#') {
        return !hex.is_empty() && hex.len().is_multiple_of(2) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let (mut rest, mut ends_blank) = (value.bytes(), false);
    while let Some(byte) = rest.next() {
        ends_blank = byte == b' ';
        let sound = match byte {
            b'\\' => match rest.next() {
                Some(b' ' | b'"' | b'#' | b'+' | b',' | b';' | b'<' | b'=' | b'>' | b'\\') => true,
                Some(high) => high.is_ascii_hexdigit() && rest.next().is_some_and(|low| low.is_ascii_hexdigit()),
                None => false,
            },
            b'"' | b';' | b'<' | b'>' | 0 => false,
            _ => true,
        };
        if !sound {
            return false;
        }
    }
    // A blank at the end is part of the value only if it is escaped (RFC 4514 section 2.4).
    !value.is_empty() && !ends_blank
}

/// Splits at a separator that is not escaped.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut escaped = false;
        let end = text.bytes().position(|byte| {
            let found = !escaped && byte == separator;
            escaped = !escaped && byte == b'\\';
            found
        });
        rest = end.and_then(|end| text.get(end + 1..));
        text.get(..end.unwrap_or(text.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_is_split_into_parts() {
        let text = |text: &str| TemplatePart::Text(text.into());
        let template = filter("(|(uid={local})(mail={login}))").unwrap();
        let parts = [text("(|(uid="), TemplatePart::Local, text(")(mail="), TemplatePart::Login, text("))")];
        assert_eq!(template.parts, parts);
        let template = filter("(&(uid={local})(o={domain}))").unwrap();
        assert_eq!(template.parts[3], TemplatePart::Domain);
    }

    #[test]
    fn valid_filters_are_accepted() {
        for text in [
            "(uid={login})",
            "(&(objectClass=person)(!(shadowExpire=0))(|(uid={login})(mail={local}@{domain})))",
            "(proxyAddresses=smtp:{login})",
            "(memberOf:1.2.840.113556.1.4.1941:={login})",
            "(uid=\\7b{login}\\7d)",
            "(&(uid={login})(description=größe))",
        ] {
            assert!(filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn invalid_filters_are_refused() {
        let unknown = |name: &str| TemplateError::Unknown(name.into());
        for (text, error) in [
            ("", TemplateError::NoLogin),
            ("(uid=alice)", TemplateError::NoLogin),
            ("(o={domain})", TemplateError::NoLogin),
            ("uid={login}", TemplateError::NotAFilter),
            ("(uid={login}", TemplateError::NotAFilter),
            ("(|(uid={login})(mail={login})", TemplateError::NotAFilter),
            ("(|(uid={login}) (mail={login}))", TemplateError::NotAFilter),
            ("({login}=x)", TemplateError::NotAFilter),
            ("(uid:{login}:=x)", TemplateError::NotAFilter),
            ("(&{login})", TemplateError::NotAFilter),
            ("(uid=\\zz{login})", TemplateError::NotAFilter),
            ("(uid=\\{login})", TemplateError::Backslash),
            ("(uid={user})", unknown("user")),
            ("(uid={})", unknown("")),
            ("(uid={Login})", unknown("Login")),
            ("(uid={login)", TemplateError::Brace),
            ("(uid=login})", TemplateError::Brace),
            ("(uid={login})}", TemplateError::Brace),
            ("(uid={{login}})", TemplateError::Brace),
        ] {
            assert_eq!(filter(text), Err(error), "{text}");
        }
        let deep = format!("{}(uid={{login}}){}", "(!".repeat(100_000), ")".repeat(100_000));
        assert_eq!(filter(&deep), Err(TemplateError::TooDeep));
    }

    #[test]
    fn dns_are_checked() {
        for text in [
            "dc=com",
            "uid=a,ou=people, dc=example,dc=com",
            "cn=Smith\\, John+uid=js,o=x",
            "2.5.4.3=x",
            "cn=\\e4\\c3",
            "cn=#0403,o=\\#x\\ ",
            "CN=Jürgen Groß,O=x",
        ] {
            assert_eq!(base_dn(text), Ok(text.into()), "{text}");
        }
        assert_eq!(base_dn(""), Ok(String::new()));
        for text in [
            "people",
            "ou=",
            "=x",
            "ou=a,,dc=b",
            "ou=a,",
            ",ou=a",
            "ou=a+",
            "o u=a",
            "2.=x",
            "cn=\"a\"",
            "cn=a;o=b",
            "cn=a\\",
            "cn=\\z",
            "cn=\\4",
            "cn=#4",
            "cn=a\\,o=b,c",
            "ou=a ,dc=b",
            "ou=a ",
        ] {
            assert_eq!(base_dn(text), Err(TemplateError::NotADn), "{text}");
        }
        assert!(bind_name("usher@example.com").is_ok() && bind_name("cn=usher,dc=x").is_ok());
        assert!(bind_name("usher").is_err() && bind_name("@x").is_err() && bind_name("").is_err());
    }

    #[test]
    fn dn_templates_are_checked() {
        assert!(user_dn("uid={local},ou=people,dc=example,dc=com").is_ok());
        assert!(user_dn("uid={local}+o={domain},dc=example").is_ok());
        for (text, error) in [
            ("uid=alice,dc=x", TemplateError::NoLogin),
            ("uid={login},", TemplateError::NotADnTemplate),
            ("uid={login} ", TemplateError::NotADnTemplate),
            ("{login}", TemplateError::NotADnTemplate),
            ("{login}=x,dc=y", TemplateError::NotADnTemplate),
            ("{login}@", TemplateError::NotADnTemplate),
            ("{login}@a@b", TemplateError::NotADnTemplate),
            ("{login} @example.com", TemplateError::NotADnTemplate),
            ("uid=#{login},dc=y", TemplateError::NotADnTemplate),
            ("uid=\"{login}\",dc=y", TemplateError::NotADnTemplate),
            ("uid=\\{login},dc=y", TemplateError::Backslash),
            ("uid=\\2{login},dc=y", TemplateError::NotADnTemplate),
        ] {
            assert_eq!(user_dn(text), Err(error), "{text}");
        }
    }
}
