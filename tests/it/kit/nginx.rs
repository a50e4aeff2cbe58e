//! nginx's mail proxy, which uses usher for `auth_http`. It is not installed: `tests/run` unpacks Debian's
//! packages under `target/`.

use std::path::Path;

use super::process::{Running, Server, folder, free_port, require, wait_for_port};
use super::shared;

/// A running nginx with usher's certificate.
pub(crate) struct Nginx {
    _running: Running,
    /// IMAP under TLS.
    pub(crate) imaps: u16,
    /// POP3 under TLS.
    pub(crate) pop3s: u16,
    /// Submission under TLS.
    pub(crate) submissions: u16,
}

impl Nginx {
    /// One with `auth_http` at this port on loopback; `more` is configuration for all of its servers.
    pub(crate) fn start(auth_http: u16, more: &str) -> Self {
        let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("nginx");
        require(&unpacked.join("complete"));
        let folder = folder("nginx");
        let [imaps, pop3s, submissions] = std::array::from_fn(|_| free_port());
        let user = if rustix::process::getuid().is_root() { "user nobody nogroup;" } else { "" };
        let config = format!(
            "load_module {modules}/ngx_mail_module.so;
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 2048; }}
mail {{
  server_name usher.example.com;
  auth_http 127.0.0.1:{auth_http}/;
  ssl_certificate {chain};
  ssl_certificate_key {key};
  {more}
  server {{
    listen 127.0.0.1:{imaps} ssl backlog=4096;
    protocol imap;
    imap_auth plain login;
  }}
  server {{
    listen 127.0.0.1:{pop3s} ssl;
    protocol pop3;
    pop3_auth plain apop;
  }}
  server {{
    listen 127.0.0.1:{submissions} ssl;
    protocol smtp;
    smtp_auth plain login cram-md5;
    proxy_smtp_auth on;
    xclient off;
  }}
}}
",
            modules = unpacked.join("usr/lib/nginx/modules").display(),
            folder = folder.display(),
            chain = shared().usher.chain.display(),
            key = shared().usher.key.display(),
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let path = |path: &Path| path.display().to_string();
        let (program, log) = (path(&unpacked.join("usr/sbin/nginx")), folder.join("error.log"));
        let command = vec![program, "-e".into(), path(&log), "-p".into(), path(&folder), "-c".into(), path(&file)];
        let output = Some(folder.join("output"));
        let running = Server { command, environment: vec![], log: output, end: "TERM" }.start().0;
        [imaps, pop3s, submissions].into_iter().for_each(|port| wait_for_port(port, &log));
        Self { _running: running, imaps, pop3s, submissions }
    }
}
