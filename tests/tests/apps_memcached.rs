//! Goal: a memcached of four serving threads keeps every value through epochs, a kill -9 and a change of its node.
//! Method: clients of several connections each write values that can be computed and read back their own and old ones; all
//! of them are verified by content.
#![allow(missing_docs)]

use holo_tests::app::Program;
use holo_tests::node::{Node, Who};
use holo_tests::paths;
use holo_tests::redis::free_port;
use holo_tests::service::{self, Service, need};
use std::process::Command;

struct Memcached(u16);

impl Service for Memcached {
    fn prepare(&self, _node: &Node) {}

    fn program(&self, node: &Node) -> Program {
        let port = self.0.to_string();
        let mut args = vec!["-t", "4", "-p", &port, "-U", "0", "-l", "0.0.0.0", "-m", "128", "-o", "modern"];
        if node.is_root() {
            // It refuses to be root's unless told.
            args.extend(["-u", "root"]);
        }
        Program::new(need("/usr/bin/memcached"), &args)
    }

    fn client(&self, from: &Node, host: &str, order: &[&str]) -> Command {
        let mut command = from.command("/usr/bin/python3");
        command.arg(paths::tests_dir().join("programs/memcached_client.py"));
        command.args([host, &self.0.to_string()]).args(order);
        command
    }
}

#[test]
fn memcached_lives() {
    service::lives(&Memcached(free_port()), Who::Me);
}

#[test]
#[ignore = "takes long: make soak"]
fn memcached_lives_long() {
    service::lives_long(&Memcached(free_port()), Who::Me, 300);
}

#[test]
fn memcached_is_restored_as_user() {
    service::is_restored(&Memcached(free_port()), Who::Nobody);
}

#[test]
fn memcached_is_restored_as_root() {
    service::is_restored(&Memcached(free_port()), Who::Me);
}

#[test]
fn memcached_is_switched() {
    service::is_switched(&Memcached(11211));
}
