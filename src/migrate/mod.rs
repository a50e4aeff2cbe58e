//! Migration from nginx: where each user would be routed, and the changes of the directory that route
//! each user as before.
//!
//! [`explain_all`] lists the route of every user, by the code that sessions are routed with; [`nginx`] is the users.txt of an nginx recipe; [`import`] turns it into LDIF ([`ldif`]).
//! Reads the directory and never writes to it: the operator applies what is printed.

pub(crate) mod explain_all;
pub(crate) mod import;
pub(crate) mod ldif;
pub(crate) mod nginx;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::base::credential::Login;
use crate::directory::{Directory, DirectoryError, Entry, ListedUser, NameKind, UnavailableCause};

/// Lookups in progress at a time: they share one connection with each other and with no login, and a small
/// server still serves logins at the same time.
pub(crate) const AT_ONCE: usize = 8;

/// The pauses before a lookup that timed out is repeated.
const PAUSES: [Duration; 3] = [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

/// Looks up a name as a login does. No client waits for it, so that a lookup that times out is repeated before
/// the whole list is given up.
async fn look_up(directory: &dyn Directory, login: &Login) -> Result<Entry, DirectoryError> {
    for pause in PAUSES {
        match directory.find(login, NameKind::Login).await.0 {
            Err(DirectoryError::Unavailable(UnavailableCause::Timeout | UnavailableCause::Busy)) => sleep(pause).await,
            answer => return answer,
        }
    }
    directory.find(login, NameKind::Login).await.0
}

/// Lists all users, if the directory can.
async fn list(
    directory: &dyn Directory,
    name_attribute: Option<&str>,
    receiver: mpsc::Sender<ListedUser>,
) -> Result<(), UnavailableCause> {
    match directory.users() {
        Some(users) => users.list(name_attribute, receiver).await,
        None => Err(UnavailableCause::NoServiceAccount),
    }
}
