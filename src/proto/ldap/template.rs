//! Templates of filters, DNs and principal names: text with placeholders for a login name.
//!
//! A template is parsed once. The name is data, never syntax: each placeholder is escaped for its position, and
//! substituted text is never searched for placeholders (promise 3). The shape is checked with a sample in place of each
//! placeholder that is valid as a value and as nothing else, so that no login can choose an attribute. RFC 4515 section 3
//! (filter), RFC 4514 section 2.4 (DN).

use std::borrow::Cow;

use super::SyntaxError;
use super::dn::is_dn;
use super::filter::{self as filters, ANY_ENTRY};
use crate::base::credential::Login;

/// Stands for what a user types: an escaped octet, a value in a filter and in a DN, but no
/// attribute in either.
const SAMPLE: &str = "\\2a";

/// A text with placeholders, parsed once; user input never becomes a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The parts in order.
    pub parts: Vec<TemplatePart>,
}

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text taken as it is.
    Text(String),
    /// The whole login name.
    Login,
    /// What is before the last `@`, or the whole name.
    Local,
    /// What is behind the last `@`, or nothing.
    Domain,
}

/// A template of the name to bind with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserName {
    /// A DN.
    Dn(Template),
    /// A principal name of Active Directory.
    Principal(Template),
}

/// Reads a template of a filter.
pub(crate) fn parse_filter(text: &str) -> Result<Template, SyntaxError> {
    let template = parse(text)?;
    filters::check(&sample(&template))?;
    Ok(template)
}

/// Reads a template of a filter for the value of a claim, which is its `{claim}`.
pub(crate) fn parse_claim_filter(text: &str) -> Result<Template, SyntaxError> {
    let template = split(text, |name| match name {
        "claim" => Ok(TemplatePart::Login),
        other => Err(SyntaxError::UnknownInClaim(shortened(other))),
    })?;
    if !template.parts.contains(&TemplatePart::Login) {
        return Err(SyntaxError::NoClaim);
    }
    filters::check(&sample(&template))?;
    Ok(template)
}

/// Reads a template for a DN, or for a principal name such as `{login}@ad.example.com`.
pub(crate) fn parse_user_dn(text: &str) -> Result<UserName, SyntaxError> {
    let template = parse(text)?;
    let sample = sample(&template);
    if is_dn(&sample) {
        return Ok(UserName::Dn(template));
    }
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    // Where its placeholders stand has no escape: only plain letters are ever put there.
    match sample.replace(SAMPLE, "x").split_once('@') {
        Some((name, domain)) if plain(name) && plain(domain) => Ok(UserName::Principal(template)),
        Some(_) | None => Err(SyntaxError::NotADnTemplate),
    }
}

/// Splits a text at the placeholders of a login name.
fn parse(text: &str) -> Result<Template, SyntaxError> {
    let template = split(text, |name| match name {
        "login" => Ok(TemplatePart::Login),
        "local" => Ok(TemplatePart::Local),
        "domain" => Ok(TemplatePart::Domain),
        other => Err(SyntaxError::Unknown(shortened(other))),
    })?;
    if !template.parts.iter().any(|part| matches!(part, TemplatePart::Login | TemplatePart::Local)) {
        return Err(SyntaxError::NoLogin);
    }
    Ok(template)
}

fn shortened(name: &str) -> String {
    name.chars().take(40).collect()
}

/// Splits a text at its placeholders.
fn split(text: &str, placeholder: impl Fn(&str) -> Result<TemplatePart, SyntaxError>) -> Result<Template, SyntaxError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').ok_or(SyntaxError::Brace)?;
        if before.contains('}') || name.contains('{') {
            return Err(SyntaxError::Brace);
        }
        // `\` + an escaped name would be read as something else than the name.
        if before.ends_with('\\') {
            return Err(SyntaxError::Backslash);
        }
        if !before.is_empty() {
            parts.push(TemplatePart::Text(before.to_owned()));
        }
        parts.push(placeholder(name)?);
        rest = behind;
    }
    if rest.contains('}') {
        return Err(SyntaxError::Brace);
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

/// A filter for every user that this one could find: each placeholder becomes `*`. If that is not a valid filter, one
/// for every entry.
pub(crate) fn filter_for_all(filter: &Template) -> String {
    let every = || ANY_ENTRY.to_owned();
    let mut text = String::new();
    for part in &filter.parts {
        match part {
            TemplatePart::Text(fixed) => text.push_str(fixed),
            TemplatePart::Login | TemplatePart::Local | TemplatePart::Domain => {
                // Two adjacent stars are invalid, and only an equality has stars.
                let operator = text.rfind('=').and_then(|at| at.checked_sub(1)).and_then(|at| text.as_bytes().get(at));
                if matches!(operator, Some(b':' | b'~' | b'<' | b'>')) {
                    return every();
                }
                if !text.ends_with('*') {
                    text.push('*');
                }
            }
        }
    }
    if ldap3::parse_filter(&text).is_ok() { text } else { every() }
}

/// The base of the DNs that this template makes: the text after the RDN of its last placeholder; empty if the DN
/// ends with a placeholder.
pub(crate) fn base_of(dn: &Template) -> String {
    match dn.parts.last() {
        // The rest of the RDN that the placeholder stands in ends with its comma.
        Some(TemplatePart::Text(text)) => text.split_once(',').map(|(_, base)| base.to_owned()).unwrap_or_default(),
        Some(TemplatePart::Login | TemplatePart::Local | TemplatePart::Domain) | None => String::new(),
    }
}

/// The search filter for this name; `None` if the name lacks a part that the filter requires.
#[must_use]
pub(crate) fn filter(template: &Template, login: &Login) -> Option<String> {
    render(template, login, |value| Some(ldap3::ldap_escape(value)))
}

/// The DN for this name; `None` if the name lacks a part that the DN requires.
#[must_use]
pub(crate) fn dn(template: &Template, login: &Login) -> Option<String> {
    render(template, login, |value| Some(ldap3::dn_escape(value)))
}

/// The principal name for this name; `None` if the name lacks a part, or has a character other than letters, digits and
/// `'.-_!#^~&`. A principal name has no escapes: another `@` would move it to another domain, and with `\`, `/`, `=`, `,`,
/// `{` or `;` a domain controller would read it as a name of another form (MS-ADTS section 5.1.1.1.1).
#[must_use]
pub(crate) fn principal(template: &Template, login: &Login) -> Option<String> {
    let is_plain = |value: &str| value.chars().all(|char| char.is_alphanumeric() || "'.-_!#^~&".contains(char));
    render(template, login, |value| is_plain(value).then_some(Cow::Borrowed(value)))
}

fn render(
    template: &Template,
    login: &Login,
    escape: impl for<'s> Fn(&'s str) -> Option<Cow<'s, str>>,
) -> Option<String> {
    let whole = login.as_str();
    let (local, domain) = whole.rsplit_once('@').unwrap_or((whole, ""));
    let mut text = String::new();
    for part in &template.parts {
        let value = match part {
            TemplatePart::Text(fixed) => {
                text.push_str(fixed);
                continue;
            }
            TemplatePart::Login => whole,
            TemplatePart::Local => local,
            TemplatePart::Domain => domain,
        };
        // An empty value would make another request than configured: `(mail=@x)`, `uid=,ou=..`.
        if value.is_empty() {
            return None;
        }
        text.push_str(&escape(value)?);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_is_split_into_parts() {
        let text = |text: &str| TemplatePart::Text(text.into());
        let template = parse_filter("(|(uid={local})(mail={login}))").unwrap();
        let parts = [text("(|(uid="), TemplatePart::Local, text(")(mail="), TemplatePart::Login, text("))")];
        assert_eq!(template.parts, parts);
        let template = parse_filter("(&(uid={local})(o={domain}))").unwrap();
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
            assert!(parse_filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn invalid_filters_are_refused() {
        let unknown = |name: &str| SyntaxError::Unknown(name.into());
        for (text, error) in [
            ("", SyntaxError::NoLogin),
            ("(uid=alice)", SyntaxError::NoLogin),
            ("(o={domain})", SyntaxError::NoLogin),
            ("uid={login}", SyntaxError::NotAFilter),
            ("(uid={login}", SyntaxError::NotAFilter),
            ("(|(uid={login})(mail={login})", SyntaxError::NotAFilter),
            ("(|(uid={login}) (mail={login}))", SyntaxError::NotAFilter),
            ("({login}=x)", SyntaxError::NotAFilter),
            ("(uid:{login}:=x)", SyntaxError::NotAFilter),
            ("(&{login})", SyntaxError::NotAFilter),
            ("(uid=\\zz{login})", SyntaxError::NotAFilter),
            ("(uid=\\{login})", SyntaxError::Backslash),
            ("(uid={user})", unknown("user")),
            ("(uid={})", unknown("")),
            ("(uid={Login})", unknown("Login")),
            ("(uid={login)", SyntaxError::Brace),
            ("(uid=login})", SyntaxError::Brace),
            ("(uid={login})}", SyntaxError::Brace),
            ("(uid={{login}})", SyntaxError::Brace),
        ] {
            assert_eq!(parse_filter(text), Err(error), "{text}");
        }
        let deep = format!("{}(uid={{login}}){}", "(!".repeat(100_000), ")".repeat(100_000));
        assert_eq!(parse_filter(&deep), Err(SyntaxError::TooDeep));
    }

    #[test]
    fn dn_templates_are_checked() {
        assert!(parse_user_dn("uid={local},ou=people,dc=example,dc=com").is_ok());
        assert!(parse_user_dn("uid={local}+o={domain},dc=example").is_ok());
        for (text, error) in [
            ("uid=alice,dc=x", SyntaxError::NoLogin),
            ("uid={login},", SyntaxError::NotADnTemplate),
            ("uid={login} ", SyntaxError::NotADnTemplate),
            ("{login}", SyntaxError::NotADnTemplate),
            ("{login}=x,dc=y", SyntaxError::NotADnTemplate),
            ("{login}@", SyntaxError::NotADnTemplate),
            ("{login}@a@b", SyntaxError::NotADnTemplate),
            ("{login} @example.com", SyntaxError::NotADnTemplate),
            ("uid=#{login},dc=y", SyntaxError::NotADnTemplate),
            ("uid=\"{login}\",dc=y", SyntaxError::NotADnTemplate),
            ("uid=\\{login},dc=y", SyntaxError::Backslash),
            ("uid=\\2{login},dc=y", SyntaxError::NotADnTemplate),
        ] {
            assert_eq!(parse_user_dn(text), Err(error), "{text}");
        }
    }

    fn template(parts: &[TemplatePart]) -> Template {
        Template { parts: parts.to_vec() }
    }

    fn text(text: &str) -> TemplatePart {
        TemplatePart::Text(text.to_owned())
    }

    fn login(name: &str) -> Login {
        Login::parse(name.as_bytes()).unwrap()
    }

    #[test]
    fn filter_metacharacters_are_escaped() {
        let template =
            template(&[text("(|(uid="), TemplatePart::Login, text(")(mail="), TemplatePart::Login, text("))")]);
        assert_eq!(
            filter(&template, &login(r"*)(uid=a\")).unwrap(),
            r"(|(uid=\2a\29\28uid=a\5c)(mail=\2a\29\28uid=a\5c))"
        );
        assert_eq!(filter(&template, &login("jürgen")).unwrap(), "(|(uid=jürgen)(mail=jürgen))");
        // A placeholder typed by a user is ordinary text.
        assert_eq!(filter(&template, &login("{login}")).unwrap(), "(|(uid={login})(mail={login}))");
    }

    #[test]
    fn dn_metacharacters_are_escaped() {
        let template = template(&[text("uid="), TemplatePart::Local, text(",dc="), TemplatePart::Domain]);
        assert_eq!(dn(&template, &login("a,ou=x+y@example")).unwrap(), r"uid=a\2cou\3dx\2by,dc=example");
        assert_eq!(dn(&template, &login("# a @b")).unwrap(), r"uid=\23 a\20,dc=b");
        assert_eq!(dn(&template, &login("#a@b")).unwrap(), r"uid=\23a,dc=b");
        assert_eq!(dn(&template, &login(r#"a"<>;\@b"#)).unwrap(), r"uid=a\22\3c\3e\3b\5c,dc=b");
    }

    #[test]
    fn principal_allows_the_characters_of_principal_names_only() {
        let template = template(&[TemplatePart::Local, text("@ad.example.com")]);
        assert_eq!(principal(&template, &login("Al.ice_b-2@elsewhere")).unwrap(), "Al.ice_b-2@ad.example.com");
        let whole = Template { parts: vec![TemplatePart::Login, text("@ad.example.com")] };
        for name in ["o'neil", "j\u{fc}rgen", "a.b-c_d!e#f^g~h&i"] {
            assert_eq!(principal(&whole, &login(name)).unwrap(), format!("{name}@ad.example.com"));
        }
        for char in "@\\/[]:;|=,+*?<>\"(){}$% \u{301}\u{200b}".chars() {
            assert_eq!(principal(&whole, &login(&format!("al{char}ice"))), None, "{char:?}");
        }
    }

    #[test]
    fn local_is_before_the_last_at() {
        let template = template(&[TemplatePart::Local, text("|"), TemplatePart::Domain]);
        assert_eq!(filter(&template, &login("a@b@c")).unwrap(), "a@b|c");
    }

    #[test]
    fn missing_part_yields_no_request() {
        let both = template(&[TemplatePart::Local, text("|"), TemplatePart::Domain]);
        for name in ["alice", "alice@", "@example.com", "@"] {
            assert_eq!(filter(&both, &login(name)), None, "{name}");
        }
        let local = template(&[TemplatePart::Local]);
        assert_eq!(filter(&local, &login("alice")).unwrap(), "alice");
        assert_eq!(filter(&local, &login("@x")), None);
    }
}
