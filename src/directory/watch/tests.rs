//! The watch against scripted servers.
