//! The side port with clients that stay silent, send endless requests, or use a foreign host name.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::kit::{Config, Usher, wait_limit};

/// A GET with these header lines: the status and the reply.
fn get(usher: &Usher, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(usher.side_port()).unwrap();
    stream.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer:?}")), answer)
}

#[test]
fn silent_connections_delay_no_health_check() {
    let usher = Usher::start(Config::shared());
    let silent: Vec<_> = (0..256).map(|_| TcpStream::connect(usher.side_port()).unwrap()).collect();
    let began = Instant::now();
    assert_eq!(usher.http("/live").0, 200);
    assert!(began.elapsed() < wait_limit(Duration::from_secs(1)), "{:?}", began.elapsed());
    // The newest of them has one second for its request.
    let mut last = silent.last().unwrap();
    last.set_read_timeout(Some(wait_limit(Duration::from_secs(5)))).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap_or_default(), 0);
    drop(silent);
}

#[test]
fn foreign_host_name_is_refused_and_local_names_are_accepted() {
    let usher = Usher::start(Config::shared().set("/admin/hosts", serde_json::json!(["Extra.Example.com"])));
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own = usher.side_port().to_owned();
    for host in [
        own.as_str(),
        "127.0.0.1",
        "[::1]:9930",
        "localhost:9930",
        "LOCALHOST",
        &machine,
        &format!("{machine}:9930"),
        "extra.example.com",
        "extra.example.com.:9930",
    ] {
        for path in ["/", "/metrics", "/live", "/ready"] {
            let (status, answer) = get(&usher, path, &format!("Host: {host}\r\n"));
            // The directory may not have answered yet.
            assert!(status == 200 || path == "/ready" && status == 503, "{host} {path}: {answer}");
        }
    }
    for host in
        ["evil.example", "evil.example:9930", "localhost.evil.example", "127.0.0.1.evil.example", "usher", "a b"]
    {
        for path in ["/", "/metrics", "/live", "/nothing"] {
            let (status, answer) = get(&usher, path, &format!("Host: {host}\r\n"));
            assert!(status == 421 || status == 400, "{host} {path}: {answer}");
            assert!(!answer.contains("usher_"), "{answer}");
        }
    }
    let (status, answer) = get(&usher, "/", "Host: evil.example\r\n");
    assert!(status == 421 && answer.contains("admin.hosts"), "{answer}");
    // Each name is logged once.
    usher
        .wait_log("side port: replied 421, not a name of this machine; if it should be, add it to admin.hosts", |_| {
            true
        });
    // The name that clients use.
    assert_eq!(get(&usher, "/live", "Host: usher.example.com\r\n").0, 200);
}

#[test]
fn pages_are_rendered_at_a_bounded_rate() {
    let usher = Usher::start(Config::shared());
    let (stop, pages, texts) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (path, count) in [("/", &pages), ("/metrics", &texts)] {
            scope.spawn({
                let (usher, stop) = (&usher, &stop);
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(usher.http(path).0, 200);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
    });
    // A client that polls gets each rendering once: it counts them.
    let seconds = began.elapsed().as_secs_f64();
    let (pages, texts) = (pages.into_inner() as f64, texts.into_inner() as f64);
    assert!(pages <= seconds + 2.0 && texts <= 10.0 * seconds + 2.0, "{pages} and {texts} in {seconds} s");
    assert!(pages >= 2.0 && texts >= 2.0, "{pages} and {texts} in {seconds} s");
}

#[test]
fn reload_applies_new_host_names() {
    let mut usher = Usher::start(Config::shared());
    assert_eq!(get(&usher, "/live", "Host: later.example.com\r\n").0, 421);
    usher.config.change("/admin/hosts", serde_json::json!("later.example.com"));
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    assert_eq!(get(&usher, "/live", "Host: later.example.com\r\n").0, 200);
}
