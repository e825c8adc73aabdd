//! How far what is brought to other nodes is, for who looks on.

use std::time::Instant;

use parking_lot::Mutex;

use super::Sending;

/// Of one application, one for each node that lacks epochs.
#[derive(Default)]
pub(super) struct AllSending(Mutex<Vec<One>>);

struct One {
    /// Kept while the link is broken: what was brought stays there.
    sending: Sending,
    is_under_way: bool,
}

/// While this lives, something is on its way to a node.
pub(super) struct UnderWay<'a> {
    all: &'a AllSending,
    node: &'a str,
}

impl AllSending {
    pub(super) fn begin<'a>(&'a self, node: &'a str) -> UnderWay<'a> {
        let mut all = self.0.lock();
        match all.iter_mut().find(|one| one.sending.node == node) {
            Some(one) => one.is_under_way = true,
            None => {
                let sending = Sending { node: node.to_owned(), since: Instant::now(), done: 0, total: 0 };
                all.push(One { sending, is_under_way: true });
            }
        }
        UnderWay { all: self, node }
    }

    /// The node has it all.
    pub(super) fn ended(&self, node: &str) {
        self.0.lock().retain(|one| one.sending.node != node);
    }

    pub(super) fn look(&self) -> Vec<Sending> {
        self.0.lock().iter().filter(|one| one.is_under_way).map(|one| one.sending.clone()).collect()
    }
}

impl UnderWay<'_> {
    fn change(&self, change: impl FnOnce(&mut Sending)) {
        if let Some(one) = self.all.0.lock().iter_mut().find(|one| one.sending.node == self.node) {
            change(&mut one.sending);
        }
    }

    /// So many blocks are asked for; `all` is how many it may be in the end, if more will be.
    pub(super) fn wanted(&self, count: usize, all: u64) {
        self.change(|sending| {
            let least = sending.done + count as u64;
            sending.total = least.max(all);
        });
    }

    pub(super) fn sent(&self, blocks: usize) {
        self.change(|sending| sending.done += blocks as u64);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(one) = self.all.0.lock().iter_mut().find(|one| one.sending.node == self.node) {
            one.is_under_way = false;
        }
    }
}
