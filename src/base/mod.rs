//! What everything may use: memory that is wiped, the clock, supervised tasks, shared questions, and what only the
//! operating system knows.

pub(crate) mod clock;
pub(crate) mod credential;
pub(crate) mod flights;
pub(crate) mod labels;
pub(crate) mod net;
pub(crate) mod privileges;
pub(crate) mod secret;
pub(crate) mod sys;
pub(crate) mod tasks;
