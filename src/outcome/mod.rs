//! Why a login was refused, and the reply that the client may receive: shared by all modules.
//!
//! A [`Refusal`] is the truth, for log, metrics and `explain`; a [`Reply`] is what a client may hear.
//! [`Refusal::reply`] is the only way from one to the other. No module defines reasons of its own.

mod account_state;
mod acting_fault;
mod refusal;
mod reply;
mod token_error;

pub(crate) use account_state::AccountState;
pub(crate) use acting_fault::ActingFault;
pub(crate) use refusal::{Proof, Refusal, Side};
pub(crate) use reply::BackendReply;
pub use reply::Reply;
pub(crate) use token_error::{TokenChallenge, TokenError};
