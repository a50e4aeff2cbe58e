//! usher: a mail front door whose control panel is the company's own directory.
//!
//! The modules by layer, lowest first; a module uses only lower layers (`tests/it/layers.rs`):
//! - `base`; `outcome` (why a login fails, and what the client may hear of it); `proto` (pure dialogues and syntax)
//! - `config`; `telemetry`; `tls`, `limits`
//! - `directory` (LDAP, and the evidence of a bind); `routing`, `sessions`; `backend`, `cache`; `tracking`
//! - `login` (the core, whichever frontend is used); `config_files`; `process`
//! - `frontend`, `admin`; `diagnose`, `migrate`, `server`; `demo`; `cli`
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic))]

pub mod admin;
pub mod backend;
pub mod base;
pub mod cache;
pub mod cli;
pub mod config;
pub mod config_files;
#[cfg(feature = "demo")]
pub mod demo;
pub mod diagnose;
pub mod directory;
pub mod frontend;
#[cfg(any(test, feature = "fuzz"))]
pub mod invariants;
pub mod limits;
pub mod login;
pub mod migrate;
pub mod outcome;
pub mod proto;
pub mod routing;
pub mod server;
pub mod sessions;
pub mod telemetry;
pub mod tls;
pub mod tracking;
