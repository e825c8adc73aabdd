//! System V message queues: ids, keys, owners, limits, messages in their order, who sent and received last.
//!
//! Messages are copied with `MSG_COPY`, which takes nothing out and leaves no trace. Who waits for room or for a
//! message waits again by itself.

use super::ipc::{self, Ipc, is_ours, long, stranger, word};
use super::ipc_list::{self, Objects, Sort};
use super::kernel::Bytes;
use crate::manager::{Context, DumpCx, ResourceManager, RmError, RmResult, SwitchCx, decode};
use crate::remote::{Remote, call, outcome};
use holo_abi::control::{BATCH_CALLS, SCRATCH_BYTES, object};
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const NAME: &str = "sysv_msg";
const VERSION: u16 = 1;
/// As many as the kernel's own limit allows (`MSGMNI`).
const QUEUES_MAX: usize = 32_768;
const DS_BYTES: usize = 120;
/// `MSG_INFO`, `MSG_STAT_ANY`.
const MSG: Sort = Sort { call: sysno::msgctl, sub: false, info: 12, stat: 13, used_at: 0, bytes: DS_BYTES };
/// When a message was last sent, and received.
const STIME_AT: usize = 48;
const RTIME_AT: usize = 56;
const QBYTES_AT: usize = 88;
const IPC_CREAT_EXCL: u64 = 0o3000;
const IPC_NOWAIT: u64 = 0o4000;
const IPC_SET: u64 = 1;
const MSG_COPY: u64 = 0o40000;
/// The type of a message is in front of its text.
const TYPE_BYTES: usize = 8;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    sort: i64,
    text: Bytes,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    id: i32,
    key: i32,
    uid: u32,
    gid: u32,
    mode: u32,
    /// Room, bytes.
    room: u64,
    /// Who sent and who received last, 0: nobody.
    sender: i32,
    receiver: i32,
    messages: Vec<Message>,
}

/// State.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct MsgState {
    queues: Vec<Queue>,
}

/// The manager.
pub struct SysvMsg {
    ipc: Ipc,
    /// Queues of the application that an earlier epoch found, whoever has asked for them.
    known: BTreeSet<i32>,
    state: MsgState,
    /// What there is, listed at the beginning of this stop.
    looked: Option<Objects>,
}

impl Queue {
    /// Out of the kernel's `struct msqid64_ds`, without its messages.
    fn parse(id: i32, ds: &[u8]) -> Self {
        Self {
            id,
            key: word(ds, 0).cast_signed(),
            uid: word(ds, 4),
            gid: word(ds, 8),
            mode: word(ds, 20) & 0o777,
            room: long(ds, QBYTES_AT).cast_unsigned(),
            sender: word(ds, 96).cast_signed(),
            receiver: word(ds, 100).cast_signed(),
            messages: Vec::new(),
        }
    }

    fn named(&self) -> String {
        format!("System V message queue {} (key {:#x})", self.id, self.key)
    }

    /// What an image says, or that it cannot be.
    fn check(&self) -> Result<(), String> {
        let strange =
            |message: &Message| message.sort < 1 || message.text.0.len() > SCRATCH_BYTES - TYPE_BYTES;
        if self.id < 0 || self.messages.iter().any(strange) {
            return Err(format!("{} contradicts itself", self.named()));
        }
        Ok(())
    }
}

/// `struct msqid64_ds` of every queue that the application could see, by id; and the longest message that may be sent.
fn listed(remote: &Remote, looked: Option<Objects>) -> RmResult<(BTreeMap<i32, Vec<u8>>, u64)> {
    let listed = ipc_list::list(remote, &MSG, "System V message queues", looked)?;
    let longest = if listed.objects.is_empty() { 0 } else { u64::from(word(&listed.info, 8)) };
    Ok((listed.objects, longest))
}

/// Copies `count` messages of at most `longest` bytes, by the first process that may read them; none may: nothing.
fn messages(cx: &DumpCx, queue: &Queue, count: u64, longest: u64) -> RmResult<Option<Vec<Message>>> {
    let refused = |why: &str| Err(RmError::Unsupported(format!("{} {why}", queue.named())));
    let room = (longest as usize + TYPE_BYTES).next_multiple_of(8);
    if room > SCRATCH_BYTES {
        return refused("may hold messages that are longer than can be copied");
    }
    let at_once = (SCRATCH_BYTES / room).clamp(1, BATCH_CALLS) as u64;
    for process in cx.processes {
        let remote = &process.remote;
        let mut out = Vec::new();
        let mut denied = false;
        'batches: for first in (0..count).step_by(at_once as usize) {
            let indexes = first..count.min(first + at_once);
            let copy = |index: u64| {
                let at = remote.page.scratch_address((index - first) as usize * room);
                call(sysno::msgrcv, &[queue.id as u64, at, longest, index, MSG_COPY | IPC_NOWAIT])
            };
            let mut calls: Vec<_> = indexes.map(copy).collect();
            remote.run(&mut calls, false).on("reading", queue.named())?;
            for (index, made) in calls.iter().enumerate() {
                match outcome(made) {
                    Ok(bytes) => {
                        let copied = remote.page.take(index * room, TYPE_BYTES + bytes as usize);
                        let text = Bytes(copied[TYPE_BYTES..].to_vec());
                        out.push(Message { sort: long(&copied, 0), text });
                    }
                    Err(cause) => match cause.raw_os_error() {
                        Some(libc::EACCES) => {
                            denied = true;
                            break 'batches;
                        }
                        Some(libc::ENOSYS) => {
                            return refused("has messages, which this kernel lets nobody look at");
                        }
                        _ => return Err(cause).on("reading", queue.named()),
                    },
                }
            }
        }
        if !denied {
            return Ok(Some(out));
        }
    }
    Ok(None)
}

impl SysvMsg {
    /// A manager that tells `ipc` of what it finds.
    #[must_use]
    pub fn new(ipc: Ipc) -> Self {
        Self { ipc, known: BTreeSet::new(), state: MsgState::default(), looked: None }
    }

    /// The queues of the application.
    fn ours(&mut self, cx: &DumpCx, all: &BTreeMap<i32, Vec<u8>>) -> Vec<Queue> {
        ipc::note(cx, object::QUEUE, all, &mut self.known);
        let mut out = Vec::new();
        for (id, ds) in all {
            let queue = Queue::parse(*id, ds);
            if self.known.contains(id)
                || is_ours(cx, queue.sender, long(ds, STIME_AT))
                || is_ours(cx, queue.receiver, long(ds, RTIME_AT))
            {
                out.push(queue);
            }
        }
        out
    }
}

impl ResourceManager for SysvMsg {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&mut self, remote: &Remote) {
        self.looked = ipc_list::look(remote, &MSG);
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.state = MsgState::default();
        let (all, longest) = listed(cx.remote, self.looked.take())?;
        for mut queue in self.ours(cx, &all) {
            let ds = &all[&queue.id];
            if let Some(pid) = stranger(cx, &[queue.sender, queue.receiver]) {
                let why =
                    format!("{} is used by process {pid}, which is not of the application", queue.named());
                return Err(RmError::Unsupported(why));
            }
            let (bytes, count) = (long(ds, 72).cast_unsigned(), long(ds, 80).cast_unsigned());
            if count > 0 {
                match messages(cx, &queue, count, longest.min(bytes))? {
                    Some(messages) => queue.messages = messages,
                    // Its user's number is now that of a process which cannot use it.
                    None if !self.known.contains(&queue.id) => continue,
                    None => {
                        let why =
                            format!("{} has messages that none of the processes may read", queue.named());
                        return Err(RmError::Unsupported(why));
                    }
                }
            }
            self.known.insert(queue.id);
            self.state.queues.push(queue);
        }
        if !self.state.queues.is_empty() {
            self.ipc.is_used();
        }
        Ok(())
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        cx.put(NAME, VERSION, &std::mem::take(&mut self.state))
    }

    fn abort_dump(&mut self, _: &mut DumpCx) {
        self.state = MsgState::default();
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        let state = stored(cx)?;
        if !state.queues.is_empty() {
            ipc::namespace(cx)?;
        }
        state.queues.iter().try_for_each(|queue| make(cx, queue))
    }

    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        self.known.clear();
        for queue in &stored(cx)?.queues {
            set(cx.remote, queue, queue.room)?;
            cx.remote.page.enter_object(object::QUEUE, queue.id);
        }
        Ok(())
    }
}

/// Images of before this kind have no such section.
fn stored(cx: &SwitchCx) -> RmResult<MsgState> {
    if cx.image.section(NAME).is_none() {
        return Ok(MsgState::default());
    }
    let state: MsgState = cx.section(NAME, VERSION)?;
    let bad = |what| RmError::BadSection { kind: NAME, what };
    if state.queues.len() > QUEUES_MAX {
        return Err(bad(format!("{} queues", state.queues.len())));
    }
    state.queues.iter().try_for_each(Queue::check).map_err(bad)?;
    Ok(state)
}

/// Sets owner, group, mode and room.
fn set(remote: &Remote, queue: &Queue, room: u64) -> RmResult<()> {
    let mut ds = [0u8; DS_BYTES];
    ds[4..8].copy_from_slice(&queue.uid.to_le_bytes());
    ds[8..12].copy_from_slice(&queue.gid.to_le_bytes());
    ds[20..24].copy_from_slice(&queue.mode.to_le_bytes());
    ds[QBYTES_AT..QBYTES_AT + 8].copy_from_slice(&room.to_le_bytes());
    let at = remote.page.put(0, &ds);
    remote
        .call(sysno::msgctl, &[queue.id as u64, IPC_SET, at])
        .on("setting the mode and room of", queue.named())
        .map(|_| ())
}

fn send(remote: &Remote, queue: &Queue, message: &Message) -> RmResult<()> {
    let mut bytes = message.sort.to_le_bytes().to_vec();
    bytes.extend(&message.text.0);
    let at = remote.page.put(0, &bytes);
    let args = [queue.id as u64, at, message.text.0.len() as u64, IPC_NOWAIT];
    remote.call(sysno::msgsnd, &args).on("filling", queue.named()).map(|_| ())
}

/// Does something as the process that used the queue last, or as another if there cannot be such a one.
fn as_user(
    cx: &mut SwitchCx,
    queue: &Queue,
    pid: i32,
    act: &mut dyn FnMut(&Remote) -> RmResult<()>,
) -> RmResult<()> {
    if ipc::as_process(cx, pid, act)? {
        return Ok(());
    }
    cx.remarks.push(format!("{}: who used it last is not {pid} as it was", queue.named()));
    act(cx.remote)
}

/// Whether a restore would accept these bytes of a section.
#[must_use]
pub fn is_sound(bytes: &[u8]) -> bool {
    decode::<MsgState>(bytes).is_some_and(|state| state.queues.iter().all(|queue| queue.check().is_ok()))
}

fn make(cx: &mut SwitchCx, queue: &Queue) -> RmResult<()> {
    let id = queue.id as u64;
    ipc::next_id(cx.remote, "msg", queue.id).on("choosing the id of", queue.named())?;
    let key = u64::from(queue.key.cast_unsigned());
    let made = cx.remote.call(sysno::msgget, &[key, IPC_CREAT_EXCL | 0o600]).on("making", queue.named())?;
    if made != id {
        let what = format!("{} came to be as {made}", queue.named());
        return Err(RmError::BadSection { kind: NAME, what });
    }
    // It may hold more than there is room for now.
    let held: u64 = queue.messages.iter().map(|message| message.text.0.len() as u64).sum();
    set(cx.remote, queue, queue.room.max(held).max(queue.messages.len() as u64))?;
    let last = queue.messages.last();
    if queue.sender != 0 && (queue.receiver != 0 || last.is_none()) {
        let token = Message { sort: 1, text: Bytes(Vec::new()) };
        as_user(cx, queue, queue.sender, &mut |remote| send(remote, queue, &token))?;
        as_user(cx, queue, queue.receiver, &mut |remote| {
            let at = remote.page.scratch_address(0);
            let args = [id, at, 0, 0, IPC_NOWAIT];
            remote.call(sysno::msgrcv, &args).on("receiving from", queue.named()).map(|_| ())
        })?;
    }
    if let Some(last) = last {
        let before = &queue.messages[..queue.messages.len() - 1];
        before.iter().try_for_each(|message| send(cx.remote, queue, message))?;
        as_user(cx, queue, queue.sender, &mut |remote| send(remote, queue, last))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: queues are read as the kernel shows them; what cannot be sent is not accepted. Method: a structure by hand.
    #[test]
    fn kernel_structure() {
        let mut ds = vec![0; DS_BYTES];
        for (at, value) in [(0, 7u32), (4, 8), (8, 9), (20, 0o640), (QBYTES_AT, 100), (96, 11), (100, 12)] {
            ds[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let mut queue = Queue::parse(5, &ds);
        assert_eq!((queue.id, queue.key, queue.uid, queue.gid, queue.mode), (5, 7, 8, 9, 0o640));
        assert_eq!((queue.room, queue.sender, queue.receiver), (100, 11, 12));
        queue.messages.push(Message { sort: 1, text: Bytes(Vec::new()) });
        assert!(queue.check().is_ok());
        queue.messages[0].sort = 0;
        assert!(queue.check().is_err());
    }
}
