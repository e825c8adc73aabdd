//! Goal: descriptors keep number, flags, sharing, offset and whatever is queued in them.
//! Method: self-verifying programs in every mode.
#![allow(missing_docs)]

holo_tests::workloads! {
    files: Workload::new("fd_files.c");
    identity: Workload::new("fd_identity.c");
    peers: Workload::new("fd_peers.c");
    pipes: Workload::new("fd_pipes.c");
    epoll: Workload::new("fd_epoll.c");
    events: Workload::new("fd_events.c");
    timers: Workload::new("fd_timers.c");
    pidfd: Workload::new("fd_pidfd.c");
    objects: Workload::new("fd_objects.c");
    mapped_lock: Workload::new("mapped_lock.c");
    inotify: Workload::new("fd_inotify.c");
    unix: Workload::new("fd_unix.c");
    passed: Workload::new("fd_passed.c");
    passed_sets: Workload::new("fd_passed_sets.c");
    senders: Workload::new("fd_senders.c");
    owners: Workload::new("fd_owners.c");
    options: Workload::new("fd_options.c");
    many_sockets: Workload::new("fd_many_sockets.c");
    many_sockets_of_one: Workload::new("fd_many_sockets.c").arg("few");
    multicast: Workload::new("fd_multicast.c");
    tcp: Workload::new("fd_tcp.c");
    tcp_listen: Workload::new("fd_tcp.c").arg("listen");
    tcp_full: Workload::new("fd_tcp_full.c");
    tcp_lingers: Workload::new("fd_tcp_lingers.c");
    unix_names: Workload::new("fd_unix_names.c");
    gone: Workload::new("fd_gone.c");
    kernel: Workload::new("fd_kernel.c");
    credentials: Workload::new("credentials.c");
    strangers: Workload::new("owners.c");
}
