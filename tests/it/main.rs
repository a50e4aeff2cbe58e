//! Integration tests: the real binary between real clients and real servers.
//!
//! `./tests/run` installs what they need. A file per behaviour; the kit is in `kit/`. What each
//! test guarantees is listed in `docs/promises.md`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod kit;

mod acting;
mod address;
mod architecture;
mod auth_http;
mod backend;
mod backends;
mod cache;
mod capabilities;
mod certificates;
mod cli;
mod config_files;
mod config_reload;
mod container;
mod control;
mod control_folder;
#[cfg(feature = "demo")]
mod demo;
mod diagnose;
mod dialogue;
mod directory;
mod dirsrv;
mod external;
mod external_rules;
mod faults;
mod field;
mod fleet;
mod fleet_commands;
mod fleet_limits;
mod flood;
mod health;
mod hostile_directory;
mod kick;
mod labels;
mod lag;
mod late_greeting;
mod layers;
mod lifecycle;
mod listener_tls;
mod lockout;
mod log_lines;
mod login;
mod login_ways;
mod managesieve;
mod memory;
mod metrics;
mod migrate;
mod monitoring;
mod networks;
mod one_entry;
mod password_filter;
mod policy;
mod pop3;
mod prelogin_limits;
mod promises;
mod refusals;
mod relay;
mod reload_drain;
mod replicas;
mod resumption;
mod servers;
mod session_changes;
mod side_port;
mod snippets;
mod spellings;
mod status;
mod submission;
mod tasks;
mod throttle;
mod timers;
mod token_backends;
mod token_clients;
mod token_issuers;
mod token_login;
mod token_provider;
mod token_secrets;
mod trace;
mod trust;
mod unauthenticate;
mod watch;
mod wildcards;
