//! From an entry back to the names that people log in with: the reverse of `filter` and `user_dn`, as
//! far as they can be read backwards.

use super::model::{Directory, Find, TemplatePart};
use super::names::is_descr;

/// An attribute whose values are login names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// The attribute.
    pub attribute: String,
    /// What stands behind the name in its values, such as `@ad.example.com`; not part of the name.
    pub suffix: String,
}

impl Naming {
    /// The login name that a value stands for, if it does for any.
    #[must_use]
    pub fn login<'a>(&self, value: &'a str) -> Option<&'a str> {
        value.strip_suffix(self.suffix.as_str()).filter(|name| !name.is_empty())
    }
}

impl Directory {
    /// The attributes that name users, in the order in which the filter, the DN or the principal name
    /// compares them with a login. Empty where they do not determine it.
    #[must_use]
    pub fn naming(&self) -> Vec<Naming> {
        let mut found: Vec<Naming> = Vec::new();
        let parts = match &self.find {
            Find::Search { filter, .. } => &filter.parts,
            Find::UserDn { template, .. } => &template.parts,
            Find::Principal { template, .. } => {
                let suffix = match template.parts.as_slice() {
                    [TemplatePart::Login | TemplatePart::Local, TemplatePart::Text(suffix)] => suffix.clone(),
                    _ => return found,
                };
                return vec![Naming { attribute: "userPrincipalName".to_owned(), suffix }];
            }
        };
        let is_dn = matches!(self.find, Find::UserDn { .. });
        let mut before = "";
        for (at, part) in parts.iter().enumerate() {
            let rest = parts.get(at..).unwrap_or_default();
            let behind = match (part, rest) {
                (TemplatePart::Text(text), _) => {
                    before = text;
                    continue;
                }
                // `{local}@{domain}` is the name as typed.
                (TemplatePart::Local, [_, TemplatePart::Text(sign), TemplatePart::Domain, behind @ ..])
                    if sign == "@" =>
                {
                    behind
                }
                (TemplatePart::Login | TemplatePart::Local, [_, behind @ ..]) => behind,
                (TemplatePart::Login | TemplatePart::Local | TemplatePart::Domain, _) => continue,
            };
            let attribute = before.strip_suffix('=').map(|text| last_word(text, is_dn)).filter(|name| is_descr(name));
            let ends = if is_dn { [',', '+'].as_slice() } else { &[')'] };
            let suffix = match behind.first() {
                None if is_dn => Some(""),
                Some(TemplatePart::Text(text)) => text.find(ends).and_then(|end| text.get(..end)),
                _ => None,
            };
            if let (Some(attribute), Some(suffix)) = (attribute, suffix) {
                let naming = Naming { attribute: attribute.to_owned(), suffix: suffix.to_owned() };
                // A star or an escape in it is no text to compare with.
                if !naming.suffix.contains(['*', '\\']) && !found.contains(&naming) {
                    found.push(naming);
                }
            }
            before = "";
        }
        found
    }
}

/// What stands behind the last opening parenthesis, or the last comma or plus of a DN.
fn last_word(text: &str, is_dn: bool) -> &str {
    let begins = if is_dn { [',', '+'].as_slice() } else { &['('] };
    text.rsplit(begins).next().unwrap_or(text).trim_start()
}

#[cfg(test)]
mod tests {
    use super::super::tests::sound_directory;

    #[test]
    fn filter_yields_the_attributes_that_name_a_user() {
        for (keys, names) in [
            ("base: 'dc=x', filter: '(uid={login})'", vec![("uid", "")]),
            ("base: 'dc=x', filter: '(|(uid={login})(mail={login}))'", vec![("uid", ""), ("mail", "")]),
            ("base: 'dc=x', filter: '(&(objectClass=user)(mail={local}@{domain})(!(x=1)))'", vec![("mail", "")]),
            (
                "base: 'dc=x', filter: '(|(uid={local})(mail={login}@example.com))'",
                vec![("uid", ""), ("mail", "@example.com")],
            ),
            ("base: 'dc=x', filter: '(cn:caseExactMatch:={login})'", vec![]),
            ("base: 'dc=x', filter: '(mail={login}*)'", vec![]),
            ("base: 'dc=x', filter: '(mail=x{login})'", vec![]),
            ("user_dn: 'uid={local},ou=people,dc=x'", vec![("uid", "")]),
            ("user_dn: 'uid={login}'", vec![("uid", "")]),
            ("user_dn: '{login}@ad.example.com', base: 'dc=x'", vec![("userPrincipalName", "@ad.example.com")]),
        ] {
            let naming = sound_directory(keys).naming();
            let found: Vec<_> =
                naming.iter().map(|naming| (naming.attribute.as_str(), naming.suffix.as_str())).collect();
            assert_eq!(found, names, "{keys}");
        }
    }

    #[test]
    fn login_is_the_value_without_the_template_suffix() {
        let naming = sound_directory("user_dn: '{login}@ad.example.com', base: 'dc=x'").naming();
        assert_eq!(naming[0].login("alice@ad.example.com"), Some("alice"));
        assert_eq!(naming[0].login("alice@example.org"), None);
        assert_eq!(naming[0].login("@ad.example.com"), None);
    }
}
