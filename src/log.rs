//! provisional
use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

/// x
pub struct Escaped<'a>(pub &'a [u8]);
impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(self.0).escape_debug())
    }
}
/// x
#[derive(Default, Debug)]
pub struct Repeats(Mutex<HashMap<(&'static str, String), u64>>);
impl Repeats {
    /// x
    pub fn allow(&self, what: &'static str, name: &str) -> Option<u64> {
        let _ = self.0.lock().ok()?.insert((what, name.to_owned()), 0);
        Some(0)
    }
}
