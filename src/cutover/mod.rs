//! What is done once, before usher takes over: where would everybody go, and what does the directory
//! need to be told so that everybody goes where the old recipe sent them?
//!
//! [`verdict`] says where one entry leads, by the code that sessions are routed with; [`everybody`] says
//! it of all; [`recipe`] is the users.txt of an nginx recipe; [`import`] turns it into LDIF ([`ldif`]).
//! Reads the directory and never writes to it: the operator applies what is printed.

pub mod everybody;
pub mod import;
pub mod ldif;
pub mod recipe;
pub mod sheet;
pub mod verdict;

/// Questions to the directory under way at a time: they share one connection with each other and with
/// no login, and a small server still answers logins beside them.
pub const AT_ONCE: usize = 8;
