//! Goal: a thread that blocks in any call is parked and goes on; no `EINTR` leaks and time-outs stay true.
//! Method: for each call a thread that is nearly always blocked in it, through many checkpoints and restores.
#![allow(missing_docs)]

holo_tests::workloads! {
    timed_nanosleep: Workload::new("blocking_timed.c").arg("nanosleep");
    timed_clock_nanosleep_rel: Workload::new("blocking_timed.c").arg("clock_nanosleep_rel");
    timed_clock_nanosleep_abs: Workload::new("blocking_timed.c").arg("clock_nanosleep_abs");
    timed_usleep: Workload::new("blocking_timed.c").arg("usleep");
    timed_poll: Workload::new("blocking_timed.c").arg("poll");
    timed_ppoll: Workload::new("blocking_timed.c").arg("ppoll");
    timed_select: Workload::new("blocking_timed.c").arg("select");
    timed_pselect: Workload::new("blocking_timed.c").arg("pselect");
    timed_epoll_wait: Workload::new("blocking_timed.c").arg("epoll_wait");
    timed_epoll_pwait2: Workload::new("blocking_timed.c").arg("epoll_pwait2");
    timed_futex: Workload::new("blocking_timed.c").arg("futex");
    timed_futex_abs: Workload::new("blocking_timed.c").arg("futex_abs");
    timed_sigtimedwait: Workload::new("blocking_timed.c").arg("sigtimedwait");
    timed_recv_timeout: Workload::new("blocking_timed.c").arg("recv_timeout");
    timed_cond_timedwait: Workload::new("blocking_timed.c").arg("cond_timedwait");
    timed_mutex_clocklock: Workload::new("blocking_timed.c").arg("mutex_clocklock");
    read_pipe: Workload::new("blocking_wake.c").arg("read_pipe");
    read_socket: Workload::new("blocking_wake.c").arg("read_socket");
    recv: Workload::new("blocking_wake.c").arg("recv");
    recvmsg: Workload::new("blocking_wake.c").arg("recvmsg");
    poll: Workload::new("blocking_wake.c").arg("poll");
    epoll: Workload::new("blocking_wake.c").arg("epoll");
    futex: Workload::new("blocking_wake.c").arg("futex");
    accept: Workload::new("blocking_wake.c").arg("accept");
    flock: Workload::new("blocking_wake.c").arg("flock");
    pause: Workload::new("blocking_wake.c").arg("pause");
    sigsuspend: Workload::new("blocking_wake.c").arg("sigsuspend");
    sigwaitinfo: Workload::new("blocking_wake.c").arg("sigwaitinfo");
    own_eintr: Workload::new("blocking_wake.c").arg("own_eintr");
    own_eintr_dense: Workload::new("blocking_wake.c").arg("own_eintr_dense").checkpoints(100);
    own_restart: Workload::new("blocking_wake.c").arg("own_restart");
    masked: Workload::new("blocking_masked.c");
    timed_io_getevents: Workload::new("blocking_timed.c").arg("io_getevents");
    transfers: Workload::new("transfers.c").checkpoints(15);
}

// Connections that were made but not accepted are lost in a restore; System V objects, terminals and children are kinds of their own.
holo_tests::workloads_unprotected! {
    timed_semtimedop: Workload::new("blocking_timed.c").arg("semtimedop");
    read_pty: Workload::new("blocking_wake.c").arg("read_pty");
    semop: Workload::new("blocking_wake.c").arg("semop");
    msgrcv: Workload::new("blocking_wake.c").arg("msgrcv");
    wait: Workload::new("blocking_wake.c").arg("wait");
    connect: Workload::new("blocking_wake.c").arg("connect");
}
