//! Applies call-site tables (`holo_abi::sites`) to loaded modules.
//!
//! Runs once, in the constructor, while the process has one thread; afterwards read-only.

use crate::gate::holo_gate;
use crate::{sys, traps};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use holo_abi::sites::{FIXUP_GATE, FIXUP_MODULE, Fixup, MAGIC, Site, TableHeader};
use holo_abi::sysno;

const PAGE: u64 = 4096;
const PROT_R: u64 = 1;
const PROT_RW: u64 = 3;
const PROT_RX: u64 = 5;
const PRIVATE_ANONYMOUS: u64 = 0x22;
/// A `rel32` reaches this far, less a margin for the size of both ends.
const REACH: u64 = (1 << 31) - (1 << 26);
/// Modules that can be patched.
const MODULES_MAX: usize = holo_abi::join::MODULES_MAX;

/// One trampoline, for looking up by instruction pointer.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    /// Offset in the area.
    at: u32,
    /// Offset of its `syscall` from there.
    raw: u16,
    len: u16,
    /// Module-relative address of the original `syscall`.
    site: u32,
}

/// A patched module.
#[derive(Clone, Copy)]
struct Module {
    bias: u64,
    area: u64,
    area_bytes: u64,
    entries: *const Entry,
    count: usize,
}

static mut MODULES: [Module; MODULES_MAX] =
    [Module { bias: 0, area: 0, area_bytes: 0, entries: core::ptr::null(), count: 0 }; MODULES_MAX];
/// Bytes of the arena that are taken.
static ARENA_USED: AtomicU64 = AtomicU64::new(0);
static MODULES_USED: AtomicUsize = AtomicUsize::new(0);

/// Where in a trampoline an instruction pointer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address of the trampoline's `syscall`.
    pub raw: u64,
    /// Address of the original `syscall` instruction.
    pub site: u64,
    /// The instruction pointer minus `raw`.
    pub offset: i64,
}

/// Finds the trampoline that `rip` is in.
#[must_use]
pub fn find(rip: u64) -> Option<Place> {
    let used = MODULES_USED.load(Ordering::Acquire);
    // SAFETY: entries below `used` are written before it is raised and never changed.
    let modules: &[Module; MODULES_MAX] = unsafe { &*(&raw const MODULES).cast() };
    for module in &modules[..used] {
        let Some(offset) = rip.checked_sub(module.area) else { continue };
        if offset >= module.area_bytes {
            continue;
        }
        let (mut low, mut high) = (0usize, module.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            // SAFETY: below count.
            if u64::from(unsafe { (*module.entries.add(middle)).at }) <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == 0 {
            return None;
        }
        // SAFETY: 1 <= low <= count.
        let entry = unsafe { *module.entries.add(low - 1) };
        let raw = module.area + u64::from(entry.at) + u64::from(entry.raw);
        return Some(Place {
            raw,
            site: module.bias + u64::from(entry.site),
            offset: rip.cast_signed() - raw.cast_signed(),
        });
    }
    traps::find(rip)
}

/// The site of a trampoline whose `raw` is known.
#[must_use]
pub fn site_of_raw(raw: u64) -> Option<u64> {
    find(raw).map(|place| place.site)
}

/// Why a table was not applied; the module runs unpatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchError {
    /// Not a table of this version, or cut short.
    BadTable,
    /// The code in memory is not the code that the table was made for.
    OtherCode,
    /// No room within reach of the module, or too many modules.
    NoRoom,
    /// The kernel refused (negative `errno`).
    Kernel(i64),
}

struct Reader {
    at: *const u8,
    end: *const u8,
}

impl Reader {
    fn take<T: Copy>(&mut self) -> Option<T> {
        if (self.end as usize) - (self.at as usize) < size_of::<T>() {
            return None;
        }
        // SAFETY: inside the table; T is plain data.
        let value = unsafe { self.at.cast::<T>().read_unaligned() };
        // SAFETY: still inside or at the end.
        self.at = unsafe { self.at.add(size_of::<T>()) };
        Some(value)
    }

    fn skip(&mut self, bytes: usize) -> Option<*const u8> {
        if (self.end as usize) - (self.at as usize) < bytes {
            return None;
        }
        let here = self.at;
        // SAFETY: still inside or at the end.
        self.at = unsafe { self.at.add(bytes) };
        Some(here)
    }
}

fn map_near(low: u64, high: u64, bytes: u64) -> Option<u64> {
    const FIXED_NOREPLACE: u64 = 0x10_0000;
    let reachable = |base: u64| {
        base >= 0x10000 && base <= (1 << 47) - bytes && base.abs_diff(low).max(base.abs_diff(high)) <= REACH
    };
    // Where the kernel puts it by itself is next to the libraries, nearly always.
    // SAFETY: a fresh mapping.
    let got = unsafe { sys!(sysno::mmap, 0, bytes, PROT_RW, PRIVATE_ANONYMOUS, -1i64, 0) };
    if got > 0 {
        if reachable(got.cast_unsigned()) {
            return Some(got.cast_unsigned());
        }
        // SAFETY: just made.
        unsafe { sys!(sysno::munmap, got, bytes) };
    }
    let step = 1 << 16;
    // Below the module first: above it the next library or the heap may want to grow.
    for distance in 1..4096u64 {
        for base in [low.wrapping_sub(distance * step + bytes) & !0xfff, (high + distance * step) & !0xfff] {
            if !reachable(base) {
                continue;
            }
            // SAFETY: NOREPLACE never touches an existing mapping.
            let got = unsafe {
                sys!(sysno::mmap, base, bytes, PROT_RW, PRIVATE_ANONYMOUS | FIXED_NOREPLACE, -1i64, 0)
            };
            if got.cast_unsigned() == base {
                return Some(base);
            }
            if got > 0 {
                // SAFETY: a kernel without NOREPLACE placed it elsewhere; it is ours to unmap.
                unsafe { sys!(sysno::munmap, got, bytes) };
            }
        }
    }
    None
}

/// Room for `bytes` of code in libholo's own text, if it is within reach.
fn in_arena(low: u64, high: u64, bytes: u64) -> Option<u64> {
    let used = ARENA_USED.load(Ordering::Relaxed);
    let base = traps::arena() + used;
    let fits = used + bytes <= traps::ARENA_BYTES;
    if !fits || base.abs_diff(low).max(base.abs_diff(high)) > REACH {
        return None;
    }
    // SAFETY: whole pages of our own text that nothing runs in yet.
    if unsafe { sys!(sysno::mprotect, base, bytes, PROT_RW) } < 0 {
        return None;
    }
    ARENA_USED.store(used + bytes, Ordering::Relaxed);
    Some(base)
}

/// Patches the module loaded with `bias` from `table`; returns how many sites were patched.
///
/// # Errors
/// [`PatchError`]; then nothing was changed.
///
/// # Safety
/// One thread; `table` readable; `bias` is that of the module that the table is for.
///
/// With `inside` the trampolines are put into libholo's text, where calls are not trapped.
pub unsafe fn apply(
    bias: u64,
    table: *const u8,
    table_bytes: usize,
    inside: bool,
) -> Result<u32, PatchError> {
    let index = MODULES_USED.load(Ordering::Acquire);
    if index >= MODULES_MAX {
        return Err(PatchError::NoRoom);
    }
    // SAFETY: within the caller's table.
    let mut reader = Reader { at: table, end: unsafe { table.add(table_bytes) } };
    let header: TableHeader = reader.take().ok_or(PatchError::BadTable)?;
    if header.magic != MAGIC || header.version != holo_abi::VERSION || header.bytes as usize != table_bytes {
        return Err(PatchError::BadTable);
    }
    let (mut low, mut high) = (u64::MAX, 0u64);
    let mut code_sum = 0u64;
    let body = Reader { at: reader.at, end: reader.end };
    // First pass: check everything before anything is changed.
    for _ in 0..header.count {
        let site: Site = reader.take().ok_or(PatchError::BadTable)?;
        let tail = usize::from(site.code_len) + usize::from(site.fixups) * size_of::<Fixup>();
        reader.skip((tail + 3) & !3).ok_or(PatchError::BadTable)?;
        if site.patch_len < 5 || site.patch_len > 32 || site.raw_at.saturating_add(2) > site.code_len {
            return Err(PatchError::BadTable);
        }
        let at = (bias + u64::from(site.patch_at)) as *const u8;
        for i in 0..usize::from(site.patch_len) {
            // SAFETY: the table is for this module, whose text is readable.
            if unsafe { at.add(i).read() } != site.expect[i] {
                return Err(PatchError::OtherCode);
            }
        }
        code_sum += (u64::from(site.code_len) + 15) & !15;
        low = low.min(at as u64);
        high = high.max(at as u64 + u64::from(site.patch_len));
    }
    if header.count == 0 {
        return Ok(0);
    }
    if code_sum > u64::from(header.code_bytes) {
        return Err(PatchError::BadTable);
    }
    let code_bytes = (u64::from(header.code_bytes) + 16 + PAGE - 1) & !(PAGE - 1);
    let entry_bytes = (u64::from(header.count) * size_of::<Entry>() as u64 + PAGE - 1) & !(PAGE - 1);
    let area = if inside { in_arena(low, high, code_bytes) } else { map_near(low, high, code_bytes) };
    let area = area.ok_or(PatchError::NoRoom)?;
    // SAFETY: fresh memory.
    let entries = unsafe { sys!(sysno::mmap, 0, entry_bytes, PROT_RW, PRIVATE_ANONYMOUS, -1i64, 0) };
    if entries < 0 {
        return Err(PatchError::Kernel(entries));
    }
    let entries = entries as *mut Entry;
    let (text, text_bytes) = (low & !(PAGE - 1), ((high + PAGE - 1) & !(PAGE - 1)) - (low & !(PAGE - 1)));
    // The gate within reach? The area is near the module, libholo may be far: then by a long jump.
    let long_jump = area + code_bytes - 16;
    // SAFETY: 16 bytes were added to the code part for it.
    unsafe {
        let jump = long_jump as *mut u8;
        core::ptr::copy_nonoverlapping([0xff, 0x25, 0, 0, 0, 0].as_ptr(), jump, 6);
        jump.add(6).cast::<u64>().write_unaligned(holo_gate as *const () as u64);
    }
    // SAFETY: own process's text; nothing of it runs until it is executable again.
    let changed = unsafe { sys!(sysno::mprotect, text, text_bytes, PROT_RW) };
    if changed < 0 {
        // SAFETY: mapped above.
        unsafe { sys!(sysno::munmap, entries as u64, entry_bytes) };
        return Err(PatchError::Kernel(changed));
    }
    let mut reader = body;
    let mut offset = 0u64;
    for i in 0..header.count as usize {
        let Some(site) = reader.take::<Site>() else { break };
        let Some(code) = reader.skip(usize::from(site.code_len)) else { break };
        let to = area + offset;
        // SAFETY: code_bytes covers all rounded code lengths (checked by the loop bound below), the fixups
        // lie inside the code, and the text is writable now.
        unsafe {
            core::ptr::copy_nonoverlapping(code, to as *mut u8, usize::from(site.code_len));
            for _ in 0..site.fixups {
                let Some(fixup) = reader.take::<Fixup>() else { break };
                let at = to + u64::from(fixup.at);
                let target = match fixup.kind {
                    FIXUP_GATE => long_jump,
                    FIXUP_MODULE => bias + u64::from(fixup.target),
                    _ => continue,
                };
                let relative = target.wrapping_sub(at + 4).cast_signed();
                (at as *mut i32).write_unaligned(relative as i32);
            }
            let tail = usize::from(site.code_len) + usize::from(site.fixups) * size_of::<Fixup>();
            reader.skip(((tail + 3) & !3) - tail);
            entries.add(i).write(Entry {
                at: offset as u32,
                raw: site.raw_at,
                len: site.code_len,
                site: site.syscall_at,
            });
            let patch = (bias + u64::from(site.patch_at)) as *mut u8;
            core::ptr::write_bytes(patch, 0xcc, usize::from(site.patch_len));
            patch.write(0xe9);
            let relative = to.wrapping_sub(patch as u64 + 5).cast_signed();
            patch.add(1).cast::<i32>().write_unaligned(relative as i32);
        }
        offset += (u64::from(site.code_len) + 15) & !15;
    }
    // SAFETY: as above; the area becomes code, the entries read-only data in it.
    unsafe {
        sys!(sysno::mprotect, text, text_bytes, PROT_RX);
        sys!(sysno::mprotect, area, code_bytes, PROT_RX);
        sys!(sysno::mprotect, entries as u64, entry_bytes, PROT_R);
        MODULES[index] = Module { bias, area, area_bytes: code_bytes, entries, count: header.count as usize };
    }
    MODULES_USED.store(index + 1, Ordering::Release);
    Ok(header.count)
}
