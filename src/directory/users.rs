//! Listing of all users, for administrative commands.

use tokio::sync::mpsc;

use super::BoxFuture;
use super::entry::Entry;
use super::error::UnavailableCause;

/// A listed user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedUser {
    /// Its DN.
    pub dn: String,
    /// The entry.
    pub entry: Entry,
    /// The login names in its attributes, the preferred one first.
    pub names: Vec<String>,
}

/// A directory that lists its users.
pub trait UserListing: Send + Sync {
    /// Whether the settings determine the attributes that name users.
    fn determines_names(&self) -> bool;

    /// Sends every entry that a login could find, in the directory's order. `name_attribute` names users, instead of
    /// the attributes that the settings determine. Ends early, without an error, when the receiver is dropped. After an
    /// error the entries sent until then are incomplete.
    fn list<'a>(
        &'a self,
        name_attribute: Option<&'a str>,
        receiver: mpsc::Sender<ListedUser>,
    ) -> BoxFuture<'a, Result<(), UnavailableCause>>;
}
