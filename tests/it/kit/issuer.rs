//! A scripted issuer of tokens over HTTPS: discovery, keys, introspection, and the faults of each.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::signer::Signer;
use super::{Config, shared};

/// The document that leads to the others.
pub(crate) const DISCOVERY: &str = "/.well-known/openid-configuration";
/// The keys.
pub(crate) const KEYS: &str = "/keys";
/// The introspection endpoint.
pub(crate) const INTROSPECTION: &str = "/introspect";

/// What the issuer does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Conduct {
    /// Answers.
    Sound,
    /// Closes the connection.
    Closes,
    /// Reads the request, and never answers.
    Silent,
    /// Answers with this status and these lines of a head.
    Status(u16, &'static str),
    /// Answers with this text.
    Text(String),
}

/// A scripted issuer.
pub(crate) struct ScriptedIssuer {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    url: String,
    signers: Vec<Arc<Signer>>,
    conduct: HashMap<String, Conduct>,
    introspected: HashMap<String, Value>,
    requests: Vec<String>,
}

/// Unix seconds, so far ahead.
pub(crate) fn in_seconds(ahead: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + ahead
}

impl ScriptedIssuer {
    /// With one key of ES256.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            url: format!("https://localhost:{port}"),
            signers: vec![Arc::new(Signer::new("ES256", "first"))],
            conduct: HashMap::new(),
            introspected: HashMap::new(),
            requests: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let (served, tls) = (Arc::clone(&state), shared().usher.server_config());
        // These threads live as long as the test process.
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let (state, tls) = (Arc::clone(&served), Arc::clone(&tls));
                std::thread::spawn(move || serve(socket, tls, &state));
            }
        });
        Self { port, state }
    }

    /// The exact value of `iss`.
    pub(crate) fn issuer(&self) -> String {
        self.state.lock().unwrap().url.clone()
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.issuer())
    }

    /// Its entry in `tokens`: discovery, the audience `mail`, and `email` as the claim.
    pub(crate) fn settings(&self) -> Value {
        json!({
            "issuer": self.issuer(),
            "ca": shared().certificates.ca(),
            "audience": "mail",
            "login_claim": "email",
            "filter": "(mail={claim})",
        })
    }

    /// The configuration with this issuer alone.
    pub(crate) fn configured(&self, mut config: Config) -> Config {
        config.change("/tokens", json!([self.settings()]));
        config
    }

    /// The claims of a token that names this user.
    pub(crate) fn claims(&self, email: &str) -> Value {
        json!({
            "iss": self.issuer(),
            "aud": "mail",
            "azp": "mail-client",
            "sub": format!("subject of {email}"),
            "email": email,
            "email_verified": true,
            "scope": "openid email",
            "exp": in_seconds(300),
        })
    }

    /// A valid token that names this user, signed with the newest key.
    pub(crate) fn token(&self, email: &str) -> String {
        self.sign(&self.claims(email))
    }

    /// A token with these claims, signed with the newest key.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let signer = self.state.lock().unwrap().signers.last().map(Arc::clone).unwrap();
        signer.token(claims)
    }

    /// The same with this `typ` in its head.
    pub(crate) fn sign_as(&self, kind: &str, kid: &str, claims: &Value) -> String {
        let signer = self.state.lock().unwrap().signers.last().map(Arc::clone).unwrap();
        signer.signed(&json!({"alg": "ES256", "kid": kid, "typ": kind}).to_string(), &claims.to_string())
    }

    /// Replaces all keys.
    pub(crate) fn rotate(&self, signer: Signer) {
        self.state.lock().unwrap().signers = vec![Arc::new(signer)];
    }

    /// What it does with requests for a path from now on.
    pub(crate) fn set_conduct(&self, path: &str, conduct: Conduct) {
        self.state.lock().unwrap().conduct.insert(path.to_owned(), conduct);
    }

    /// What it says of an opaque token; the others are not active.
    pub(crate) fn introspects(&self, token: &str, answer: Value) {
        self.state.lock().unwrap().introspected.insert(token.to_owned(), answer);
    }

    /// The requests for a path so far, heads and bodies.
    pub(crate) fn requests(&self, path: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let is_for = |request: &&String| request.split(' ').nth(1) == Some(path);
        state.requests.iter().filter(is_for).cloned().collect()
    }
}

fn serve(socket: TcpStream, tls: Arc<ServerConfig>, state: &Mutex<State>) {
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut stream = StreamOwned::new(ServerConnection::new(tls).unwrap(), socket);
    let Some(request) = request(&mut stream) else { return };
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let (conduct, body) = {
        let mut state = state.lock().unwrap();
        let body = answer(&state, &path, &request);
        state.requests.push(request);
        (state.conduct.get(&path).cloned().unwrap_or(Conduct::Sound), body)
    };
    let (status, more, body) = match conduct {
        Conduct::Sound => (if body.is_some() { 200 } else { 404 }, "", body.unwrap_or_default()),
        Conduct::Closes => return,
        Conduct::Silent => {
            // Until the client has closed.
            let _ = stream.read(&mut [0; 1]);
            return;
        }
        Conduct::Status(status, more) => (status, more, String::new()),
        Conduct::Text(text) => (200, "", text),
    };
    let head = format!(
        "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

/// A request with its body; `None` if the client has closed.
fn request(stream: &mut StreamOwned<ServerConnection, TcpStream>) -> Option<String> {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8(body).unwrap())
}

fn answer(state: &State, path: &str, request: &str) -> Option<String> {
    let body = match path {
        DISCOVERY => json!({
            "issuer": state.url,
            "jwks_uri": format!("{}{KEYS}", state.url),
            "introspection_endpoint": format!("{}{INTROSPECTION}", state.url),
        }),
        KEYS => json!({"keys": state.signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}),
        INTROSPECTION => {
            let (_, form) = request.split_once("\r\n\r\n")?;
            let token = form.strip_prefix("token=")?;
            state.introspected.get(token).cloned().unwrap_or_else(|| json!({"active": false}))
        }
        _ => return None,
    };
    Some(body.to_string())
}
