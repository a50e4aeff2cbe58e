//! Diagnosis of a directory, for `usher check --connect`, `usher explain` and the status page.

use std::sync::Arc;
use std::time::Duration;

use super::BoxFuture;
use super::entry::Entry;
use super::error::UnavailableCause;
use super::named::ListedServer;
use super::result::ServerResult;
use crate::base::credential::Login;
use crate::config::DirectoryServer;

/// A lockout policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockoutPolicy {
    /// The DN of the policy.
    pub policy: String,
    /// The number of wrong passwords that locks.
    pub failures: u32,
    /// Within this time; `None`: since the last successful login.
    pub window: Option<Duration>,
}

/// The findings about one server; steps that were not reached are `None`.
#[derive(Debug)]
pub struct ServerDiagnosis {
    /// Its URL.
    pub url: Arc<str>,
    /// How it is reached.
    pub settings: Option<DirectoryServer>,
    /// The base of all users.
    pub users_base: String,
    /// The connection, and the server's certificate (DER).
    pub connection: Result<Option<Vec<u8>>, UnavailableCause>,
    /// The service account's bind, or an anonymous session if there is no account.
    pub service: Option<Result<(), UnavailableCause>>,
    /// The result of a read of the base, and whether the entry was returned.
    pub base: Option<Result<(ServerResult, bool), UnavailableCause>>,
    /// The lookup of the sample login.
    pub sample: Option<Result<SampleLookup, UnavailableCause>>,
    /// A user with a mail host, if there is any, and the result.
    pub with_mail_host: Option<Result<(Option<Entry>, ServerResult), UnavailableCause>>,
    /// The same with a certificate, where users log in by one that their entry lists.
    pub with_certificate: Option<Result<(Option<Entry>, ServerResult), UnavailableCause>>,
    /// How its changes can be followed.
    pub changes: Option<Result<FollowedBy, UnavailableCause>>,
    /// How many users the server returns, and the result: if it is not success, it returns no more than these.
    pub users: Option<Result<UserCount, UnavailableCause>>,
    /// How many of them match `password_filter`, if there is one.
    pub password_users: Option<Result<UserCount, UnavailableCause>>,
    /// The strictest lockout policy, if one is readable.
    pub lockout: Option<Result<Option<LockoutPolicy>, UnavailableCause>>,
    /// Whether it returns the canary.
    pub canary: Option<Result<(), UnavailableCause>>,
}

/// The lookup of a sample login.
#[derive(Debug)]
pub struct SampleLookup {
    /// The filter.
    pub filter: String,
    /// The login name, if the first user found was looked up by one of its own names.
    pub login: Option<String>,
    /// The result.
    pub result: ServerResult,
    /// The number of entries: two stand for any larger number.
    pub entries: usize,
    /// The first of them.
    pub first: Option<Entry>,
    /// The DN of the second.
    pub second: Option<Arc<str>>,
}

/// The number of users that a server returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCount {
    /// The number of entries received.
    pub users: usize,
    /// The result; success also if counting stopped early.
    pub result: ServerResult,
    /// Whether there are more, which were not counted.
    pub more: bool,
    /// Whether they were read page by page.
    pub paged: bool,
}

/// A probe of one server: its URL and the result.
pub(super) type ServerProbed = (Arc<str>, Result<(), UnavailableCause>);

/// A directory that can be diagnosed.
pub trait Diagnosis: Send + Sync {
    /// Describes what is asked for this login, such as the filter and base.
    fn describe_lookup(&self, login: &Login) -> String;

    /// Probes every server now: URL and result of each.
    fn probe_all(&self) -> BoxFuture<'_, Vec<ServerProbed>>;

    /// Diagnoses all servers concurrently, without a user's password. The sample is a login name; without one, the
    /// canary's is used, or the first user found.
    fn examine<'a>(&'a self, sample: Option<&'a Login>) -> BoxFuture<'a, Vec<ServerDiagnosis>>;

    /// The servers in force, in order of preference.
    fn servers(&self) -> Vec<ListedServer>;

    /// By how many seconds this server lagged behind the others at its last probe, if known.
    fn lag(&self, url: &str) -> Option<f64>;
}

/// How a server's changes can be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowedBy {
    /// Content synchronization is advertised; the result of trying it.
    Synchronization(ServerResult),
    /// Active Directory's numbers of changes; whether the service account is shown deleted objects.
    Numbers {
        /// The container Deleted Objects can be read.
        sees_deleted: bool,
    },
    /// Only modifyTimestamp.
    Time,
}
