//! Goal: threads, their registers, locks and kernel-known areas live through checkpoints and restores.
//! Method: self-verifying programs in every mode; see their sources for what each one checks.
#![allow(missing_docs)]

holo_tests::workloads! {
    threads: Workload::new("threads.c");
    altstack_shared: Workload::new("altstack_odd.c").arg("shared").checkpoints(20);
    altstack_small: Workload::new("altstack_odd.c").arg("small").checkpoints(20);
    altstack_turns: Workload::new("altstack_odd.c").arg("turns").checkpoints(20);
    registers: Workload::new("registers.c");
    vectors: Workload::new("vectors.c");
    vectors_ymm: Workload::new("vectors.c").arg("ymm");
    rseq: Workload::new("rseq.c");
    robust: Workload::new("robust.c");
    identity: Workload::new("identity.c");
    identity_inherited: Workload::new("identity.c").arg("inherited");
    settings: Workload::new("settings.c");
}
