//! The arguments of a request: pairs in its query, each taken once. What is left is a mistake, so
//! that a word that was spelled wrong never widens what is meant.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;

use super::ErrorReply;
use crate::config;
use crate::sessions::filter::Filter;

/// The longest time over which anything is spread.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A request that is not granted, with the sentence that says why.
#[derive(Debug)]
pub(super) struct Rejection(pub(super) StatusCode, pub(super) String);

impl Rejection {
    pub(super) fn bad(words: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, words.into())
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorReply { error: self.1 })).into_response()
    }
}

/// Rejects request bodies: no command has one.
pub(super) async fn without_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        next.run(request).await
    } else {
        let words = "request bodies are not allowed: put arguments into the query";
        Rejection(StatusCode::PAYLOAD_TOO_LARGE, words.to_owned()).into_response()
    }
}

/// The variable part of a path.
#[derive(Debug)]
pub(super) struct Part(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Part {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let part = Path::<String>::from_request_parts(parts, state).await;
        part.map(|Path(part)| Self(part)).map_err(|error| Rejection::bad(format!("invalid path: {error}")))
    }
}

/// What the query says.
#[derive(Debug)]
pub(super) struct QueryArgs(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for QueryArgs {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        query.map(|Query(pairs)| Self(pairs)).map_err(|error| Rejection::bad(format!("invalid query: {error}")))
    }
}

impl QueryArgs {
    /// Takes an argument, if it is given.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at).1)
    }

    /// Whether an argument is given.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| known == key)
    }

    /// Takes `true` or `false`, which is also what nothing means.
    pub(super) fn flag(&mut self, key: &str) -> Result<bool, Rejection> {
        match self.take(key).as_deref() {
            Some("true") => Ok(true),
            Some("false") | None => Ok(false),
            Some(other) => Err(Rejection::bad(format!("`{key}` must be true or false, not `{other}`"))),
        }
    }

    /// Takes a time as in the configuration, at most a day.
    pub(super) fn time(&mut self, key: &str) -> Result<Option<Duration>, Rejection> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match config::duration(&text) {
            Ok(time) if time <= DAY => Ok(Some(time)),
            Ok(_) => Err(Rejection::bad(format!("`{key}` must be at most 24h, not `{text}`"))),
            Err(why) => Err(Rejection::bad(format!("`{key}` is not a duration: {why}"))),
        }
    }

    /// Takes a whole number.
    pub(super) fn number(&mut self, key: &str, most: u32) -> Result<Option<u32>, Rejection> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| *number <= most);
        number
            .map(Some)
            .ok_or_else(|| Rejection::bad(format!("`{key}` must be a number from 0 to {most}, not `{text}`")))
    }

    /// Takes all parts of a filter.
    pub(super) fn filter(&mut self) -> Result<Filter, Rejection> {
        let mut filter = Filter::default();
        for key in Filter::KEYS {
            if let Some(value) = self.take(key) {
                filter.set(key, &value).map_err(|error| Rejection::bad(format!("{key}: {error}")))?;
            }
        }
        Ok(filter)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Rejection> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(Rejection::bad(format!("unknown or repeated argument `{key}`"))),
        }
    }
}
