//! The listener that Postfix asks where mail goes.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::directory::DomainPattern;
use crate::proto::ldap::template::Template;

/// The listener for Postfix (`socketmap`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socketmap {
    /// Where it listens.
    pub place: SocketmapPlace,
    /// The networks that may connect; without effect for a Unix socket.
    pub allow: Vec<IpNet>,
    /// The domains of which addresses are looked up.
    pub domains: Vec<DomainPattern>,
    /// The filter that finds the entry of an address.
    pub mail_filter: Template,
    /// The characters that end a local part before its extension; none: there are no extensions.
    pub recipient_delimiter: String,
    /// What becomes of mail for users that may not log in.
    pub when_disabled: DeliveryWhenDisabled,
    /// Connections at a time.
    pub max_connections: usize,
}

/// Where Postfix connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketmapPlace {
    /// By TCP.
    Address(SocketAddr),
    /// By a Unix socket.
    Unix(UnixPlace),
}

/// A Unix socket that other users may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixPlace {
    /// Its path.
    pub path: PathBuf,
    /// Its group; `None`: that of the process.
    pub group: Option<String>,
    /// Its mode.
    pub mode: u32,
}

/// What becomes of mail for users that may not log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryWhenDisabled {
    /// It is delivered as before.
    Keep,
    /// The address is unknown.
    Reject,
}
