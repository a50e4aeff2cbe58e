//! Where clients come in: mail clients through `listener` and `session`, nginx through `auth_http`.

pub mod auth_http;
pub mod listener;
pub mod proxy_header;
pub mod session;
