//! Where clients connect.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::tls::ClientCertificates;
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
    /// The certificates that clients show there: its own settings, or those of `tls`.
    pub clients: ClientCertificates,
    /// Whether clients log in there by certificate.
    pub client_login: Option<ClientLogin>,
}

impl Listener {
    /// The mechanisms of these that clients may use there.
    #[must_use]
    pub fn narrowed(&self, mechanisms: MechanismSet) -> MechanismSet {
        self.mechanisms.map_or(mechanisms, |listed| listed.and(mechanisms))
    }
}

/// How clients log in by certificate (SASL EXTERNAL).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLogin {
    /// How a certificate leads to a user.
    pub matching: CertificateMatch,
    /// Whether a name that the client sends is ignored.
    pub ignore_authzid: bool,
    /// The directory that has the users; `None`: the domain of the name says which.
    pub directory: Option<Arc<str>>,
}

/// How a certificate leads to a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateMatch {
    /// The user's entry lists it (userCertificate).
    Certificate,
    /// Its subjectAltName has the user's address, for which its CA vouches.
    SanEmail,
}

/// TLS on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerTls {
    /// From the first byte.
    Implicit,
    /// By the client's command; no login before it.
    StartTls,
}
