//! The list of libraries. libholo is the first one after the program; here it stands at the end, for programs that ask what comes first: the
//! run-time library of a sanitizer ends the program where that is another one.

use libc::{PT_LOAD, c_int, c_void, dl_phdr_info, size_t};

type Visit = Option<unsafe extern "C" fn(*mut dl_phdr_info, size_t, *mut c_void) -> c_int>;

/// One walk over the list.
struct Walk {
    visit: Visit,
    data: *mut c_void,
    own: Option<(dl_phdr_info, size_t)>,
}

/// Whether a library is the one that this function is in.
///
/// # Safety
/// An entry of the list.
unsafe fn is_own(info: *const dl_phdr_info) -> bool {
    let here = is_own as *const () as u64;
    // SAFETY: the caller's; the entry says how many segments there are.
    unsafe {
        let segments = core::slice::from_raw_parts((*info).dlpi_phdr, usize::from((*info).dlpi_phnum));
        segments.iter().filter(|segment| segment.p_type == PT_LOAD).any(|segment| {
            let start = (*info).dlpi_addr.wrapping_add(segment.p_vaddr);
            here.wrapping_sub(start) < segment.p_memsz
        })
    }
}

unsafe extern "C" fn step(info: *mut dl_phdr_info, bytes: size_t, walk: *mut c_void) -> c_int {
    let walk = walk.cast::<Walk>();
    // SAFETY: an entry of the list, and what `hooked` passed.
    unsafe {
        if (*walk).own.is_none() && is_own(info) {
            (*walk).own = Some((*info, bytes));
            return 0;
        }
        (*walk).visit.map_or(0, |visit| visit(info, bytes, (*walk).data))
    }
}

::redhook::hook! {
    unsafe fn dl_iterate_phdr(visit: Visit, data: *mut c_void) -> c_int => hooked {
        let mut walk = Walk { visit, data, own: None };
        // SAFETY: the walk lives until the call returns; what is visited last is never unloaded.
        unsafe {
            let ret = ::redhook::real!(dl_iterate_phdr)(Some(step), (&raw mut walk).cast());
            match (&mut walk.own, visit) {
                (Some((info, bytes)), Some(visit)) if ret == 0 => visit(info, *bytes, data),
                _ => ret,
            }
        }
    }
}

/// Looks the real function up once.
pub(super) fn resolve() {
    core::hint::black_box(::redhook::real!(dl_iterate_phdr));
}
