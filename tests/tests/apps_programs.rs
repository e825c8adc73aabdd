//! Goal: programs with a purpose of their own give the results that they give without holo: two processes that share a SQLite
//! database in WAL mode, a Java virtual machine, a shell with pipelines of five programs.
//! Method: they check their own content (see their sources in `tests/programs`) in every mode, and go to another node.
#![allow(missing_docs)]

use holo_tests::node::Who;
use holo_tests::workload::Workload;

holo_tests::workloads! {
    sqlite_wal: Workload::script("/usr/bin/python3", "wal.py");
    bash_pipeline: Workload::script("/bin/bash", "pipeline.sh").run_ms(3000);
    java: super::jvm("-Xmx128m");
}

/// Compiles itself in its own process first; the heap is small, so that it collects all the time.
fn jvm(options: &'static str) -> Workload {
    Workload::script(JAVA, "Work.java").env("JDK_JAVA_OPTIONS", options).run_ms(4000).checkpoints(25)
}

const JAVA: &str = "/usr/bin/java";

/// A collector that maps its heap, an unnamed file, at several addresses, and moves objects while threads run.
#[test]
fn java_with_concurrent_collector_is_restored() {
    jvm("-XX:+UseZGC -Xmx256m").restored(Who::Nobody);
}

#[test]
fn sqlite_wal_is_switched() {
    Workload::script("/usr/bin/python3", "wal.py").switched();
}

#[test]
fn bash_pipeline_is_switched() {
    Workload::script("/bin/bash", "pipeline.sh").switched();
}

#[test]
fn java_is_switched() {
    jvm("-Xmx128m").switched();
}
