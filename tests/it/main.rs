//! Integration tests: the real binary between real clients and real servers.
//!
//! `./tests/run` installs what they need. A file per behaviour; the kit is in `kit/`. What each
//! test guarantees is listed in `docs/promises.md`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod kit;

mod address;
mod auth_http;
mod backend;
mod backends;
mod cache;
mod capabilities;
mod cli;
mod config_files;
mod control;
mod control_folder;
mod crowd;
mod cutover;
#[cfg(feature = "demo")]
mod demo;
mod dialogue;
mod directory;
mod dirsrv;
mod faults;
mod flood;
mod health;
mod hostile_directory;
mod inspect;
mod kick;
mod labels;
mod lag;
mod layers;
mod lifecycle;
mod listed;
mod listener_tls;
mod lockout;
mod log_lines;
mod login;
mod managesieve;
mod memory;
mod metrics;
mod monitoring;
mod policy;
mod pop3;
mod promises;
mod refusals;
mod relay;
mod reload_drain;
mod replicas;
mod resumption;
mod servers;
mod side_port;
mod spellings;
mod status;
mod submission;
mod tasks;
mod throttle;
mod timers;
mod unauthenticate;
mod watch;
