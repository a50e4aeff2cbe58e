//! The result of an operation as a server gave it, for logs and reports.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::proto::ldap::result;
use crate::telemetry::log::is_printable;

/// Characters of a server's text that are kept.
const SHOWN: usize = 256;
/// How much of it is searched for the password: all that may be kept, and what begins in it.
const SEARCHED: usize = 4 * SHOWN;
/// A part of a password of this many bytes must not be in a text; of a shorter password, the whole.
const PART: usize = 6;
/// Instead of a text that repeats the password.
const WITHHELD: &str = "(text withheld: it repeats the password)";

/// A result code with the server's diagnostic message (RFC 4511 section 4.1.9).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerResult {
    /// The code.
    pub code: u32,
    /// The message: one line of printable characters, bounded; `None` without one.
    pub message: Option<Arc<str>>,
}

impl ServerResult {
    /// A result with its text. The message of a success is not kept.
    pub(crate) fn new(code: u32, text: &str) -> Self {
        Self::answering(b"", code, text)
    }

    /// The answer to a bind with this password: a text that repeats it, or a part of it, is withheld.
    pub(crate) fn answering(password: &[u8], code: u32, text: &str) -> Self {
        let mut message = None;
        if code != result::SUCCESS {
            let searched: String = text.chars().take(SEARCHED).collect();
            message = if repeats(&searched, password) {
                Some(Arc::from(WITHHELD))
            } else {
                // Active Directory ends its texts with NUL.
                let line: String = searched.chars().map(|one| if is_printable(one) { one } else { ' ' }).collect();
                let line: String = line.trim().chars().take(SHOWN).collect();
                (!line.is_empty()).then(|| line.into())
            };
        }
        Self { code, message }
    }

    /// The name of the code, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        Some(result::of(self.code).name).filter(|name| !name.is_empty())
    }
}

impl From<u32> for ServerResult {
    fn from(code: u32) -> Self {
        Self { code, message: None }
    }
}

/// `result 8 (strongerAuthRequired): BindSimple: Transport encryption required`.
impl fmt::Display for ServerResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "result {}", self.code)?;
        if let Some(name) = self.name() {
            write!(f, " ({name})")?;
        }
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// Whether a text has the password in it, or a part that would help to guess it: as it is, in another case, in
/// base64 or in hexadecimal digits.
fn repeats(text: &str, password: &[u8]) -> bool {
    if password.is_empty() {
        return false;
    }
    let text = text.to_lowercase();
    // One that is not UTF-8 is most likely Latin-1, and the text is UTF-8.
    let letters = match std::str::from_utf8(password) {
        Ok(letters) => letters.to_lowercase(),
        Err(_) => password.iter().map(|byte| char::from(*byte)).collect::<String>().to_lowercase(),
    };
    let hexadecimal: String = password.iter().map(|byte| format!("{byte:02x}")).collect();
    let encoded = STANDARD.encode(password).trim_end_matches('=').to_lowercase();
    has_part(&text, &letters, PART) || has_part(&text, &hexadecimal, 2 * PART) || has_part(&text, &encoded, 2 * PART)
}

/// Whether a part of `secret` of this length is in `text`, or the whole secret if it is shorter.
fn has_part(text: &str, secret: &str, length: usize) -> bool {
    let (text, secret) = (text.as_bytes(), secret.as_bytes());
    let length = length.min(secret.len()).max(1);
    // Not one by one: a client chooses how long its password is.
    let parts: HashSet<&[u8]> = text.windows(length).collect();
    secret.windows(length).any(|part| parts.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_has_its_name_and_text() {
        let shown = |code, text: &str| ServerResult::new(code, text).to_string();
        assert_eq!(
            shown(8, "BindSimple: Transport encryption required.\0"),
            "result 8 (strongerAuthRequired): BindSimple: Transport encryption required."
        );
        assert_eq!(shown(13, ""), "result 13 (confidentialityRequired)");
        assert_eq!(shown(4_711, "x"), "result 4711: x");
        assert_eq!(
            shown(1, "NDS error:\r\nfailed\u{202e}\u{1b}[31m"),
            "result 1 (operationsError): NDS error:  failed  [31m"
        );
        assert_eq!(shown(0, "well done"), "result 0 (success)");
        let long = ServerResult::new(80, &"ä".repeat(5_000)).message.unwrap();
        assert_eq!(long.chars().count(), 256);
    }

    #[test]
    fn text_that_repeats_the_password_is_withheld() {
        let text = |password: &str, text: &str| ServerResult::answering(password.as_bytes(), 49, text).message.unwrap();
        let hidden = |password: &str, said: &str| assert_eq!(&*text(password, said), WITHHELD, "{password} {said}");
        hidden("hunter2", "wrong password 'hunter2' for uid=alice");
        hidden("Hunter2", "value hUNTER2 is wrong");
        hidden("correct horse battery", "the value ...horse bat... was refused");
        hidden("abc", "got abc");
        hidden("hunter2", "credentials 68756e74657232");
        hidden("hunter2-and-more", &format!("credentials {}", STANDARD.encode("hunter2-and-more")));
        hidden("p\u{e4}ssw\u{f6}rd", "Kennwort p\u{e4}ssw\u{f6}rd ist falsch");
        // Behind what is shown, and across its end.
        hidden("hunter2", &format!("{}hunter2", "x".repeat(253)));
        assert_eq!(
            &*text("hunter2", "NDS error: failed authentication (-669)"),
            "NDS error: failed authentication (-669)"
        );
        assert_eq!(ServerResult::answering(b"hunter2", 0, "hunter2").message, None);
        let latin = ServerResult::answering(b"p\xe4ssw\xf6rd", 49, "Kennwort p\u{e4}ssw\u{f6}rd ist falsch");
        assert_eq!(latin.message.as_deref(), Some(WITHHELD));
    }
}
