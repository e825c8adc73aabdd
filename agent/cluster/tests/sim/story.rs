//! What happens to the cluster: faults and orders for some seconds, then peace, then the last judgement.

use crate::world::World;

pub fn run(world: &mut World) -> Result<(), String> {
    let nodes = world.nodes();
    world.run_ms(500);
    for _ in 0..world.rng.range(4, 16) {
        fault(world, nodes);
        let pause_ms = world.rng.range(20, 1_200);
        world.run_ms(pause_ms);
        world.verdict.clone()?;
    }
    peace(world, nodes);
    world.run_ms(8_000);
    world.verdict.clone()?;
    let running = world.running();
    match running.len() {
        1 => Ok(()),
        // With no epoch anywhere and the instance dead there is nothing to run.
        0 if !world.could_run() => Ok(()),
        _ => Err(format!("in the end it runs on {running:?}")),
    }
}

fn fault(world: &mut World, nodes: usize) {
    let a = world.rng.range(0, nodes as u64 - 1) as usize;
    let b = world.rng.range(0, nodes as u64 - 1) as usize;
    match world.rng.range(0, 11) {
        0 => world.cut(a, b, true),
        1 => world.cut(a, b, false),
        2 => (0..nodes).for_each(|n| world.cut(a, n, true)),
        3 | 4 => world.heal(),
        5 => world.crash_agent(a),
        6 => world.crash_host(a),
        7 | 8 => (0..nodes).for_each(|n| world.restart(n)),
        9 => {
            world.loss_percent = world.rng.range(0, 40);
            world.delay_ms_max = world.rng.range(1, 150);
        }
        _ => {
            for owner in world.running() {
                world.order_switch(owner, b);
            }
        }
    }
}

fn peace(world: &mut World, nodes: usize) {
    world.heal();
    world.loss_percent = 0;
    world.delay_ms_max = 5;
    world.bad_luck_percent = 0;
    (0..nodes).for_each(|n| world.restart(n));
}
