//! What `libholo.so`, the restorer and the agent agree on, bit for bit.
//!
//! Everything here is `repr(C)`, fixed width, little-endian x86-64, and proven at compile time. The agent
//! and the library exchange it through one shared mapping per process, the *control page* ([`control::Control`]),
//! and through one packet at start ([`join::Join`]). [`sites`] is the format of the call-site tables.
//!
//! Policy for versions: [`VERSION`] changes whenever a layout does; both sides refuse a stranger.
#![no_std]

pub mod aio;
pub mod awaited;
pub mod changes;
pub mod control;
pub mod join;
pub mod names;
pub mod sites;
pub mod sysno;

/// Version of every layout in this crate.
pub const VERSION: u32 = 16;

/// The signal that parks a thread. glibc keeps it for `setuid` in threads (`SIGSETXID`) and refuses to let
/// programs use it, so no application action is displaced; glibc's own use is told apart by `si_code`.
pub const PARK_SIGNAL: i32 = 33;

/// The `si_value` that marks [`PARK_SIGNAL`] as holo's.
pub const PARK_COOKIE: u64 = 0x686f_6c6f_7061_726b;

/// Ways in (section 5 of the design), as a bit set in [`control::Header::ways`] and `HOLO_WAYS`.
pub mod ways {
    /// Symbol interposition.
    pub const SYMBOLS: u32 = 1;
    /// Patched call sites in libc and ld.so.
    pub const SITES: u32 = 2;
    /// Syscall user dispatch for raw system calls elsewhere.
    pub const TRAPS: u32 = 4;
    /// Names, as users write them in `HOLO_WAYS` (comma separated).
    pub const NAMES: [(&str, u32); 3] = [("symbols", SYMBOLS), ("sites", SITES), ("traps", TRAPS)];
}
