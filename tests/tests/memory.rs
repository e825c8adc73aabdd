//! Goal: memory of every type is there again, with its protection and sharing, and can grow.
//! Method: self-verifying programs in every mode.
#![allow(missing_docs)]

holo_tests::workloads! {
    memory: Workload::new("memory.c");
    memory_grow: Workload::new("memory_grow.c");
    sysv_shm: Workload::new("sysv_shm.c");
    allocator: Workload::new("allocator.c").checkpoints(15);
    jemalloc: Workload::new("allocator.c").arg("required").env("LD_PRELOAD", "libjemalloc.so.2").checkpoints(15);
}
