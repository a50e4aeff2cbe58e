//! Where clients connect.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::proto::{MechanismSet, Protocol};

/// An address where clients connect.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The protocol spoken there.
    pub protocol: &'static Protocol,
    /// Address and port; an IPv6 wildcard takes IPv4 as well.
    pub address: SocketAddr,
    /// TLS before the greeting or by command.
    pub tls: ListenerTls,
    /// The mechanisms that clients may log in with; `None`: all that there are.
    pub mechanisms: Option<MechanismSet>,
    /// The networks of the proxies that begin every connection with a PROXY header; `None`: there are
    /// no proxies.
    pub proxies: Option<Vec<IpNet>>,
    /// The name of the socket that systemd opens for it, wherever that listens.
    pub socket: Option<String>,
}

/// TLS on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerTls {
    /// From the first byte.
    Implicit,
    /// By the client's command; no login before it.
    StartTls,
}
