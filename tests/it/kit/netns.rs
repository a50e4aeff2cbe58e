//! Network namespaces: two hosts joined by a link on which packets can be dropped. Requires root and
//! `iproute2` and `nftables`.

use std::fs::File;
use std::net::{IpAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::process::id;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::run;

/// Two namespaces, removed when dropped.
pub(crate) struct Link {
    /// Their names, near and far.
    names: [String; 2],
}

/// Which end of a [`Link`].
#[derive(Clone, Copy)]
pub(crate) enum End {
    Near,
    Far,
}

impl End {
    /// Its address.
    pub(crate) fn address(self) -> IpAddr {
        ["192.0.2.1", "192.0.2.2"][self as usize].parse().unwrap()
    }
}

fn ip(arguments: &[&str]) {
    run("ip", arguments, b"").succeeded();
}

impl Link {
    /// Both ends have their address, and loopback.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let cable = Self { names: ["near", "far"].map(|end| format!("usher-{}-{number}-{end}", id())) };
        let [near, far] = &cable.names;
        for name in &cable.names {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        ip(&["-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far]);
        for (name, end) in cable.names.iter().zip([End::Near, End::Far]) {
            ip(&["-n", name, "address", "add", &format!("{}/24", end.address()), "dev", "cable"]);
            ip(&["-n", name, "link", "set", "cable", "up"]);
        }
        cable
    }

    /// Runs this in a thread of one end: the sockets it creates stay there.
    pub(crate) fn at<T: Send + 'static>(&self, end: End, work: impl FnOnce() -> T + Send + 'static) -> T {
        let place = File::open(format!("/run/netns/{}", self.names[end as usize])).unwrap();
        let there = std::thread::spawn(move || {
            move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        there.join().unwrap()
    }

    /// The command prefix that runs a program at one end.
    pub(crate) fn command(&self, end: End) -> [&str; 4] {
        ["ip", "netns", "exec", &self.names[end as usize]]
    }

    /// From now on the far end drops packets for this port.
    pub(crate) fn lose(&self, port: u16) {
        let [.., far] = self.command(End::Far);
        let chain = format!("type filter hook input priority 0\ntcp dport {port} counter drop\n");
        let rules = format!("table inet lose{port} {{\nchain in {{\n{chain}}}\n}}\n");
        run("ip", &["netns", "exec", far, "nft", "-f", "-"], rules.as_bytes()).succeeded();
    }

    /// The number of dropped packets for this port.
    pub(crate) fn lost(&self, port: u16) -> usize {
        let [.., far] = self.command(End::Far);
        let output = run("ip", &["netns", "exec", far, "nft", "list", "table", "inet", &format!("lose{port}")], b"");
        let output = output.succeeded().stdout;
        let mut words = output.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).expect("a counter").parse().unwrap()
    }

    /// Stops dropping packets for this port.
    pub(crate) fn mend(&self, port: u16) {
        let [.., far] = self.command(End::Far);
        run("ip", &["netns", "exec", far, "nft", "delete", "table", "inet", &format!("lose{port}")], b"").succeeded();
    }
}

/// One namespace with loopback only, removed when dropped.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Its loopback is up.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("usher-{}-{}-alone", id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    /// The command prefix that runs a program there.
    pub(crate) fn command(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Connects to a port of its loopback, from anywhere.
    pub(crate) fn connector(&self, port: u16) -> impl Fn() -> std::io::Result<TcpStream> + Send + 'static {
        let place = format!("/run/netns/{}", self.name);
        move || {
            let place = File::open(&place)?;
            let there = std::thread::spawn(move || {
                move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network))?;
                TcpStream::connect(("127.0.0.1", port))
            });
            there.join().unwrap()
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = std::process::Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}
