//! The folder of the control socket: only root and usher's user may create or change names on its path.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::control::ask;
use crate::kit::process::write_secret;
use crate::kit::usher::{Successor, command};
use crate::kit::{Config, Imap, Usher, password_of, wait_limit};

/// An unrelated user, in no group of usher.
const OTHER_UID: u32 = 65_534;

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A configuration with the control socket in its own folder.
fn with_folder(config: Config) -> (Config, std::path::PathBuf) {
    let config = config.set("/control/path", "run/control.sock");
    let folder = config.path("run");
    std::fs::create_dir(&folder).unwrap();
    (config, folder)
}

#[test]
fn folders_writable_by_others_are_refused_by_check_and_run() {
    let (config, folder) = with_folder(Config::shared());
    config.write();
    command(&config, &["check"], b"").succeeded();
    for bad in [0o770, 0o777, 0o1777] {
        set_mode(&folder, bad);
        for arguments in [&["check"][..], &["run", "--allow-root"]] {
            let said = command(&config, arguments, b"");
            let words = format!("others can write to {} (mode {bad:04o})", folder.display());
            assert!(
                said.code == 78 && said.stderr.contains("control.path") && said.stderr.contains(&words),
                "{said:#?}"
            );
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing was made there");
    }
    set_mode(&folder, 0o755);
    command(&config, &["check"], b"").succeeded();
    // The parent folder: others could rename the folder with all its contents.
    let above = config.path("");
    set_mode(&above, 0o777);
    let said = command(&config, &["check"], b"");
    assert!(said.code == 78 && said.stderr.contains("(mode 0777)"), "{said:#?}");
    set_mode(&above, 0o755);
}

#[test]
fn folder_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let (config, folder) = with_folder(Config::shared());
    config.write();
    chown(&folder, Some(OTHER_UID), None).unwrap();
    let said = command(&config, &["run", "--allow-root"], b"");
    assert!(said.code == 71 && said.stderr.contains("belongs to user 65534"), "{said:#?}");
    // `check` as root does not know the user that usher will run as, unless the file names it.
    command(&config, &["check"], b"").succeeded();
    let config = config.set("/process", serde_json::json!({"user": "daemon"}));
    config.write();
    let said = command(&config, &["check"], b"");
    assert!(said.code == 78 && said.stderr.contains("belongs to user 65534"), "{said:#?}");
}

#[test]
fn group_member_gets_no_private_file_by_swapping_names() {
    if !is_root() {
        return;
    }
    let (config, folder) = with_folder(Config::shared().set("/control/group", OTHER_UID.to_string()));
    let key = config.path("precious.key");
    write_secret(&key, "secret");
    chown(&folder, None, Some(OTHER_UID)).unwrap();
    set_mode(&folder, 0o770);
    config.write();
    // The attack of a group member on the key: every name that usher creates is replaced by a link to it.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for name in ["control.sock.new", "control.sock.new/socket", "control.sock"] {
                    let name = folder.join(name);
                    if std::fs::symlink_metadata(&name).is_ok() && std::fs::remove_file(&name).is_ok() {
                        let _ = symlink(&key, &name);
                    }
                }
            }
        });
        for _ in 0..20 {
            let said = command(&config, &["run", "--allow-root"], b"");
            assert_eq!(said.code, 78, "{said:#?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(mode(&key), 0o600);
    // In a folder owned by usher the group can access the socket, and nothing else.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    set_mode(&folder, 0o755);
    let usher = Usher::start(config);
    let socket = folder.join("control.sock");
    assert_eq!((mode(&socket), std::fs::read_dir(&folder).unwrap().count()), (0o660, 1));
    let found = rustix::fs::stat(&socket).unwrap();
    assert_eq!((found.st_uid, found.st_gid), (0, OTHER_UID));
    assert_eq!(mode(&key), 0o600);
    drop(usher);
}

#[test]
fn forged_predecessor_socket_is_ignored() {
    let usher = Usher::start(Config::shared());
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).ok();
    // Named after the id of a live process that is not the one that listens.
    let planted = usher.config.path("control.sock.1");
    let listener = UnixListener::bind(&planted).unwrap();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut request).unwrap();
        request
    });
    let said = usher.command(&["sessions"]);
    assert!(said.code == 1 && said.stdout.contains("alice"), "{said:#?}");
    let words = format!("the socket belongs to process {}", std::process::id());
    assert!(said.stderr.contains("control.sock.1") && said.stderr.contains(&words), "{said:#?}");
    assert!(asked.join().unwrap().is_empty(), "no request is sent");
}

#[test]
fn frozen_predecessor_costs_two_seconds() {
    let (config, imaps) = Config::shared().with_ports();
    let usher = Usher::start(config);
    let mut alice = Imap::tls(imaps);
    alice.login("alice", &password_of("alice")).ok();
    usher.command(&["upgrade"]).succeeded();
    let _successor = Successor::of(&usher, 2);
    let said = usher.command(&["sessions"]).succeeded();
    assert!(said.stdout.contains("alice"), "{said:#?}");
    usher.signal(rustix::process::Signal::STOP);
    let began = Instant::now();
    let said = usher.command(&["sessions"]);
    let took = began.elapsed();
    assert!(said.code == 1 && said.stderr.contains("no reply from usher in time"), "{said:#?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    usher.signal(rustix::process::Signal::CONT);
}

#[test]
fn incomplete_requests_block_no_administrator() {
    let usher = Usher::start(Config::shared());
    let socket = usher.config.path("control.sock");
    let half: Vec<UnixStream> = (0..1_000)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            // The connection may have been evicted already.
            let _ = std::io::Write::write_all(&mut stream, b"GET /sessions HTTP/1.1\r\n");
            stream
        })
        .collect();
    let began = Instant::now();
    usher.command(&["sessions"]).succeeded();
    assert_eq!(ask(&usher, "GET", "/backends").0, 200);
    assert!(began.elapsed() < wait_limit(Duration::from_secs(3)), "{:?}", began.elapsed());
    drop(half);
}

#[test]
fn one_user_cannot_take_all_connection_slots() {
    if !is_root() {
        return;
    }
    let usher = Usher::start(Config::shared().set("/control/group", OTHER_UID.to_string()));
    // More connections than slots, from a group member. That user may not be able to execute the program, hence Python.
    let script = "import os, socket, sys, time\n\
                  os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n\
                  def one():\n    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); return s\n\
                  held = [one() for _ in range(60)]\n\
                  print('held', flush=True)\n\
                  time.sleep(60)\n";
    let socket = usher.config.path("control.sock").display().to_string();
    let group = OTHER_UID.to_string();
    let mut other_user = std::process::Command::new("python3")
        .args(["-c", script, &socket, &group])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(other_user.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "held\n");
    let (status, sessions) = ask(&usher, "GET", "/sessions");
    assert_eq!((status, sessions), (200, Value::Array(Vec::new())));
    other_user.kill().unwrap();
    other_user.wait().unwrap();
}
