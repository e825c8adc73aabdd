//! Goal: libraries that are known to make system calls past libc (liburing, libaio) are seen, too. Method: see the source.
#![allow(missing_docs)]

holo_tests::workloads! {
    own_calls: Workload::new("own_calls.c");
}
