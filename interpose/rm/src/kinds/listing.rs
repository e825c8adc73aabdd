//! What a process has open: numbers, grouped into descriptions, each given to its kind.

use super::descriptors::{Number, State};
use super::fdinfo::FdInfo;
use super::kernel::{self, compare, kcmp};
use super::locks::Lock;
use super::open::{Dumping, Open, Place};
use super::{devices, sockets, terminals};
use crate::fds::{Fd, is_socket};
use crate::manager::{Context, RmResult};
use crate::remote::{Remote, call};
use holo_abi::sysno;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

const IPPROTO_MPTCP: i32 = 262;

/// A number as `/proc` shows it.
struct Entry<'a> {
    process: usize,
    number: i32,
    link: &'a OsString,
    info: &'a FdInfo,
}

/// What all processes have open.
pub(crate) struct Listed {
    pub(crate) numbers: Vec<Number>,
    pub(crate) opens: Vec<Open>,
    /// Locks that processes hold, and a descriptor of each file.
    pub(crate) locks: Vec<(Place, Lock)>,
}

/// Tells of descriptor numbers of a process whether they have `FD_CLOEXEC`.
pub(crate) type AskCloexec<'a> = &'a dyn Fn(&Remote, &[i32]) -> RmResult<Vec<bool>>;

/// Asks the process itself.
pub(crate) fn ask_cloexec(remote: &Remote, numbers: &[i32]) -> RmResult<Vec<bool>> {
    let get = libc::F_GETFD as u64;
    let mut calls: Vec<_> = numbers.iter().map(|number| call(sysno::fcntl, &[*number as u64, get])).collect();
    remote.run_all(&mut calls).on("reading close-on-exec of", format!("{} descriptors", numbers.len()))?;
    Ok(calls.iter().map(|call| call.ret & i64::from(libc::FD_CLOEXEC) != 0).collect())
}

/// Numbers and descriptions of all processes, by process and in rising order.
///
/// What several processes share is listed once, for the one of them that `holders` names.
pub(crate) fn list(processes: &[&Remote], holders: &[usize], ask: AskCloexec) -> RmResult<Listed> {
    let mut all = Vec::new();
    for (process, remote) in processes.iter().enumerate().filter(|(process, _)| holders[*process] == *process)
    {
        let fds = remote.fds()?.iter();
        all.extend(fds.map(|Fd { number, link, info }| Entry { process, number: *number, link, info }));
    }
    let entries: Vec<Entry> = all;
    let groups = group(processes, &entries)?;
    let mut numbers = Vec::with_capacity(entries.len());
    let mut opens: Vec<Open> = Vec::new();
    let mut index_of: BTreeMap<usize, u32> = BTreeMap::new();
    for (i, entry) in entries.iter().enumerate() {
        // The group is named by its first entry.
        let description = match index_of.get(&groups[i]) {
            Some(index) => *index,
            None => {
                let fd = processes[entry.process]
                    .borrow_fd(entry.number)
                    .on("borrowing descriptor", entry.number)?;
                let stat = kernel::stat(&fd).on("reading descriptor", entry.number)?;
                let (link, info) = (entry.link.clone(), entry.info.clone());
                let (process, number, socket) = (entry.process, entry.number, OnceLock::new());
                opens.push(Open { process, number, fd, link, info, stat, socket });
                index_of.insert(groups[i], opens.len() as u32 - 1);
                opens.len() as u32 - 1
            }
        };
        let cloexec = entry.info.flags & libc::O_CLOEXEC != 0;
        numbers.push(Number { process: entry.process as u32, number: entry.number, cloexec, description });
    }
    // What fdinfo shows is this number's own flag, or the one that the file was once opened with. For a socket it may not have been read.
    let unclear = |one: &&mut Number| {
        let open = &opens[one.description as usize];
        let opened_so =
            || kernel::fcntl(open, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_CLOEXEC != 0);
        one.cloexec && (open.file_type() == libc::S_IFSOCK || opened_so())
    };
    let mut unclear: Vec<&mut Number> = numbers.iter_mut().filter(unclear).collect();
    for (process, remote) in processes.iter().enumerate() {
        let of = |one: &&&mut Number| one.process as usize == process;
        let asked: Vec<i32> = unclear.iter().filter(of).map(|one| one.number).collect();
        if asked.is_empty() {
            continue;
        }
        let own = unclear.iter_mut().filter(|one| one.process as usize == process);
        for (one, cloexec) in own.zip(ask(remote, &asked)?) {
            one.cloexec = cloexec;
        }
    }
    let held = |entry: &Entry| {
        let place = (entry.process as u32, entry.number);
        Lock::of_process(entry.info).into_iter().map(move |lock| (place, lock))
    };
    let locks = entries.iter().flat_map(held).collect();
    Ok(Listed { numbers, opens, locks })
}

/// For each entry the first entry that shares its description.
///
/// Only entries of one object can, and most objects are open once; the others are sorted by what the kernel
/// compares, so that n duplicates cost n log n comparisons.
fn group(processes: &[&Remote], entries: &[Entry]) -> RmResult<Vec<usize>> {
    let mut candidates: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, entry) in entries.iter().enumerate() {
        // Of a socket all is in the link. Its `fdinfo` is read in some processes only (see `fds`).
        let shown = |name| if is_socket(entry.link) { None } else { entry.info.field(name) };
        let key = (entry.link.as_bytes(), shown("ino:"), shown("eventfd-id:"));
        candidates.entry(key).or_default().push(i);
    }
    let mut first: Vec<usize> = (0..entries.len()).collect();
    for mut same in candidates.into_values().filter(|same| same.len() > 1) {
        let mut failed = Ok(());
        let mut order = |one: usize, other: usize| {
            let (one, other) = (&entries[one], &entries[other]);
            let pids = (processes[one.process].face, processes[other.process].face);
            kcmp(pids, compare::FILE, one.number as u64, other.number as u64).unwrap_or_else(|cause| {
                failed = Err(cause);
                Ordering::Equal
            })
        };
        // Nearly always, all are one description.
        let lowest = same.remove(0);
        same.retain(|other| {
            let is_one = order(lowest, *other).is_eq();
            if is_one {
                first[*other] = lowest;
            }
            !is_one
        });
        // Stable: within a description the lowest number comes first.
        same.sort_by(|one, other| order(*one, *other));
        for i in 1..same.len() {
            if order(same[i - 1], same[i]).is_eq() {
                first[same[i]] = first[same[i - 1]];
            }
        }
        failed.on("comparing descriptors of process", entries[lowest].process)?;
    }
    Ok(first)
}

/// Gives a description to its kind.
pub(crate) fn describe(index: u32, open: &Open, state: &mut State, dumping: &mut Dumping) -> RmResult<()> {
    use super::{
        epoll, eventfd, fifos, files, inotify, memfd, mqueue, netlink, pidfd, pipes, signalfd, tcp, timerfd,
        udp, unix_sockets,
    };
    macro_rules! take {
        ($list:ident, $state:expr) => {
            state.$list.push((index, $state))
        };
    }
    if open.link_starts("anon_inode:") {
        match open.link.as_bytes() {
            b"anon_inode:[eventpoll]" => take!(epolls, epoll::EpollState::describe(open, dumping)?),
            b"anon_inode:[eventfd]" => take!(events, eventfd::EventState::describe(open, dumping)?),
            b"anon_inode:[timerfd]" => take!(timers, timerfd::TimerState::describe(open, dumping)?),
            b"anon_inode:[signalfd]" => take!(signals, signalfd::SignalState::describe(open, dumping)?),
            b"anon_inode:[pidfd]" => take!(pidfds, pidfd::PidState::describe(open, dumping)?),
            b"anon_inode:inotify" => take!(inotify, inotify::InotifyState::describe(open, dumping)?),
            _ => return Err(open.unsupported("an object of this kind cannot be replicated")),
        }
        return Ok(());
    }
    if open.info.flags & libc::O_PATH != 0 {
        take!(files, files::FileState::describe(open, dumping)?);
        return Ok(());
    }
    match open.file_type() {
        libc::S_IFREG if open.link_starts("/memfd:") => {
            take!(memfds, memfd::MemfdState::describe(open, dumping)?)
        }
        libc::S_IFREG if mqueue::is_queue(open) => {
            take!(queues, mqueue::QueueState::describe(open, dumping)?)
        }
        libc::S_IFREG | libc::S_IFDIR => take!(files, files::FileState::describe(open, dumping)?),
        libc::S_IFCHR if terminals::is_terminal(open) => {
            take!(terminals, terminals::TerminalState::describe(open, dumping)?);
        }
        libc::S_IFCHR => take!(files, devices::describe(open, dumping)?),
        libc::S_IFIFO if open.link_starts("pipe:") => {
            take!(pipes, pipes::PipeState::describe(open, dumping)?)
        }
        libc::S_IFIFO => take!(fifos, fifos::FifoState::describe(open, dumping)?),
        libc::S_IFSOCK => match sockets::family(open)? {
            [libc::AF_UNIX, ..] => take!(unix, unix_sockets::UnixState::describe(open, dumping)?),
            [libc::AF_INET | libc::AF_INET6, kind, protocol] => match (kind, protocol) {
                (libc::SOCK_STREAM, libc::IPPROTO_TCP | IPPROTO_MPTCP) => {
                    take!(tcp, tcp::TcpState::describe(open, dumping)?);
                }
                (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => take!(udp, udp::UdpState::describe(open, dumping)?),
                (libc::SOCK_RAW, _) | (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => {
                    take!(udp, udp::UdpState::describe_raw(open, dumping)?);
                }
                _ => {
                    return Err(open.unsupported(format!("internet protocol {protocol}")));
                }
            },
            [libc::AF_NETLINK, ..] => take!(netlink, netlink::NetlinkState::describe(open, dumping)?),
            [domain, ..] => return Err(open.unsupported(format!("a socket of address family {domain}"))),
        },
        _ => return Err(open.unsupported("an object of this type cannot be replicated")),
    }
    Ok(())
}
