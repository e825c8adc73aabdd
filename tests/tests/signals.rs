//! Goal: signals, timers and clocks go on as if nothing had happened.
//! Method: self-verifying programs in every mode.
#![allow(missing_docs)]

holo_tests::workloads! {
    signals: Workload::new("signals.c");
    storm: Workload::new("storm.c");
    clocks: Workload::new("clocks.c");
    timers: Workload::new("timers.c");
    timers_near: Workload::new("timers_near.c").checkpoints(40);
    forks: Workload::new("fork_signals.c");
}

// Filters are not in epochs yet.
holo_tests::workloads_unprotected! {
    seccomp: Workload::new("seccomp.c").checkpoints(60);
    traced: Workload::new("traced.c").checkpoints(60);
}
