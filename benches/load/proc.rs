//! CPU and memory of a server from `/proc`: the given processes and all their descendants.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Linux reports CPU time in this unit, independent of its own clock (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes of a server.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    roots: Vec<u32>,
}

impl Tree {
    pub(crate) fn new(roots: &[u32]) -> io::Result<Self> {
        for root in roots {
            fs::metadata(format!("/proc/{root}"))
                .map_err(|error| io::Error::other(format!("--pid {root}: no such process: {error}")))?;
        }
        Ok(Self { roots: roots.to_vec() })
    }

    /// Seconds of CPU, user and system, of all of them. Children that have ended count through their
    /// parents, who waited for them.
    pub(crate) fn cpu(&self) -> f64 {
        let stats = stats();
        let ticks: u64 = self.members(&stats).iter().filter_map(|pid| stats.get(pid)).map(|stat| stat.ticks).sum();
        ticks as f64 / TICKS_PER_SECOND
    }

    /// Memory in KiB: the proportional set sizes.
    pub(crate) fn pss_kib(&self) -> f64 {
        let members = self.members(&stats());
        members.iter().filter_map(|pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum()
    }

    /// Open files and sockets.
    pub(crate) fn descriptors(&self) -> f64 {
        let members = self.members(&stats());
        members
            .iter()
            .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok())
            .map(Iterator::count)
            .sum::<usize>() as f64
    }

    fn members(&self, stats: &HashMap<u32, Stat>) -> HashSet<u32> {
        let mut members: HashSet<u32> = self.roots.iter().copied().filter(|pid| stats.contains_key(pid)).collect();
        loop {
            let before = members.len();
            let children = stats.iter().filter(|(_, stat)| members.contains(&stat.parent)).map(|(pid, _)| *pid);
            let children: Vec<u32> = children.collect();
            members.extend(children);
            if members.len() == before {
                return members;
            }
        }
    }
}

struct Stat {
    parent: u32,
    /// utime, stime, cutime and cstime.
    ticks: u64,
}

/// All processes, without those that end during the scan.
fn stats() -> HashMap<u32, Stat> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|pid: u32| Some((pid, stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// proc_pid_stat(5): fields from 3 on follow the name, which may contain any character.
fn stat(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

/// The number after a word at the start of a line.
fn field(path: &str, word: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(word))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Kernel memory of the whole machine in KiB: TCP buffers from sockstat, and slab.
pub(crate) fn kernel_kib() -> (f64, f64) {
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let tcp = sockets.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let pages: f64 = tcp.split_once(" mem ").and_then(|(_, pages)| pages.trim().parse().ok()).unwrap_or(0.0);
    let page_kib = field("/proc/self/smaps", "KernelPageSize:").unwrap_or(4.0);
    (pages * page_kib, field("/proc/meminfo", "Slab:").unwrap_or(0.0))
}

/// Raises the limit of open files to the maximum of this process: each session needs one.
pub(crate) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = if setrlimit(Resource::Nofile, wanted).is_ok() { limit.maximum } else { limit.current };
    current.unwrap_or(u64::MAX)
}
