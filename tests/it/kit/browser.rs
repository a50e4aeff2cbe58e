//! A headless Chromium, controlled by chromedriver over WebDriver: HTTP and JSON.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::process::{Running, Server, folder, free_port, wait_for_port};
use super::wait_limit;

/// Arguments that prevent background requests and let root start it.
const ARGUMENTS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser with one page.
pub(crate) struct Browser {
    port: u16,
    session: String,
    _driver: Running,
}

impl Browser {
    /// Starts it with an empty profile.
    pub(crate) fn start() -> Self {
        let (folder, port) = (folder("chromium"), free_port());
        let log = folder.join("driver.log");
        // The browser outlives its driver: a timeout ends it.
        let chromium = folder.join("chromium");
        std::fs::write(&chromium, "#!/bin/sh\nexec timeout -k 1 90 chromium \"$@\"\n").unwrap();
        std::fs::set_permissions(&chromium, std::fs::Permissions::from_mode(0o755)).unwrap();
        let command = vec!["chromedriver".to_owned(), format!("--port={port}")];
        let server = Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" };
        let (driver, _) = server.start();
        wait_for_port(port, &log);
        let mut browser = Self { port, session: String::new(), _driver: driver };
        let profile = format!("--user-data-dir={}", folder.join("profile").display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([profile.as_str()]).collect();
        let started = browser.ask(
            "POST",
            "",
            &json!({"capabilities": {"alwaysMatch": {
                "browserName": "chrome",
                "goog:loggingPrefs": {"browser": "ALL"},
                "goog:chromeOptions": {"args": arguments, "binary": chromium},
            }}}),
        );
        browser.session = format!("/{}", started["sessionId"].as_str().unwrap());
        browser
    }

    /// Opens a page and waits until it is loaded.
    pub(crate) fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// Opens a page whose own scripts do not run.
    pub(crate) fn open_without_script(&self, url: &str) {
        self.command("Emulation.setScriptExecutionDisabled", &json!({"value": true}));
        self.open(url);
        // The test inspects the page by a script; the page's own scripts did not run while it loaded.
        self.command("Emulation.setScriptExecutionDisabled", &json!({"value": false}));
    }

    /// Runs a script and returns its value.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a script returns true.
    pub(crate) fn wait(&self, script: &str) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(30));
        while self.run(script) != true {
            assert!(Instant::now() < deadline, "never true: {script}\n{}", self.run("return document.body.innerText"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sets the width of the screen and the colour scheme, `light` or `dark`.
    pub(crate) fn screen(&self, width: u32, scheme: &str) {
        let size = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600});
        self.command("Emulation.setDeviceMetricsOverride", &size);
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.command("Emulation.setEmulatedMedia", &feature);
    }

    /// Writes a screenshot into a PNG file.
    pub(crate) fn screenshot(&self, file: &std::path::Path) {
        use base64::Engine as _;
        let taken = self.command("Page.captureScreenshot", &json!({"captureBeyondViewport": true}));
        let bytes = base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap());
        std::fs::write(file, bytes.unwrap()).unwrap();
    }

    /// All console messages, including load errors and policy violations.
    pub(crate) fn console(&self) -> Vec<Value> {
        self.ask("POST", "/se/log", &json!({"type": "browser"})).as_array().unwrap().clone()
    }

    fn command(&self, name: &str, parameters: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", &json!({"cmd": name, "params": parameters}))
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("chromedriver accepts");
        stream.set_read_timeout(Some(wait_limit(Duration::from_secs(40)))).unwrap();
        let (session, length) = (&self.session, body.len());
        let head = format!("{method} /session{session}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        // It ignores `Connection: close`: the length marks the end of the reply.
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        for line in stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut answer = String::new();
        stream.take(length).read_to_string(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"));
        assert!(answer["value"]["error"].is_null(), "{method} {path} {body}: {answer}");
        answer["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver closes the browser, if it still runs.
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let _ = write!(stream, "DELETE /session{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", self.session);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stream.read(&mut [0; 64]);
        }
    }
}
