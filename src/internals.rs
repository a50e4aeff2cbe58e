//! What fuzz targets, benches and their invariants use of the crate (feature `internals`). Nothing else of it is
//! public but what the binary needs, so that dead code shows.

pub use crate::base::credential::{Credential, CredentialSecret, Login};
pub use crate::base::secret::{Secret, SecretBuf};
pub use crate::base::sys::sockets;
pub use crate::cache::Cache;
pub use crate::directory::{DirectoryTls, open as open_directory};
pub use crate::limits::{SampleMember, SampleSession};
pub use crate::login::authn::{Authenticator, DecidedBy, LookupMode};
pub use crate::outcome::Reply;
pub use crate::proto::{
    BackSettings, BackStep, BackTls, ClosingLine, FrontSettings, SaslOffer, Step, Welcome, by_name,
};
pub use crate::sessions::relay;
pub use crate::telemetry::metrics::Metrics;
pub use crate::tls::stream::Stream;
pub use crate::token::TokenVerifier;
pub use crate::tracking::TrackedEntries;

/// Reading a configuration.
pub mod config {
    pub use crate::config::parse;
}

/// What must hold for any input: one function for each fuzz target.
pub mod invariants {
    #[cfg(feature = "demo")]
    pub use crate::invariants::ldif;
    pub use crate::invariants::{
        auth_http, bind_answer, client_hello, config, fleet, ldap_frames, pem, proxy_header, socketmap, template, token,
    };
    pub use crate::proto::imap::trial as imap;
    pub use crate::proto::managesieve::trial as managesieve;
    pub use crate::proto::pop3::trial as pop3;
    pub use crate::proto::submission::trial as submission;
}
