//! The binary: arguments to a command, its outcome to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    usher::cli::main()
}
