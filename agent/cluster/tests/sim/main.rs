//! Goal: show that never two nodes run an application, that it comes back, and that nothing sealed is lost,
//! whatever the network, the clocks and crashing agents do.
//!
//! Method: the failover core of each node runs against a virtual clock, network, disk and application (`world`).
//! A seed decides everything. Checkers that know nothing of the core's rules watch the instances (`checks`).
//! A failing seed is printed; `HOLO_SIM_SEED=<n>` runs it alone with its log, `HOLO_SIM_SEEDS=<n>` sets how many.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod checks;
mod faults;
mod rng;
mod story;
mod world;

use holo_api::peer::EpochRef;
use world::{Mutation, World};

fn seeds(default: u64) -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("HOLO_SIM_SEED").ok().and_then(|s| s.parse().ok()) {
        return seed..seed + 1;
    }
    0..std::env::var("HOLO_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[test]
fn random_histories_keep_one_owner_and_come_back() {
    let (mut takeovers, mut switches, mut fences, mut reclaims) = (0, 0, 0, 0);
    for seed in seeds(2_000) {
        let mut world = World::new(seed, Mutation::None);
        let verdict = story::run(&mut world);
        if let Err(why) = verdict {
            world.print_log();
            panic!("HOLO_SIM_SEED={seed}: {why}");
        }
        takeovers += world.stats.takeovers;
        switches += world.stats.switches;
        fences += world.stats.fences;
        reclaims += world.stats.reclaims;
    }
    println!("{takeovers} take-overs, {switches} planned switches, {fences} fences, {reclaims} reclaims");
    if std::env::var("HOLO_SIM_SEED").is_err() {
        assert!(
            takeovers > 500 && switches > 200 && fences > 500 && reclaims > 0,
            "the stories are too tame"
        );
    }
}

/// The checkers must bite: with each safeguard taken away some seed must fail.
#[test]
fn checkers_find_every_mutation() {
    for mutation in [Mutation::NoFence, Mutation::EarlyStandby, Mutation::Forgetful, Mutation::RefusedAlways]
    {
        let caught = (0..3_000).find(|seed| {
            let verdict = story::run(&mut World::new(*seed, mutation));
            verdict.is_err_and(|why| why.contains("two active"))
        });
        let caught = caught.unwrap_or_else(|| panic!("no seed caught {mutation:?}"));
        println!("{mutation:?}: caught by seed {caught}");
    }
}

/// The plain case with its bound: the owner's host dies, the stand-by runs within the configured time.
#[test]
fn standby_runs_within_its_bound_after_a_crash() {
    for nodes in 2..=5 {
        for seed in 0..20 {
            let mut world = World::calm(seed, nodes);
            world.run_ms(3_000);
            assert_eq!(world.running(), vec![0]);
            let guaranteed = world.guaranteed();
            assert!(guaranteed > EpochRef::default());
            world.crash_host(0);
            let bound_ms = world.timing.failover_ms * 12 / 10
                + (nodes as u64 + 4) * world.timing.heartbeat_ms
                + world::PREPARE_MS_MAX
                + 8 * world.timing.tick_ms;
            world.run_ms(bound_ms);
            assert_eq!(world.verdict, Ok(()), "seed {seed}");
            if world.running().len() != 1 {
                world.print_log();
            }
            assert_eq!(world.running().len(), 1, "seed {seed}, {nodes} nodes: not back in {bound_ms} ms");
        }
    }
}

/// A planned switch in a calm cluster always arrives and loses nothing.
#[test]
fn planned_switch_moves_and_loses_nothing() {
    for nodes in 2..=5 {
        for seed in 0..20 {
            let mut world = World::calm(seed, nodes);
            world.run_ms(3_000);
            world.order_switch(0, 1);
            world.run_ms(2_500);
            assert_eq!(world.verdict, Ok(()), "seed {seed}");
            assert_eq!(world.running(), vec![1], "seed {seed}, {nodes} nodes");
            assert_eq!(world.stats.switches, 1);
        }
    }
}

/// An application without other nodes, or whose stand-by was never seen, is never parked.
#[test]
fn alone_it_runs_undisturbed() {
    let mut world = World::calm(1, 2);
    world.crash_host(1);
    world.run_ms(10_000);
    assert_eq!((world.running(), world.stats.fences), (vec![0], 0));
    let mut world = World::calm(1, 1);
    world.run_ms(10_000);
    assert_eq!((world.running(), world.stats.fences), (vec![0], 0));
}

/// The stand-by's agent dies and comes back: its refused connections keep the owner running all the while.
#[test]
fn dead_standby_agent_does_not_park_the_owner() {
    for seed in 0..20 {
        let mut world = World::calm(seed, 2);
        world.run_ms(3_000);
        world.crash_agent(1);
        world.run_ms(5_000);
        assert_eq!((world.running(), world.stats.fences), (vec![0], 0), "seed {seed}");
        world.restart(1);
        world.run_ms(2_000);
        assert_eq!((world.running(), world.stats.fences), (vec![0], 0), "seed {seed}");
        world.crash_host(0);
        world.run_ms(4_000);
        assert_eq!(world.running(), vec![1], "seed {seed}: eligible again after contact");
    }
}

/// Both hosts of two lose power and come back: the application comes back by itself, once.
#[test]
fn power_cut_of_all() {
    for seed in 0..20 {
        let mut world = World::calm(seed, 2);
        world.run_ms(3_000);
        world.crash_host(0);
        world.crash_host(1);
        world.run_ms(500);
        world.restart(1);
        world.restart(0);
        world.run_ms(6_000);
        assert_eq!(world.verdict, Ok(()), "seed {seed}");
        assert_eq!(world.running().len(), 1, "seed {seed}");
    }
}
