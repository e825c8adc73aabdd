//! Users and groups that a restored application cannot name: an ordinary user's is in a user namespace that knows its own only. The
//! kernel calls all others invalid (`EINVAL`), where it would have refused them (`EPERM`).

use crate::dispatch::Verdict;
use crate::{start, waits};
use core::sync::atomic::Ordering;
use holo_abi::sysno;
use holo_sys::gate::Regs;

const EPERM: i64 = -1;
const EINVAL: i64 = -22;
/// `AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`.
const AT_FLAGS: u64 = 0x1100;
/// No id: in most calls, that it stays.
const NONE: u32 = u32::MAX;

/// Makes a call that names users or groups.
pub(crate) fn on_call(regs: &Regs) -> Verdict {
    let is_lone = start::control().is_some_and(|page| page.header.lone.load(Ordering::Relaxed) != 0);
    let (nr, args) = (regs.rax.cast_signed(), regs.args);
    if !is_lone {
        return Verdict::Forward;
    }
    let ret = waits::until_done(nr, || args);
    Verdict::Handled(if ret == EINVAL && names_somebody(nr, &args) { EPERM } else { ret })
}

/// Is an unknown id the only thing that the kernel can have called invalid?
fn names_somebody(nr: i64, args: &[u64; 6]) -> bool {
    let ids = match nr {
        sysno::setuid | sysno::setgid => &args[..1],
        sysno::setreuid | sysno::setregid => &args[..2],
        sysno::setresuid | sysno::setresgid => &args[..3],
        sysno::chown | sysno::lchown | sysno::fchown => &args[1..3],
        sysno::fchownat if args[4] & 0xffff_ffff & !AT_FLAGS == 0 => &args[2..4],
        _ => &[],
    };
    ids.iter().any(|id| *id as u32 != NONE)
}
