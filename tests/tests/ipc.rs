//! Goal: objects by which processes talk to one another keep ids, keys, contents and who waits for them.
//! Method: self-verifying programs in every mode.
#![allow(missing_docs)]

holo_tests::workloads! {
    sysv_sem: Workload::new("sysv_sem.c");
    sysv_msg: Workload::new("sysv_msg.c");
    mqueue: Workload::new("mqueue.c");
    pshared: Workload::new("pshared.c");
    aio: Workload::new("aio.c");
}

#[test]
fn aio_is_switched() {
    holo_tests::workload::Workload::new("aio.c").switched();
}
