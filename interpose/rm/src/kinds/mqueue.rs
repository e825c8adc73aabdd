//! POSIX message queues that are open: names, limits, modes, messages with their priorities, who is to be notified.
//!
//! A restored application has them in an IPC namespace of its own, see `ipc`. How messages are read without being
//! taken: `mqueue_peek`.

use super::kernel::{self, Bytes, bytes_of, checked};
use super::mqueue_peek::{self, Message};
use super::open::{Dumping, Each, Making, Open};
use crate::manager::{Context, DumpCx, RmError, RmResult, SwitchCx};
use crate::remote::Remote;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const MAGIC: i64 = 0x1980_0202;
/// The kernel's own limits (`HARD_MSGMAX`, `HARD_MSGSIZEMAX`, `MQ_PRIO_MAX`).
const COUNT_MAX: i64 = 65_536;
const BYTES_MAX: i64 = 16 << 20;
const PRIORITIES: u32 = 32_768;
const NAME_MAX: usize = 255;
const DELETED: &[u8] = b" (deleted)";

/// Who is told of the next message in an empty queue (`mq_notify`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Notice {
    /// The process, by its place in the tree, and its descriptor.
    process: u32,
    number: i32,
    /// Head of `struct sigevent`: value, signal or socket, and how.
    value: u64,
    signal: i32,
    how: i32,
    /// What the value pointed to, where a socket is told.
    cookie: [u64; 4],
}

/// What is of a queue itself, with the first of its descriptions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    mode: u32,
    owner: [u32; 2],
    /// Most messages, and bytes of one.
    most: [i64; 2],
    messages: Vec<Message>,
    notice: Option<Notice>,
}

/// A descriptor of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueState {
    /// Without its slash.
    name: Bytes,
    unlinked: bool,
    /// Device and inode: several descriptors may lead to one queue.
    key: (u64, u64),
    /// With the first of them.
    queue: Option<Queue>,
}

/// Whether a regular file is a queue.
pub(crate) fn is_queue(open: &Open) -> bool {
    let link = open.link.as_bytes();
    if link.first() != Some(&b'/') || link[1..].contains(&b'/') {
        return false;
    }
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: room for one `statfs`.
    unsafe { libc::fstatfs(open.as_raw_fd(), &raw mut found) == 0 && found.f_type == MAGIC }
}

/// `name: value` of what a queue says of itself.
fn said(text: &str, name: &str) -> Option<i32> {
    text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':')?.parse().ok())
}

/// Somebody outside the application who has the queue open.
fn outsider(cx: &DumpCx, open: &Open) -> Option<i32> {
    let ours: BTreeSet<i32> = cx.processes.iter().map(|process| process.remote.pid).collect();
    let own = std::process::id() as i32;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid == own || ours.contains(&pid) || crate::tree::is_hidden(pid) {
            continue;
        }
        for fd in std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let same = std::fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == open.link)
                && kernel::identity(&fd.path(), true) == Some(open.key());
            if same {
                return Some(pid);
            }
        }
    }
    None
}

impl QueueState {
    pub(crate) fn describe(open: &Open, dumping: &mut Dumping) -> RmResult<Self> {
        let link = open.link.as_bytes();
        let unlinked = open.stat.st_nlink == 0;
        let name = if unlinked { link.strip_suffix(DELETED).unwrap_or(link) } else { link };
        let key = open.key();
        let first = dumping.recorded.insert(key);
        let queue = if first { Some(Queue::describe(open, dumping.cx)?) } else { None };
        Ok(Self { name: Bytes(name[1..].to_vec()), unlinked, key, queue })
    }

    /// What an image says, or that it cannot be.
    fn check(&self) -> bool {
        let name = &self.name.0;
        let named = (1..=NAME_MAX).contains(&name.len()) && !name.contains(&b'/') && !name.contains(&0);
        named && self.queue.as_ref().is_none_or(Queue::check)
    }
}

impl Queue {
    fn describe(open: &Open, cx: &DumpCx) -> RmResult<Self> {
        let mut attributes = [0i64; 8];
        // SAFETY: room for `struct mq_attr`.
        let asked = unsafe {
            libc::syscall(libc::SYS_mq_getsetattr, open.as_raw_fd(), 0usize, attributes.as_mut_ptr())
        };
        checked(asked).on("asking", open.named())?;
        let [_, most, bytes, count, ..] = attributes;
        let notice = Notice::find(open, cx)?;
        if count > 0 && notice.is_some() {
            let why = "somebody asked to be notified while messages wait, which cannot be read then";
            return Err(open.unsupported(why));
        }
        // One that waits to send, in another process, would take the place of a message that is looked at.
        if count == most
            && let Some(pid) = outsider(cx, open)
        {
            return Err(open.unsupported(format!("it is full, and process {pid} outside has it open")));
        }
        let messages = if count > 0 {
            mqueue_peek::messages(cx, open, count as usize, bytes as usize)?
        } else {
            Vec::new()
        };
        let mode = open.stat.st_mode & 0o7777;
        Ok(Self { mode, owner: [open.stat.st_uid, open.stat.st_gid], most: [most, bytes], messages, notice })
    }

    fn check(&self) -> bool {
        let [most, bytes] = self.most;
        let strange =
            |message: &Message| message.priority >= PRIORITIES || message.text.0.len() as i64 > bytes;
        (1..=COUNT_MAX).contains(&most)
            && (1..=BYTES_MAX).contains(&bytes)
            && self.messages.len() as i64 <= most
            && !self.messages.iter().any(strange)
    }
}

impl Notice {
    /// Who is registered, with what the control page remembers of the call.
    fn find(open: &Open, cx: &DumpCx) -> RmResult<Option<Self>> {
        for process in cx.processes {
            process.remote.page.keep_notices(|pid| cx.processes.iter().any(|process| process.pid == pid));
        }
        let mut text = String::new();
        kernel::reopen(open, libc::O_RDONLY)
            .and_then(|fd| std::fs::File::from(fd).read_to_string(&mut text))
            .on("reading", open.named())?;
        let said = |name: &str| said(&text, name).unwrap_or(0);
        let pid = said("NOTIFY_PID");
        if pid == 0 {
            return Ok(None);
        }
        let unknown = |why: &str| Err(open.unsupported(format!("process {pid} is to be notified, {why}")));
        let Some(index) = cx.processes.iter().position(|process| process.remote.pid == pid) else {
            return unknown("which is not of the application");
        };
        let process = &cx.processes[index];
        for (number, [value, what, a, b, c, d]) in process.remote.page.notices(process.pid) {
            let leads = kernel::identity(&process.remote.proc(&format!("fd/{number}")), true);
            let (signal, how) = (what as i32, (what >> 32) as i32);
            if leads == Some(open.key()) && how == said("NOTIFY") {
                let cookie = [a, b, c, d];
                return Ok(Some(Self { process: index as u32, number, value, signal, how, cookie }));
            }
        }
        unknown("and it is not known how")
    }
}

/// A queue as the clone sees it, opened there and taken over; the number is free again.
fn opened(
    clone: &Remote,
    name: &[u8],
    flags: i32,
    mode: u64,
    most: Option<[i64; 2]>,
) -> std::io::Result<OwnedFd> {
    let mut path = name.to_vec();
    path.push(0);
    let at = clone.page.put(0, &path);
    let attributes =
        most.map_or(0, |[most, bytes]| clone.page.put(512, bytes_of(&[0i64, most, bytes, 0, 0, 0, 0, 0])));
    let fd = clone.call(sysno::mq_open, &[at, flags as u64, mode, attributes])?;
    let taken = clone.borrow_fd(fd as i32);
    clone.call(sysno::close, &[fd])?;
    taken
}

/// Makes all queues again, in the namespace of the clone; those without a name first, since another may have it now.
pub(crate) fn recreate(all: &Each<QueueState>, making: &mut Making) -> RmResult<()> {
    let bad = |what: &str| RmError::BadSection { kind: super::descriptors::NAME, what: what.into() };
    if all.iter().any(|(_, state)| !state.check()) {
        return Err(bad("a message queue that cannot be"));
    }
    let Some(clone) = making.clone else {
        return if all.is_empty() { Ok(()) } else { Err(bad("message queues without a clone")) };
    };
    let made = all.iter().filter_map(|(_, state)| Some((state, state.queue.as_ref()?)));
    let (unlinked, named): (Vec<_>, Vec<_>) = made.partition(|(state, _)| state.unlinked);
    for (state, queue) in unlinked.into_iter().chain(named) {
        let shown = || format!("message queue /{}", String::from_utf8_lossy(&state.name.0));
        let name = &state.name.0;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK;
        let whole = opened(clone, name, flags, 0o600, Some(queue.most)).on("making", shown())?;
        for message in &queue.messages {
            let (text, priority) = (&message.text.0, message.priority);
            // SAFETY: the text is ours.
            let sent = unsafe {
                let at = text.as_ptr();
                libc::syscall(libc::SYS_mq_timedsend, whole.as_raw_fd(), at, text.len(), priority, 0usize)
            };
            checked(sent).on("filling", shown())?;
        }
        for (index, one) in all.iter().filter(|(_, one)| one.key == state.key) {
            let flags = making.flags(*index) & (libc::O_ACCMODE | libc::O_NONBLOCK);
            if one.name != state.name {
                return Err(bad("a message queue of two names"));
            }
            let fd = opened(clone, name, flags, 0, None).on("opening", shown())?;
            making.put(*index, fd)?;
        }
        let [uid, gid] = queue.owner;
        // SAFETY: no memory is passed.
        let owned = unsafe {
            let owned = libc::fchown(whole.as_raw_fd(), uid, gid);
            checked(libc::fchmod(whole.as_raw_fd(), queue.mode)).on("setting the mode of", shown())?;
            checked(owned)
        };
        let now = kernel::stat(&whole).on("reading", shown())?;
        if let Err(cause) = owned
            && [now.st_uid, now.st_gid] != queue.owner
        {
            making.remarks.push(format!("{} has another owner: {cause}", shown()));
        }
        if state.unlinked {
            let mut path = name.clone();
            path.push(0);
            let at = clone.page.put(0, &path);
            clone.call(sysno::mq_unlink, &[at]).on("removing", shown())?;
        }
    }
    Ok(())
}

/// Registers again who is to be notified.
pub(crate) fn notify(all: &Each<QueueState>, cx: &SwitchCx) -> RmResult<()> {
    for notice in all.iter().filter_map(|(_, state)| state.queue.as_ref()?.notice) {
        let what = || format!("descriptor {}", notice.number);
        let bad = || RmError::Unsupported(format!("{}: nobody to be notified", what()));
        let remote = cx.tree.get(notice.process as usize).ok_or_else(bad)?;
        let mut event = [0u64; 8];
        let cookie_at = remote.page.put(128, bytes_of(&notice.cookie));
        event[0] = if notice.how == libc::SIGEV_THREAD { cookie_at } else { notice.value };
        event[1] = u64::from(notice.signal.cast_unsigned()) | u64::from(notice.how.cast_unsigned()) << 32;
        let at = remote.page.put(0, bytes_of(&event));
        remote.call(sysno::mq_notify, &[notice.number as u64, at]).on("asking for notices of", what())?;
        let pid = remote.call(sysno::getpid, &[]).on("asking", "the clone")?;
        remote.page.enter_notice(pid as i32, notice.number, [notice.value, event[1]], notice.cookie);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: the kernel's text is read; what no queue can be is refused. Method: a line as Linux 6.18 prints it, bad states.
    #[test]
    fn text_and_limits() {
        let text = "QSIZE:129        NOTIFY:2     SIGNO:10    NOTIFY_PID:28213 \n";
        assert_eq!(
            (said(text, "NOTIFY"), said(text, "NOTIFY_PID"), said(text, "X")),
            (Some(2), Some(28213), None)
        );
        let message = Message { priority: 3, text: Bytes(b"text".to_vec()) };
        let queue =
            Queue { mode: 0o600, owner: [0, 0], most: [1, 4], messages: vec![message.clone()], notice: None };
        let state = |name: &str, queue: Queue| QueueState {
            name: Bytes(name.into()),
            unlinked: false,
            key: (1, 2),
            queue: Some(queue),
        };
        assert!(state("name", queue.clone()).check());
        assert!(!state("a/b", queue.clone()).check() && !state("", queue.clone()).check());
        assert!(
            !state("name", Queue { most: [1, 3], ..queue.clone() }).check(),
            "a message that is too long"
        );
        assert!(!state("name", Queue { messages: vec![message; 2], ..queue }).check(), "too many");
    }
}
