//! Configuration files that are no regular files: nothing blocks, and the running process keeps serving.

use crate::kit::process::run;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher, password_of};

#[test]
fn fifo_among_config_files_is_refused_and_blocks_nothing() {
    let config = Config::shared();
    let usher = Usher::start(config);
    let mut open = Imap::tls(usher.imaps_port());
    open.login("alice", &password_of("alice")).ok();
    for name in ["ldap.password", "usher.yaml"] {
        let path = usher.config.path(name);
        let content = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        run("mkfifo", &["-m", "600", &path.display().to_string()], b"").succeeded();
        // Opening it for reading blocks until there is a writer.
        let answer = usher.hup();
        assert_eq!(answer["message"], "reload failed; the previous configuration stays active", "{answer}");
        assert!(answer["problem"].as_str().unwrap().contains("not a regular file"), "{answer}");
        let checked = command(&usher.config, &["check"], b"");
        assert_eq!(checked.code, 78, "{checked:#?}");
        assert!(checked.stderr.contains("not a regular file"), "{checked:#?}");
        open.command("NOOP").ok();
        Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).ok();
        std::fs::remove_file(&path).unwrap();
        crate::kit::process::write_secret(&path, content);
        assert_eq!(usher.hup()["message"], "reloaded");
    }
    drop(open);
    usher.terminate();
    assert_eq!(usher.exit_code(), 0);
}
