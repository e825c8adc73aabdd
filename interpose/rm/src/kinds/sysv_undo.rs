//! Adjustments of semaphores at the end of a process (`SEM_UNDO`): how they are found, and made again; see `sysv_sem`.

use super::sysv_sem::{Set, VALUE_MAX};
use crate::manager::{Context, DumpCx, RmError, RmResult, SwitchCx};
use crate::remote::{Remote, call};
use crate::tree::Process;
use holo_abi::control::Call;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};

const IPC_NOWAIT: u16 = 0o4000;
const SEM_UNDO: u16 = 0x1000;
const KCMP_SYSVSEM: u64 = 6;
/// Range of an adjustment (`SEMAEM`).
const LOWEST: i32 = -32_768;
const HIGHEST: i32 = 32_767;
/// Operations in one call: the kernel's default is 500, the least that is needed 13.
const OPERATIONS_MAX: usize = 500;
/// Bounds that are tried at once.
const BOUNDS: i32 = 15;
const OPERATION_BYTES: usize = 6;

/// What is added to a semaphore at the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Undo {
    /// The process, by its place in the tree.
    pub(super) process: u32,
    pub(super) number: u16,
    pub(super) by: i16,
}

/// `struct sembuf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    number: u16,
    by: i16,
    flags: u16,
}

impl Operation {
    fn bytes(self) -> [u8; OPERATION_BYTES] {
        let ([a, b], [c, d], [e, f]) =
            (self.number.to_le_bytes(), self.by.to_le_bytes(), self.flags.to_le_bytes());
        [a, b, c, d, e, f]
    }
}

/// Operations that leave the value alone and take `by` off the adjustment.
fn shift(number: u16, value: u16, by: i32) -> Vec<Operation> {
    let operation = |by: i32, flags| Operation { number, by: by as i16, flags: flags | IPC_NOWAIT };
    // The value may go this far up, or down.
    let (up, down) = (i32::from(VALUE_MAX - value.min(VALUE_MAX)), i32::from(value));
    let most = up.max(down);
    let (mut left, mut out) = (by, Vec::new());
    while left != 0 {
        let part = left.clamp(-most, most);
        let (undone, plain) = (operation(part, SEM_UNDO), operation(-part, 0));
        out.extend(if (part > 0) == (up >= down) { [undone, plain] } else { [plain, undone] });
        left -= part;
    }
    out
}

/// Operations that change nothing.
pub(super) fn idle(number: u16, value: u16) -> Vec<Operation> {
    let operation = |by| Operation { number, by, flags: IPC_NOWAIT };
    if value < VALUE_MAX { vec![operation(1), operation(-1)] } else { vec![operation(-1), operation(1)] }
}

/// It cannot happen at once, whatever the value is.
fn impossible(number: u16) -> Operation {
    Operation { number, by: i16::MIN, flags: IPC_NOWAIT }
}

/// Puts one list of operations behind others; the call that makes it.
fn place(remote: &Remote, id: i32, list: &[Operation], offset: &mut usize) -> Call {
    let bytes: Vec<u8> = list.iter().flat_map(|operation| operation.bytes()).collect();
    let at = remote.page.put(*offset, &bytes);
    *offset += bytes.len();
    call(sysno::semop, &[id as u64, at, list.len() as u64])
}

/// Makes operations in groups that each belong together.
pub(super) fn run(remote: &Remote, set: &Set, groups: impl Iterator<Item = Vec<Operation>>) -> RmResult<()> {
    for group in groups.collect::<Vec<_>>().chunks(256) {
        let mut offset = 0;
        let mut calls: Vec<_> = group.iter().map(|list| place(remote, set.id, list, &mut offset)).collect();
        remote.run_all(&mut calls).on("operating on", set.named())?;
    }
    Ok(())
}

/// Whether each list that ends with an impossible operation left the range of an adjustment; none: this thread may not
/// operate on the set.
fn leave_range(
    remote: &Remote,
    slot: usize,
    set: &Set,
    lists: &[Vec<Operation>],
) -> RmResult<Option<Vec<bool>>> {
    let mut offset = 0;
    let mut calls: Vec<_> = lists.iter().map(|list| place(remote, set.id, list, &mut offset)).collect();
    remote.run_in(slot, &mut calls, false).on("asking", set.named())?;
    let mut out = Vec::with_capacity(calls.len());
    for made in &calls {
        match -(made.ret as i32) {
            libc::ERANGE => out.push(true),
            libc::EAGAIN => out.push(false),
            libc::EACCES => return Ok(None),
            errno => {
                return Err(std::io::Error::from_raw_os_error(errno)).on("asking", set.named());
            }
        }
    }
    Ok(Some(out))
}

/// The adjustment of a semaphore that is not zero, as a rule.
fn search(remote: &Remote, slot: usize, set: &Set, number: u16) -> RmResult<i32> {
    let value = set.values[usize::from(number)];
    let (mut low, mut high) = (LOWEST, HIGHEST);
    while low < high {
        let step = ((high - low) / (BOUNDS + 1)).max(1);
        let bounds: Vec<i32> =
            (1..=BOUNDS).map(|index| low + index * step).take_while(|bound| *bound <= high).collect();
        let lists: Vec<Vec<Operation>> = bounds
            .iter()
            .map(|bound| {
                let mut list = shift(number, value, bound - LOWEST);
                list.push(impossible(number));
                list
            })
            .collect();
        let Some(below) = leave_range(remote, slot, set, &lists)? else { return Ok(0) };
        match below.iter().position(|below| *below) {
            Some(first) => {
                high = bounds[first] - 1;
                low = if first > 0 { bounds[first - 1] } else { low };
            }
            None => low = *bounds.last().unwrap_or(&high),
        }
    }
    Ok(low)
}

/// The adjustments of one thread, which most threads share with their process: semaphore and value.
fn of_thread(remote: &Remote, slot: usize, set: &Set) -> RmResult<Vec<(u16, i16)>> {
    let zero = |number: u16| {
        let value = set.values[usize::from(number)];
        let mut list = shift(number, value, -LOWEST);
        // Less than zero would be out of range at the first end, more at the other.
        list.extend(shift(number, value, LOWEST - HIGHEST));
        list
    };
    let numbers: Vec<u16> = (0..set.values.len()).map(|number| number as u16).collect();
    // Longest of one semaphore: six pairs.
    let mut out = Vec::new();
    for part in numbers.chunks((OPERATIONS_MAX - 1) / 12) {
        let mut list: Vec<Operation> = part.iter().flat_map(|number| zero(*number)).collect();
        list.push(impossible(part[0]));
        let Some(some) = leave_range(remote, slot, set, &[list])? else { return Ok(out) };
        if !some[0] {
            continue;
        }
        for number in part {
            let by = search(remote, slot, set, *number)?;
            if by != 0 {
                out.push((*number, by as i16));
            }
        }
    }
    Ok(out)
}

/// Threads that do not share their adjustments with the first.
fn apart(process: &Process) -> RmResult<Vec<usize>> {
    let remote = &process.remote;
    // SAFETY: filled in by parked threads.
    let tid = |slot: &usize| u64::from(unsafe { (*remote.page.slot(*slot)).tid });
    let Some((first, others)) = process.slots.split_first() else { return Ok(Vec::new()) };
    let first = tid(first);
    let mut calls: Vec<_> =
        others.iter().map(|slot| call(sysno::kcmp, &[first, tid(slot), KCMP_SYSVSEM, 0, 0])).collect();
    remote.run(&mut calls, false).on("comparing", "threads")?;
    Ok(others.iter().zip(&calls).filter(|(_, made)| made.ret > 0).map(|(slot, _)| *slot).collect())
}

/// Whether two processes have one list of adjustments (`clone` with `CLONE_SYSVSEM`).
fn share(one: i32, other: i32) -> bool {
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_SYSVSEM, 0, 0) == 0 }
}

/// All adjustments of a set.
pub(super) fn find(cx: &DumpCx, set: &Set) -> RmResult<Vec<Undo>> {
    let mut out: Vec<Undo> = Vec::new();
    for (index, process) in cx.processes.iter().enumerate() {
        let remote = &process.remote;
        let undos = of_thread(remote, remote.leader, set)?;
        let other = |undo: &Undo| share(cx.processes[undo.process as usize].remote.face, remote.face);
        if !undos.is_empty() && out.iter().any(other) {
            let why = format!("process {} shares what is undone at its end with another", process.pid);
            return Err(RmError::Unsupported(why));
        }
        for slot in apart(process)? {
            if !of_thread(remote, slot, set)?.is_empty() {
                let why = format!("a thread of process {} has adjustments of its own", process.pid);
                return Err(RmError::Unsupported(why));
            }
        }
        let process = index as u32;
        out.extend(undos.into_iter().map(|(number, by)| Undo { process, number, by }));
    }
    Ok(out)
}

/// Makes adjustments of a set that has its values.
pub(super) fn make(cx: &SwitchCx, set: &Set, undos: &[Undo]) -> RmResult<()> {
    for undo in undos {
        let value = set.values[usize::from(undo.number)];
        let all = shift(undo.number, value, -i32::from(undo.by));
        // One pair leaves the value as it was.
        run(&cx.tree[undo.process as usize], set, all.chunks(2).map(<[_]>::to_vec))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A semaphore as the kernel treats it: value and adjustment.
    fn apply(list: &[Operation], mut value: i32, mut adjustment: i32) -> Result<(i32, i32), i32> {
        for operation in list {
            let by = i32::from(operation.by);
            if value + by < 0 {
                return Err(libc::EAGAIN);
            }
            if value + by > i32::from(VALUE_MAX) {
                return Err(libc::ERANGE);
            }
            if operation.flags & SEM_UNDO != 0 {
                adjustment -= by;
                if !(LOWEST..=HIGHEST).contains(&adjustment) {
                    return Err(libc::ERANGE);
                }
            }
            value += by;
        }
        Ok((value, adjustment))
    }

    // Goal: operations take exactly what is asked off the adjustment and leave the value; they fit into one call.
    // Method: the kernel's rules, all extremes.
    #[test]
    fn shifts() {
        for value in [0, 1, 5, 16_383, 16_384, 20_000, 32_766, 32_767] {
            for by in [1, -1, 77, 16_384, -16_384, 32_767, -32_767] {
                let list = shift(3, value, by);
                assert_eq!(apply(&list, i32::from(value), 0), Ok((i32::from(value), -by)), "{value} {by}");
            }
            for (adjustment, out) in [(0, libc::EAGAIN), (1, libc::ERANGE), (-1, libc::ERANGE)] {
                let mut list = shift(0, value, -LOWEST);
                list.extend(shift(0, value, LOWEST - HIGHEST));
                assert!(list.len() <= 12);
                list.push(impossible(0));
                assert_eq!(apply(&list, i32::from(value), adjustment), Err(out), "{value} {adjustment}");
            }
            assert_eq!(apply(&idle(0, value), i32::from(value), 9), Ok((i32::from(value), 9)));
        }
    }
}
