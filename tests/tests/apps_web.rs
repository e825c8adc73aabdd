//! Goal: HTTP servers of many processes serve on through epochs, a kill -9 and a change of their node: nginx with workers,
//! a cluster of node processes, a pre-forking server in Perl.
//! Method: clients that compare every body and number their requests; the servers record the numbers (nginx in its log, node in
//! its master's memory, Perl in a file that its children share), and none may be missing or come twice.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::redis::free_port;
use holo_tests::service::{self, DIR, Service, need};
use holo_tests::{command, paths, wait};
use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

fn http_client(from: &Node, host: &str, port: u16, order: &[&str]) -> Command {
    let mut command = from.command("/usr/bin/python3");
    command.arg(paths::tests_dir().join("programs/http_client.py"));
    command.args([host, &port.to_string()]).args(order);
    command
}

/// nginx: a master and three workers.
struct Nginx(u16);

impl Service for Nginx {
    fn prepare(&self, node: &Node) {
        for part in ["www", "tmp"] {
            hand_over(&node.outside(DIR).join(part), node.who());
        }
        for i in 1..=8_usize {
            let mut command = Command::new("/usr/bin/python3");
            let script = "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1]); import http_client; \
                          open(sys.argv[3], 'wb').write(http_client.body(int(sys.argv[2])))";
            let file = node.outside(DIR).join(format!("www/f{i}"));
            command
                .args(["-c", script])
                .arg(paths::tests_dir().join("programs"))
                .arg(i.to_string())
                .arg(file);
            command::run_ok(&mut command, LIMIT);
        }
        let dir = node.inside(DIR).display().to_string();
        let mut text = format!(
            "worker_processes 3; daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{ log_format numbers '$arg_w $arg_n $status $pid'; access_log {dir}/access.log numbers; sendfile on;\n"
        );
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            let _ = writeln!(text, "{kind}_temp_path {dir}/tmp/{kind};");
        }
        let _ = writeln!(text, "server {{ listen {}; root {dir}/www; keepalive_requests 50; }} }}", self.0);
        let conf = node.outside(DIR).join("nginx.conf");
        fs::write(&conf, text).unwrap_or_else(|e| panic!("{}: {e}", conf.display()));
    }

    fn program(&self, node: &Node) -> Program {
        let dir = node.inside(DIR);
        Program::new(
            need("/usr/sbin/nginx"),
            &["-e".into(), dir.join("error.log"), "-c".into(), dir.join("nginx.conf")],
        )
    }

    fn client(&self, from: &Node, host: &str, order: &[&str]) -> Command {
        http_client(from, host, self.0, order)
    }

    /// Of each load the log has every number once. A worker logs after it has answered, and may do so after another one has served
    /// the next request: what is missing may yet come, what is there twice stays.
    fn verify_files(&self, node: &Node, last: &[u64]) {
        let path = node.outside(DIR).join("access.log");
        let mut missing = String::new();
        let whole = wait::try_until(LIMIT, || {
            let log = fs::read_to_string(&path).unwrap_or_default();
            missing = missing_of(&log, last);
            missing.is_empty().then_some(())
        });
        assert!(whole.is_some(), "answered {last:?}, but the log lacks {missing}");
    }

    /// A reload: the master makes new workers, the old ones end.
    fn after_restore(&self, node: &Node, app: &App) {
        let old = app.real_pids(node);
        assert_eq!(old.len(), 4, "a master and three workers: {old:?}");
        command::run_ok(node.command("kill").args(["-HUP", &old[0].to_string()]), LIMIT);
        wait::until(LIMIT, "new workers", || {
            let new: HashSet<u32> = app.real_pids(node).into_iter().collect();
            (new.len() == 4 && new.contains(&old[0]) && old[1..].iter().all(|pid| !new.contains(pid)))
                .then_some(())
        });
    }
}

/// Requests of the loads that the log has not, of all that were answered; every one that it has must be there once.
fn missing_of(log: &str, last: &[u64]) -> String {
    let mut numbers: Vec<HashSet<u64>> = vec![HashSet::new(); last.len()];
    // The last line may be half written.
    for line in log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words.len() == 4 && ["200", "404"].contains(&words[2]), "no line of the log: {line}");
        let (Ok(load), Ok(n)) = (words[0].parse::<usize>(), words[1].parse::<u64>()) else { continue };
        if let Some(numbers) = numbers.get_mut(load) {
            assert!(numbers.insert(n), "load {load}: request {n} is logged twice");
        }
    }
    let each = last.iter().zip(&numbers).enumerate();
    let missing = each.flat_map(|(load, (last, numbers))| {
        (1..=*last).filter(|n| !numbers.contains(n)).map(move |n| format!("{n} of load {load}"))
    });
    missing.collect::<Vec<_>>().join(", ")
}

/// node: a master and two workers, which tell it of every write.
struct NodeCluster(u16);

impl Service for NodeCluster {
    fn prepare(&self, _node: &Node) {}

    fn program(&self, _node: &Node) -> Program {
        let script = paths::tests_dir().join("programs/cluster.js");
        Program::new(need("/usr/bin/node"), &[script.into_os_string(), self.0.to_string().into()])
    }

    fn client(&self, from: &Node, host: &str, order: &[&str]) -> Command {
        http_client(from, host, self.0, order)
    }

    /// A worker is killed, and the master, which knows it by its pid, makes another.
    fn after_restore(&self, node: &Node, app: &App) {
        let old = app.real_pids(node);
        assert_eq!(old.len(), 3, "a master and two workers: {old:?}");
        command::run_ok(node.command("kill").args(["-KILL", &old[1].to_string()]), LIMIT);
        wait::until(LIMIT, "a new worker", || {
            let new = app.real_pids(node);
            (new.len() == 3 && new[0] == old[0] && !new.contains(&old[1])).then_some(())
        });
    }
}

/// Perl: a parent and four children that accept in turns.
struct Prefork(u16);

impl Service for Prefork {
    fn prepare(&self, _node: &Node) {}

    fn program(&self, node: &Node) -> Program {
        let script = paths::tests_dir().join("programs/prefork.pl");
        let args = [script.into_os_string(), self.0.to_string().into(), node.inside(DIR).into()];
        Program::new(need("/usr/bin/perl"), &args)
    }

    fn client(&self, from: &Node, host: &str, order: &[&str]) -> Command {
        http_client(from, host, self.0, order)
    }

    fn verify_files(&self, node: &Node, _last: &[u64]) {
        let failed = fs::read_to_string(node.outside(DIR).join("failed")).unwrap_or_default();
        assert_eq!(failed, "", "the server complained");
    }
}

#[test]
fn nginx_lives() {
    service::lives(&Nginx(free_port()), Who::Me);
}

#[test]
#[ignore = "takes long: make soak"]
fn nginx_lives_long() {
    service::lives_long(&Nginx(free_port()), Who::Me, 300);
}

#[test]
fn nginx_is_restored_as_user() {
    service::is_restored(&Nginx(free_port()), Who::Nobody);
}

#[test]
fn nginx_is_restored_as_root() {
    service::is_restored(&Nginx(free_port()), Who::Me);
}

#[test]
fn nginx_is_switched() {
    service::is_switched(&Nginx(8080));
}

#[test]
fn node_cluster_lives() {
    service::lives(&NodeCluster(free_port()), Who::Me);
}

#[test]
#[ignore = "takes long: make soak"]
fn node_cluster_lives_long() {
    service::lives_long(&NodeCluster(free_port()), Who::Me, 300);
}

#[test]
fn node_cluster_is_restored_as_user() {
    service::is_restored(&NodeCluster(free_port()), Who::Nobody);
}

#[test]
fn node_cluster_is_restored_as_root() {
    service::is_restored(&NodeCluster(free_port()), Who::Me);
}

#[test]
fn node_cluster_is_switched() {
    service::is_switched(&NodeCluster(8080));
}

#[test]
fn perl_prefork_lives() {
    service::lives(&Prefork(free_port()), Who::Me);
}

#[test]
#[ignore = "takes long: make soak"]
fn perl_prefork_lives_long() {
    service::lives_long(&Prefork(free_port()), Who::Me, 300);
}

#[test]
fn perl_prefork_is_restored_as_user() {
    service::is_restored(&Prefork(free_port()), Who::Nobody);
}

#[test]
fn perl_prefork_is_restored_as_root() {
    service::is_restored(&Prefork(free_port()), Who::Me);
}

#[test]
fn perl_prefork_is_switched() {
    service::is_switched(&Prefork(8080));
}
