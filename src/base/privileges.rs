//! What a process gives up before it serves: root, new privileges, cores.
//!
//! Linux keeps users, groups and capabilities per thread, so all of this happens on the first
//! thread before there is another: every later one inherits it. Nothing is bound before, because
//! nothing needs root to be bound: CAP_NET_BIND_SERVICE stays, alone, for ports below 1024, and for
//! those that a reload adds. capabilities(7), credentials(7).

use std::ffi::CString;
use std::io;

use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid, getuid, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::base::sys::{absent, group_id};

/// Whether this process is root.
#[must_use]
pub(crate) fn is_root() -> bool {
    getuid().is_root()
}

/// Takes it from the process, and from all it will start, to gain privileges by executing a file.
///
/// # Errors
/// The system's reason.
pub(crate) fn forbid_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Prevents core dumps of this process: they would contain passwords. The limit stops files; only the attribute
/// stops what a core handler is piped, and debuggers of the same user with it.
///
/// # Errors
/// The system's reason.
pub(crate) fn forbid_cores() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Lets debuggers of the same user in, and a core be written if the limits allow one.
///
/// # Errors
/// The system's reason.
pub(crate) fn allow_debugging() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}

/// A user to switch to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl User {
    /// Looks a user up as the system does it (nsswitch.conf(5)), with all groups; `group` replaces the user's own.
    ///
    /// # Errors
    /// There is no such user or group, it is root, or the lookup failed.
    pub(crate) fn find(name: &str, group: Option<&str>) -> io::Result<Self> {
        let user = nix::unistd::User::from_name(name)?.ok_or_else(|| absent("user", name))?;
        let (uid, own) = (user.uid.as_raw(), user.gid.as_raw());
        let gid = group.map(group_id).transpose()?.unwrap_or(own);
        if uid == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is root")));
        }
        let name = CString::new(user.name)?;
        let groups = nix::unistd::getgrouplist(&name, nix::unistd::Gid::from_raw(gid))?;
        // The system lists the group itself as well.
        let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).filter(|group| *group != gid).collect();
        Ok(Self { uid, gid, groups })
    }

    /// Its number.
    #[must_use]
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// The name of its group; the number, if it has none.
    #[must_use]
    pub(crate) fn group_name(&self) -> String {
        let group = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(self.gid)).ok().flatten();
        group.map_or_else(|| self.gid.to_string(), |group| group.name)
    }

    /// Runs `work` as this user, on a thread that ends with it: all other threads stay what they are.
    ///
    /// # Errors
    /// The system's reason, such as that this process is not root.
    pub(crate) fn run_as<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.switch_to()?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })
    }

    /// Switches to this user irrevocably, and keeps CAP_NET_BIND_SERVICE if it is there. Must be called on the
    /// only thread of the process, or on one that does nothing else.
    ///
    /// # Errors
    /// The system's reason, such as that this process is not root.
    pub(crate) fn switch_to(&self) -> io::Result<()> {
        let had = capabilities(None)?.permitted;
        let keep = had & CapabilitySet::NET_BIND_SERVICE;
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_keep_capabilities(true)?;
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: keep })?;
        if !keep.is_empty() {
            // So that a new binary, started by `usher upgrade`, can bind low ports as well.
            configure_capability_in_ambient_set(keep, true)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_resolved_with_their_groups() {
        // Every system has this one, wherever its users are.
        let daemon = User::find("daemon", None).unwrap();
        assert!(daemon.uid() != 0 && !daemon.groups.contains(&daemon.gid), "{daemon:?}");
        let other = User::find("daemon", Some("4711")).unwrap();
        assert_eq!((other.uid(), other.gid), (daemon.uid(), 4_711));
    }

    #[test]
    fn missing_user_and_missing_group_are_distinct_errors() {
        let refused = |user, group| User::find(user, group).unwrap_err().to_string();
        assert!(refused("no-such-name", None).contains("no user \"no-such-name\""));
        assert!(refused("daemon", Some("no-such-name")).contains("no group \"no-such-name\""));
    }

    #[test]
    fn switching_to_root_is_refused() {
        assert!(User::find("root", None).is_err());
        assert!(User::find("no such user", None).is_err());
    }

    #[test]
    fn core_dumps_are_disabled_and_proc_self_stays_readable() {
        forbid_cores().unwrap();
        assert_eq!(rustix::process::getrlimit(Resource::Core).current, Some(0));
        let behavior = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(behavior, DumpableBehavior::NotDumpable);
        // The process metrics count these.
        assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() > 0);
    }
}
