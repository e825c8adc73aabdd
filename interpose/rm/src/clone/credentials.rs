//! Who a restored thread is: users, groups and capabilities, the last that it is given.
//!
//! The order is what the kernel allows: capabilities that are to be inherited before the bounding set shrinks, that while it may be
//! changed, users before what they would take away.

use crate::kinds::process::ProcessState;
use crate::page::Page;
use crate::remote::{Remote, call};
use holo_abi::control::Call;
use holo_abi::sysno;

const PR_SET_PDEATHSIG: u64 = 1;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_KEEPCAPS: u64 = 8;
const PR_CAPBSET_DROP: u64 = 24;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
/// Groups of a process that are given back; nobody has so many.
const GROUPS_MAX: usize = 16_384;
/// Where in the scratch area sets of capabilities and groups are.
const SETS_AT: [usize; 2] = [4096, 4352];
const GROUPS_AT: usize = 8192;

/// Calls that make a thread of the clone what the image says.
pub(super) fn calls(state: &ProcessState, remote: &Remote) -> Vec<Call> {
    let page = &remote.page;
    // SAFETY: no memory is passed.
    let is_root = unsafe { libc::geteuid() } == 0;
    // Only root's agent can make processes of others; each thread has credentials of its own.
    let mut calls = if is_root { as_root(state, remote) } else { Vec::new() };
    calls.push(set(page, SETS_AT[1], state.capabilities));
    // Another user is not to be looked at any more.
    calls.push(call(sysno::prctl, &[PR_SET_DUMPABLE, state.dumpable & 1]));
    calls
}

/// The signal at the parent's death, which is lost by becoming another user.
pub(super) fn at_parents_death(signal: u32) -> Option<Call> {
    (signal != 0).then(|| call(sysno::prctl, &[PR_SET_PDEATHSIG, u64::from(signal)]))
}

fn as_root(state: &ProcessState, remote: &Remote) -> Vec<Call> {
    let page = &remote.page;
    let [ruid, euid, suid, fsuid] = state.uids.map(u64::from);
    let [rgid, egid, sgid, fsgid] = state.gids.map(u64::from);
    let groups = &state.groups[..state.groups.len().min(GROUPS_MAX)];
    let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
    let mut calls = vec![
        call(sysno::setgroups, &[groups.len() as u64, page.put(GROUPS_AT, &bytes)]),
        call(sysno::setresgid, &[rgid, egid, sgid]),
        call(sysno::setfsgid, &[fsgid]),
    ];
    let [now, bounds] = ["CapPrm", "CapBnd"].map(|name| crate::kinds::process::capability_set(remote, name));
    let [inheritable, permitted, _] = state.capabilities;
    let all = || set(page, SETS_AT[0], [inheritable, now, now]);
    let dropped = bounds & !state.bounds;
    if dropped != 0 || inheritable != 0 {
        calls.push(all());
        calls.extend(bits(dropped).map(|bit| call(sysno::prctl, &[PR_CAPBSET_DROP, bit])));
    }
    // A change to ordinary users takes all capabilities away otherwise.
    let keeps = permitted != 0 && ![ruid, euid, suid].contains(&0);
    if keeps {
        calls.push(call(sysno::prctl, &[PR_SET_KEEPCAPS, 1]));
    }
    calls.push(call(sysno::setresuid, &[ruid, euid, suid]));
    if keeps {
        calls.extend([all(), call(sysno::prctl, &[PR_SET_KEEPCAPS, state.options[0]])]);
    }
    if fsuid != euid {
        calls.push(call(sysno::setfsuid, &[fsuid]));
    }
    calls.extend(
        bits(state.ambient).map(|bit| call(sysno::prctl, &[PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit, 0, 0])),
    );
    calls
}

fn bits(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| set & 1 << bit != 0)
}

/// Sets inheritable, permitted and effective capabilities.
fn set(page: &Page, scratch: usize, [inheritable, permitted, effective]: [u64; 3]) -> Call {
    const VERSION_3: u32 = 0x2008_0522;
    let mut words = vec![VERSION_3, 0];
    for shift in [0, 32] {
        words.extend([effective, permitted, inheritable].map(|set| (set >> shift) as u32));
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let at = page.put(scratch, &bytes);
    call(sysno::capset, &[at, at + 8])
}
