//! The processor: which registers a thread's saved frame holds. A clone runs only where they all exist.

use super::{Probe, Status};

const GROUP: &str = "processor";

pub(super) fn probes() -> Vec<Probe> {
    let means = "vector registers are saved with every thread; a stand-by node needs the same ones";
    let probe = Probe::ok(GROUP, "xsave", means, "");
    vec![match xsave() {
        Some((bytes, features)) => Probe { why: format!("{features}; {bytes} bytes a thread"), ..probe },
        None => Probe { why: "no XSAVE: only the SSE registers are there".to_owned(), ..probe }
            .bad(Status::Degraded, "let the hypervisor pass XSAVE on to this machine"),
    }]
}

/// Bytes of a thread's saved state, and names of what it holds.
#[cfg(target_arch = "x86_64")]
fn xsave() -> Option<(u32, String)> {
    use std::arch::x86_64::__cpuid_count;
    const OSXSAVE: u32 = 1 << 27;
    const LEAF_XSAVE: u32 = 0xd;
    let names = [(2, "AVX"), (5, "AVX-512"), (9, "PKU"), (11, "CET"), (17, "AMX")];
    // Safe or not depends on the compiler's version.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has the instruction.
    let (leaf_1, leaf_xsave) = unsafe { (__cpuid_count(1, 0), __cpuid_count(LEAF_XSAVE, 0)) };
    if leaf_1.ecx & OSXSAVE == 0 {
        return None;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that the instruction is there.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    let _ = high;
    let enabled = |bit: u32| low & 1 << bit != 0;
    let list: Vec<&str> = names.iter().filter(|(bit, _)| enabled(*bit)).map(|(_, name)| *name).collect();
    let features = if list.is_empty() { "SSE".to_owned() } else { format!("SSE, {}", list.join(", ")) };
    Some((leaf_xsave.ebx, features))
}

#[cfg(not(target_arch = "x86_64"))]
fn xsave() -> Option<(u32, String)> {
    None
}
