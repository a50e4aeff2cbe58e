//! Why a command is not carried out: each text once; the protocols add their codes.

use super::sasl::SaslError;
use super::wire::Invalid;
use crate::outcome::Reply;

/// Why a command is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// No such command.
    Unknown,
    /// Its arguments are invalid.
    Syntax,
    /// It has no usable tag (IMAP).
    Tag,
    /// It requires a login.
    LoginFirst,
    /// It requires USER before it (POP3).
    UserFirst,
    /// It requires EHLO before it (submission).
    EhloFirst,
    /// A login in the clear.
    TlsFirst,
    /// STARTTLS is not available, or not again.
    NoTls,
    /// An unknown mechanism.
    Mechanism,
    /// A response that cannot be used.
    Response(SaslError),
    /// A response that is not in the form of a string (ManageSieve).
    NoString,
    /// A line of more bytes than allowed.
    LineTooLong,
    /// A response of more bytes than allowed.
    ResponseTooLong,
    /// An argument, or a command with its literals, of more bytes than allowed.
    ArgumentTooLong,
    /// A CR or LF alone.
    LineEnd,
    /// A NUL.
    Nul,
    /// A refused command of more bytes than are discarded; the last reply.
    CommandTooLong,
    /// A literal of a refused command that is not discarded; the last reply.
    LiteralTooLarge,
    /// A message of more bytes than are discarded (submission); the last reply.
    TooMuchData,
    /// One bad command too many; the last reply.
    TooMany,
    /// A request of HTTP; the last reply.
    Http,
}

impl Problem {
    /// The problem of an invalid line.
    pub(super) const fn of_line(why: Invalid, too_long: Self) -> Self {
        match why {
            Invalid::TooLong => too_long,
            Invalid::BareLf | Invalid::BareCr => Self::LineEnd,
            Invalid::Nul => Self::Nul,
        }
    }

    /// The text behind the protocol's code.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown command",
            Self::Syntax => "Invalid arguments",
            Self::Tag => "Missing or invalid tag",
            Self::LoginFirst => "Log in first",
            Self::UserFirst => "Send USER first",
            Self::EhloFirst => "Send EHLO first",
            Self::TlsFirst => TLS_REQUIRED.text(),
            Self::NoTls => "STARTTLS is not available",
            Self::Mechanism => "Unsupported mechanism",
            Self::Response(SaslError::Cancelled) => "Authentication cancelled",
            Self::Response(SaslError::NotBase64) => "Invalid base64 data",
            Self::Response(SaslError::Malformed) => "Invalid SASL response",
            Self::NoString => "Response must be a string",
            Self::LineTooLong | Self::ResponseTooLong => "Line too long",
            Self::ArgumentTooLong => "Argument too long",
            Self::LineEnd => "Line must end with CRLF",
            Self::Nul => "NUL is not allowed",
            Self::CommandTooLong => "Command too long",
            Self::LiteralTooLarge => "Literal too large",
            Self::TooMuchData => "Log in before you send a message",
            Self::TooMany => "Too many bad commands",
            Self::Http => "This is a mail server",
        }
    }
}

/// The reply to a login in the clear, the same from dialogue and session.
pub(super) static TLS_REQUIRED: Reply = Reply::TlsRequired;
