//! Migration with a directory in memory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::explain_all::{Against, AllUsers, ListingError};
use super::import::{Asked, Hosts, Import, Remark};
use super::nginx::Recipe;
use crate::config::{self, Config};
use crate::directory::memory::Memory;
use crate::directory::{Directory, DirectoryError, Entry, UnavailableCause};
use crate::login::realms::Realms;

fn config() -> Config {
    let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
routing:
  backends:
    - {name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}
    - {name: server4, imap: {address: '192.0.2.4:993', tls: implicit}}
";
    config::parse(Path::new("/c.yaml"), text).unwrap()
}

/// alice and bob have a mail host, carol has none.
fn users() -> Arc<Memory> {
    let memory = Memory::new();
    memory.add("alice", "sesame", Entry::for_tests("uid=alice,dc=x", &["server3"]));
    memory.add("bob", "sesame", Entry::for_tests("uid=bob,dc=x", &["server4"]));
    memory.add("carol", "sesame", Entry::for_tests("uid=carol,dc=x", &[]));
    memory
}

/// The logins of all rows with their backends.
async fn rows(
    memory: &Arc<Memory>,
    against: Option<&Against>,
    names: Option<&Recipe>,
) -> Result<(Vec<(String, Option<String>, bool)>, usize), ListingError> {
    let (config, done) = (config(), AtomicUsize::new(0));
    let realms = Realms::new(&config, vec![Arc::clone(memory) as Arc<dyn Directory>], None);
    let all_users = AllUsers { config: &config, realms: &realms, name_attribute: None, against, done: &done };
    let mut rows = Vec::new();
    let mut row = |row: &super::explain_all::Row<'_>| {
        rows.push((row.login.clone(), row.verdict.backend().map(str::to_owned), row.differs()));
        true
    };
    let totals = match names {
        Some(names) => all_users.of_names(names, &mut row).await?,
        None => all_users.of_directory(&mut row).await?,
    };
    Ok((rows, totals.differences))
}

fn row(login: &str, backend: Option<&str>, differs: bool) -> (String, Option<String>, bool) {
    (login.to_owned(), backend.map(str::to_owned), differs)
}

#[tokio::test(start_paused = true)]
async fn every_user_is_listed_with_the_backend() {
    let (rows, _) = rows(&users(), None, None).await.unwrap();
    let expected = [("alice", Some("server3")), ("bob", Some("server4")), ("carol", None)];
    assert_eq!(rows, expected.map(|(login, backend)| row(login, backend, false)));
}

#[tokio::test(start_paused = true)]
async fn users_that_the_recipe_routes_elsewhere_are_differences() {
    let against =
        Against { recipe: Recipe::parse(b"alice\nbob\n"), backend: "server4".into(), default: "server3".into() };
    let (rows, differences) = rows(&users(), Some(&against), None).await.unwrap();
    let expected = [("alice", Some("server3"), true), ("bob", Some("server4"), false), ("carol", None, true)];
    assert_eq!(rows, expected.map(|(login, backend, differs)| row(login, backend, differs)));
    assert_eq!(differences, 2);
}

#[tokio::test(start_paused = true)]
async fn named_users_are_looked_up_as_a_login_does() {
    let (rows, _) = rows(&users(), None, Some(&Recipe::parse(b"bob\ndave\n"))).await.unwrap();
    assert_eq!(rows, [row("bob", Some("server4"), false), row("dave", None, false)]);
}

#[tokio::test(start_paused = true)]
async fn listing_during_an_outage_is_incomplete() {
    let memory = users();
    memory.set_outage(true);
    let error = rows(&memory, None, None).await.unwrap_err();
    assert!(matches!(error, ListingError::Directory(UnavailableCause::Timeout)), "{error}");
}

async fn import(memory: &Arc<Memory>, recipe: &str, write_default: bool) -> Result<Import, DirectoryError> {
    let hosts = Hosts { backend: "server4".into(), default: Some("server3".into()) };
    let (config, done) = (config(), AtomicUsize::new(0));
    let recipe = Recipe::parse(recipe.as_bytes());
    let realms = Realms::new(&config, vec![Arc::clone(memory) as Arc<dyn Directory>], None);
    let asked = Asked { realms: &realms, realm: &realms.all()[0] };
    Import::online(&recipe, (&config, asked, None), &hosts, write_default, &done).await
}

#[tokio::test(start_paused = true)]
async fn import_changes_only_entries_with_another_mail_host() {
    let import = import(&users(), "alice\nbob\ndave\n", false).await.unwrap();
    let changes: Vec<_> = import.changes.iter().map(|one| (one.dn.as_str(), one.mail_host.as_str())).collect();
    assert_eq!(changes, [("uid=alice,dc=x", "server4")]);
    assert_eq!((import.settled, import.without), (1, 1));
    assert!(import.remarks.contains(&Remark::Unknown("dave".to_owned(), 3)), "{:?}", import.remarks);
}

#[tokio::test(start_paused = true)]
async fn import_writes_the_default_for_users_without_a_mail_host() {
    let import = import(&users(), "bob\n", true).await.unwrap();
    let changes: Vec<_> = import.changes.iter().map(|one| (one.dn.as_str(), one.mail_host.as_str())).collect();
    assert_eq!(changes, [("uid=carol,dc=x", "server3")]);
}

#[tokio::test(start_paused = true)]
async fn import_during_an_outage_prints_nothing() {
    let memory = users();
    memory.set_outage(true);
    let error = import(&memory, "alice\n", false).await.unwrap_err();
    assert_eq!(error, DirectoryError::Unavailable(UnavailableCause::Timeout));
}
