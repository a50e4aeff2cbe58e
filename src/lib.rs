//! usher: a mail login proxy that authenticates by LDAP bind and routes by the directory.
//!
//! The modules by layer, lowest first; a module uses only lower layers (`tests/it/layers.rs`):
//! - `base`; `outcome` (why a login fails, and what the client may hear of it); `proto` (pure dialogues and syntax)
//! - `config`; `telemetry`; `tls`; `token`
//! - `directory` (LDAP, and the evidence of a bind); `limits`, `routing`, `sessions`; `backend`, `cache`, `trace`;
//!   `tracking`
//! - `login` (the core, whichever frontend is used); `config_files`; `process`
//! - `frontend`, `admin`; `diagnose`, `migrate`, `server`; `demo`; `cli`
#![cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic))]

mod admin;
mod backend;
mod base;
mod cache;
mod cli;
mod config;
mod config_files;
#[cfg(feature = "demo")]
mod demo;
mod diagnose;
mod directory;
// Counts, commands and the brake are built on it.
#[allow(dead_code, unused_imports, reason = "they use the rest")]
mod fleet;
mod frontend;
#[cfg(feature = "internals")]
pub mod internals;
#[cfg(any(test, feature = "internals"))]
mod invariants;
mod limits;
mod login;
mod migrate;
mod outcome;
mod process;
mod proto;
mod routing;
mod server;
mod sessions;
mod telemetry;
mod tls;
mod token;
mod trace;
mod tracking;

pub use base::sys::allocator::WipingJemalloc;
pub use cli::main;
