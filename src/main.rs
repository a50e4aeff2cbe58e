//! The binary: arguments to a command, its outcome to an exit code; and what it allocates with, also in C
//! libraries.
//!
//! jemalloc puts small and large pieces on different pages. What a session takes is mostly large, what
//! its login teaches usher for hours is small: with glibc they lie between each other, and what 9,000
//! users had used was still held when they had left (docs/developer/benchmarks.md, "Memory"). What is freed is wiped
//! first (`sys/allocator`).

use std::process::ExitCode;

use tikv_jemalloc_ctl::background_thread;
use usher::WipingJemalloc;

#[global_allocator]
static ALLOCATOR: WipingJemalloc = WipingJemalloc;

/// jemalloc looks for its settings under this name when it starts. What was freed goes back to the system
/// within two seconds; a thread keeps 20 free pieces of a size for itself, not 200; and pieces of 4 KiB, of
/// which a session holds two, are managed by fours: jemalloc keeps 128 bytes for each lot, and keeps them.
#[expect(unsafe_code, reason = "a name that C looks for has no safe form; nothing else defines it")]
#[unsafe(no_mangle)]
pub static malloc_conf: &[u8; 110] =
    b"dirty_decay_ms:2000,muzzy_decay_ms:0,tcache_nslots_small_max:20,lg_tcache_nslots_mul:0,slab_sizes:4096-4096:4\0";

fn main() -> ExitCode {
    usher::main(give_memory_back)
}

/// Starts the thread of jemalloc's that gives memory back while usher idles; it sleeps while there is
/// nothing to do. Not by the settings: it would be there before root is given up, and stay root.
fn give_memory_back() {
    // Without it memory goes back as usher allocates, which is late and not wrong.
    let _ = background_thread::write(true);
}
