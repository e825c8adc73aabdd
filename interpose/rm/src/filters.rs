//! Processes whose system calls are filtered (`seccomp`): a call made for us could end them.
//!
//! A filter that we have too, a container's for example, is no obstacle: holo works under it, or nothing does.

use holo_abi::control::filters;
use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use crate::page::Page;
use crate::traced;

/// Mode and number of filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Filters {
    mode: u32,
    count: u32,
}

fn parse(status: &str) -> Filters {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    let mode = field("Seccomp").unwrap_or(0);
    // Before Linux 5.9 they are not counted: one is all.
    Filters { mode, count: field("Seccomp_filters").unwrap_or(u32::from(mode == 2)) }
}

fn ours() -> Filters {
    static OURS: OnceLock<Filters> = OnceLock::new();
    *OURS.get_or_init(|| parse(&fs::read_to_string("/proc/self/status").unwrap_or_default()))
}

fn more(theirs: Filters, ours: Filters) -> bool {
    theirs.count > ours.count || (theirs.mode != ours.mode && theirs.mode != 0)
}

/// Has a thread with this `/proc/<pid>/task/<tid>/status` filters beyond our own?
#[must_use]
pub fn has_own(status: &str) -> bool {
    more(parse(status), ours())
}

/// Why a process must not be signalled.
pub(crate) enum Hindrance {
    /// A thread has a filter, or is about to get one, or a tracer.
    Filter,
    /// A thread is traced, by this process.
    Tracer(i32),
}

/// Whether a process that used `page` must not be signalled. Asked after the cut was ordered in the page, see `filters` of libholo.
pub(crate) fn hindrance(page: &Page, pid: i32) -> Option<Hindrance> {
    let word = page.control().header.filters.load(Ordering::SeqCst);
    if word == 0 {
        return None;
    }
    if word >= filters::MAKING {
        return Some(Hindrance::Filter);
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.flatten().find_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let tracer = traced::tracer(&status).map(Hindrance::Tracer);
        if has_own(&status) { Some(Hindrance::Filter) } else { tracer }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_ones_own_is_told_from_an_inherited_one() {
        let text =
            |mode, count| format!("Name:\tx\nSeccomp:\t{mode}\nSeccomp_filters:\t{count}\nThreads:\t1\n");
        let (none, container) = (Filters::default(), parse(&text(2, 1)));
        assert!(!more(parse(&text(0, 0)), none));
        assert!(more(parse(&text(2, 1)), none));
        assert!(more(parse(&text(1, 0)), none), "strict mode has no filter to count");
        assert!(!more(parse(&text(2, 1)), container));
        assert!(more(parse(&text(2, 2)), container));
        assert!(!more(parse("Name:\tx\nSeccomp:\t2\n"), container), "a kernel that does not count");
    }
}
