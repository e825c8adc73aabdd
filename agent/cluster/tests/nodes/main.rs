//! Goal: real agents on real sockets: who may connect, what is carried, what happens when either side dies.
//! Method: nodes with their own state directories on the loopback; applications and stores are simple ones
//! in memory (`fake`).

#![allow(clippy::unwrap_used, unreachable_pub)]

mod ahead;
mod fake;
mod instances;
mod links;
mod port;
mod relay;

use std::time::Duration;

use fake::{Node, Set};
use holo_cluster::core::RoleView;

const LONG: Duration = Duration::from_secs(10);

#[test]
fn epochs_arrive_and_the_standby_takes_over() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 300);
    a.sealed("app", 1);
    assert_eq!(a.handle().wait_sealed("app", 1, LONG).unwrap(), vec!["b".to_owned()]);
    assert_eq!(b.store.content("app", 1), a.store.content("app", 1));
    a.until("armed", |n| n.status("app").guarded);
    b.until("eligible", |n| n.status("app").role == RoleView::Standby { eligible: true });
    a.epoch("app", 2, 300);
    a.sealed("app", 2);
    // The node dies: agent and instance at once.
    a.kill();
    b.until("taken over", |n| n.apps.running("app"));
    assert_eq!(b.apps.started_from("app"), Some(2));
    assert_eq!(b.status("app").incarnation, 2);
    // Its agent restarts before and after an epoch was announced: the epochs stay those of its incarnation.
    b.store.make("app", 3, 4);
    let apps = b.apps.clone();
    b.stop();
    let b = set.start_with("b", apps);
    b.until("runs on", |n| n.apps.running("app"));
    assert_eq!(b.status("app").epoch, 3);
    // The old node comes back without its instance and follows.
    b.epoch("app", 4, 10);
    let a = set.start("a");
    a.until("follows", |n| n.status("app").owner.as_deref() == Some("b") && n.status("app").epoch == 4);
    assert!(!a.apps.running("app"));
    b.until("armed", |n| n.status("app").guarded);
    // And takes over in turn.
    b.kill();
    a.until("taken back", |n| n.apps.running("app"));
    assert_eq!((a.apps.started_from("app"), a.status("app").incarnation), (Some(4), 3));
}

#[test]
fn planned_switch_loses_nothing_and_can_be_ordered_anywhere() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 20);
    a.until("armed", |n| n.status("app").guarded);
    let switched = a.handle().switch("app", Some("b")).unwrap();
    assert_eq!((switched.node.as_str(), switched.epoch), ("b", 2));
    b.until("runs", |n| n.apps.running("app"));
    assert_eq!(b.apps.started_from("app"), Some(2));
    assert!(!a.apps.running("app") && !a.apps.found_instance("app"));
    // Back, ordered at the node that does not run it, without naming one.
    b.until("armed", |n| n.status("app").guarded);
    let switched = a.handle().switch("app", None).unwrap();
    assert_eq!((switched.node.as_str(), switched.epoch), ("a", 3));
    a.until("runs", |n| n.apps.running("app"));
    // A switch that cannot be prepared leaves it where it is.
    a.until("armed", |n| n.status("app").guarded);
    b.apps.fail_prepare("app", true);
    let why = a.handle().switch("app", Some("b")).unwrap_err().to_string();
    assert!(why.contains("told to fail"), "{why}");
    a.until("runs on", |n| n.apps.running("app"));
    b.apps.fail_prepare("app", false);
    assert_eq!(b.handle().drain_node("a").unwrap(), vec!["app".to_owned()]);
    b.until("runs", |n| n.apps.running("app"));
}

#[test]
fn owner_without_contact_is_parked_and_resumed() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 20);
    a.until("armed", |n| n.status("app").guarded);
    // The stand-by's agent is dead but its host refuses: the owner runs on.
    b.kill();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(a.apps.running("app"));
    assert_eq!(a.apps.fences("app"), 0);
    // It comes back, then falls silent without refusing: the owner parks, then it is there again.
    let b = set.start("b");
    b.until("follows", |n| n.status("app").role == RoleView::Standby { eligible: true });
    set.mute("b", true);
    a.until("parked", |n| !n.apps.running("app"));
    b.until("taken over", |n| n.apps.running("app"));
    set.mute("b", false);
    a.until("stopped for good", |n| !n.apps.found_instance("app"));
    assert!(b.apps.running("app"));
}

#[test]
fn agent_restart_keeps_the_owner() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 20);
    a.until("armed", |n| n.status("app").guarded);
    // Only the agent dies; the instance lives on and its new agent finds it.
    let apps = a.apps.clone();
    a.stop();
    let a = set.start_with("a", apps);
    a.until("runs on", |n| n.apps.running("app") && n.status("app").guarded);
    assert_eq!(a.status("app").incarnation, 1);
    assert!(!b.apps.running("app"));
    // The stand-by's agent restarts: it is armed anew.
    b.stop();
    let b = set.start("b");
    b.until("eligible", |n| {
        n.status_opt("app").is_some_and(|s| s.role == RoleView::Standby { eligible: true })
    });
    a.until("runs", |n| n.apps.running("app"));
    // The end is told.
    a.handle().ended("app").unwrap();
    b.until("ended", |n| n.status("app").role == RoleView::Ended);
    a.handle().forget("app").unwrap();
    assert!(a.status_opt("app").is_none());
    // The name can be used again, by either node.
    b.apps.clear("app");
    b.launch("app", &["a"]);
    a.until("follows", |n| n.status_opt("app").is_some_and(|s| s.owner.as_deref() == Some("b")));
}

#[test]
fn slow_standby_slows_the_sender_and_epochs_are_skipped() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    b.store.set_slow(Duration::from_millis(4));
    a.launch("app", &["b"]);
    // 400 blocks of 64 KiB: 25 MiB, far more than the window of 8 pieces and all socket buffers.
    a.epoch("app", 1, 400);
    a.until("under way", |_| b.store.puts() > 20);
    let ahead = a.store.reads().saturating_sub(b.store.puts());
    assert!(ahead < 16 * 10 + 70, "the sender read {ahead} blocks more than the receiver stored");
    for epoch in 2..=6 {
        a.epoch("app", epoch, 3);
    }
    a.sealed("app", 6);
    let sealed = b.store.sealed("app");
    assert!(sealed.contains(&6) && sealed.len() <= 3, "{sealed:?}: intermediate epochs were not skipped");
    // Heartbeats were not delayed by all that.
    assert_eq!(a.apps.fences("app"), 0);
}

/// Goal: a stand-by is sent what an epoch changes of the one that it has, and all of it where it cannot use that. Method: a store that
/// tells how an epoch came, and one that can make nothing of changes.
#[test]
fn changes_are_sent_where_they_are_of_use() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    for (epoch, forgets, changes) in [(1, false, 0), (2, false, 1), (3, true, 1), (4, true, 1), (5, false, 2)]
    {
        b.store.forget(forgets);
        a.epoch("app", epoch, 3);
        a.sealed("app", epoch);
        b.until("has it", |n| n.store.newest_of("app") == epoch);
        assert_eq!(b.store.changes(), changes, "epoch {epoch}");
        assert_eq!(a.store.content("app", epoch), b.store.content("app", epoch));
    }
}

#[test]
fn damaged_epoch_is_refused_and_the_next_is_taken() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 5);
    a.sealed("app", 1);
    a.store.damage(true);
    a.epoch("app", 2, 5);
    a.until("refused", |n| n.logged("does not take epoch 2"));
    assert_eq!(b.store.sealed("app"), vec![1]);
    a.store.damage(false);
    a.epoch("app", 3, 5);
    a.sealed("app", 3);
    assert_eq!(b.status("app").epoch, 3);
}

/// After so many pieces of a transfer, for each number, all connections break: the stand-by has the epoch before or the new one,
/// whole; it gets the new one when there is a link again, and nobody takes over meanwhile.
#[test]
fn a_link_may_break_at_any_piece_of_a_transfer() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 10);
    a.sealed("app", 1);
    let (mut broken, mut unbroken) = (0, 0);
    for pieces in 0..200 {
        let epoch = u64::from(pieces) + 2;
        let wire = set.wire("b");
        wire.break_after(pieces);
        a.epoch("app", epoch, 10);
        a.until("broken or through", |_| wire.is_broken() || b.store.newest_of("app") == epoch);
        let newest = b.store.newest_of("app");
        assert!(newest == epoch || newest == epoch - 1, "{newest} after {pieces} pieces of {epoch}");
        let is_broken = wire.spare();
        a.sealed("app", epoch);
        assert_eq!(b.store.newest_of("app"), epoch);
        assert_eq!(b.store.content("app", epoch), a.store.content("app", epoch));
        (broken, unbroken) = (broken + u32::from(is_broken), unbroken + u32::from(!is_broken));
        if unbroken == 3 {
            break;
        }
    }
    eprintln!("broken {broken} times");
    assert!(broken >= 10 && unbroken == 3, "broken {broken} times");
    assert!(a.apps.running("app") && !b.apps.running("app"));
}

#[test]
fn three_nodes_elect_the_newest() {
    let mut set = Set::new(&["a", "b", "c"]);
    let (a, b, c) = (set.start("a"), set.start("b"), set.start("c"));
    a.launch("app", &["b", "c"]);
    a.epoch("app", 1, 5);
    a.sealed("app", 1);
    for node in [&b, &c] {
        node.until("eligible", |n| n.status("app").role == RoleView::Standby { eligible: true });
    }
    // Only the last in the order gets the newest epoch.
    b.store.refuse(true);
    a.epoch("app", 2, 5);
    a.until("c has it", |n| n.status("app").sealed_at.contains(&("c".to_owned(), 2)));
    a.kill();
    c.until("elected", |n| n.apps.running("app"));
    assert_eq!(c.apps.started_from("app"), Some(2));
    assert!(!b.apps.running("app"));
    b.until("follows c", |n| n.status("app").owner.as_deref() == Some("c"));
    let nodes = b.handle().nodes();
    let named = |name: &str| nodes.iter().find(|n| n.name == name).unwrap().clone();
    assert_eq!((named("b").state, named("c").state, named("a").state), ("self", "up", "down"));
    assert_eq!(named("c").running, vec!["app".to_owned()]);
}

#[test]
fn alone_restore_is_an_order() {
    let mut set = Set::new(&["a", "b"]);
    let a = set.start("a");
    a.launch("app", &["b"]);
    a.epoch("app", 1, 5);
    a.apps.clear("app");
    a.handle().lost("app").unwrap();
    // The other node is not there: nobody can know whether it runs it. The operator can.
    let why = a.handle().claim("app", false, Duration::from_millis(2500)).unwrap_err().to_string();
    assert!(why.contains("not reachable: b"), "{why}");
    a.handle().claim("app", true, LONG).unwrap();
    a.until("runs", |n: &Node| n.apps.running("app"));
    assert_eq!(a.apps.started_from("app"), Some(1));
}

/// The operator was wrong: the other node did run it. When they hear each other, one gives way; not none, not both.
#[test]
fn a_forced_owner_and_another_do_not_stay_two() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 5);
    a.sealed("app", 1);
    b.until("eligible", |n| n.status("app").role == RoleView::Standby { eligible: true });
    set.mute("a", true);
    b.until("took over", |n| n.apps.running("app"));
    b.epoch("app", 2, 5);
    a.until("parked", |n| !n.apps.running("app"));
    a.handle().claim("app", true, LONG).unwrap();
    a.until("runs", |n| n.apps.running("app"));
    set.mute("a", false);
    b.until("gave way", |n| !n.apps.found_instance("app"));
    assert!(a.apps.running("app"), "nobody runs it");
    b.until("put its own epochs aside", |n| n.store.sealed("app") == [1]);
    a.epoch("app", 2, 5);
    a.sealed("app", 2);
    assert_eq!(b.store.content("app", 2), a.store.content("app", 2));
}

/// A disk that cannot put epochs aside at first: the stand-by takes the new line when it can.
#[test]
fn what_cannot_be_put_aside_is_tried_again() {
    let mut set = Set::new(&["a", "b"]);
    let (a, b) = (set.start("a"), set.start("b"));
    a.launch("app", &["b"]);
    a.epoch("app", 1, 5);
    a.sealed("app", 1);
    b.until("eligible", |n| n.status("app").role == RoleView::Standby { eligible: true });
    a.store.keep_all(true);
    set.mute("a", true);
    b.until("took over", |n| n.apps.running("app"));
    a.store.make("app", 2, 5);
    a.handle().announce_epoch("app", 2).unwrap();
    b.epoch("app", 2, 3);
    set.mute("a", false);
    a.until("cannot put it aside", |n| n.logged("cannot put aside old epochs yet"));
    a.store.keep_all(false);
    b.until("sealed on a", |n| n.status("app").sealed_at == [("a".to_owned(), 2)]);
    assert_eq!(a.store.content("app", 2), b.store.content("app", 2));
}
