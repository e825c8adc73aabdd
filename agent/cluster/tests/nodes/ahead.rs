//! What is stored ahead of the first epoch is brought while there is none, and nothing depends on it.

use std::time::Duration;

use holo_api::peer::Page;
use holo_cluster::{
    core::RoleView,
    ports::{Ahead, StoreError},
};

use crate::fake::{Node, Set, Store, error};

impl Store {
    /// Stores blocks of an epoch to come.
    fn stage(&self, app: &str, epoch: u64, numbers: std::ops::Range<u64>) {
        let keys = numbers.map(|number| (app.to_owned(), self.block(epoch, number)));
        self.staged.lock().unwrap().extend(keys.collect::<Vec<_>>());
    }

    /// What was staged is not there any more.
    fn give_up(&self, app: &str) {
        let staged = self.staged.lock().unwrap();
        let mut blocks = self.blocks.lock().unwrap();
        staged.iter().filter(|(of, _)| of == app).for_each(|(_, key)| drop(blocks.remove(key)));
    }

    pub fn ahead(&self, app: &str, from: u64, max: usize) -> Option<Ahead> {
        let staged = self.staged.lock().unwrap();
        let keys: Vec<_> = staged.iter().filter(|(of, _)| of == app).map(|(_, key)| *key).collect();
        let all = keys.len() as u64 * 2;
        let keys: Vec<_> = keys.into_iter().skip(from as usize).take(max).collect();
        let end = from + keys.len() as u64;
        (!keys.is_empty()).then_some(Ahead { keys, end, all })
    }

    pub fn put_ahead(&self, blocks: &[Page]) -> Result<(), StoreError> {
        if self.is_refusing() {
            return Err(error("the store is full", true));
        }
        blocks.iter().try_for_each(|block| self.put(&block.key, &block.bytes))
    }
}

fn has_epoch(a: &Node, b: &Node, app: &str, epoch: u64) {
    a.sealed(app, epoch);
    assert_eq!(a.store.content(app, epoch), b.store.content(app, epoch));
}

/// Goal: the first epoch brings only what is missing; later ones are not brought before they are sealed. Method: blocks are counted as
/// they come, two lots of them before there is an epoch; and others before the second one.
#[test]
fn the_first_epoch_brings_what_is_missing() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.store.stage("app", 1, 0..50);
    a.until("half of it on b", |_| b.store.puts() == 50);
    a.store.stage("app", 1, 50..100);
    a.until("all of it on b", |_| b.store.puts() == 100);
    // Not protected by that, and a dead agent is no loss.
    assert_eq!((b.store.newest_of("app"), b.status("app").role), (0, RoleView::Standby { eligible: false }));
    assert!(!a.status("app").guarded);
    b.stop();
    let b = set.start("b");
    a.store.stage("app", 1, 100..110);
    a.until("the rest on b", |_| b.store.puts() == 110);
    a.epoch("app", 1, 120);
    has_epoch(&a, &b, "app", 1);
    assert_eq!(b.store.puts(), 120);
    a.store.stage("app", 2, 0..10);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(b.store.puts(), 120);
    a.epoch("app", 2, 10);
    has_epoch(&a, &b, "app", 2);
}

/// Goal: how much of it another node has got is known, and goes on with the epoch. Method: a slow one.
#[test]
fn it_is_known_how_far_it_is() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    b.store.set_slow(Duration::from_millis(3));
    a.store.stage("app", 1, 0..300);
    let sending = |n: &Node| n.status("app").sending.first().map_or((0, 0), |to| (to.done, to.total));
    a.until("some of it on its way", |n| sending(n).0 > 150);
    assert_eq!(sending(&a).1, 600);
    a.epoch("app", 1, 400);
    a.until("the epoch on its way", |n| sending(n).1 == 400);
    assert!(sending(&a).0 > 150);
    has_epoch(&a, &b, "app", 1);
}

/// Goal: an epoch does not wait until all of it is there. Method: a slow node, an epoch that has nothing of what is on its way.
#[test]
fn an_epoch_comes_first() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    b.store.set_slow(Duration::from_millis(3));
    a.store.stage("app", 9, 0..2000);
    a.until("some of it on b", |_| b.store.puts() > 20);
    a.epoch("app", 1, 5);
    has_epoch(&a, &b, "app", 1);
    assert!(b.store.puts() < 500, "{} blocks came before", b.store.puts());
}

/// After so many pieces, for each number, all connections break: the epoch comes all the same, and is whole.
#[test]
fn a_link_may_break_at_any_piece() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    let (mut broken, mut unbroken) = (0, 0);
    for pieces in 0..200u32 {
        let app = format!("app{pieces}");
        a.launch(&app, &["b"]);
        b.until("known", |n| n.status_opt(&app).is_some());
        let (serial, wire) = (u64::from(pieces) + 10, set.wire("b"));
        let before = b.store.puts();
        wire.break_after(pieces);
        a.store.stage(&app, serial, 0..20);
        a.until("broken or through", |_| wire.is_broken() || b.store.puts() == before + 20);
        let is_broken = wire.spare();
        a.epoch(&app, serial, 25);
        has_epoch(&a, &b, &app, serial);
        a.handle().ended(&app).unwrap();
        (broken, unbroken) = (broken + u32::from(is_broken), unbroken + u32::from(!is_broken));
        if unbroken == 3 {
            break;
        }
    }
    eprintln!("broken {broken} times");
    assert!(broken >= 10 && unbroken == 3, "broken {broken} times");
}

/// Goal: where it is given up, or not taken, epochs come as without it. Method: blocks that go before they are sent; a store that is full
/// for a while.
#[test]
fn nothing_depends_on_it() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("gone", &["b"]);
    b.store.set_slow(Duration::from_millis(3));
    a.store.stage("gone", 1, 0..2000);
    a.until("some of it on b", |_| b.store.puts() > 20);
    a.store.give_up("gone");
    // What comes later is brought.
    b.store.set_slow(Duration::ZERO);
    a.store.stage("gone", 2, 0..10);
    let last = a.store.block(2, 9);
    a.until("the rest on b", |_| b.store.blocks.lock().unwrap().contains_key(&last));
    assert!(b.store.puts() < 500, "{} blocks came", b.store.puts());
    a.epoch("gone", 3, 20);
    has_epoch(&a, &b, "gone", 3);

    a.launch("full", &["b"]);
    b.store.refuse(true);
    let before = b.store.puts();
    a.store.stage("full", 4, 0..30);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(b.store.puts(), before);
    b.store.refuse(false);
    a.until("taken", |_| b.store.puts() == before + 30);
    b.store.refuse(true);
    a.store.stage("full", 4, 30..40);
    a.epoch("full", 4, 50);
    a.until("refused", |n| n.logged("does not take epoch 4"));
    b.store.refuse(false);
    has_epoch(&a, &b, "full", 4);
}
