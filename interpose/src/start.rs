//! The constructor: runs first in every program (`-z initfirst`), on one thread, before libc is ready.
//!
//! It joins the agent, maps the control page, patches libc, ld.so and what else makes system calls, takes the park signal.
//! Whatever fails, the program runs on as if holo were not there; it is told once, on standard error.

use crate::early::Early;
use crate::{aio, changes, dispatch, inodes, signals, symbols, trace, traps, vdso};
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use holo_abi::control::{CONTROL_BYTES, Control};
use holo_abi::join::{self, Join, Welcome};
use holo_abi::{sysno, ways};
use holo_sys::raw::write;
use holo_sys::tls::Tls;
use holo_sys::{patch, serve, sys};
use holo_track::environ::{ADDED_MAX, Wanted};

static CONTROL: AtomicPtr<Control> = AtomicPtr::new(core::ptr::null_mut());
static WAYS: AtomicU32 = AtomicU32::new(0);
static WANTED: Early<Option<Wanted>> = Early::new(None);
/// Copies of the library's path and the variables: a program may write over its initial environment.
static KEPT: Early<[u8; 4096]> = Early::new([0; 4096]);
/// glibc's rseq area: offset from the thread pointer, and size (0: not registered by it).
static RSEQ: Early<(i64, u32)> = Early::new((0, 0));

/// glibc's rseq signature on x86-64.
const RSEQ_SIGNATURE: u32 = 0x5305_3053;
const RSEQ_BYTES_MIN: u32 = 32;
const AT_SYSINFO_EHDR: u64 = 33;

#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn(c_int, *const *const u8, *const *const u8) = init;

/// The control page, once joined.
pub(crate) fn control() -> Option<&'static Control> {
    // SAFETY: set once, to a mapping that stays; its words are atomics or owned by protocol.
    unsafe { CONTROL.load(Ordering::Acquire).as_ref() }
}

/// Is this the process that joined, and not a child that was forked from it?
pub(crate) fn is_first() -> bool {
    // SAFETY: no memory is passed.
    control().is_some_and(|page| page.header.pid == unsafe { sys!(sysno::getpid) } as u32)
}

/// What a started program's environment must have; `None` while not joined.
pub(crate) fn wanted() -> Option<&'static Wanted> {
    WANTED.get().as_ref()
}

/// Registered rseq area, length and signature of the calling thread.
pub(crate) fn rseq_of(words: &Tls, fs_base: u64) -> (u64, u32, u32) {
    const EBUSY: i64 = -16;
    const UNREGISTER: u64 = 1;
    let (area, bytes, signature) = if words.rseq == 0 {
        let (offset, bytes) = *RSEQ.get();
        (fs_base.wrapping_add_signed(offset), bytes, RSEQ_SIGNATURE)
    } else {
        (words.rseq, words.rseq_len_sig as u32, (words.rseq_len_sig >> 32) as u32)
    };
    if bytes == 0 {
        return (0, 0, 0);
    }
    // A new thread has not registered its area yet, and memory does not tell: stacks are used again. The kernel
    // does: it refuses a second registration.
    // SAFETY: the thread's own area, registered for a moment at most.
    unsafe {
        match sys!(sysno::rseq, area, bytes, 0, signature) {
            EBUSY => (area, bytes, signature),
            0 => {
                sys!(sysno::rseq, area, bytes, UNREGISTER, signature);
                (0, 0, 0)
            }
            _ => (0, 0, 0),
        }
    }
}

unsafe fn text<'a>(at: *const u8) -> &'a [u8] {
    let mut bytes = 0;
    // SAFETY: the caller's string is NUL-terminated.
    unsafe {
        while *at.add(bytes) != 0 {
            bytes += 1;
        }
        core::slice::from_raw_parts(at, bytes)
    }
}

struct Environment(*const *const u8);

impl Environment {
    fn entries(&self) -> impl Iterator<Item = &'static [u8]> {
        let mut at = self.0;
        core::iter::from_fn(move || {
            // SAFETY: the process's NULL-terminated environment, which outlives us.
            unsafe {
                if (*at).is_null() {
                    return None;
                }
                let entry = text(*at);
                at = at.add(1);
                Some(entry)
            }
        })
    }

    fn get(&self, name: &[u8]) -> Option<&'static [u8]> {
        self.entries().find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
    }

    /// The auxiliary vector's value for `tag`.
    fn auxiliary(&self, tag: u64) -> Option<u64> {
        // SAFETY: the vector follows the environment's NULL on the initial stack.
        unsafe {
            let mut at = self.0;
            while !(*at).is_null() {
                at = at.add(1);
            }
            let mut pair = at.add(1).cast::<[u64; 2]>();
            while (*pair)[0] != 0 {
                if (*pair)[0] == tag {
                    return Some((*pair)[1]);
                }
                pair = pair.add(1);
            }
            None
        }
    }
}

fn say(parts: &[&[u8]]) {
    let mut line = [0u8; 512];
    let mut used = 0;
    for part in parts {
        for byte in part.iter().take(line.len() - 1 - used) {
            line[used] = *byte;
            used += 1;
        }
    }
    line[used] = b'\n';
    write(2, &line[..=used]);
}

extern "C" fn init(_count: c_int, _arguments: *const *const u8, environment: *const *const u8) {
    let environment = Environment(environment);
    // The loader runs constructors again for nobody; but a program may load us once more by path.
    if control().is_some() {
        return;
    }
    symbols::start();
    if environment.get(b"HOLO_FILTERED").is_some() {
        // Whatever holo does, it does by calls that the filter may not know.
        return;
    }
    let wanted = chosen_ways(&environment);
    if wanted == 0 {
        signals::drop_park();
        return;
    }
    vdso_start(&environment);
    match join(&environment) {
        Ok(joined) => {
            WAYS.store(joined.start(&environment, wanted), Ordering::Release);
        }
        Err(why) => {
            signals::drop_park();
            refuse(&environment, why);
        }
    }
}

fn vdso_start(environment: &Environment) {
    if let Some(base) = environment.auxiliary(AT_SYSINFO_EHDR) {
        // SAFETY: the kernel's word for where the vdso is.
        unsafe { vdso::find(base as usize) };
    }
}

/// `HOLO_WAYS`: comma-separated names; default symbols and sites; `none` switches holo off.
fn chosen_ways(environment: &Environment) -> u32 {
    match environment.get(b"HOLO_WAYS") {
        None => ways::SYMBOLS | ways::SITES,
        Some(value) => value.split(|byte| *byte == b',').fold(0, |all, part| {
            all | ways::NAMES.iter().find(|(name, _)| name.as_bytes() == part).map_or(0, |(_, bit)| *bit)
        }),
    }
}

/// Why this process is not protected.
enum Refusal {
    /// No agent at this path (and its `errno`).
    NoAgent([u8; 108], i64),
    /// The agent said no.
    Said([u8; 256]),
    /// It is a process of an application that the agent knows as unprotected; nothing is said.
    Quietly,
    /// Its answer made no sense, or memory was short.
    Broken(&'static [u8]),
}

fn refuse(environment: &Environment, why: Refusal) {
    if matches!(why, Refusal::Quietly) {
        return;
    }
    let require = environment.get(b"HOLO_REQUIRE") == Some(b"1");
    if require || !parent_is_preloaded(environment) {
        let tail: &[u8] =
            if require { b"; HOLO_REQUIRE=1: not started" } else { b"; the program runs unprotected" };
        match &why {
            Refusal::NoAgent(path, errno) => {
                let cause: &[u8] = match errno {
                    -2 => b"no such socket",
                    -111 => b"nobody listens",
                    -13 => b"permission denied",
                    _ => b"cannot connect",
                };
                say(&[
                    b"holo: no agent at ",
                    trim(path),
                    b" (",
                    cause,
                    b"); start holod or use `holo run`",
                    tail,
                ]);
            }
            Refusal::Quietly => return,
            Refusal::Said(reason) => say(&[b"holo: ", trim(reason), tail]),
            Refusal::Broken(what) => say(&[b"holo: ", what, tail]),
        }
    }
    if require {
        // SAFETY: ends the process before it began.
        unsafe { sys!(sysno::exit_group, 125) };
    }
}

fn trim(text: &[u8]) -> &[u8] {
    &text[..text.iter().position(|byte| *byte == 0).unwrap_or(text.len())]
}

/// A parent with the same preload has said it already.
fn parent_is_preloaded(environment: &Environment) -> bool {
    let Some(ours) = environment.get(b"LD_PRELOAD") else { return false };
    let mut path = *b"/proc/\0\0\0\0\0\0\0\0\0\0\0\0/environ\0";
    // SAFETY: no memory is passed.
    let mut pid = unsafe { sys!(sysno::getppid) } as u32;
    if pid == 0 {
        return false;
    }
    let mut digits = [0u8; 10];
    let mut count = 0;
    while pid > 0 {
        digits[count] = b'0' + (pid % 10) as u8;
        pid /= 10;
        count += 1;
    }
    for i in 0..count {
        path[6 + i] = digits[count - 1 - i];
    }
    path[6 + count..6 + count + 9].copy_from_slice(b"/environ\0");
    let mut buffer = [0u8; 16384];
    // SAFETY: a terminated path; a buffer of its length.
    let got = unsafe {
        let fd = sys!(sysno::open, path.as_ptr(), 0o2_000_000);
        if fd < 0 {
            return false;
        }
        let got = sys!(sysno::read, fd, buffer.as_mut_ptr(), buffer.len());
        sys!(sysno::close, fd);
        got
    };
    buffer[..got.max(0) as usize]
        .split(|byte| *byte == 0)
        .any(|entry| entry.strip_prefix(b"LD_PRELOAD=").is_some_and(|value| value == ours))
}

struct Modules {
    /// Path and load bias of libc, ld.so and others that are to be patched.
    found: [([u8; join::PATH_MAX], u64); join::MODULES_MAX],
    /// Extent of libholo.
    holo: (u64, u64),
}

unsafe extern "C" {
    fn dl_iterate_phdr(
        each: unsafe extern "C" fn(*const DlInfo, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

#[repr(C)]
struct DlInfo {
    bias: u64,
    name: *const c_char,
    headers: *const [u64; 7],
    count: u16,
}

/// Libraries that make system calls past libc.
const OWN_CALLS: &[&[u8]] = &[b"liburing.so.", b"libaio.so."];

unsafe extern "C" fn each_module(info: *const DlInfo, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader's record and our own structure.
    let (info, modules) = unsafe { (&*info, &mut *data.cast::<Modules>()) };
    // SAFETY: the loader's string.
    let name = unsafe { text(info.name.cast()) };
    let base = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
    let which = if base.starts_with(b"libc.so.") || base.starts_with(b"libc-2.") {
        Some(0)
    } else if base.starts_with(b"ld-linux") || base.starts_with(b"ld-2.") {
        Some(1)
    } else if OWN_CALLS.iter().any(|library| base.starts_with(library)) {
        // The first free place; of more than there are places, the rest is not patched.
        (2..join::MODULES_MAX).find(|index| modules.found[*index].0[0] == 0)
    } else {
        None
    };
    if let Some(index) = which
        && name.len() < join::PATH_MAX
    {
        modules.found[index].0[..name.len()].copy_from_slice(name);
        modules.found[index].1 = info.bias;
    }
    let here = init as *const () as u64;
    for i in 0..usize::from(info.count) {
        // SAFETY: the module's program headers: type and flags, offset, address, physical, file, memory, align.
        let header = unsafe { *info.headers.add(i) };
        if header[0] as u32 != 1 {
            continue;
        }
        let (start, end) = (info.bias + header[2], info.bias + header[2] + header[5]);
        if (start..end).contains(&here) {
            modules.holo = (info.bias, end);
        }
    }
    0
}

struct Joined {
    page: *mut Control,
    modules: Modules,
    /// Open table files, -1: none.
    tables: [i64; join::MODULES_MAX],
    /// The table of file changes, -1: none.
    changes: i32,
}

fn socket_path(environment: &Environment) -> [u8; 108] {
    let mut path = [0u8; 108];
    let mut used = 0;
    let mut put = |piece: &[u8]| {
        for byte in piece.iter().take(107 - used) {
            path[used] = *byte;
            used += 1;
        }
    };
    if let Some(socket) = environment.get(b"HOLO_SOCKET") {
        put(socket);
    } else if let Some(state) = environment.get(b"HOLO_STATE_DIR") {
        put(state);
        put(b"/agent.sock");
    } else if let Some(run) = environment.get(b"XDG_RUNTIME_DIR") {
        put(run);
        put(b"/holo/agent.sock");
    } else {
        put(environment.get(b"HOME").unwrap_or(b""));
        put(b"/.local/state/holo/agent.sock");
    }
    path
}

fn join(environment: &Environment) -> Result<Joined, Refusal> {
    let mut modules = Modules { found: [([0; join::PATH_MAX], 0); join::MODULES_MAX], holo: (0, 0) };
    // SAFETY: the callback is for this structure.
    unsafe { dl_iterate_phdr(each_module, (&raw mut modules).cast()) };
    let path = socket_path(environment);
    let mut hello = Join {
        magic: join::MAGIC,
        version: holo_abi::VERSION,
        // SAFETY: no memory is passed.
        pid: unsafe { sys!(sysno::getpid) } as u32,
        name: [0; join::NAME_MAX],
        token: environment.get(b"HOLO_TOKEN").map_or(0, number),
        modules: modules.found.map(|(path, _)| path),
    };
    if let Some(name) = environment.get(b"HOLO_NAME") {
        let take = name.len().min(join::NAME_MAX - 1);
        hello.name[..take].copy_from_slice(&name[..take]);
    }
    let (welcome, fds) = converse(&path, &hello)?;
    if welcome.magic != join::MAGIC || welcome.version != holo_abi::VERSION {
        close_all(&fds);
        return Err(Refusal::Broken(
            b"the agent is of another version; install libholo.so and holod together",
        ));
    }
    if welcome.refused == join::REFUSED_QUIETLY {
        close_all(&fds);
        return Err(Refusal::Quietly);
    }
    if welcome.refused != 0 || fds[0] < 0 {
        close_all(&fds);
        return Err(Refusal::Said(welcome.reason));
    }
    // SAFETY: a fresh shared mapping of the agent's page.
    let page = unsafe { sys!(sysno::mmap, 0, CONTROL_BYTES, 3, 1, fds[0], 0) };
    // SAFETY: our own descriptor.
    unsafe { sys!(sysno::close, fds[0]) };
    if page < 0 {
        close_all(&fds[1..]);
        return Err(Refusal::Broken(b"the control page cannot be mapped"));
    }
    let mut tables = [-1i64; join::MODULES_MAX];
    let mut next = 1;
    for (index, table) in tables.iter_mut().enumerate() {
        if welcome.tables & (1 << index) != 0 && next < fds.len() {
            *table = i64::from(fds[next]);
            next += 1;
        }
    }
    let mut changes = -1;
    if welcome.tables & join::CHANGES != 0 && next < fds.len() {
        changes = fds[next];
    }
    Ok(Joined { page: page as *mut Control, modules, tables, changes })
}

fn number(text: &[u8]) -> u64 {
    text.iter()
        .fold(0u64, |value, byte| value.wrapping_mul(10).wrapping_add(u64::from(byte.wrapping_sub(b'0'))))
}

fn close_all(fds: &[i32]) {
    for fd in fds.iter().filter(|fd| **fd >= 0) {
        // SAFETY: descriptors that we received.
        unsafe { sys!(sysno::close, *fd) };
    }
}

/// The control page, the call-site tables and the table of file changes.
const DESCRIPTORS: usize = 2 + join::MODULES_MAX;

/// Is it root who serves this connection? Names without a file are anybody's.
fn is_roots(fd: i64) -> bool {
    const SOL_SOCKET: u64 = 1;
    const SO_PEERCRED: u64 = 17;
    let mut who = [u32::MAX; 3];
    let mut bytes = size_of_val(&who) as u32;
    // SAFETY: room of the stated size.
    let got =
        unsafe { sys!(sysno::getsockopt, fd, SOL_SOCKET, SO_PEERCRED, who.as_mut_ptr(), &raw mut bytes) };
    got == 0 && who[1] == 0
}

/// Sends the packet and receives the answer with its descriptors.
fn converse(path: &[u8; 108], hello: &Join) -> Result<(Welcome, [i32; DESCRIPTORS]), Refusal> {
    #[repr(C)]
    struct Address(u16, [u8; 108]);
    #[repr(C, align(8))]
    struct Ancillary([u64; 2], [i32; DESCRIPTORS + 1]);
    const CLOEXEC_STREAM: u64 = 1 | 0o2_000_000;
    const SOL_SOCKET: u64 = 1;
    const SO_RCVTIMEO: u64 = 20;
    const EACCES: i64 = -13;
    let mut fds = [-1i32; DESCRIPTORS];
    // SAFETY: structures of the kernel's shapes, alive during each call; our own descriptor.
    unsafe {
        let fd = sys!(sysno::socket, 1, CLOEXEC_STREAM, 0);
        if fd < 0 {
            return Err(Refusal::NoAgent(*path, fd));
        }
        let address = Address(1, *path);
        let mut connected = sys!(sysno::connect, fd, &raw const address, 2 + trim(path).len() + 1);
        if connected == EACCES {
            // Since it was started the process has become another user's; root's agent serves those by name, too.
            let mut named = [0; 108];
            let bytes = trim(path).len().min(named.len() - 1);
            named[1..=bytes].copy_from_slice(&path[..bytes]);
            let address = Address(1, named);
            if sys!(sysno::connect, fd, &raw const address, 2 + 1 + bytes) == 0 && is_roots(fd) {
                connected = 0;
            }
        }
        if connected < 0 {
            sys!(sysno::close, fd);
            return Err(Refusal::NoAgent(*path, connected));
        }
        let patience = [5u64, 0];
        sys!(sysno::setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, patience.as_ptr(), 16);
        let (bytes, mut sent) = (size_of::<Join>(), 0);
        while sent < bytes {
            let more = sys!(
                sysno::sendto,
                fd,
                core::ptr::from_ref(hello).cast::<u8>().add(sent),
                bytes - sent,
                0x4000,
                0,
                0
            );
            if more <= 0 {
                sys!(sysno::close, fd);
                return Err(Refusal::Broken(b"the agent hung up"));
            }
            sent += more as usize;
        }
        let mut welcome: Welcome = core::mem::zeroed();
        let mut got = 0;
        while got < size_of::<Welcome>() {
            let part = [(&raw mut welcome).cast::<u8>().add(got) as u64, (size_of::<Welcome>() - got) as u64];
            let mut ancillary = Ancillary([0; 2], [-1; DESCRIPTORS + 1]);
            let room = size_of::<Ancillary>() as u64;
            let message = [0u64, 0, part.as_ptr() as u64, 1, (&raw mut ancillary) as u64, room, 0];
            let more = sys!(sysno::recvmsg, fd, message.as_ptr(), 0x4000_0000);
            if more <= 0 {
                close_all(&fds);
                sys!(sysno::close, fd);
                return Err(Refusal::Broken(b"the agent did not answer"));
            }
            if ancillary.0[0] > 16 && ancillary.0[1] == 1 << 32 | SOL_SOCKET {
                let count = ((ancillary.0[0] as usize - 16) / 4).min(fds.len());
                fds[..count].copy_from_slice(&ancillary.1[..count]);
            }
            got += more as usize;
        }
        sys!(sysno::close, fd);
        Ok((welcome, fds))
    }
}

impl Joined {
    /// Makes this process one that can be parked; returns the active ways in.
    fn start(self, environment: &Environment, wanted: u32) -> u32 {
        // SAFETY: a mapping of this size, shared with the agent, which waits until we are complete.
        let header = unsafe { &mut (*self.page).header };
        header.address = self.page as u64;
        // SAFETY: no memory is passed.
        header.pid = unsafe { sys!(sysno::getpid) } as u32;
        header.serve_at = serve::start();
        header.serve_start = serve::start();
        header.serve_end = serve::end();
        (header.holo_start, header.holo_end) = self.modules.holo;
        remember(environment);
        rseq_start();
        let traced = environment.get(b"HOLO_TRACE") == Some(b"1");
        if traced {
            trace::start(environment.get(b"HOLO_TRACE_FILE").unwrap_or(b""));
        }
        dispatch::classify(traced);
        inodes::start(header);
        aio::start(header);
        CONTROL.store(self.page, Ordering::Release);
        signals::start();
        let mut active = wanted & ways::SYMBOLS;
        if wanted & ways::SITES != 0 {
            active |= self.patch(header, wanted & ways::TRAPS != 0);
        }
        // Who counts calls wants those of the application alone; the agent looks at all files then.
        if self.changes >= 0 && !traced {
            let sites = active & ways::SITES != 0 && self.tables[0] >= 0;
            let sites = sites && header.sites_left.load(Ordering::Relaxed) == 0;
            header.changes_at = changes::start(self.changes, sites);
        }
        close_all(&self.tables.map(|table| table as i32));
        close_all(&[self.changes]);
        if wanted & ways::TRAPS != 0 && traps::start(self.modules.holo) {
            active |= ways::TRAPS;
        }
        if active == ways::SYMBOLS {
            symbols::activate();
        }
        // The agent waits for this word before it sends the park signal.
        header.ways.store(active, Ordering::Release);
        trace::mark_start();
        active
    }

    fn patch(&self, header: &mut holo_abi::control::Header, inside: bool) -> u32 {
        let mut active = 0;
        for (table, (_, bias)) in self.tables.iter().zip(&self.modules.found) {
            if *table < 0 {
                continue;
            }
            let mut stat = [0u64; 18];
            // SAFETY: a buffer of the size of `struct stat`; a read-only mapping of our own descriptor.
            unsafe {
                sys!(sysno::fstat, *table, stat.as_mut_ptr());
                let bytes = stat[6] as usize;
                let at = sys!(sysno::mmap, 0, bytes, 1, 2, *table, 0);
                if at < 0 {
                    continue;
                }
                match patch::apply(*bias, at as *const u8, bytes, inside) {
                    Ok(count) => {
                        active = ways::SITES;
                        header.sites_patched.fetch_add(count, Ordering::Relaxed);
                    }
                    Err(_) => {
                        header.sites_left.fetch_add(1, Ordering::Relaxed);
                    }
                }
                sys!(sysno::munmap, at, bytes);
            }
        }
        active
    }
}

fn rseq_start() {
    let (offset, bytes): (*const i64, *const u32);
    // SAFETY: reads two words of the global offset table: addresses of glibc's variables, 0 without them.
    unsafe {
        core::arch::asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "mov {o}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {s}, qword ptr [rip + __rseq_size@GOTPCREL]",
            o = out(reg) offset,
            s = out(reg) bytes,
            options(nostack, readonly)
        );
    }
    if offset.is_null() || bytes.is_null() {
        return;
    }
    // SAFETY: glibc's constants, set by the loader before any constructor.
    unsafe {
        if *bytes != 0 {
            *RSEQ.get_mut() = (*offset, (*bytes).max(RSEQ_BYTES_MIN));
        }
    }
}

/// Keeps what a started program's environment must have.
fn remember(environment: &Environment) {
    let mut used = 0;
    let mut keep = |text: &[u8]| -> Option<&'static [u8]> {
        // SAFETY: constructor, one thread; each part is handed out once.
        let kept = unsafe { KEPT.get_mut() }.get_mut(used..used + text.len() + 1)?;
        kept[..text.len()].copy_from_slice(text);
        used += text.len() + 1;
        Some(kept)
    };
    let mut variables: [&'static [u8]; ADDED_MAX] = [b""; ADDED_MAX];
    let mut count = 0;
    let mut library: &'static [u8] = b"";
    for entry in environment.entries() {
        if let Some(value) = entry.strip_prefix(b"LD_PRELOAD=") {
            let ours = value.split(|byte| *byte == b':' || *byte == b' ').find(|part| {
                part.rsplit(|byte| *byte == b'/').next().is_some_and(|base| base.starts_with(b"libholo"))
            });
            if let Some(kept) = ours.and_then(&mut keep) {
                library = &kept[..kept.len() - 1];
            }
        } else if entry.starts_with(b"HOLO_")
            && count < ADDED_MAX
            && let Some(kept) = keep(entry)
        {
            variables[count] = kept;
            count += 1;
        }
    }
    if library.is_empty() {
        return;
    }
    // SAFETY: constructor, one thread.
    unsafe { *WANTED.get_mut() = Some(Wanted { library, variables, count }) };
}
