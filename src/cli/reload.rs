//! `usher reload` and `usher upgrade`: the running usher takes over its configuration file, or hands
//! over to a new process, or says why not.

use std::path::Path;
use std::process::ExitCode;

use super::{FAILED, OK, UNAVAILABLE, fail};
use crate::admin::control::{self, Outcome};

pub(super) async fn reload(config: &Path) -> ExitCode {
    order(config, "/reload", "reloaded", "the reload was refused; the old configuration stays in force").await
}

pub(super) async fn upgrade(config: &Path) -> ExitCode {
    order(config, "/upgrade", "a new process serves", "the upgrade failed; the old process goes on").await
}

async fn order(config: &Path, path: &str, done: &str, refused: &str) -> ExitCode {
    let socket = match super::sessions::control_socket(config) {
        Ok(socket) => socket,
        // Said already; to systemd it is a refused reload like another.
        Err(_) => return ExitCode::from(FAILED),
    };
    match control::ask::<Outcome>(&socket, "POST", path).await {
        Ok(Outcome { done: true, .. }) => {
            println!("{done}");
            ExitCode::from(OK)
        }
        Ok(Outcome { problems, .. }) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            fail(FAILED, refused)
        }
        Err(error) => fail(UNAVAILABLE, error),
    }
}
