//! A terminal that does not show what is typed (termios(3)).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Standard input without echo, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hidden {
    terminal: OwnedFd,
    before: Termios,
}

impl Hidden {
    /// `None` if standard input is no terminal.
    ///
    /// # Errors
    /// The terminal cannot be changed.
    pub(crate) fn standard_input() -> io::Result<Option<Self>> {
        let input = io::stdin();
        if !isatty(&input) {
            return Ok(None);
        }
        let (terminal, before) = (input.as_fd().try_clone_to_owned()?, tcgetattr(&input)?);
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
