//! The binary: arguments to a command, its outcome to an exit code; and what it allocates with, also in C
//! libraries.
//!
//! jemalloc puts small and large pieces on different pages. What a session takes is mostly large, what
//! its login teaches usher for hours is small: with glibc they lie between each other, and what 9,000
//! users had used was still held when they had left (docs/benchmarks.md, "Memory").

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// jemalloc looks for its settings under this name when it starts. What was freed goes back to the system
/// within two seconds, by a thread of jemalloc's own that sleeps while there is nothing to do; a thread
/// keeps 20 free pieces of a size for itself, not 200.
#[expect(unsafe_code, reason = "a name that C looks for has no safe form; nothing else defines it")]
#[unsafe(no_mangle)]
pub static malloc_conf: &[u8; 110] =
    b"background_thread:true,dirty_decay_ms:2000,muzzy_decay_ms:0,tcache_nslots_small_max:20,lg_tcache_nslots_mul:0\0";

fn main() -> ExitCode {
    usher::cli::main()
}
