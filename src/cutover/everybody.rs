//! Where would everybody go? The product's own answer for each of a list of users, or for all that the
//! directory has, and how it differs from an nginx recipe.
//!
//! Rows are told one by one, and none is kept: the directory is read once to learn which names several
//! entries have, and once more for the rows.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;

use super::recipe::Recipe;
use super::verdict::Verdict;
use super::{AT_ONCE, look_up};
use crate::config::{Config, Naming};
use crate::directory::{DirectoryError, Ldap, ListedUser, Login, UnavailableCause};
use crate::outcome::Refusal;

/// The recipe to compare with.
#[derive(Debug)]
pub struct Against {
    /// Its users.txt.
    pub recipe: Recipe,
    /// The backend of who is in it.
    pub backend: String,
    /// The backend of everybody else.
    pub default: String,
}

/// One user.
#[derive(Debug)]
pub struct Row<'a> {
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
    pub fn differs(&self) -> bool {
        self.expected.is_some_and(|expected| self.verdict.backend() != Some(expected))
    }
}

/// The counts at the end.
#[derive(Debug, Default, serde::Serialize)]
pub struct Totals {
    /// All rows.
    pub users: usize,
    /// Those who would be sent to a backend, by its name.
    pub backends: BTreeMap<String, usize>,
    /// Those who would be refused, by the reason's label.
    pub refusals: BTreeMap<&'static str, usize>,
    /// Those whom the recipe sends elsewhere.
    pub differences: usize,
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The directory went away, or does not show everybody.
    #[error("{0}{hint}", hint = hint(.0))]
    Directory(UnavailableCause),
    /// Nobody takes the rows any more.
    #[error("nobody reads the answer")]
    Unread,
}

/// What can be done about a listing that is refused.
fn hint(trouble: &UnavailableCause) -> &'static str {
    match trouble.code() {
        Some(3 | 4 | 11) => {
            ": the service account may not read all users; raise its limits (in slapd.conf `limits dn.exact=\"...\" \
             size=unlimited`), or give the names with --users"
        }
        Some(32) => ": there is no such base",
        _ if *trouble == UnavailableCause::NoServiceAccount => {
            ": give bind_dn and bind_password_file an account that may read"
        }
        _ => "",
    }
}

/// Says it of everybody.
pub struct Census<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Its directory.
    pub directory: &'a Ldap,
    /// Which attributes name a user.
    pub naming: &'a [Naming],
    /// What to compare with.
    pub against: Option<&'a Against>,
    /// Counts rows, for whoever waits.
    pub done: &'a AtomicUsize,
}

impl std::fmt::Debug for Census<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Census").finish_non_exhaustive()
    }
}

/// What has been told so far.
struct Told<'a, 'r> {
    census: &'a Census<'a>,
    totals: Totals,
    /// Which names of the recipe have been met.
    met: HashSet<usize>,
    row: &'r mut (dyn FnMut(&Row<'_>) -> bool + Send),
}

impl Census<'_> {
    /// Of these names, and of those of the recipe besides. `row` says whether it wants more.
    ///
    /// # Errors
    /// Why not all of them were told.
    pub async fn of_names(
        &self,
        names: &Recipe,
        row: &mut (dyn FnMut(&Row<'_>) -> bool + Send),
    ) -> Result<Totals, Ended> {
        let mut told = self.begin(row);
        let all = names.names.iter().map(|name| name.text.clone());
        told.look_up(all).await?;
        told.rest_of_the_recipe().await?;
        Ok(told.totals)
    }

    /// Of every user of the directory, and of the names of the recipe that nobody there has.
    ///
    /// # Errors
    /// Why not all of them were told.
    pub async fn of_directory(&self, row: &mut (dyn FnMut(&Row<'_>) -> bool + Send)) -> Result<Totals, Ended> {
        let ambiguous = self.ambiguous().await?;
        let mut told = self.begin(row);
        let mut unclear = BTreeSet::new();
        let (sender, mut listed) = mpsc::channel(256);
        let list = async { self.directory.list(self.naming, sender).await.map_err(Ended::Directory) };
        let read = async {
            while let Some(one) = listed.recv().await {
                unclear.extend(one.names.iter().filter(|name| ambiguous.contains(&digest(name))).cloned());
                if one.names.first().is_none_or(|name| !ambiguous.contains(&digest(name))) {
                    told.listed(one)?;
                }
            }
            Ok(())
        };
        // Whoever ends first with an error ends the other.
        tokio::try_join!(list, read)?;
        // Who such a name is, only a login's own question can tell.
        told.look_up(unclear.into_iter()).await?;
        told.rest_of_the_recipe().await?;
        Ok(told.totals)
    }

    fn begin<'r>(&'r self, row: &'r mut (dyn FnMut(&Row<'_>) -> bool + Send)) -> Told<'r, 'r> {
        Told { census: self, totals: Totals::default(), met: HashSet::new(), row }
    }

    /// The names that several entries have.
    async fn ambiguous(&self) -> Result<HashSet<u64>, Ended> {
        let (mut once, mut twice) = (HashSet::new(), HashSet::new());
        let (sender, mut listed) = mpsc::channel(256);
        let (whole, ()) = tokio::join!(self.directory.list(self.naming, sender), async {
            while let Some(ListedUser { names, .. }) = listed.recv().await {
                let own: HashSet<u64> = names.iter().map(|name| digest(name)).collect();
                twice.extend(own.into_iter().filter(|name| !once.insert(*name)));
            }
        });
        whole.map_err(Ended::Directory)?;
        Ok(twice)
    }
}

impl Told<'_, '_> {
    /// An entry of the directory.
    fn listed(&mut self, listed: ListedUser) -> Result<(), Ended> {
        let ListedUser { dn, entry, names } = listed;
        let login = names.first().cloned().unwrap_or_default();
        let verdict = match (Login::parse(login.as_bytes()), entry) {
            (_, None) => {
                Verdict::refused(Refusal::DirectoryUnavailable, "the entry has more or longer values than usher reads")
            }
            (None, Some(_)) if login.is_empty() => Verdict::refused(
                Refusal::InvalidUsername,
                "no attribute that the filter compares with a login has a value",
            ),
            (None, Some(_)) => Verdict::no_login(),
            (Some(login), Some(entry)) => Verdict::of_entry(self.census.config, &entry, &login),
        };
        let verdict = Verdict { dn: Some(dn), ..verdict };
        self.tell(login, &names, verdict)
    }

    /// Names, each asked for as a login asks.
    async fn look_up(&mut self, names: impl Iterator<Item = String> + Send) -> Result<(), Ended> {
        let Census { config, directory, .. } = *self.census;
        let asked = names.map(|name| async move {
            let Some(login) = Login::parse(name.as_bytes()) else { return Ok((name, Verdict::no_login())) };
            match look_up(directory, &login).await {
                Err(DirectoryError::Unavailable(trouble)) if !is_about_one(&trouble) => Err(Ended::Directory(trouble)),
                answer => Ok((name, Verdict::of(config, answer, &login))),
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
    async fn rest_of_the_recipe(&mut self) -> Result<(), Ended> {
        let Some(against) = self.census.against else { return Ok(()) };
        let met = std::mem::take(&mut self.met);
        let rest = against.recipe.names.iter().enumerate().filter(|(at, _)| !met.contains(at));
        let rest: Vec<String> = rest.map(|(_, name)| name.text.clone()).collect();
        self.look_up(rest.into_iter()).await
    }

    fn tell(&mut self, login: String, names: &[String], mut verdict: Verdict) -> Result<(), Ended> {
        if verdict.held && verdict.goal.is_ok() {
            verdict.goal = Err(Refusal::Hold);
            "the directory holds this user: nobody is let in until it releases him".clone_into(&mut verdict.words);
        }
        let expected = self.census.against.map(|against| {
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
        self.census.done.fetch_add(1, Ordering::Relaxed);
        if (self.row)(&row) { Ok(()) } else { Err(Ended::Unread) }
    }
}

/// Whether trouble may be about one entry alone, so that the others can still be told.
const fn is_about_one(trouble: &UnavailableCause) -> bool {
    match trouble {
        UnavailableCause::Malformed { .. } | UnavailableCause::Result { .. } => true,
        UnavailableCause::Connection { .. }
        | UnavailableCause::Timeout
        | UnavailableCause::Busy
        | UnavailableCause::ServiceBind { .. }
        | UnavailableCause::Canary { .. }
        | UnavailableCause::Behind { .. }
        | UnavailableCause::Hidden { .. }
        | UnavailableCause::NoServiceAccount => false,
    }
}

/// A name in 8 bytes, however it is capitalized: keyed, so that nobody can choose two names with the same.
fn digest(name: &str) -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEY.hash_one(name.to_lowercase())
}
