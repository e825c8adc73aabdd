//! The packets between a starting process and its agent, over the agent's unix stream socket.
//!
//! The library sends one [`Join`]; the agent answers one [`Welcome`] with, as `SCM_RIGHTS`, the control
//! page, then one file per site table and, if the application has roots, its table of file changes. Everything else
//! is a `holo-api` conversation, which starts with other bytes.

/// First bytes of a [`Join`].
pub const MAGIC: [u8; 8] = *b"HOLOJN01";
/// Longest `HOLO_NAME`.
pub const NAME_MAX: usize = 64;
/// Longest module path.
pub const PATH_MAX: usize = 512;
/// Modules of a process that can be patched: libc, ld.so, and the libraries known to make system calls past libc.
pub const MODULES_MAX: usize = 4;

/// Runs unprotected; [`Welcome::reason`] says why, and the process says so on standard error.
pub const REFUSED: u32 = 1;
/// Runs untouched and says nothing: the agent shows the reason at the application that it belongs to.
pub const REFUSED_QUIETLY: u32 = 2;

/// Bit of [`Welcome::tables`]: the application's table of file changes follows.
pub const CHANGES: u32 = 1 << 31;

/// "I am a process that wants to be protected."
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Join {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`super::VERSION`].
    pub version: u32,
    /// `getpid()`; the agent takes the peer credentials' pid for its own use.
    pub pid: u32,
    /// `HOLO_NAME`, zero-padded; empty: the agent chooses from the executable.
    pub name: [u8; NAME_MAX],
    /// `HOLO_TOKEN`: what `holo run` registered, 0 for a plain preload.
    pub token: u64,
    /// Paths of the modules whose site tables are wanted (libc, ld.so, others), zero-padded.
    pub modules: [[u8; PATH_MAX]; MODULES_MAX],
}

/// The agent's answer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Welcome {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`super::VERSION`].
    pub version: u32,
    /// 0: joined; [`REFUSED`] or [`REFUSED_QUIETLY`]: the process runs untouched.
    pub refused: u32,
    /// The agent's pid, for `PR_SET_PTRACER`.
    pub agent_pid: u32,
    /// Bit i: a table file for module i follows the control page. [`CHANGES`]: the table of file changes comes last.
    pub tables: u32,
    /// UTF-8, zero-padded.
    pub reason: [u8; 256],
}

const _: () = assert!(size_of::<Join>() == 8 + 4 + 4 + 64 + 8 + MODULES_MAX * PATH_MAX);
const _: () = assert!(size_of::<Welcome>() == 8 + 16 + 256);
