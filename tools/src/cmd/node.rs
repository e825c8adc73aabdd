//! `holo node`.

mod keys;

use std::io::Write;

use holo_api::local::{NodeInfo, Request};

use crate::args::{Listing, NodeCommand};
use crate::client::{QUICK, call, pick};
use crate::error::CliError;
use crate::paths::Agent;
use crate::table::{Align, Table};
use crate::{human, json};

pub(super) fn main(command: &NodeCommand, agent: &Agent) -> Result<u8, CliError> {
    match command {
        NodeCommand::Ls(args) => ls(args, agent),
        NodeCommand::Init { name } => keys::init(name.as_deref(), agent),
        NodeCommand::Add { name, out } => keys::add(name, out.as_deref(), agent),
        NodeCommand::Join { file } => keys::join(file, agent),
        NodeCommand::Drain { node } => super::stop::done(&Request::Drain { node: node.clone() }, agent),
    }
}

fn ls(args: &Listing, agent: &Agent) -> Result<u8, CliError> {
    let nodes = call(&agent.socket, &Request::Nodes, QUICK, pick!(Nodes))?;
    if args.json {
        json::print(&nodes.iter().map(json::Node::from).collect::<Vec<_>>())?;
    } else {
        write!(std::io::stdout().lock(), "{}", table(&nodes))?;
    }
    Ok(0)
}

/// The listing for people, also a part of `holo top`.
pub(super) fn table(nodes: &[NodeInfo]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("NODE", Left),
        ("STATE", Left),
        ("ADDRESS", Left),
        ("HEARD", Right),
        ("RUNNING", Left),
        ("STANDBY", Left),
    ]);
    for node in nodes {
        let heard = if node.state == "self" {
            "-".to_owned()
        } else {
            node.heard_ms.map_or("never".to_owned(), human::millis)
        };
        table.row(vec![
            node.name.clone(),
            node.state.clone(),
            node.address.clone(),
            heard,
            human::list(&node.running),
            human::list(&node.standby),
        ]);
    }
    table
}
