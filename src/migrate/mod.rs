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

/// Questions to the directory under way at a time: they share one connection with each other and with
/// no login, and a small server still answers logins beside them.
pub(crate) const AT_ONCE: usize = 8;

/// How long to wait before a question that was not answered in time is asked again.
const PAUSES: [Duration; 3] = [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

/// Asks as a login asks. Of many thousand questions one may meet a busy moment: no client waits for it, so
/// that it is asked again before all of them are given up.
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
