//! What everything may use: memory that is wiped, the clock, supervised tasks, and what only the operating system
//! knows.

pub mod clock;
pub mod privileges;
pub mod secret;
pub mod sys;
pub mod tasks;
