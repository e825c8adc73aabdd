//! Reading the messages of a POSIX message queue without taking them: no call does that.
//!
//! While everybody is parked, one thread of the application receives them all and sends them back in the same order, which
//! keeps them in order: a queue is sorted by priority, and by age within one. It does so by a list of calls that it
//! goes through by itself, so that nothing is lost if the agent ends meanwhile:
//!
//! ```text
//! open the queue for both                      a descriptor of the application may be for one only
//! for each message: receive                    the result becomes the length, and the priority that of ...
//! for each message: send                       ... this one
//! close
//! ```

use super::kernel::{Bytes, checked};
use super::open::Open;
use crate::manager::{Context, DumpCx, RmError, RmResult};
use crate::remote::{Remote, call};
use holo_abi::control::{CALL_COPY, Call, SCRATCH_BYTES};
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const CALL_BYTES: u64 = size_of::<Call>() as u64;
/// Room for the path of a descriptor, and for a time that has passed.
const HEAD_BYTES: u64 = 64;
const TIME_AT: u64 = 48;
const PROT_READ_WRITE: u64 = 3;
const MAP_PRIVATE_ANONYMOUS: u64 = 0x22;
/// What could not be sent back at once is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(2);

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) priority: u32,
    pub(crate) text: Bytes,
}

/// Where the parts of a list are, in the process.
struct Layout {
    start: u64,
    count: u64,
    /// Bytes of one message's room, with its priority in front.
    room: u64,
}

impl Layout {
    /// Calls before the messages' own, of each message's receiving, and of its sending.
    const OPENING: u64 = 1;
    const RECEIVING: u64 = 4;
    const SENDING: u64 = 2;

    fn calls(&self) -> u64 {
        Self::OPENING + self.count * (Self::RECEIVING + Self::SENDING) + 2
    }

    fn call_at(&self, index: u64) -> u64 {
        self.start + HEAD_BYTES + index * CALL_BYTES
    }

    fn receiving(&self, message: u64) -> u64 {
        Self::OPENING + message * Self::RECEIVING
    }

    fn sending(&self, message: u64) -> u64 {
        self.receiving(self.count) + message * Self::SENDING
    }

    fn room_at(&self, message: u64) -> u64 {
        self.call_at(self.calls()) + message * self.room
    }

    fn bytes(&self) -> u64 {
        self.room_at(self.count) - self.start
    }

    /// Address of an argument, or of the result, of a call.
    fn argument(&self, index: u64, argument: u64) -> u64 {
        self.call_at(index) + offset_of!(Call, args) as u64 + argument * 8
    }

    fn result(&self, index: u64) -> u64 {
        self.call_at(index) + offset_of!(Call, ret) as u64
    }

    /// The list.
    fn list(&self) -> Vec<Call> {
        let fd = self.result(0);
        let copy = |to: u64, from: u64, bytes: u64| call(CALL_COPY, &[to, from, bytes]);
        let (path, passed) = (self.start, self.start + TIME_AT);
        let flags = (libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) as u64;
        let mut list = vec![call(sysno::open, &[path, flags])];
        for message in 0..self.count {
            let (priority, text) = (self.room_at(message), self.room_at(message) + 8);
            let receive = self.receiving(message) + 1;
            let send = self.sending(message) + 1;
            list.push(copy(self.argument(receive, 0), fd, 8));
            list.push(call(sysno::mq_timedreceive, &[0, text, self.room - 8, priority, passed]));
            list.push(copy(self.argument(send, 2), self.result(receive), 8));
            list.push(copy(self.argument(send, 3), priority, 4));
        }
        for message in 0..self.count {
            let send = self.sending(message) + 1;
            list.push(copy(self.argument(send, 0), fd, 8));
            list.push(call(sysno::mq_timedsend, &[0, self.room_at(message) + 8, 0, 0, passed]));
        }
        list.push(copy(self.argument(self.calls() - 1, 0), fd, 8));
        list.push(call(sysno::close, &[0]));
        list
    }
}

fn bytes_of(list: &[Call]) -> &[u8] {
    // SAFETY: plain words.
    unsafe { std::slice::from_raw_parts(list.as_ptr().cast(), size_of_val(list)) }
}

/// The messages of a queue that has `count`, of at most `longest` bytes each.
pub(super) fn messages(cx: &DumpCx, open: &Open, count: usize, longest: usize) -> RmResult<Vec<Message>> {
    let remote = &cx.processes[open.process].remote;
    let mut layout = Layout {
        start: remote.page.scratch_address(0),
        count: count as u64,
        room: (longest as u64 + 8).next_multiple_of(8),
    };
    let bytes = layout.bytes();
    let own = bytes > SCRATCH_BYTES as u64;
    if own {
        layout.start = remote
            .call(sysno::mmap, &[0, bytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, u64::MAX, 0])
            .on("making room for", open.named())?;
    }
    let read = run(remote, open, &layout);
    if own {
        remote.call(sysno::munmap, &[layout.start, bytes]).on("giving back room of", open.named())?;
    }
    read
}

fn run(remote: &Remote, open: &Open, layout: &Layout) -> RmResult<Vec<Message>> {
    let write = |at: u64, bytes: &[u8]| remote.write(at, bytes).on("asking for", open.named());
    let mut head = format!("/proc/thread-self/fd/{}", open.number).into_bytes();
    head.resize(HEAD_BYTES as usize, 0);
    write(layout.start, &head)?;
    let list = layout.list();
    write(layout.call_at(0), bytes_of(&list))?;
    remote.run_at(layout.call_at(0), list.len()).on("looking at", open.named())?;
    let word = |at: u64| -> RmResult<i64> {
        let mut bytes = [0; 8];
        remote.read(at, &mut bytes).on("reading", open.named())?;
        Ok(i64::from_le_bytes(bytes))
    };
    let failed = |errno: i64, what: &'static str| {
        Err(std::io::Error::from_raw_os_error(-errno as i32)).on(what, open.named())
    };
    let opened = word(layout.result(0))?;
    if opened < 0 {
        return failed(opened, "opening");
    }
    let mut out = Vec::with_capacity(layout.count as usize);
    for message in 0..layout.count {
        let length = word(layout.result(layout.receiving(message) + 1))?;
        if length < 0 {
            // Somebody outside was faster; whatever was received has been sent back.
            return failed(length, "receiving from");
        }
        let mut bytes = vec![0; length as usize + 8];
        remote.read(layout.room_at(message), &mut bytes).on("reading", open.named())?;
        let priority = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let message_read = Message { priority, text: Bytes(bytes.split_off(8)) };
        if word(layout.result(layout.sending(message) + 1))? < 0 {
            send_back(open, &message_read)?;
        }
        out.push(message_read);
    }
    Ok(out)
}

/// A message that found no room: somebody outside has sent one meanwhile.
fn send_back(open: &Open, message: &Message) -> RmResult<()> {
    let fd = super::kernel::reopen(open, libc::O_RDWR | libc::O_NONBLOCK).on("opening", open.named())?;
    let until = Instant::now() + PATIENCE;
    loop {
        let text = &message.text.0;
        // SAFETY: the text is ours.
        let sent = unsafe {
            let at = text.as_ptr();
            libc::syscall(libc::SYS_mq_timedsend, fd.as_raw_fd(), at, text.len(), message.priority, 0usize)
        };
        match checked(sent) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Err(cause) => {
                return Err(RmError::Unsupported(format!("{}: a message is lost: {cause}", open.named())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: every call of a list is where others look for it. Method: the numbers of the calls at the computed places.
    #[test]
    fn list_is_consistent() {
        let layout = Layout { start: 0x1000, count: 3, room: 24 };
        let list = layout.list();
        assert_eq!(list.len() as u64, layout.calls());
        for message in 0..3 {
            assert_eq!(list[layout.receiving(message) as usize + 1].nr, sysno::mq_timedreceive);
            assert_eq!(list[layout.sending(message) as usize + 1].nr, sysno::mq_timedsend);
        }
        assert_eq!(list.last().map(|last| last.nr), Some(sysno::close));
        assert_eq!(layout.room_at(0) - layout.call_at(0), list.len() as u64 * CALL_BYTES);
    }
}
