//! Goal: applications of many processes are one application: parked at one instant, restored with every id, parent, group,
//! session, shared object and zombie. Method: self-verifying programs in every mode; see their sources.
#![allow(missing_docs)]

holo_tests::workloads! {
    tree: Workload::new("tree.c");
    python: Workload::script("/usr/bin/python3", "processes.py");
}
