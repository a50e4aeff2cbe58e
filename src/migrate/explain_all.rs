//! The routing of every user, of a list or of the whole directory, and how it differs from an nginx
//! configuration.
//!
//! Rows are passed on one by one and not kept: the directory is read once to learn which names several
//! entries have, and once more for the rows.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;

use super::nginx::Recipe;
use super::{AT_ONCE, list, look_up};
use crate::base::credential::Login;
use crate::config::Config;
use crate::directory::{DirectoryError, ListedUser, UnavailableCause};
use crate::login::explain::Verdict;
use crate::login::realms::{RealmCore, Realms};
use crate::outcome::Refusal;

/// The recipe to compare with.
#[derive(Debug)]
pub(crate) struct Against {
    /// Its users.txt.
    pub recipe: Recipe,
    /// The backend of the users in it.
    pub backend: String,
    /// The backend of all other users.
    pub default: String,
}

/// One user.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    /// The name as it would be typed.
    pub login: String,
    /// Where it leads.
    pub verdict: Verdict,
    /// Where the recipe sends it.
    pub expected: Option<&'a str>,
}

impl Row<'_> {
    /// Whether the recipe sends it elsewhere.
    #[must_use]
    pub(crate) fn differs(&self) -> bool {
        self.expected.is_some_and(|expected| self.verdict.backend() != Some(expected))
    }
}

/// The counts at the end.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Totals {
    /// All rows.
    pub users: usize,
    /// Those who would be sent to a backend, by its name.
    pub backends: BTreeMap<String, usize>,
    /// Those who would be refused, by the reason's label.
    pub refusals: BTreeMap<&'static str, usize>,
    /// Those whom the recipe sends elsewhere.
    pub differences: usize,
}

/// Why the listing is incomplete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListingError {
    /// The directory became unreachable, or does not list all users.
    #[error("{0}{hint}", hint = hint(.0))]
    Directory(UnavailableCause),
    /// The output was closed.
    #[error("the output was closed")]
    OutputClosed,
}

/// What can be done about a listing that is refused.
fn hint(cause: &UnavailableCause) -> &'static str {
    match cause.code() {
        Some(3 | 4 | 11) => {
            ": the service account may not read all users; raise its limits (in slapd.conf `limits dn.exact=\"...\" \
             size=unlimited`), or give the names with --users"
        }
        Some(32) => ": there is no such base",
        _ if *cause == UnavailableCause::NoServiceAccount => {
            ": give bind_dn and bind_password_file an account that may read"
        }
        _ => "",
    }
}

/// Lists the routing of all users.
pub(crate) struct AllUsers<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Its directories.
    pub realms: &'a Realms,
    /// The attribute that names users; `None`: as the directory's settings determine.
    pub name_attribute: Option<&'a str>,
    /// What to compare with.
    pub against: Option<&'a Against>,
    /// Counts rows, for whoever waits.
    pub done: &'a AtomicUsize,
}

impl std::fmt::Debug for AllUsers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllUsers").finish_non_exhaustive()
    }
}

/// The state of a run.
struct Run<'a, 'r> {
    all_users: &'a AllUsers<'a>,
    totals: Totals,
    /// Which names of the recipe have been met.
    met: HashSet<usize>,
    row: &'r mut (dyn FnMut(&Row<'_>) -> bool + Send),
}

impl AllUsers<'_> {
    /// Of these names, and of those of the recipe besides. `row` says whether it wants more.
    ///
    /// # Errors
    /// The reason why the list is incomplete.
    pub(crate) async fn of_names(
        &self,
        names: &Recipe,
        row: &mut (dyn FnMut(&Row<'_>) -> bool + Send),
    ) -> Result<Totals, ListingError> {
        let mut run = self.begin(row);
        let all = names.names.iter().map(|name| name.text.clone());
        run.look_up(all).await?;
        run.rest_of_the_recipe().await?;
        Ok(run.totals)
    }

    /// Of every user of the directory, and of the names of the recipe that no entry has.
    ///
    /// # Errors
    /// The reason why the list is incomplete.
    pub(crate) async fn of_directory(
        &self,
        row: &mut (dyn FnMut(&Row<'_>) -> bool + Send),
    ) -> Result<Totals, ListingError> {
        let mut run = self.begin(row);
        let mut unclear = BTreeSet::new();
        for realm in self.realms.all() {
            let ambiguous = self.ambiguous(realm).await?;
            let (sender, mut listed) = mpsc::channel(256);
            let list =
                async { list(realm.directory(), self.name_attribute, sender).await.map_err(ListingError::Directory) };
            let read = async {
                while let Some(mut one) = listed.recv().await {
                    unclear.extend(one.names.iter().filter(|name| ambiguous.contains(&digest(name))).cloned());
                    if one.names.first().is_some_and(|name| ambiguous.contains(&digest(name))) {
                        continue;
                    }
                    let parsed = |name: &String| Login::parse(name.as_bytes());
                    let is_own = |name: &String| parsed(name).is_none_or(|name| self.realms.may_have(realm, &name));
                    one.names.sort_by_key(|name| !is_own(name));
                    match one.names.first().and_then(parsed) {
                        // Another directory may have it, too.
                        Some(name) if self.realms.is_shared(&name) => drop(unclear.insert(name.as_str().to_owned())),
                        Some(name) if !self.realms.may_have(realm, &name) => run.foreign(realm, one)?,
                        Some(_) | None => run.listed(realm, one)?,
                    }
                }
                Ok(())
            };
            // Whoever ends first with an error ends the other.
            tokio::try_join!(list, read)?;
        }
        // Only a login's own search decides which entry such a name is.
        run.look_up(unclear.into_iter()).await?;
        run.rest_of_the_recipe().await?;
        Ok(run.totals)
    }

    fn begin<'r>(&'r self, row: &'r mut (dyn FnMut(&Row<'_>) -> bool + Send)) -> Run<'r, 'r> {
        Run { all_users: self, totals: Totals::default(), met: HashSet::new(), row }
    }

    /// The names that several entries have.
    async fn ambiguous(&self, realm: &RealmCore) -> Result<HashSet<u64>, ListingError> {
        let (mut once, mut twice) = (HashSet::new(), HashSet::new());
        let (sender, mut listed) = mpsc::channel(256);
        let (whole, ()) = tokio::join!(list(realm.directory(), self.name_attribute, sender), async {
            while let Some(ListedUser { names, .. }) = listed.recv().await {
                let own: HashSet<u64> = names.iter().map(|name| digest(name)).collect();
                twice.extend(own.into_iter().filter(|name| !once.insert(*name)));
            }
        });
        whole.map_err(ListingError::Directory)?;
        Ok(twice)
    }
}

impl Run<'_, '_> {
    /// An entry of the directory.
    fn listed(&mut self, realm: &RealmCore, listed: ListedUser) -> Result<(), ListingError> {
        let ListedUser { dn, entry, names } = listed;
        let login = names.first().cloned().unwrap_or_default();
        let verdict = match (Login::parse(login.as_bytes()), entry) {
            (None, entry) if entry.fault.is_some() => Verdict::of_unusable(&entry),
            (None, _) if login.is_empty() => Verdict::refused(
                Refusal::InvalidUsername,
                "no attribute that the filter compares with a login has a value",
            ),
            (None, _) => Verdict::no_login(),
            (Some(login), entry) => Verdict::of_entry(self.all_users.config, &realm.settings, &entry, &login),
        };
        let verdict = Verdict { dn: Some(dn), ..verdict };
        self.tell(login, &names, verdict)
    }

    /// An entry without a name by which a login would be looked up in its directory.
    fn foreign(&mut self, realm: &RealmCore, listed: ListedUser) -> Result<(), ListingError> {
        let login = listed.names.first().cloned().unwrap_or_default();
        let words = format!("no name of this entry has a domain of {}: see `domains`", realm.settings.name);
        let verdict = Verdict { dn: Some(listed.dn), ..Verdict::refused(Refusal::UnknownUser, words) };
        self.tell(login, &listed.names, verdict)
    }

    /// Names, each asked for as a login asks.
    async fn look_up(&mut self, names: impl Iterator<Item = String> + Send) -> Result<(), ListingError> {
        let AllUsers { config, realms, .. } = *self.all_users;
        let asked = names.map(|name| async move {
            let Some(login) = Login::parse(name.as_bytes()) else { return Ok((name, Verdict::no_login())) };
            let realm = match realms.locate(&login).await {
                Ok(realm) => realm,
                Err(DirectoryError::Unavailable(cause)) => return Err(ListingError::Directory(cause)),
                Err(error) => return Ok((name, Verdict::of_unlocated(&error))),
            };
            match look_up(realm.directory(), &login).await {
                Err(DirectoryError::Unavailable(cause)) if !is_about_one(&cause) => Err(ListingError::Directory(cause)),
                answer => Ok((name, Verdict::of(config, &realm.settings, answer, &login))),
            }
        });
        let mut answers = stream::iter(asked).buffered(AT_ONCE);
        while let Some(answer) = answers.next().await {
            let (name, verdict) = answer?;
            self.tell(name.clone(), &[name], verdict)?;
        }
        Ok(())
    }

    /// The names of the recipe that have not been met.
    async fn rest_of_the_recipe(&mut self) -> Result<(), ListingError> {
        let Some(against) = self.all_users.against else { return Ok(()) };
        let met = std::mem::take(&mut self.met);
        let rest = against.recipe.names.iter().enumerate().filter(|(at, _)| !met.contains(at));
        let rest: Vec<String> = rest.map(|(_, name)| name.text.clone()).collect();
        self.look_up(rest.into_iter()).await
    }

    fn tell(&mut self, login: String, names: &[String], mut verdict: Verdict) -> Result<(), ListingError> {
        if verdict.held && verdict.goal.is_ok() {
            verdict.goal = Err(Refusal::Hold);
            "the directory holds this user: logins wait until it releases the hold".clone_into(&mut verdict.words);
        }
        let expected = self.all_users.against.map(|against| {
            let named: Vec<usize> = names.iter().filter_map(|name| against.recipe.position(name)).collect();
            self.met.extend(&named);
            if named.is_empty() { against.default.as_str() } else { against.backend.as_str() }
        });
        let row = Row { login, verdict, expected };
        let totals = &mut self.totals;
        totals.users += 1;
        match &row.verdict.goal {
            Ok(goal) => *totals.backends.entry(goal.backend.clone()).or_default() += 1,
            Err(refusal) => *totals.refusals.entry(refusal.label()).or_default() += 1,
        }
        totals.differences += usize::from(row.differs());
        self.all_users.done.fetch_add(1, Ordering::Relaxed);
        if (self.row)(&row) { Ok(()) } else { Err(ListingError::OutputClosed) }
    }
}

/// Whether an error may concern one entry only, so that the others can still be listed.
const fn is_about_one(cause: &UnavailableCause) -> bool {
    match cause {
        UnavailableCause::Malformed { .. } | UnavailableCause::Result { .. } => true,
        UnavailableCause::Connection { .. }
        | UnavailableCause::Timeout
        | UnavailableCause::Busy
        | UnavailableCause::NoServer { .. }
        | UnavailableCause::ServiceBind { .. }
        | UnavailableCause::Canary { .. }
        | UnavailableCause::Behind { .. }
        | UnavailableCause::Hidden { .. }
        | UnavailableCause::HeldElsewhere
        | UnavailableCause::NoServiceAccount => false,
    }
}

/// A name in 8 bytes, however it is capitalized: keyed, so that collisions cannot be chosen.
fn digest(name: &str) -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEY.hash_one(name.to_lowercase())
}
