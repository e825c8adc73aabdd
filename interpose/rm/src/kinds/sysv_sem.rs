//! System V semaphores: sets with ids, keys, owners, values, who operated on them last, and what is undone at the end of
//! each process (`SEM_UNDO`).
//!
//! The kernel shows no adjustment. It refuses (`ERANGE`) an operation that would take one out of its range, before
//! or after which any other operation of the same call may fail, and then none of them has happened. So a list of
//! operations that ends with an impossible one changes nothing, and tells whether an adjustment is below a bound:
//!
//! ```text
//! (n, +k, SEM_UNDO) (n, -k) ...    value as before, adjustment lower by k, as often as needed
//! (n, -32768, IPC_NOWAIT)          ERANGE: it would be out of range; EAGAIN: it would not
//! ```

use super::ipc::{self, Ipc, is_ours, long, stranger, word};
use super::ipc_list::{self, Objects, Sort};
use super::sysv_undo::{self, Undo};
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx, decode};
use crate::remote::{Remote, call};
use holo_abi::control::object;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const NAME: &str = "sysv_sem";
const VERSION: u16 = 1;
/// As many as the kernel's own limits allow (`SEMMNI`, `SEMMSL`).
const SETS_MAX: usize = 32_768;
const SEMAPHORES_MAX: usize = 65_536;
/// Largest value (`SEMVMX`).
pub(super) const VALUE_MAX: u16 = 32_767;
const DS_BYTES: usize = 104;
/// `SEM_INFO`, `SEM_STAT_ANY`.
const SEM: Sort = Sort { call: sysno::semctl, sub: true, info: 19, stat: 20, used_at: 28, bytes: DS_BYTES };
/// Of the last operation and the last change.
const OTIME_AT: usize = 48;
const CTIME_AT: usize = 64;
const NSEMS_AT: usize = 80;
const IPC_CREAT_EXCL: u64 = 0o3000;
const IPC_SET: u64 = 1;
const GETPID: u64 = 11;
const GETALL: u64 = 13;
const SETVAL: u64 = 16;
/// Semaphores of a set that nobody is known to have asked for: one of them tells whether a process of ours uses it.
const ASKED_MAX: u64 = 64;

/// A set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Set {
    pub(super) id: i32,
    key: i32,
    uid: u32,
    gid: u32,
    mode: u32,
    pub(super) values: Vec<u16>,
    /// For each semaphore the process that operated on it last, 0: none.
    pids: Vec<i32>,
    undos: Vec<Undo>,
}

/// State.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SemState {
    sets: Vec<Set>,
}

/// The manager.
pub struct SysvSem {
    ipc: Ipc,
    /// Sets of the application that an earlier epoch found, whoever has asked for them.
    known: BTreeSet<i32>,
    state: SemState,
    /// What there is, listed at the beginning of this stop.
    looked: Option<Objects>,
}

impl Set {
    pub(super) fn named(&self) -> String {
        format!("System V semaphore set {} (key {:#x})", self.id, self.key)
    }

    fn check(&self, processes: usize) -> Result<(), String> {
        let count = self.values.len();
        let bad = self.pids.len() != count
            || count == 0
            || count > SEMAPHORES_MAX
            || self.id < 0
            || self.values.iter().any(|value| *value > VALUE_MAX)
            || self.undos.iter().any(|undo| {
                undo.process as usize >= processes || usize::from(undo.number) >= count || undo.by == 0
            });
        if bad { Err(format!("{} contradicts itself", self.named())) } else { Ok(()) }
    }
}

/// `struct semid64_ds` of every set that the application could see, by id.
fn listed(remote: &Remote, looked: Option<Objects>) -> RmResult<BTreeMap<i32, Vec<u8>>> {
    Ok(ipc_list::list(remote, &SEM, "System V semaphore sets", looked)?.objects)
}

/// Who operated last on the first `count` semaphores.
fn pids(remote: &Remote, id: i32, count: u64) -> RmResult<Vec<i32>> {
    let mut calls: Vec<_> =
        (0..count).map(|number| call(sysno::semctl, &[id as u64, number, GETPID])).collect();
    remote.run(&mut calls, false).on("asking", "semaphores")?;
    Ok(calls.iter().map(|made| made.ret.max(0) as i32).collect())
}

impl SysvSem {
    /// A manager that tells `ipc` of what it finds.
    #[must_use]
    pub fn new(ipc: Ipc) -> Self {
        Self { ipc, known: BTreeSet::new(), state: SemState::default(), looked: None }
    }

    /// The sets of the application.
    fn ours(&mut self, cx: &DumpCx, all: &BTreeMap<i32, Vec<u8>>) -> RmResult<Vec<i32>> {
        ipc::note(cx, object::SEMAPHORES, all, &mut self.known);
        let others: Vec<_> = all.iter().filter(|(id, _)| !self.known.contains(id)).collect();
        let since_s = if others.is_empty() { 0 } else { ipc::since_s(cx) };
        for (&id, ds) in others {
            let at_s = long(ds, OTIME_AT).max(long(ds, CTIME_AT));
            if at_s < since_s {
                continue;
            }
            let users = pids(cx.remote, id, long(ds, NSEMS_AT).clamp(0, ASKED_MAX as i64) as u64)?;
            if users.iter().any(|pid| is_ours(cx, *pid, at_s)) {
                self.known.insert(id);
            }
        }
        Ok(self.known.iter().copied().collect())
    }
}

/// A set with its values, by the first process that may read it; none may: it is not the application's.
fn read(cx: &DumpCx, id: i32, ds: &[u8]) -> RmResult<Option<Set>> {
    let count = long(ds, NSEMS_AT).clamp(0, SEMAPHORES_MAX as i64) as usize;
    for process in cx.processes {
        let remote = &process.remote;
        let at = remote.page.scratch_address(0);
        match remote.call(sysno::semctl, &[id as u64, 0, GETALL, at]) {
            Ok(_) => {}
            Err(cause) if cause.raw_os_error() == Some(libc::EACCES) => continue,
            // Removed by somebody else since it was listed.
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => {
                return Ok(None);
            }
            Err(cause) => return Err(cause).on("reading", format!("System V semaphore set {id}")),
        }
        let bytes = remote.page.take(0, count * 2);
        let set = Set {
            id,
            key: word(ds, 0).cast_signed(),
            uid: word(ds, 4),
            gid: word(ds, 8),
            mode: word(ds, 20) & 0o777,
            values: bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect(),
            pids: pids(remote, id, count as u64)?,
            undos: Vec::new(),
        };
        if let Some(pid) = stranger(cx, &set.pids) {
            let why = format!("{} is used by process {pid}, which is not of the application", set.named());
            return Err(RmError::Unsupported(why));
        }
        return Ok(Some(set));
    }
    Ok(None)
}

impl ResourceManager for SysvSem {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&mut self, remote: &Remote) {
        self.looked = ipc_list::look(remote, &SEM);
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.state = SemState::default();
        let all = listed(cx.remote, self.looked.take())?;
        for id in self.ours(cx, &all)? {
            let Some(mut set) = read(cx, id, &all[&id])? else { continue };
            set.undos = sysv_undo::find(cx, &set)?;
            self.state.sets.push(set);
        }
        if !self.state.sets.is_empty() {
            self.ipc.is_used();
        }
        Ok(())
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        cx.put(NAME, VERSION, &std::mem::take(&mut self.state))
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.state = SemState::default();
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state = stored(cx)?;
        if !state.sets.is_empty() {
            ipc::namespace(cx)?;
        }
        state.sets.iter().try_for_each(|set| make(cx, set))
    }

    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        self.known.clear();
        for set in &stored(cx)?.sets {
            let mut ds = [0u8; DS_BYTES];
            ds[4..8].copy_from_slice(&set.uid.to_le_bytes());
            ds[8..12].copy_from_slice(&set.gid.to_le_bytes());
            ds[20..24].copy_from_slice(&set.mode.to_le_bytes());
            let at = cx.remote.page.put(0, &ds);
            let args = [set.id as u64, 0, IPC_SET, at];
            cx.remote.call(sysno::semctl, &args).on("setting the mode of", set.named())?;
            cx.remote.page.enter_object(object::SEMAPHORES, set.id);
        }
        Ok(())
    }
}

/// Images of before this kind have no such section.
fn stored(cx: &SwitchCx) -> RmResult<SemState> {
    if cx.image.section(NAME).is_none() {
        return Ok(SemState::default());
    }
    let state: SemState = cx.section(NAME, VERSION)?;
    let bad = |what| RmError::BadSection { kind: NAME, what };
    if state.sets.len() > SETS_MAX {
        return Err(bad(format!("{} sets", state.sets.len())));
    }
    state.sets.iter().try_for_each(|set| set.check(cx.tree.len())).map_err(bad)?;
    Ok(state)
}

/// Whether a restore into `processes` processes would accept these bytes of a section.
#[must_use]
pub fn is_sound(bytes: &[u8], processes: usize) -> bool {
    decode::<SemState>(bytes).is_some_and(|state| state.sets.iter().all(|set| set.check(processes).is_ok()))
}

fn make(cx: &mut SwitchCx, set: &Set) -> RmResult<()> {
    let (id, count) = (set.id as u64, set.values.len() as u64);
    ipc::next_id(cx.remote, "sem", set.id).on("choosing the id of", set.named())?;
    let key = u64::from(set.key.cast_unsigned());
    let made =
        cx.remote.call(sysno::semget, &[key, count, IPC_CREAT_EXCL | 0o600]).on("making", set.named())?;
    if made != id {
        let what = format!("{} came to be as {made}", set.named());
        return Err(RmError::BadSection { kind: NAME, what });
    }
    // Values first: setting one clears what is to be undone.
    let valued = set.values.iter().enumerate().filter(|(_, value)| **value > 0);
    let mut calls: Vec<_> = valued
        .map(|(number, value)| call(sysno::semctl, &[id, number as u64, SETVAL, u64::from(*value)]))
        .collect();
    cx.remote.run_all(&mut calls).on("setting", set.named())?;
    sysv_undo::make(cx, set, &set.undos)?;
    // Who operated last is told by an operation that changes nothing.
    let mut by_pid: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (number, pid) in set.pids.iter().enumerate().filter(|(_, pid)| **pid != 0) {
        by_pid.entry(*pid).or_default().push(number);
    }
    for (pid, numbers) in by_pid {
        let shown = ipc::as_process(cx, pid, &mut |remote| {
            let operations =
                numbers.iter().map(|number| sysv_undo::idle(*number as u16, set.values[*number]));
            sysv_undo::run(remote, set, operations)
        })?;
        if !shown {
            cx.remarks.push(format!("{}: who operated on it last is not {pid} as it was", set.named()));
        }
    }
    Ok(())
}
