//! Save and restore, kind by kind: a process holds descriptors, they are captured from outside, the process
//! is killed, they are made again here; then behaviour and a second capture are compared.
#![allow(clippy::unwrap_used)]

use super::testing::{Holder, TestClone, numbers, read_now, temporary};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;

/// Runs a script that records descriptor numbers with `n('name', fd)`.
pub(crate) fn holder(script: &str) -> (Holder, std::collections::BTreeMap<String, i32>) {
    let names = temporary("names");
    let prelude = format!(
        "names=[]\ndef n(name,fd):\n  names.append(f'{{name}}={{fd if isinstance(fd,int) else fd.fileno()}}\\n')\n  \
         keep.append(fd)\n  return fd\nkeep=[]\n{script}\nopen('{}','w').write(''.join(names))",
        names.display()
    );
    let holder = Holder::new(&prelude);
    let numbers = numbers(&names);
    std::fs::remove_file(names).unwrap();
    (holder, numbers)
}

// Goal: files keep offset, flags and sharing; one without a name keeps its content. Method: two numbers of one
// description and a second opening; an unlinked file, an O_TMPFILE, a file of mode 0 and a memory file.
#[test]
fn files() {
    let dir = temporary("files");
    std::fs::create_dir(&dir).unwrap();
    let (holder, number) = holder(&format!(
        "d='{}/'\na=n('a',os.open(d+'a',os.O_RDWR|os.O_CREAT,0o640))\nos.write(a,b'0123456789')\nn('a2',os.dup(a))\n\
         n('other',os.open(d+'a',os.O_RDONLY|os.O_NONBLOCK))\nos.lseek(a,4,0)\n\
         g=n('ghost',os.open(d+'g',os.O_RDWR|os.O_CREAT,0o600))\nn('ghost2',os.open(d+'g',os.O_RDONLY))\n\
         os.write(g,b'ghost')\nos.unlink(d+'g')\n\
         t=n('tmp',os.open(d,os.O_TMPFILE|os.O_RDWR,0o600))\nos.write(t,b'temporary')\n\
         z=n('zero',os.open(d+'z',os.O_RDWR|os.O_CREAT,0))\n\
         m=n('mem',os.memfd_create('memory',os.MFD_ALLOW_SEALING))\nos.write(m,b'in memory')\n\
         n('null',os.open('/dev/null',os.O_RDWR))\nn('path',os.open(d,os.O_PATH))\n\
         fcntl.flock(a,fcntl.LOCK_EX)\nos.rename(d+'a',d+'b')",
        dir.display()
    ));
    let captured = holder.captured();
    holder.kill();
    let remade = captured.remake();
    assert_eq!(captured.remarks, Vec::<String>::new());
    let at = |name: &str| remade.file(number[name]);
    assert_eq!(at("a").stream_position().unwrap(), 4);
    at("a2").seek(std::io::SeekFrom::Start(6)).unwrap();
    let mut text = String::new();
    at("a").read_to_string(&mut text).unwrap();
    assert_eq!(text, "6789");
    assert_eq!(at("other").stream_position().unwrap(), 0);
    let mut text = String::new();
    at("ghost2").read_to_string(&mut text).unwrap();
    assert_eq!(text, "ghost");
    at("ghost").write_all(b"+").unwrap();
    let mut text = String::new();
    at("ghost2").read_to_string(&mut text).unwrap();
    assert_eq!(text, "+");
    assert_eq!(super::kernel::stat(&at("ghost")).unwrap().st_nlink, 0);
    let mut text = String::new();
    at("mem").rewind().unwrap();
    at("mem").read_to_string(&mut text).unwrap();
    assert_eq!(text, "in memory");
    // The lock is held again: another opening cannot have it.
    let rival = std::fs::File::open(dir.join("b")).unwrap();
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::flock(rival.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, -1);
    let again = remade.recapture();
    let sharing = |state: &super::descriptors::State| -> Vec<_> {
        state.numbers.iter().map(|one| (one.number, one.description)).collect()
    };
    assert_eq!(sharing(&again.state), sharing(&captured.state));
    for (one, other) in captured.state.common.iter().zip(&again.state.common).skip(3) {
        assert_eq!(
            one.flags & !(libc::O_TMPFILE | libc::O_CLOEXEC),
            other.flags & !(libc::O_TMPFILE | libc::O_CLOEXEC)
        );
    }
    std::fs::remove_dir_all(dir).unwrap();
}

// Goal: pipes keep what is queued, packets keep their ends. Method: bytes and packets, a pipe without a writer,
// one without a reader, a FIFO; a second capture of the original shows that nothing was taken out.
#[test]
fn pipes() {
    let fifo = temporary("fifo");
    let (holder, number) = holder(&format!(
        "r,w=os.pipe()\nn('r',r);n('w',w)\nos.write(w,b'plain');fcntl.fcntl(w,1031,262144)\n\
         r,w=os.pipe2(os.O_DIRECT|os.O_NONBLOCK)\nn('pr',r);n('pw',w)\nos.write(w,b'one');os.write(w,b'three')\n\
         r,w=os.pipe()\nn('er',r)\nos.write(w,b'end');os.close(w)\nr,w=os.pipe()\nn('bw',w);os.close(r)\n\
         os.mkfifo('{0}')\nf=n('f',os.open('{0}',os.O_RDWR))\nos.write(f,b'fifo')",
        fifo.display()
    ));
    let captured = holder.captured();
    assert_eq!(holder.captured().state, captured.state);
    holder.kill();
    let remade = captured.remake();
    let at = |name: &str| remade.at(number[name]);
    let read = |name: &str| read_now(at(name), 100).unwrap();
    let again = remade.recapture();
    let queues = |state: &super::descriptors::State| -> Vec<_> {
        state
            .pipes
            .iter()
            .filter(|(index, _)| *index > 2)
            .map(|(_, pipe)| (pipe.capacity, pipe.queued.clone()))
            .collect()
    };
    assert_eq!(queues(&captured.state), queues(&again.state));
    assert_eq!((read("pr"), read("pr")), (b"one".to_vec(), b"three".to_vec()));
    assert_eq!((read("er"), read("er")), (b"end".to_vec(), Vec::new()));
    assert_eq!((read("r"), read("f")), (b"plain".to_vec(), b"fifo".to_vec()));
    at("w").try_clone().map(std::fs::File::from).unwrap().write_all(b"more").unwrap();
    assert_eq!(read("r"), b"more");
    let broken = remade.file(number["bw"]).write_all(b"x").unwrap_err();
    assert_eq!(broken.raw_os_error(), Some(libc::EPIPE));
    // Standard output was a pipe to outside.
    remade.file(1).write_all(b"said").unwrap();
    assert_eq!(std::fs::read(&remade.output).unwrap(), b"said");
    std::fs::remove_file(&remade.output).unwrap();
    std::fs::remove_file(fifo).unwrap();
}

// Goal: counters, masks and timers. Method: each in two modes; expiries that were not read, one in the future.
#[test]
fn events() {
    let (holder, number) = holder(
        "n('plain',os.eventfd(7,os.EFD_NONBLOCK));n('sem',os.eventfd(3,os.EFD_SEMAPHORE|os.EFD_NONBLOCK))\n\
         mask=struct.pack('Q',1<<9|1<<40)\nn('sig',libc.syscall(289,-1,mask,8,0o4000))\n\
         def timer(name,clock,flags,value,interval):\n  t=n(name,libc.timerfd_create(clock,0o4000))\n  \
         libc.timerfd_settime(t,flags,struct.pack('qqqq',*divmod(interval,10**9),*divmod(value,10**9)),None)\n\
         timer('fired',1,0,1000,0);timer('ticking',1,0,10**6,10**7);timer('later',7,0,5*10**9,0);timer('idle',0,0,0,0)\n\
         import time\ntime.sleep(0.05)",
    );
    let captured = holder.captured();
    holder.kill();
    let remade = captured.remake();
    let at = |name: &str| {
        read_now(remade.at(number[name]), 8).map(|got| u64::from_ne_bytes(got.try_into().unwrap()))
    };
    assert_eq!(remade.recapture().state.signals, captured.state.signals);
    assert_eq!(at("plain").unwrap(), 7);
    assert_eq!((at("sem").unwrap(), at("sem").unwrap(), at("sem").unwrap()), (1, 1, 1));
    assert!(at("sem").is_err() && at("plain").is_err());
    assert_eq!(at("fired").unwrap(), 1);
    let ticks = at("ticking").unwrap();
    assert!((4..200).contains(&ticks), "{ticks}");
    assert!(at("later").is_err() && at("idle").is_err());
    let mut left = libc::itimerspec {
        it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: libc::timespec { tv_sec: 0, tv_nsec: 0 },
    };
    // SAFETY: room for the result.
    unsafe { libc::timerfd_gettime(remade.at(number["later"]).as_raw_fd(), &raw mut left) };
    assert!((3..5).contains(&left.it_value.tv_sec), "{}", left.it_value.tv_sec);
}

// Goal: members of epoll sets are found, also behind numbers that were closed or taken again. Method: a set
// with a live, a closed and a reused number, and a set in a set.
#[test]
fn epoll_members() {
    let (holder, number) = holder(
        "s=n('set',select.epoll());i=n('inner',select.epoll())\na=n('a',os.eventfd(0));b=os.eventfd(0)\n\
         s.register(a,select.EPOLLIN);s.register(b,select.EPOLLIN|select.EPOLLET)\nn('copy',os.dup(b))\n\
         os.close(b);n('reused',os.eventfd(0));s.register(b,select.EPOLLOUT)\ns.register(i.fileno(),select.EPOLLIN)",
    );
    let captured = holder.captured();
    let state = &captured.state;
    let description =
        |name: &str| state.numbers.iter().find(|one| one.number == number[name]).unwrap().description;
    let set = &state.epolls.iter().find(|(index, _)| *index == description("set")).unwrap().1;
    let mut members: Vec<_> =
        set.members.iter().map(|member| (member.number, member.description.unwrap())).collect();
    members.sort_unstable();
    let mut wanted = vec![
        (number["a"], description("a")),
        (number["reused"], description("copy")),
        (number["reused"], description("reused")),
        (number["inner"], description("inner")),
    ];
    wanted.sort_unstable();
    assert_eq!(members, wanted);
    let stale: Vec<_> =
        state.stale_members(0).iter().map(|(set, member, to)| (*set, member.number, *to)).collect();
    assert_eq!(stale, [(description("set"), number["reused"], description("copy"))]);
    let order = super::epoll::inner_first(&state.epolls).unwrap();
    assert_eq!(state.epolls[order[0]].0, description("inner"));
}

// Goal: in the clone every number has its description, sets have their members again, owners and record locks
// are the clone's. Method: numbers in an order that would collide with received ones, stale members, a lock.
#[test]
fn placed() {
    let file = temporary("locked");
    let (holder, number) = holder(&format!(
        "s=n('set',select.epoll());i=n('inner',select.epoll());a=os.eventfd(0);b=os.eventfd(5)\n\
         s.register(a,select.EPOLLIN|select.EPOLLET);s.register(b,select.EPOLLIN)\nn('copy',os.dup(b))\n\
         os.close(b);n('reused',os.eventfd(9));s.register(i.fileno(),select.EPOLLIN);i.register(a,select.EPOLLOUT)\n\
         os.dup2(a,300);os.dup2(a,77)\nfor k in range(230):\n  os.dup2(b if k%3 else a,400+k)\n\
         f=n('file',os.open('{}',os.O_RDWR|os.O_CREAT,0o600));fcntl.lockf(f,fcntl.LOCK_EX,10,5)\n\
         r,w=os.pipe();n('r',r);n('w',w);fcntl.fcntl(r,10,40);fcntl.fcntl(r,4,0o20000)",
        file.display()
    ));
    let captured = holder.captured();
    holder.kill();
    let remade = captured.remake();
    let clone = TestClone::new();
    let again = clone.place(&captured, &remade);
    let sharing = |state: &super::descriptors::State| -> Vec<_> {
        state.numbers.iter().map(|one| (one.number, one.description)).collect()
    };
    assert_eq!(sharing(&again.state), sharing(&captured.state));
    let sets = |state: &super::descriptors::State| -> Vec<_> {
        let mut members: Vec<_> = state.epolls.iter().flat_map(|(_, set)| set.members.clone()).collect();
        members.sort_by_key(|member| (member.number, member.description));
        members.into_iter().map(|member| (member.number, member.description)).collect()
    };
    assert_eq!(sets(&again.state), sets(&captured.state));
    assert_eq!(again.state.events, captured.state.events);
    let locks = |state: &super::descriptors::State| -> Vec<_> {
        let of_files = state.files.iter().flat_map(|(_, file)| file.locks.clone());
        of_files.chain(state.locks.iter().map(|(_, lock)| *lock)).collect()
    };
    assert_eq!((locks(&again.state).len(), locks(&again.state)), (1, locks(&captured.state)));
    let owner = |state: &super::descriptors::State| {
        state.common.iter().find(|one| one.number == number["r"]).unwrap().owner.clone()
    };
    assert!(owner(&captured.state).is_some());
    assert_eq!(owner(&again.state), owner(&captured.state));
    std::fs::remove_file(file).unwrap();
}

// Goal: nobody waits for a process that died in the middle of a call. Method: kill the server of a sleeping call.
#[test]
fn death_in_a_call() {
    let clone = TestClone::new();
    let pid = clone.remote.pid;
    let killer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        // SAFETY: our own child.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    });
    let since = std::time::Instant::now();
    let died = clone.remote.call(holo_abi::sysno::pause, &[]).unwrap_err();
    assert_eq!(died.raw_os_error(), Some(libc::ESRCH));
    assert!(since.elapsed() < std::time::Duration::from_secs(2));
    killer.join().unwrap();
}

// Goal: what cannot be replicated is refused with number and object. Method: a pidfd of a process outside.
#[test]
fn refusals() {
    let (holder, number) = holder("n('p',os.pidfd_open(os.getppid()))");
    let refused = super::testing::capture(holder.pid()).err().unwrap().to_string();
    assert!(refused.starts_with(&format!("descriptor {} (anon_inode:[pidfd])", number["p"])), "{refused}");
}
