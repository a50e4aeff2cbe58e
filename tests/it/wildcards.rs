//! The two wildcards of a port: bound apart, handed over by systemd apart, kept over reloads and upgrades; and
//! sockets that systemd opened and no listener uses.

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::kit::process::{Output, free_port, run};
use crate::kit::usher::{BINARY, Successor, fetch};
use crate::kit::{Config, Usher, slapd, start_deadline, wait_limit};

const IPV4: Ipv4Addr = Ipv4Addr::LOCALHOST;
const IPV6: Ipv6Addr = Ipv6Addr::LOCALHOST;

fn listener(address: String) -> Value {
    json!({"protocol": "imap", "address": address, "tls": "starttls"})
}

fn ipv4(port: u16) -> Value {
    listener(format!("0.0.0.0:{port}"))
}

fn ipv6(port: u16) -> Value {
    listener(format!("[::]:{port}"))
}

fn listening(listeners: &[Value]) -> Config {
    let config = Config::with_directory(slapd()).backend("server3", 1, &["server3"]);
    config.set("/listeners", listeners.to_vec()).set("/admin/address", format!("127.0.0.1:{}", free_port()))
}

/// Whether a client is greeted there; `false`: its connection is closed without a reply. If nothing accepts it,
/// the test fails.
fn greets(ip: impl Into<std::net::IpAddr>, port: u16) -> Result<bool, ErrorKind> {
    let stream = TcpStream::connect(SocketAddr::new(ip.into(), port)).map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line);
    assert!(!read.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "nothing accepts");
    Ok(line.starts_with("* OK "))
}

fn both_greet(port: u16) {
    assert_eq!((greets(IPV4, port), greets(IPV6, port)), (Ok(true), Ok(true)));
}

/// A socket as systemd opens it.
fn opened(address: &str, port: u16, only_v6: bool) -> TcpListener {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(only_v6).unwrap();
    }
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(100).unwrap();
    socket.into()
}

/// As BindIPv6Only=ipv6-only opens a port's two wildcards.
fn apart(port: u16) -> Vec<TcpListener> {
    vec![opened("0.0.0.0", port, false), opened("::", port, true)]
}

/// The start of a command that has these sockets as its descriptors from 3 on; the shell stands in for systemd,
/// whose LISTEN_PID is the process itself.
fn activated(sockets: Vec<TcpListener>, name: &str) -> (Vec<OwnedFd>, String) {
    let beyond = |socket: TcpListener| {
        let high = rustix::io::fcntl_dupfd_cloexec(&socket, 100).unwrap();
        rustix::io::fcntl_setfd(&high, rustix::io::FdFlags::empty()).unwrap();
        high
    };
    let high: Vec<OwnedFd> = sockets.into_iter().map(beyond).collect();
    let moves: Vec<String> =
        high.iter().enumerate().map(|(index, fd)| format!("{}<&{1} {1}<&-", index + 3, fd.as_raw_fd())).collect();
    let names = vec![name; high.len()].join(":");
    let listen = format!("LISTEN_FDS={} LISTEN_FDNAMES={names} LISTEN_PID=$$", high.len());
    let script = format!("exec {}; {listen} exec \"$@\"", moves.join(" "));
    (high, script)
}

fn start_with(config: Config, sockets: Vec<TcpListener>, name: &str) -> Usher {
    // As systemd the test keeps them open.
    let (_open, script) = activated(sockets, name);
    Usher::start_under(config, &["bash", "-c", &script, "bash"])
}

/// A start that fails.
fn refused_with(config: &Config, sockets: Vec<TcpListener>) -> Output {
    let (_open, script) = activated(sockets, "usher.socket");
    let file = config.write().display().to_string();
    run("bash", &["-c", &script, "bash", BINARY, "run", "--allow-root", "--config", &file], b"")
}

#[test]
fn both_wildcards_of_a_port_are_bound_apart() {
    for reversed in [false, true] {
        let port = free_port();
        let mut proxied = ipv4(port);
        proxied["proxy_header"] = "required".into();
        proxied["trusted"] = "192.0.2.1".into();
        let mut listeners = [ipv6(port), proxied];
        if reversed {
            listeners.reverse();
        }
        let usher = Usher::start(listening(&listeners));
        assert_eq!((greets(IPV6, port), greets(IPV4, port)), (Ok(true), Ok(false)), "each by its own listener");
        drop(usher);
        let usher = Usher::start(listening(&[ipv6(port), ipv4(port)]));
        both_greet(port);
        assert_eq!(usher.command(&["check"]).code, 0);
    }
    let port = free_port();
    let _alone = Usher::start(listening(&[ipv6(port)]));
    both_greet(port);
    let port = free_port();
    let _specific = Usher::start(listening(&[ipv4(port), listener(format!("[::1]:{port}"))]));
    both_greet(port);
}

fn both_greet_across_an_upgrade(usher: &Usher, port: u16) {
    both_greet(port);
    usher.command(&["upgrade"]).succeeded();
    let _successor = Successor::of(usher, 2);
    assert_eq!(usher.exit_code(), 0);
    both_greet(port);
}

#[test]
fn sockets_handed_over_apart_are_adopted_and_survive_an_upgrade() {
    let named = |port| {
        let mut listener = ipv6(port);
        listener["socket"] = "imaps".into();
        vec![listener]
    };
    let cases: [fn(u16) -> Vec<Value>; 3] = [|port| vec![ipv6(port)], |port| vec![ipv4(port), ipv6(port)], named];
    for listeners in cases {
        let port = free_port();
        let usher = start_with(listening(&listeners(port)), apart(port), "imaps");
        both_greet_across_an_upgrade(&usher, port);
    }
}

#[test]
fn wildcard_with_a_socket_of_one_family_serves_both() {
    for handed in [0, 1] {
        let port = free_port();
        let mut sockets = apart(port);
        drop(sockets.remove(handed));
        let usher = start_with(listening(&[ipv6(port)]), sockets, "usher.socket");
        both_greet(port);
        drop(usher);
    }
    // One socket for both families and a listener for each.
    let port = free_port();
    let both = vec![opened("::", port, false)];
    let usher = start_with(listening(&[ipv4(port), ipv6(port)]), both, "usher.socket");
    both_greet_across_an_upgrade(&usher, port);
}

#[test]
fn socket_without_a_listener_at_a_configured_port_prevents_the_start() {
    for (configured, handed) in
        [("0.0.0.0", "apart"), ("[::]", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "::")]
    {
        let port = free_port();
        let sockets = if handed == "apart" { apart(port) } else { vec![opened(handed, port, false)] };
        let left = SocketAddr::new(handed.parse().unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port);
        let output = refused_with(&listening(&[listener(format!("{configured}:{port}"))]), sockets);
        assert_eq!(output.code, 78, "{output:#?}");
        for words in [
            "usher.yaml:".to_owned(),
            "listeners[0].address: ".to_owned(),
            format!("the socket \"usher.socket\" listening at {left}"),
            format!("add a listener with `address: \"{left}\"`, or remove ListenStream={left} from the socket unit"),
        ] {
            assert!(output.stderr.contains(&words), "{words}: {output:#?}");
        }
    }
    // The side port has one address.
    let [port, admin] = [(); 2].map(|()| free_port());
    let config = listening(&[ipv6(port)]).set("/admin/address", format!("0.0.0.0:{admin}"));
    let output = refused_with(&config, apart(admin));
    assert_eq!(output.code, 78, "{output:#?}");
    assert!(output.stderr.contains("admin.address: "), "{output:#?}");
    // At another port it is closed with a warning, as before.
    let unused = free_port();
    let usher = start_with(listening(&[ipv6(port)]), vec![opened("0.0.0.0", unused, false)], "other");
    let of_it = |line: &Value| line["name"] == "other" && line["address"] == format!("0.0.0.0:{unused}");
    usher.wait_log("inherited socket matches no listener", of_it);
    both_greet(port);
}

#[test]
fn socket_of_both_families_with_listeners_of_two_kinds_prevents_the_start() {
    let port = free_port();
    let mut implicit = ipv4(port);
    implicit["tls"] = "implicit".into();
    let output = refused_with(&listening(&[ipv6(port), implicit]), vec![opened("::", port, false)]);
    assert_eq!(output.code, 78, "{output:#?}");
    assert!(output.stderr.contains("listeners[1].address: ") && output.stderr.contains("BindIPv6Only=ipv6-only"));
}

#[test]
fn side_port_and_auth_http_adopt_both_families() {
    let [imap, admin, nginx] = [(); 3].map(|()| free_port());
    let config = listening(&[ipv6(imap)]).set("/admin/address", format!("[::]:{admin}"));
    let config = config.set("/auth_http", json!({"address": format!("[::]:{nginx}"), "allow": ["127.0.0.1", "::1"]}));
    let usher = start_with(config, [apart(admin), apart(nginx)].into_iter().flatten().collect(), "usher.socket");
    let all_reply = || {
        for ip in [IPV4.to_string(), format!("[{IPV6}]")] {
            assert_eq!(fetch(&format!("{ip}:{admin}"), "/live").0, 200);
            assert!(fetch(&format!("{ip}:{nginx}"), "/").0 >= 200);
        }
    };
    all_reply();
    usher.command(&["upgrade"]).succeeded();
    let _successor = Successor::of(&usher, 2);
    assert_eq!(usher.exit_code(), 0);
    all_reply();
}

/// Runs this while clients of both families connect; no connection may be refused.
fn while_clients_connect(port: u16, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            start_deadline();
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                both_greet(port);
                count += 1;
            }
            count
        });
        work();
        stop.store(true, Ordering::SeqCst);
        assert!(clients.join().unwrap() > 0);
    });
}

#[test]
fn reload_adds_and_removes_a_wildcard_without_a_refused_connection() {
    let port = free_port();
    for apart in [true, false] {
        let first = if apart { vec![ipv4(port), ipv6(port)] } else { vec![ipv6(port)] };
        let mut usher = Usher::start(listening(&first));
        while_clients_connect(port, || {
            for listeners in [vec![ipv6(port)], vec![ipv6(port), ipv4(port)], vec![ipv6(port)]] {
                usher.config.change("/listeners", listeners);
                usher.config.write();
                usher.command(&["reload"]).succeeded();
                both_greet(port);
            }
        });
        usher.command(&["upgrade"]).succeeded();
        let _successor = Successor::of(&usher, 2);
        assert_eq!(usher.exit_code(), 0);
        both_greet(port);
    }
}

#[test]
fn reload_changes_one_wildcard_as_far_as_its_socket_can() {
    let port = free_port();
    let mut usher = Usher::start(listening(&[ipv4(port)]));
    let mut reload = |listeners: Vec<Value>| {
        usher.config.change("/listeners", listeners);
        usher.config.write();
        usher.command(&["reload"])
    };
    assert_eq!(greets(IPV6, port), Err(ErrorKind::ConnectionRefused));
    reload(vec![ipv4(port), ipv6(port)]).succeeded();
    both_greet(port);
    // Each family by a listener of its own kind.
    let mut proxied = ipv4(port);
    proxied["proxy_header"] = "required".into();
    proxied["trusted"] = "192.0.2.1".into();
    reload(vec![proxied.clone(), ipv6(port)]).succeeded();
    assert_eq!((greets(IPV6, port), greets(IPV4, port)), (Ok(true), Ok(false)));
    reload(vec![ipv6(port)]).succeeded();
    both_greet(port);
    reload(vec![ipv4(port)]).succeeded();
    assert_eq!((greets(IPV4, port), greets(IPV6, port)), (Ok(true), Err(ErrorKind::ConnectionRefused)));
    reload(vec![ipv6(port)]).succeeded();
    both_greet(port);
    drop(usher);

    // One socket that took both from the beginning.
    let mut usher = Usher::start(listening(&[ipv6(port)]));
    let mut reload = |listeners: Vec<Value>| {
        usher.config.change("/listeners", listeners);
        usher.config.write();
        usher.command(&["reload"])
    };
    reload(vec![ipv6(port), proxied]).succeeded();
    assert_eq!((greets(IPV6, port), greets(IPV4, port)), (Ok(true), Ok(false)), "the IPv4 listener's settings");
    let mut implicit = ipv4(port);
    implicit["tls"] = "implicit".into();
    let already = format!("listeners[0].address: usher already listens at [::]:{port}");
    let changed = "listeners[1].tls: a listener's protocol or tls cannot change while it is open".to_owned();
    for (listeners, words) in [(vec![ipv4(port)], already), (vec![ipv6(port), implicit], changed)] {
        let output = reload(listeners);
        assert_eq!(output.code, 1, "{output:#?}");
        assert!(output.stderr.contains(&words), "{output:#?}");
    }
    reload(vec![ipv6(port), ipv4(port)]).succeeded();
    both_greet(port);
}
