//! usher: a login proxy for IMAP, POP3, submission and ManageSieve with LDAP routing.
//!
//! Layers, from the bottom up; a module uses only those below it:
//! - 0: [`secret`] (memory that is wiped), [`outcome`] (why a login did not happen)
//! - 1: [`proto`] (pure dialogues), [`config`], [`metrics`], [`log`], [`sys`], [`tasks`]
//! - 2: [`throttle`] (what slows guessing), [`tls`]
//! - 3: [`directory`] (LDAP, and [`directory::Identity`], the evidence of a bind)
//! - 4: [`cache`], [`known`] (tracked entries), [`route`], [`registry`]
//! - 5: [`authn`] (the decision), [`follow`] (what follows from changes), [`backend`], [`relay`]
//! - 6: [`files`] (what a config's files hold), [`snapshot`] (what it all means), [`report`] (the `login` and `end` events),
//!   [`cutover`] (migration from nginx, routing of all users)
//! - 7: [`session`]: the life of a login, top to bottom; [`inspect`] (is all well at the servers?)
//! - 8: [`listener`], [`auth_http`] (auth requests of nginx), [`admin`]
//! - 9: [`server`], [`cli`], `demo`; `trial` (what must hold for any input, for the fuzz targets)
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic))]

pub mod admin;
pub mod auth_http;
pub mod authn;
pub mod backend;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cutover;
#[cfg(feature = "demo")]
pub mod demo;
pub mod directory;
pub mod files;
pub mod follow;
pub mod inspect;
pub mod known;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod outcome;
pub mod proto;
pub mod registry;
pub mod relay;
pub mod report;
pub mod route;
pub mod secret;
pub mod server;
pub mod session;
pub mod snapshot;
pub mod steer;
pub mod sys;
pub mod tasks;
pub mod throttle;
pub mod tls;
#[cfg(any(test, feature = "fuzz"))]
pub mod trial;
