//! Builds a filter or a DN from a login name.
//!
//! The name is data, never syntax: each placeholder is escaped for its position, and substituted text is never
//! searched for placeholders (promise 3). RFC 4515 section 3 (filter), RFC 4514 section 2.4 (DN).

use std::borrow::Cow;

use crate::config::{Template, TemplatePart};
use crate::directory::Login;

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

/// The principal name for this name; `None` if the name lacks a part, or has a character other than
/// `A-Za-z0-9._-`: a principal name has no escapes, and another `@` would move it to another domain.
#[must_use]
pub(crate) fn principal(template: &Template, login: &Login) -> Option<String> {
    let plain = |value: &str| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    render(template, login, |value| plain(value).then_some(Cow::Borrowed(value)))
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
        assert_eq!(dn(&template, &login(" #a @b")).unwrap(), r"uid=\20#a\20,dc=b");
        assert_eq!(dn(&template, &login("#a@b")).unwrap(), r"uid=\23a,dc=b");
        assert_eq!(dn(&template, &login(r#"a"<>;\@b"#)).unwrap(), r"uid=a\22\3c\3e\3b\5c,dc=b");
    }

    #[test]
    fn principal_allows_plain_characters_only() {
        let template = template(&[TemplatePart::Local, text("@ad.example.com")]);
        assert_eq!(principal(&template, &login("Al.ice_b-2@elsewhere")).unwrap(), "Al.ice_b-2@ad.example.com");
        let whole = Template { parts: vec![TemplatePart::Login, text("@ad.example.com")] };
        for name in ["alice@evil.example", "a b", "ad\\alice", "j\u{fc}rgen", "al*ce", "(alice)"] {
            assert_eq!(principal(&whole, &login(name)), None, "{name}");
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
