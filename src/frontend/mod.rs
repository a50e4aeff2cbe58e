//! Where clients come in: mail clients through `listener` and `session`, nginx through `auth_http`, Postfix through
//! `socketmap`.

pub(crate) mod auth_http;
pub(crate) mod listener;
pub(crate) mod proxy_header;
pub(crate) mod session;
pub(crate) mod socketmap;
