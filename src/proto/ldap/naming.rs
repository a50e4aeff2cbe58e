//! From an entry back to the login names that find it: the reverse of a filter, a DN or a principal name, as far as
//! the template determines it.

use super::dn::is_descr;
use super::template::{Template, TemplatePart};

/// An attribute whose values are login names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Naming {
    /// The attribute.
    pub(crate) attribute: String,
    /// What stands behind the name in its values, such as `@ad.example.com`; not part of the name.
    pub(crate) suffix: String,
}

impl Naming {
    /// The login name that a value stands for, if it does for any.
    #[must_use]
    pub(crate) fn login<'a>(&self, value: &'a str) -> Option<&'a str> {
        value.strip_suffix(self.suffix.as_str()).filter(|name| !name.is_empty())
    }
}

/// The attributes that a filter compares with a login name, in order; empty if it does not determine them.
pub(crate) fn of_filter(filter: &Template) -> Vec<Naming> {
    compared(filter, false)
}

/// The attributes of a DN that have a login name as value.
pub(crate) fn of_dn(dn: &Template) -> Vec<Naming> {
    compared(dn, true)
}

/// userPrincipalName, if the part before the `@` is the login name.
pub(crate) fn of_principal(name: &Template) -> Vec<Naming> {
    match name.parts.as_slice() {
        [TemplatePart::Login | TemplatePart::Local, TemplatePart::Text(suffix)] => {
            vec![Naming { attribute: "userPrincipalName".to_owned(), suffix: suffix.clone() }]
        }
        _ => Vec::new(),
    }
}

fn compared(template: &Template, is_dn: bool) -> Vec<Naming> {
    let parts = &template.parts;
    let mut found: Vec<Naming> = Vec::new();
    let mut before = "";
    for (at, part) in parts.iter().enumerate() {
        let rest = parts.get(at..).unwrap_or_default();
        let behind = match (part, rest) {
            (TemplatePart::Text(text), _) => {
                before = text;
                continue;
            }
            // `{local}@{domain}` is the name as typed.
            (TemplatePart::Local, [_, TemplatePart::Text(sign), TemplatePart::Domain, behind @ ..]) if sign == "@" => {
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

/// What stands behind the last opening parenthesis, or the last comma or plus of a DN.
fn last_word(text: &str, is_dn: bool) -> &str {
    let begins = if is_dn { [',', '+'].as_slice() } else { &['('] };
    text.rsplit(begins).next().unwrap_or(text).trim_start()
}
