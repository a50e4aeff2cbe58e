//! Lists all users of the directory, page by page, for administrative commands.
//!
//! Uses a separate connection, so that no login waits for it. Nothing is stored: the receiver takes each entry
//! before the next one is read. RFC 2696 (paged results).

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::Find;
use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::lookup;
use crate::directory::ldap::schema::{self, Attributes, Values};
use crate::directory::ldap::search::{Query, QueryOptions, Search};
use crate::directory::{Entry, Ldap, UnavailableCause};
use crate::proto::ldap::naming::Naming;

/// How long a server may take for the next message.
const SILENCE: Duration = Duration::from_secs(30);

/// A listed user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedUser {
    /// Its DN.
    pub dn: String,
    /// The entry; `None` if it has more or longer values than usher reads.
    pub entry: Option<Entry>,
    /// The login names in its attributes, the preferred one first.
    pub names: Vec<String>,
}

impl Ldap {
    /// Whether the settings determine the attributes that name users.
    #[must_use]
    pub fn determines_names(&self) -> bool {
        !lookup::naming(&self.settings().find).is_empty()
    }

    /// Sends every entry that a login could find, in the server's order, from the first server that can be
    /// asked. Ends early, without an error, when the receiver is dropped.
    ///
    /// # Errors
    /// Why the listing failed; the entries sent until then are incomplete.
    pub async fn list(
        &self,
        name_attribute: Option<&str>,
        told: mpsc::Sender<ListedUser>,
    ) -> Result<(), UnavailableCause> {
        let settings = self.settings();
        let naming = match name_attribute {
            Some(attribute) => vec![Naming { attribute: attribute.to_owned(), suffix: String::new() }],
            None => lookup::naming(&settings.find),
        };
        let mut cause = UnavailableCause::NoServiceAccount;
        let searches = matches!(settings.find, Find::Search { .. });
        if settings.find.service().is_none() && !searches {
            return Err(cause);
        }
        for server in self.servers() {
            let connection = match server.service.open_as_service().await {
                Ok(connection) => connection,
                Err(error) => {
                    cause = error;
                    continue;
                }
            };
            let wanted = lookup::wanted(settings);
            let pages = Pages {
                connection,
                base: lookup::users_base(&settings.find),
                filter: lookup::users_filter(&settings.find),
            };
            let sent = pages.send_all(settings.allow.filter.as_deref(), &wanted, &naming, &told).await;
            return sent.map_err(|end| match end {
                ListingError::Connection(error) => error.unavailable(&server.url),
                ListingError::Refused(code) => {
                    UnavailableCause::Result { server: server.url.clone(), operation: "search", code }
                }
            });
        }
        Err(cause)
    }
}

/// Why a listing failed.
enum ListingError {
    Connection(ConnectionError),
    Refused(u32),
}

impl From<ConnectionError> for ListingError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

struct Pages {
    connection: Connection,
    base: String,
    filter: String,
}

impl Pages {
    async fn send_all(
        &self,
        allow: Option<&str>,
        wanted: &Attributes,
        naming: &[Naming],
        told: &mpsc::Sender<ListedUser>,
    ) -> Result<(), ListingError> {
        // Only the server can evaluate another filter: it is asked once for all.
        let mut members = HashSet::new();
        if let Some(allow) = allow {
            let filter = format!("(&{}{allow})", self.filter);
            self.search(&filter, vec!["1.1"], async |dn, _| {
                members.insert(digest(&dn));
                true
            })
            .await?;
        }
        let mut attributes = wanted.names();
        attributes.extend(naming.iter().map(|naming| naming.attribute.as_str()));
        self.search(&self.filter, attributes, async |dn, values| {
            let mut entry = schema::shown(&dn, &values, wanted).map(|shown| shown.entry);
            if let Some(entry) = &mut entry {
                entry.in_group = allow.is_none() || members.contains(&digest(&dn));
            }
            let mut names: Vec<String> = Vec::new();
            for naming in naming {
                for value in schema::names_of(&values, &naming.attribute) {
                    names.extend(
                        naming.login(&value).filter(|name| !names.iter().any(|n| n == name)).map(str::to_owned),
                    );
                }
            }
            told.send(ListedUser { dn, entry, names }).await.is_ok()
        })
        .await
    }

    /// Reads all pages; ends early when `each` returns false.
    async fn search(
        &self,
        filter: &str,
        attributes: Vec<&str>,
        mut each: impl AsyncFnMut(String, Vec<Values>) -> bool,
    ) -> Result<(), ListingError> {
        let options = QueryOptions { paged: true, silence: Some(SILENCE), ..QueryOptions::default() };
        let query = Query::below(&self.base, filter, attributes, options);
        let mut search = Search::start(&self.connection, query).await?;
        while let Some(entry) = search.next().await? {
            let (dn, values) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
            if !each(dn, values).await {
                return Ok(());
            }
        }
        match search.code().await {
            0 => Ok(()),
            code => Err(ListingError::Refused(code)),
        }
    }
}

fn digest(dn: &str) -> u64 {
    schema::KEY.hash_one(dn)
}
