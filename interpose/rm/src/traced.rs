//! Processes that somebody traces (a debugger, `strace`): every signal stops them, and the tracer is told of it, also of ours.

use std::fs;

/// The tracer of a thread with this `/proc/<pid>/status`; one of our own threads, which trace what is stopped, is none.
#[must_use]
pub(crate) fn tracer(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    let pid = line.trim().parse().ok().filter(|pid| *pid != 0)?;
    (!fs::exists(format!("/proc/self/task/{pid}")).unwrap_or(false)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::tracer;

    #[test]
    fn a_tracer_of_our_own_is_none() {
        assert_eq!(tracer("Name:\tx\nTracerPid:\t0\n"), None);
        assert_eq!(tracer("Name:\tx\nTracerPid:\t1\n"), Some(1));
        assert_eq!(tracer(&format!("TracerPid:\t{}\n", std::process::id())), None);
    }
}
