//! After how many wrong passwords the directory locks an account, for `usher check --connect`: read from its
//! policies where the service account may read them.
//!
//! Three dialects: the draft's policies (pwdMaxFailure), 389-DS' local ones (passwordMaxFailure), and the
//! domain object of Active Directory (lockoutThreshold). The result is not evaluated here.

use std::time::Duration;

use tokio::time::timeout;

use crate::directory::LockoutPolicy;
use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::schema::{self, Values};
use crate::directory::ldap::search::{self, Query, QueryOptions};

/// How long both searches may take, and how many policies are read.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST: u32 = 100;
/// Active Directory counts in negative intervals of 100 ns.
const PER_SECOND: i64 = 10_000_000;
const FILTER: &str = "(|(objectClass=pwdPolicy)(objectClass=passwordPolicy)(objectClass=domainDNS))";

/// The strictest policy visible in the naming context of this base; `None` if no visible policy locks accounts.
pub(crate) async fn strictest(connection: &Connection, base: &str) -> Result<Option<LockoutPolicy>, ConnectionError> {
    let asked = async {
        let mut contexts = Vec::new();
        each(connection, Query::read("", vec!["namingContexts"]), |_, attributes| {
            let values = attributes.iter().flat_map(|(_, values)| values);
            contexts.extend(values.filter_map(|value| String::from_utf8(value.clone()).ok()));
        })
        .await?;
        let lower = base.to_lowercase();
        let context = contexts.into_iter().find(|context| lower.ends_with(&context.to_lowercase()));
        let mut strictest: Option<LockoutPolicy> = None;
        let names = vec![
            "pwdLockout",
            "pwdMaxFailure",
            "pwdFailureCountInterval",
            "passwordLockout",
            "passwordMaxFailure",
            "passwordResetFailureCount",
            "lockoutThreshold",
            "lockOutObservationWindow",
        ];
        let context = context.unwrap_or_else(|| base.to_owned());
        let policies = Query::below(&context, FILTER, names, QueryOptions::default());
        each(connection, policies, |dn, attributes| {
            if let Some(one) = lockout(dn, attributes)
                && strictest.as_ref().is_none_or(|known| one.failures < known.failures)
            {
                strictest = Some(one);
            }
        })
        .await?;
        Ok(strictest)
    };
    timeout(PATIENCE, asked).await.unwrap_or(Err(ConnectionError::Timeout))
}

async fn each(
    connection: &Connection,
    query: Query<'_>,
    mut take: impl FnMut(&str, &[Values]),
) -> Result<(), ConnectionError> {
    let query = Query { options: QueryOptions { size_limit: MOST, ..QueryOptions::default() }, ..query };
    let all = search::each(connection, query, |entry| {
        let (dn, attributes) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
        take(&dn, &attributes);
        Ok(())
    });
    // What is visible counts, whatever the result.
    all.await.map(drop)
}

/// The lockout rule of a policy; `None` if it locks no account.
fn lockout(dn: &str, attributes: &[Values]) -> Option<LockoutPolicy> {
    let text = |name: &str| {
        let found = attributes.iter().find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(found.1.first()?).ok()
    };
    let number = |name: &str| text(name)?.parse::<i64>().ok();
    let is_on =
        |name: &str| text(name).is_some_and(|value| ["true", "on"].iter().any(|on| value.eq_ignore_ascii_case(on)));
    let (failures, seconds) = if is_on("pwdLockout") {
        (number("pwdMaxFailure")?, number("pwdFailureCountInterval"))
    } else if is_on("passwordLockout") {
        // 389-DS: the defaults are three, within ten minutes.
        (number("passwordMaxFailure").unwrap_or(3), Some(number("passwordResetFailureCount").unwrap_or(600)))
    } else {
        (number("lockoutThreshold")?, number("lockOutObservationWindow").map(|window| (window / PER_SECOND).abs()))
    };
    let failures = u32::try_from(failures).ok().filter(|failures| *failures > 0)?;
    let window = seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    Some(LockoutPolicy { policy: dn.to_owned(), failures, window: window.map(Duration::from_secs) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockout_policies_are_read_in_each_dialect() {
        let read = |attributes: &[(&str, &str)]| {
            let attributes: Vec<Values> = attributes
                .iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), vec![value.as_bytes().to_vec()]))
                .collect();
            lockout("cn=policy", &attributes).map(|one| (one.failures, one.window.map(|window| window.as_secs())))
        };
        assert_eq!(
            read(&[("pwdLockout", "TRUE"), ("PwdMaxFailure", "5"), ("pwdFailureCountInterval", "900")]),
            Some((5, Some(900)))
        );
        assert_eq!(read(&[("pwdLockout", "TRUE"), ("pwdMaxFailure", "3")]), Some((3, None)));
        assert_eq!(read(&[("pwdLockout", "TRUE"), ("pwdMaxFailure", "0")]), None);
        assert_eq!(read(&[("pwdLockout", "FALSE"), ("pwdMaxFailure", "3")]), None);
        assert_eq!(read(&[("passwordLockout", "on")]), Some((3, Some(600))));
        assert_eq!(
            read(&[("lockoutThreshold", "10"), ("lockOutObservationWindow", "-18000000000")]),
            Some((10, Some(1_800)))
        );
        assert_eq!(read(&[("lockoutThreshold", "0")]), None);
        assert_eq!(read(&[("lockoutThreshold", "-7")]), None);
    }
}
