//! Lists all users of the directory, page by page, for administrative commands.
//!
//! Uses a separate connection, so that no login waits for it. Nothing is stored: the receiver takes each entry
//! before the next one is read. RFC 2696 (paged results).

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::Find;
use crate::directory::ldap::Ldap;
use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::lookup;
use crate::directory::ldap::schema::{self, Attributes, Shown, Values};
use crate::directory::ldap::search::{self, Query, QueryOptions, Search};
use crate::directory::{BoxFuture, ListedUser, ServerResult, UnavailableCause, UserListing};
use crate::proto::ldap::naming::Naming;
use crate::proto::ldap::result::SUCCESS;
use crate::telemetry::labels::DirectoryOperation;

/// How long a server may take for the next message.
const SILENCE: Duration = Duration::from_secs(30);

impl UserListing for Ldap {
    fn determines_names(&self) -> bool {
        !lookup::naming(&self.settings().find).is_empty()
    }

    fn list<'a>(
        &'a self,
        name_attribute: Option<&'a str>,
        receiver: mpsc::Sender<ListedUser>,
    ) -> BoxFuture<'a, Result<(), UnavailableCause>> {
        Box::pin(self.list_all(name_attribute, receiver))
    }
}

impl Ldap {
    /// Lists the users of the first server that can be asked.
    async fn list_all(
        &self,
        name_attribute: Option<&str>,
        receiver: mpsc::Sender<ListedUser>,
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
        self.server_set().look_up(false).await;
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
            let sent = pages.send_all(settings.allow.filter.as_deref(), &wanted, &naming, &receiver).await;
            return sent.map_err(|end| match end {
                ListingError::Connection(error) => error.unavailable(&server.url),
                ListingError::Refused(result) => UnavailableCause::Result {
                    server: server.url.clone(),
                    operation: DirectoryOperation::Search,
                    result,
                },
            });
        }
        // No server was there to fail.
        let is_unnamed = cause == UnavailableCause::NoServiceAccount;
        Err(if is_unnamed { self.server_set().cause() } else { cause })
    }
}

/// Why a listing failed.
enum ListingError {
    Connection(ConnectionError),
    Refused(ServerResult),
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
        receiver: &mpsc::Sender<ListedUser>,
    ) -> Result<(), ListingError> {
        // Only the server can evaluate another filter: it is asked once for all.
        let mut members = HashSet::new();
        if let Some(allow) = allow {
            let filter = format!("(&{}{allow})", self.filter);
            let mut search = self.search(&filter, vec!["1.1"]).await?;
            while let Some(entry) = search.next().await? {
                let (dn, _) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
                members.insert(digest(&dn));
            }
            complete(search).await?;
        }
        let mut attributes = wanted.names();
        attributes.extend(naming.iter().map(|naming| naming.attribute.as_str()));
        let mut search = self.search(&self.filter, attributes).await?;
        while let Some(entry) = search.next().await? {
            let (dn, values) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
            let Shown { reported, rest, .. } = schema::shown(&dn, &values, wanted).ok_or(ConnectionError::Malformed)?;
            let mut entry = reported.entry;
            if let Some(rest) = rest {
                let ends = Instant::now() + SILENCE;
                let whole = search::completed(&self.connection, wanted, (entry, rest), ends).await?;
                let Some(whole) = whole else { continue };
                entry = whole;
            }
            entry.in_group = allow.is_none() || members.contains(&digest(&dn));
            if receiver.send(ListedUser { dn, entry, names: names(&values, naming) }).await.is_err() {
                return Ok(());
            }
        }
        complete(search).await
    }

    /// Starts a search for all pages.
    async fn search<'a>(&'a self, filter: &'a str, attributes: Vec<&'a str>) -> Result<Search<'a>, ListingError> {
        let options = QueryOptions { paged: true, silence: Some(SILENCE), ..QueryOptions::default() };
        Ok(Search::start(&self.connection, Query::below(&self.base, filter, attributes, options)).await?)
    }
}

/// Whether the result says that all entries have been sent.
async fn complete(search: Search<'_>) -> Result<(), ListingError> {
    let result = search.result().await;
    if result.code == SUCCESS { Ok(()) } else { Err(ListingError::Refused(result)) }
}

/// The login names in these attributes, each once.
pub(super) fn names(values: &[Values], naming: &[Naming]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for naming in naming {
        for value in schema::names_of(values, &naming.attribute) {
            names.extend(naming.login(&value).filter(|name| !names.iter().any(|n| n == name)).map(str::to_owned));
        }
    }
    names
}

fn digest(dn: &str) -> u64 {
    schema::KEY.hash_one(dn)
}
