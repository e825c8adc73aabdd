//! Goal: database servers keep every committed transaction and nothing else, through epochs, a kill -9 and a change of
//! their node: PostgreSQL (processes, System V and POSIX shared memory, a write-ahead log), MariaDB (threads, asynchronous I/O).
//! Method: clients move amounts between tables whose sums must stay equal and number their transactions without a gap;
//! pgbench runs beside, the indexes are verified by amcheck; the server's own recovery from its log must succeed
//! after a restore; after a good end the files are verified by a server without holo.
#![allow(missing_docs)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::redis::free_port;
use holo_tests::service::{self, DIR, Service, need};
use holo_tests::{command, paths, wait};
use std::fs;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn sql_client(kind: &str, from: &Node, host: &str, port: u16, order: &[&str]) -> Command {
    let mut command = from.command("/usr/bin/python3");
    command.arg(paths::tests_dir().join("programs/sql_client.py"));
    command.args([kind, host, &port.to_string()]).args(order);
    command
}

struct Postgres(u16);

fn postgres_bin(name: &str) -> std::path::PathBuf {
    need(&format!("/usr/lib/postgresql/15/bin/{name}"))
}

impl Service for Postgres {
    fn prepare(&self, node: &Node) {
        let data = node.inside(DIR).join("pg");
        let mut initdb = node.command(postgres_bin("initdb"));
        initdb.args(["-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "-D"]).arg(&data);
        command::run_ok(&mut initdb, LIMIT);
        let data = node.outside(DIR).join("pg");
        let append = |name: &str, text: &str| {
            let path = data.join(name);
            let old = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            fs::write(&path, old + text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        };
        append(
            "postgresql.conf",
            &format!(
                "listen_addresses='*'\nport={}\nunix_socket_directories=''\nshared_buffers=16MB\nmax_wal_size=64MB\n",
                self.0
            ),
        );
        append("pg_hba.conf", "host all all 10.77.0.0/24 trust\n");
    }

    fn program(&self, node: &Node) -> Program {
        Program::new(postgres_bin("postgres"), &["-D".into(), node.inside(DIR).join("pg")])
    }

    fn client(&self, from: &Node, host: &str, order: &[&str]) -> Command {
        sql_client("postgres", from, host, self.0, order)
    }

    fn is_durable(&self) -> bool {
        true
    }

    /// Its checkpointer is killed: the postmaster makes shared memory anew and recovers from the write-ahead log.
    fn after_restore(&self, node: &Node, app: &App) {
        let old = app.real_pids(node);
        let script = "for p; do grep -qa checkpointer /proc/$p/cmdline && exec kill -KILL $p; done; echo none >&2; exit 1";
        let mut kill = node.command("/bin/sh");
        command::run_ok(kill.args(["-c", script, "sh"]).args(old.iter().map(u32::to_string)), LIMIT);
        wait::until(LIMIT, "the server's own recovery", || {
            let new = app.real_pids(node);
            (new.len() >= 5 && new[0] == old[0] && old[1..].iter().all(|pid| !new.contains(pid)))
                .then_some(())
        });
    }
}

struct Mariadb(u16);

impl Service for Mariadb {
    fn prepare(&self, node: &Node) {
        let dir = node.inside(DIR);
        hand_over(&node.outside(DIR).join("tmp"), node.who());
        let mut install = node.command(need("/usr/bin/mariadb-install-db"));
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        install.arg(format!("--datadir={}", dir.join("db").display())).env("TMPDIR", dir.join("tmp"));
        if node.is_root() {
            install.arg("--user=root");
        }
        command::run_ok(&mut install, LIMIT);
    }

    fn program(&self, node: &Node) -> Program {
        let dir = node.inside(DIR);
        let mut args: Vec<String> = [
            "--no-defaults",
            "--skip-grant-tables",
            "--innodb-buffer-pool-size=16M",
            "--innodb-log-file-size=8M",
        ]
        .map(str::to_owned)
        .into();
        for (name, value) in [("datadir", "db"), ("tmpdir", "tmp"), ("socket", "socket"), ("pid-file", "pid")]
        {
            args.push(format!("--{name}={}", dir.join(value).display()));
        }
        args.extend([format!("--port={}", self.0), "--bind-address=0.0.0.0".to_owned()]);
        if node.is_root() {
            args.push("--user=root".to_owned());
        }
        Program::new(need("/usr/sbin/mariadbd"), &args)
    }

    fn client(&self, from: &Node, host: &str, order: &[&str]) -> Command {
        sql_client("mariadb", from, host, self.0, order)
    }

    fn is_durable(&self) -> bool {
        true
    }
}

#[test]
fn postgres_lives() {
    service::lives(&Postgres(free_port()), Who::Nobody);
}

#[test]
#[ignore = "takes long: make soak"]
fn postgres_lives_long() {
    service::lives_long(&Postgres(free_port()), Who::Nobody, 300);
}

#[test]
fn postgres_is_restored() {
    service::is_restored(&Postgres(free_port()), Who::Nobody);
}

#[test]
fn postgres_is_switched() {
    service::is_switched(&Postgres(5432));
}

#[test]
fn mariadb_lives() {
    service::lives(&Mariadb(free_port()), Who::Me);
}

#[test]
#[ignore = "takes long: make soak"]
fn mariadb_lives_long() {
    service::lives_long(&Mariadb(free_port()), Who::Me, 300);
}

#[test]
fn mariadb_is_restored_as_user() {
    service::is_restored(&Mariadb(free_port()), Who::Nobody);
}

#[test]
fn mariadb_is_restored_as_root() {
    service::is_restored(&Mariadb(free_port()), Who::Me);
}

#[test]
fn mariadb_is_switched() {
    service::is_switched(&Mariadb(3306));
}
