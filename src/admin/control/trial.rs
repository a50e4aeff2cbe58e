//! `POST /try`: a whole login on behalf of an administrator. The one request with a body, which has the password.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use hyper::body::Bytes;
use serde::Deserialize;

use super::arguments::Rejection;
use super::caller::Caller;
use crate::base::secret::Secret;
use crate::frontend::session::trial::{self, NotTried, TrialRequest, TrialResult};
use crate::process::Shared;

/// A name of 512 bytes and a password of 1,024, both as JSON.
pub(super) const BODY_LIMIT: usize = 16 * 1024;

/// What the body says. Freed memory is wiped, wherever a copy was.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    login: String,
    password: String,
    protocol: String,
    from: Option<IpAddr>,
}

pub(super) async fn run(shared: Arc<Shared>, caller: Caller, body: &Bytes) -> Result<Json<TrialResult>, Rejection> {
    // The error would quote what it has read.
    let body: Body = serde_json::from_slice(body).map_err(|_| {
        Rejection::bad("the body must be an object with `login`, `password`, `protocol` and perhaps `from`")
    })?;
    // Limits and networks go by the address: whoever may choose it, guesses from everywhere.
    if body.from.is_some() && caller.uid != Some(0) {
        let words = "only root may name the address that a login comes from: leave --from out";
        return Err(Rejection(StatusCode::FORBIDDEN, words.to_owned()));
    }
    let request = TrialRequest {
        login: body.login,
        password: Secret::new(body.password.into_bytes()),
        protocol: body.protocol,
        client: body.from.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.to_canonical()),
        uid: caller.uid,
    };
    // A caller that leaves does not take back what is counted.
    let tried = tokio::spawn(async move { trial::run(&shared, request).await });
    let tried = tried
        .await
        .map_err(|_| Rejection(StatusCode::INTERNAL_SERVER_ERROR, "the attempt failed: see the log".to_owned()))?;
    tried.map(Json).map_err(|why| match why {
        NotTried::Protocol => Rejection::bad("usher has no listener for this protocol"),
        NotTried::Limit(limit) => {
            Rejection(StatusCode::TOO_MANY_REQUESTS, format!("the limit {limit} is reached: no login was tried"))
        }
        NotTried::Draining => {
            Rejection(StatusCode::SERVICE_UNAVAILABLE, "this process is shutting down and takes no login".to_owned())
        }
        NotTried::Dialogue(said) => Rejection::bad(format!("no client could send this name and password: {said}")),
    })
}
