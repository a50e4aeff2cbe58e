//! Files that a configuration names: those that are no regular files block nothing, and secrets are refused with
//! cause and remedy by mode, place and encoding.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::kit::process::run;
use crate::kit::usher::{BINARY, command};
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

#[test]
fn readable_secret_in_a_closed_folder_is_accepted_with_a_warning() {
    let config = Config::shared();
    let file = config.path("ldap.password");
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    set_mode(&file, 0o444);
    config.write();
    let checked = command(&config, &["check"], b"");
    assert_eq!(checked.code, 78, "{checked:#?}");
    let words = format!("directory.bind_password_file: {} holds a secret that others can", file.display());
    assert!(checked.stderr.contains(&words), "{checked:#?}");
    assert!(checked.stderr.contains(&format!("(mode 0444): run `chmod 640 {}`", file.display())), "{checked:#?}");
    set_mode(&config.path(""), 0o750);
    let checked = command(&config, &["check"], b"");
    assert_eq!(checked.code, 0, "{checked:#?}");
    let folder = config.path("").display().to_string();
    let words = format!("accepted because {} (mode 0750) is closed to others", folder.trim_end_matches('/'));
    assert!(checked.stderr.contains("warning: ") && checked.stderr.contains(&words), "{checked:#?}");
    let usher = Usher::start(config);
    usher.wait_log("configuration warning", |line| line["warning"].as_str().unwrap().contains(&words));
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
}

#[test]
fn advice_for_a_secret_on_a_read_only_mount_is_not_chmod() {
    let config = Config::shared();
    let (folder, yaml) = (config.path("mounted"), config.write());
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(config.path("ldap.password"), folder.join("ldap.password")).unwrap();
    std::fs::set_permissions(folder.join("ldap.password"), Permissions::from_mode(0o444)).unwrap();
    let text = std::fs::read_to_string(yaml).unwrap().replace(": ldap.password", ": mounted/ldap.password");
    let yaml = config.write_text(&text);
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && exec \"$2\" check --config \"$3\"";
    let [folder, yaml] = [folder, yaml].map(|path| path.display().to_string());
    let checked = run("unshare", &["--mount", "sh", "-c", script, "sh", &folder, BINARY, &yaml], b"");
    assert_eq!(checked.code, 78, "{checked:#?}");
    assert!(checked.stderr.contains("(mode 0444): its mount is read-only: for a container set `defaultMode: 0440` at"));
    assert!(checked.stderr.contains("`fsGroup`") && !checked.stderr.contains("chmod"), "{checked:#?}");
}

#[test]
fn password_file_in_another_encoding_is_refused_with_cause_and_remedy() {
    let config = Config::shared();
    let usher = Usher::start(config);
    let good = std::fs::read(usher.config.path("ldap.password")).unwrap();
    let utf16: Vec<u8> = std::iter::once(0xfeff)
        .chain(String::from_utf8(good.clone()).unwrap().encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    let bom = [&b"\xef\xbb\xbf"[..], &good].concat();
    for (content, words) in [
        (utf16, "ldap.password is UTF-16 text, as PowerShell's `>` and some editors write it: convert it with `iconv"),
        (bom, "ldap.password begins with a byte order mark"),
        (b"\n".to_vec(), "ldap.password is empty"),
        ([&good[..], b"\n"].concat(), "ldap.password has more than one line"),
    ] {
        usher.config.file("ldap.password", content);
        let checked = command(&usher.config, &["check"], b"");
        assert_eq!(checked.code, 78, "{checked:#?}");
        assert!(checked.stderr.contains("directory.bind_password_file: "), "{checked:#?}");
        assert!(checked.stderr.contains(words), "{checked:#?}");
        let answer = usher.hup();
        assert!(answer["problem"].as_str().unwrap().contains(words), "{answer}");
    }
    // A line end of another system is no part of the password.
    usher.config.file("ldap.password", [good.trim_ascii_end(), b"\r\n"].concat());
    assert_eq!(usher.hup()["message"], "reloaded");
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
}
