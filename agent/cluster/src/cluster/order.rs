//! Orders of operators: carried out by the owner of the application, wherever they are given.

use std::{
    sync::{Arc, atomic::Ordering, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use holo_api::peer::{APP_NAME_BYTES_MAX, Order, OrderReply, Purpose};

use super::{Described, Shared, Switched, app::App};
use crate::{
    clock::now_ms,
    core::RoleView,
    error::{ClusterError, LinkError},
    link::{Connection, Patience},
};

/// The one who waits hears something at least so often.
const PROGRESS: Duration = Duration::from_secs(1);

/// Remarks of another node that are passed on.
const REMARKS_MAX: usize = 256;

pub(super) fn switch(shared: &Arc<Shared>, app: &str, to: Option<&str>) -> Result<Switched, ClusterError> {
    let found = shared.app(app).ok_or_else(|| ClusterError::NoApp(app.to_owned()))?;
    if found.read(|core| core.is_owner()) {
        return switch_here(shared, &found, to, &mut || Ok(())).map_err(|why| refused(app, why));
    }
    let Some(owner) = found.status(shared).owner.filter(|o| o != shared.node()) else {
        return Err(refused(app, "it does not run on any node".to_owned()));
    };
    let order = Order::Switch { app: app.to_owned(), to: to.map(str::to_owned) };
    match pass_on(shared, &owner, &order)? {
        OrderReply::Switched { node, epoch, pause_us } => Ok(Switched { node, epoch, pause_us }),
        OrderReply::Failed(why) => Err(refused(app, format!("node {owner}: {why}"))),
        OrderReply::Working | OrderReply::Drained(_) | OrderReply::Described { .. } => {
            Err(refused(app, format!("node {owner} gave a strange answer")))
        }
    }
}

fn refused(app: &str, why: String) -> ClusterError {
    ClusterError::Refused { app: app.to_owned(), why }
}

/// `working` is called every second or so; its error means that nobody waits any more, which stops nothing.
fn switch_here(
    shared: &Arc<Shared>,
    app: &Arc<App>,
    to: Option<&str>,
    working: &mut dyn FnMut() -> Result<(), LinkError>,
) -> Result<Switched, String> {
    let to = match to {
        Some(to) => to.to_owned(),
        None => first_standby(shared, app).ok_or_else(|| why_not(shared, app))?,
    };
    let member = app.member(&to).ok_or_else(|| format!("node {to} is no stand-by of it"))?;
    if shared.peers.get(&to).is_some_and(|peer| peer.seen.lock().draining) {
        return Err(format!("node {to} is draining"));
    }
    // Bring the other node up to date first: the application is parked only for what is left then.
    let end = Instant::now() + Duration::from_millis(shared.timing.switch_ms_max);
    let newest = app.read(|core| core.sealed());
    while newest.epoch > 0 && app.wait_replica(&to, newest, PROGRESS).is_none() {
        let _ = working();
        if Instant::now() >= end || shared.stopping() {
            return Err(format!("node {to} does not hold epoch {} yet", newest.epoch));
        }
    }
    let outcome = app.order_switch(shared, member)?;
    loop {
        match outcome.recv_timeout(PROGRESS) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Timeout) if !shared.stopping() => {
                let _ = working();
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err("the agent stops".to_owned());
            }
        }
    }
}

fn first_standby(shared: &Arc<Shared>, app: &Arc<App>) -> Option<String> {
    let usable = |name: &&String| {
        shared.peers.get(*name).is_some_and(|peer| {
            let seen = peer.seen.lock();
            seen.up && !seen.draining
        })
    };
    app.members.iter().find(usable).cloned()
}

/// Why an application does not run here, in words.
pub(super) fn why_not(shared: &Arc<Shared>, app: &Arc<App>) -> String {
    let status = app.status(shared);
    let down: Vec<&str> = app
        .members
        .iter()
        .filter(|m| shared.peers.get(*m).is_some_and(|p| !p.seen.lock().up))
        .map(String::as_str)
        .collect();
    let owner = status.owner.as_deref().unwrap_or("unknown");
    let heard = shared.peers.get(owner).and_then(|p| p.seen.lock().heard_ms);
    let heard = heard.map_or("never".to_owned(), |at| format!("{} ms ago", now_ms().saturating_sub(at)));
    let unreachable = match down.is_empty() {
        true => String::new(),
        false => format!("; not reachable: {}", down.join(", ")),
    };
    match status.role {
        RoleView::Active { .. } => format!("no stand-by answers{unreachable}"),
        RoleView::Fenced { why } => format!("it is parked here: {why}{unreachable}"),
        RoleView::Switching { .. } => "a switch is under way".to_owned(),
        RoleView::Standby { .. } | RoleView::Candidate { .. } => {
            format!("its owner is {owner} (heard {heard}), newest epoch here {}{unreachable}", status.epoch)
        }
        RoleView::Ended => "it ended".to_owned(),
    }
}

pub(super) fn drain(shared: &Arc<Shared>) -> Result<Vec<String>, ClusterError> {
    drain_here(shared, &mut || Ok(())).map_err(ClusterError::Config)
}

fn drain_here(
    shared: &Arc<Shared>,
    working: &mut dyn FnMut() -> Result<(), LinkError>,
) -> Result<Vec<String>, String> {
    shared.draining.store(true, Ordering::Relaxed);
    let (mut moved, mut stay) = (Vec::new(), Vec::new());
    for app in shared.apps() {
        if !app.read(|core| core.is_owner()) {
            continue;
        }
        match switch_here(shared, &app, None, working) {
            Ok(_) => moved.push(app.name.clone()),
            Err(why) => stay.push(format!("{} ({why})", app.name)),
        }
    }
    match stay.is_empty() {
        true => Ok(moved),
        false => Err(format!("still running on {}: {}", shared.node(), stay.join(", "))),
    }
}

pub(super) fn drain_node(shared: &Arc<Shared>, node: &str) -> Result<Vec<String>, ClusterError> {
    if node == shared.node() {
        return drain(shared);
    }
    if !shared.peers.contains_key(node) {
        return Err(ClusterError::NoNode(node.to_owned()));
    }
    match pass_on(shared, node, &Order::Drain)? {
        OrderReply::Drained(apps) => Ok(apps),
        OrderReply::Failed(why) => Err(ClusterError::Config(why)),
        OrderReply::Working | OrderReply::Switched { .. } | OrderReply::Described { .. } => {
            Err(ClusterError::Config(format!("node {node} gave a strange answer")))
        }
    }
}

/// What runs on a node; none: nothing, or it does not tell.
pub(super) fn describe(shared: &Arc<Shared>, app: &str, node: &str) -> Option<Described> {
    if node == shared.node() {
        return shared.ports.apps.describe(app);
    }
    match pass_on(shared, node, &Order::Describe { app: app.to_owned() }).ok()? {
        OrderReply::Described { real_pid, mut remarks } => {
            remarks.truncate(REMARKS_MAX);
            (real_pid != 0).then_some(Described { real_pid, remarks })
        }
        OrderReply::Working
        | OrderReply::Switched { .. }
        | OrderReply::Drained(_)
        | OrderReply::Failed(_) => None,
    }
}

/// Gives an order to another node and waits for its end.
fn pass_on(shared: &Arc<Shared>, node: &str, order: &Order) -> Result<OrderReply, LinkError> {
    let Some(peer) = shared.peers.get(node) else {
        let (node, why) = (node.to_owned(), "not configured on this node".to_owned());
        return Err(LinkError::Address { node, address: "?".to_owned(), why });
    };
    let patience = Patience { connect: Duration::from_secs(5), io: 10 * PROGRESS };
    let hello = shared.hello(Purpose::Order);
    let (mut connection, _) = Connection::dial(&shared.tls, node, &peer.config.address, &hello, patience)?;
    connection.send(order)?;
    loop {
        match connection.receive()? {
            OrderReply::Working => {}
            end @ (OrderReply::Switched { .. }
            | OrderReply::Drained(_)
            | OrderReply::Failed(_)
            | OrderReply::Described { .. }) => {
                return Ok(end);
            }
        }
    }
}

/// The accepting side of an order connection.
pub(super) fn serve(shared: &Arc<Shared>, mut connection: Connection) -> Result<(), LinkError> {
    let order: Order = connection.receive()?;
    let mut working = || connection.send(&OrderReply::Working);
    let reply = match order {
        Order::Switch { app, to } if app.len() <= APP_NAME_BYTES_MAX => match shared.app(&app) {
            Some(found) => match switch_here(shared, &found, to.as_deref(), &mut working) {
                Ok(Switched { node, epoch, pause_us }) => OrderReply::Switched { node, epoch, pause_us },
                Err(why) => OrderReply::Failed(why),
            },
            None => OrderReply::Failed(format!("no application {app} here")),
        },
        Order::Switch { .. } => OrderReply::Failed("the name is too long".to_owned()),
        Order::Drain => match drain_here(shared, &mut working) {
            Ok(moved) => OrderReply::Drained(moved),
            Err(why) => OrderReply::Failed(why),
        },
        Order::Describe { app } => {
            let Described { real_pid, remarks } = shared.ports.apps.describe(&app).unwrap_or_default();
            OrderReply::Described { real_pid, remarks }
        }
    };
    connection.send(&reply)
}
