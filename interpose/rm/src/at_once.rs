//! Work in the stop that is shared among the processors: the application's threads leave them idle then.

use std::sync::OnceLock;
use std::thread;

/// Processors that this process may use.
fn cores() -> u64 {
    static CORES: OnceLock<u64> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, |cores| cores.get() as u64))
}

/// A list as parts of about the same weight, one for each processor, and none lighter than `least` unless it is the only one.
pub(crate) fn parts<T>(list: &[T], weight: impl Fn(&T) -> u64, least: u64) -> Vec<&[T]> {
    let all: u64 = list.iter().map(&weight).sum();
    let share = all.div_ceil(cores().min(all / least.max(1)).max(1)).max(1);
    let (mut out, mut rest) = (Vec::new(), list);
    while !rest.is_empty() {
        let mut sum = 0;
        let full = rest.iter().position(|one| {
            sum += weight(one);
            sum >= share
        });
        let (part, tail) = rest.split_at(full.map_or(rest.len(), |at| at + 1));
        out.push(part);
        rest = tail;
    }
    out
}

/// Does `work` for all, each but the first in a thread of its own; the results in order.
pub(crate) fn run<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let work = &work;
    let mut all = all.into_iter();
    let Some(first) = all.next() else { return Vec::new() };
    thread::scope(|scope| {
        let others: Vec<_> = all.map(|one| scope.spawn(move || work(one))).collect();
        let mut out = vec![work(first)];
        for other in others {
            match other.join() {
                Ok(done) => out.push(done),
                Err(cause) => std::panic::resume_unwind(cause),
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: parts are the list in order, none is too light, and results come in order. Method: lists of many lengths.
    #[test]
    fn parts_are_the_whole() {
        for length in 0..200u64 {
            let list: Vec<u64> = (0..length).collect();
            let cut = parts(&list, |one| *one, 50);
            assert_eq!(cut.concat(), list);
            assert!(cut.len() as u64 <= cores() + 1);
            assert_eq!(run(cut, <[u64]>::to_vec).concat(), list);
        }
        assert_eq!(parts(&[1u64, 1, 1], |one| *one, 50).len(), 1);
    }
}
