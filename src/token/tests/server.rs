//! An issuer on this machine that answers as a test wants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What it does with a request.
#[derive(Clone)]
pub(super) enum Reply {
    Text(String),
    /// A status, and more lines of the head.
    Status(u16, &'static str),
    Closed,
    Silent,
    /// A head without end.
    EndlessHead,
    /// Another length than announced.
    Short,
}

pub(super) struct Server {
    pub(super) url: String,
    state: State,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::default());
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&served)));
            }
        });
        Self { url, state }
    }

    /// What it does with requests for this path from now on.
    pub(super) fn reply(&self, path: &str, reply: Reply) {
        self.state.lock().unwrap().0.insert(path.to_owned(), reply);
    }

    /// The requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().1.clone()
    }
}

type State = Arc<Mutex<(HashMap<String, Reply>, Vec<String>)>>;

async fn serve(mut socket: TcpStream, state: State) {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                break;
            }
        }
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let reply = {
        let (replies, requests) = &mut *state.lock().unwrap();
        requests.push(request);
        replies.get(&path).cloned()
    };
    let text = match reply {
        Some(Reply::Text(text)) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()),
        Some(Reply::Status(status, more)) => format!("HTTP/1.1 {status} X\r\n{more}Content-Length: 0\r\n\r\n"),
        Some(Reply::Closed) => return,
        Some(Reply::Silent) => std::future::pending().await,
        Some(Reply::EndlessHead) => format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000)),
        Some(Reply::Short) => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}".to_owned(),
        None => "HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n".to_owned(),
    };
    let _ = socket.write_all(text.as_bytes()).await;
    let _ = socket.shutdown().await;
}
