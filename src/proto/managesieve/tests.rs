//! Known-answer scripts of both halves, and what is kept between calls.

mod back;
mod front;
