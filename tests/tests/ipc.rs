//! Goal: objects by which processes talk to one another keep ids, keys, contents and who waits for them.
//! Method: self-verifying programs in every mode.
#![allow(missing_docs)]

holo_tests::workloads! {
    sysv_sem: Workload::new("sysv_sem.c");
    sysv_msg: Workload::new("sysv_msg.c");
    mqueue: Workload::new("mqueue.c");
    pshared: Workload::new("pshared.c");
}

holo_tests::workloads_unprotected! {
    aio: Workload::new("aio.c");
}
