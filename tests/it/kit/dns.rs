//! A real DNS server: dnsmasq on loopback; and one that gives a single answer, or none, to every question.

use std::net::UdpSocket;

use super::process::{Running, Server, folder, free_port, wait_for_port};

/// dnsmasq with the records of its arguments.
pub(crate) struct Dns {
    pub(crate) port: u16,
    running: Option<Running>,
}

impl Dns {
    /// A server with these arguments of dnsmasq, such as `--srv-host=...`.
    pub(crate) fn start(records: &[&str]) -> Self {
        let mut dns = Self { port: free_port(), running: None };
        dns.serve(records);
        dns
    }

    /// A port at which no server answers yet.
    pub(crate) fn away() -> Self {
        Self { port: free_port(), running: None }
    }

    /// Starts again with other records.
    pub(crate) fn serve(&mut self, records: &[&str]) {
        self.stop();
        let log = folder("dnsmasq").join("log");
        let mut command: Vec<String> = [
            "/usr/sbin/dnsmasq",
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--log-queries",
            "--local-ttl=1",
            "--local=/example.com/",
            "--local=/example.net/",
        ]
        .map(str::to_owned)
        .to_vec();
        command.push(format!("--port={}", self.port));
        command.extend(records.iter().map(ToString::to_string));
        let server = Server { command, environment: Vec::new(), log: Some(log.clone()), end: "KILL" };
        self.running = Some(server.start().0);
        // It listens by TCP as well.
        wait_for_port(self.port, &log);
    }

    /// Ends it: questions are refused by the kernel.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// As `directory.resolver`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Answers every question with this response code (RFC 1035 section 4.1.1), or not at all; gives its address.
pub(crate) fn answering(code: Option<u8>) -> String {
    serving(code, &[])
}

/// Answers every question with an alias that leads to itself (RFC 1034 section 3.6.2); gives its address.
pub(crate) fn looping() -> String {
    // The name of the question, CNAME, IN, a TTL of 1 s, and that name again.
    serving(Some(0), &[0xC0, 12, 0, 5, 0, 1, 0, 0, 0, 1, 0, 2, 0xC0, 12])
}

/// With this record, if it is one.
fn serving(code: Option<u8>, record: &'static [u8]) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut question) {
            let Some(code) = code else { continue };
            let mut answer = question[..length].to_vec();
            answer[2] |= 0x80;
            answer[3] = 0x80 | code;
            // Records of the question, such as OPT, are not repeated.
            answer[6..12].fill(0);
            let mut end = 12;
            while answer[end] != 0 {
                end += usize::from(answer[end]) + 1;
            }
            answer.truncate(end + 5);
            answer[7] = u8::from(!record.is_empty());
            answer.extend_from_slice(record);
            let _ = socket.send_to(&answer, peer);
        }
    });
    address
}
