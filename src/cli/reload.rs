//! `usher reload`: the running usher takes over its configuration file, or says why not.

use std::path::Path;
use std::process::ExitCode;

use super::{FAILED, OK, UNAVAILABLE, fail};
use crate::admin::control::{self, Reloaded};

pub(super) async fn reload(config: &Path) -> ExitCode {
    let socket = match super::sessions::control_socket(config) {
        Ok(socket) => socket,
        // Said already; to systemd it is a refused reload like another.
        Err(_) => return ExitCode::from(FAILED),
    };
    match control::ask::<Reloaded>(&socket, "POST", "/reload").await {
        Ok(Reloaded { reloaded: true, .. }) => {
            println!("reloaded");
            ExitCode::from(OK)
        }
        Ok(Reloaded { problems, .. }) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            fail(FAILED, "the reload was refused; the old configuration stays in force")
        }
        Err(error) => fail(UNAVAILABLE, error),
    }
}
