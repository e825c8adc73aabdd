//! Goal: the files of every epoch of real applications are those at its cut, whatever they do at that moment, at one, five and
//! twenty epochs a second, and when one of their processes is killed at any time.
//! Method: the agent looks at all files a second time in the stop of every epoch, without any knowledge from before, and refuses
//! an epoch that differs (`HOLO_FILES_CHECK`). Servers and their clients are one application, which works all the time at one
//! pace of epochs after the other.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::service::need;
use holo_tests::{command, compile, wait};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(60);
/// Periods of epochs.
const PACES: [&str; 3] = ["1s", "200ms", "50ms"];
/// Epochs at each pace, also on a busy machine, where it takes longer, up to `PACE_MAX`.
const EPOCHS_LEAST: usize = 2;
const PACE_MAX: Duration = Duration::from_secs(20);
/// Between two kills.
const KILL_PAUSE: Duration = Duration::from_secs(5);

/// How long epochs are taken at each pace.
const SHORT: Duration = Duration::from_millis(2400);
const LONG: Duration = Duration::from_secs(40);

/// What is tried.
struct Trial {
    who: Who,
    /// Works in `$1` until it is killed; makes `$1/ready` when all of it does. `$2` is a workload of random changes.
    script: &'static str,
    /// In the command line of the processes of which one is killed now and then; the script goes on.
    victim: &'static str,
    prepare: fn(&Node),
}

fn epochs(node: &Node) -> Vec<Value> {
    let text = command::run_ok(&mut node.holo(&["epochs", "work", "--json"]), LIMIT);
    serde_json::from_str(&text).unwrap()
}

/// Kills a process of the application whose command line has `victim`.
fn kill_one(node: &Node, app: &App, victim: &str) {
    wait::until(LIMIT, victim, || {
        let pids = app.real_pids(node);
        // Not the shells, whose script has the word.
        let is_victim = |pid: &&u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                !line.starts_with(b"/bin/sh") && String::from_utf8_lossy(&line).contains(victim)
            })
        };
        let pid = *pids[1..].iter().rev().find(is_victim)?;
        command::run(node.command("kill").args(["-KILL", &pid.to_string()]), LIMIT)
            .status
            .success()
            .then_some(())
    });
}

/// Epochs at a pace, while processes are killed; how many processes were.
fn run_at(node: &Node, app: &App, (trial, every): (&Trial, &str), lasts: Duration, word: &mut u64) -> u32 {
    command::run_ok(&mut node.holo(&["set", "work", "--every", every]), LIMIT);
    let (start, before) = (Instant::now(), epochs(node).len());
    let mut kills = 0;
    while start.elapsed() < lasts {
        // Somewhere in the time between.
        *word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let left = KILL_PAUSE.min(lasts.saturating_sub(start.elapsed()));
        let until = left.mul_f64((*word >> 33) as f64 / f64::from(u32::MAX >> 1));
        std::thread::sleep(until);
        kill_one(node, app, trial.victim);
        kills += 1;
        std::thread::sleep(left.saturating_sub(until));
    }
    wait::until(PACE_MAX, "epochs", || (epochs(node).len() >= before + EPOCHS_LEAST).then_some(()));
    let took = start.elapsed().as_secs_f64();
    eprintln!("every {every}: {:.1} epochs a second", (epochs(node).len() - before) as f64 / took);
    kills
}

fn identical(trial: &Trial, lasts: Duration) {
    let mut node = Node::without_agent(trial.who);
    node.set_agent_env("HOLO_FILES_CHECK", "1");
    node.start_agent();
    hand_over(&node.outside(DIR), trial.who);
    (trial.prepare)(&node);
    let (dir, storm) = (node.inside(DIR), compile::workload("file_storm.c"));
    let args = ["-c", trial.script, "sh", dir.to_str().unwrap(), storm.to_str().unwrap()];
    let program = Program::new("/bin/sh", &args).env("HOME", dir.to_str().unwrap());
    let mut app = App::start(&node, "work", &program, DIR, &["--every", PACES[0], "--keep", "10000"]);
    app.wait_joined(&node);
    let said = || fs::read_to_string(node.outside(DIR).join("stderr")).unwrap_or_default();
    let ready = wait::try_until(LIMIT, || node.outside(DIR).join("ready").exists().then_some(()));
    assert!(ready.is_some(), "not at work: {}", said());
    let (first, mut word) = (epochs(&node).len(), 1);
    let kills: u32 = PACES.map(|every| run_at(&node, &app, (trial, every), lasts, &mut word)).iter().sum();
    let last = app.checkpoint(&node);
    assert!(last.0["stop_parts_us"]["files.check"].as_u64().is_some(), "compared: {}", last.0);
    let all = epochs(&node);
    let changed: u64 = all[first..].iter().map(|epoch| epoch["files_changed"].as_u64().unwrap()).sum();
    let count = (all.len() - first) as u64;
    let by_record = all[first..].iter().filter(|epoch| epoch["stop_parts_us"]["files.all"].is_null()).count();
    eprintln!(
        "{count} epochs with {changed} changed files were identical, {by_record} without a look at all; {kills} processes \
         were killed"
    );
    assert!(by_record > 0, "every epoch looked at all files");
    assert!(!node.log().contains("files check:"), "{}", node.log());
    assert!(changed > 2 * count, "{count} epochs, {changed} changes: {}", said());
    app.kill(&node);
}

const POSTGRES: Trial = Trial {
    who: Who::Nobody,
    script: "cd $1; PATH=/usr/lib/postgresql/15/bin:$PATH; export PGHOST=$1 PGUSER=postgres PGDATABASE=postgres
        postgres -D pg -c listen_addresses= -c unix_socket_directories=$1 -c shared_buffers=16MB -c max_wal_size=32MB \\
            -c checkpoint_timeout=30s -c wal_recycle=on &
        until pg_isready -q; do sleep 0.1; done
        pgbench -i -q -s 1 2>/dev/null
        touch ready
        while :; do pgbench -n -c 3 -T 1 >/dev/null 2>&1 || sleep 0.1; done",
    victim: "postgres: postgres",
    prepare: |node| {
        let mut initdb = node.command(need("/usr/lib/postgresql/15/bin/initdb"));
        initdb.args(["-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "-N", "-D"]);
        command::run_ok(initdb.arg(node.inside(DIR).join("pg")), LIMIT);
    },
};

const MARIADB: Trial = Trial {
    who: Who::Nobody,
    script: "cd $1
        (while :; do /usr/sbin/mariadbd --no-defaults --skip-grant-tables --skip-networking --socket=$1/s \\
            --datadir=$1/db --tmpdir=$1/tmp --pid-file=$1/pid --innodb-buffer-pool-size=16M --innodb-log-file-size=8M \\
            2>log; sleep 0.1; done) &
        sql() { mariadb --no-defaults --socket=$1/s test -e \"$2\"; }
        until sql $1 'create table if not exists t (n int auto_increment primary key, text varchar(2000))' 2>/dev/null
        do sleep 0.1; done
        touch ready
        while :; do sql $1 \"insert into t (text) select repeat(uuid(), 50) from seq_1_to_50;
            update t set text = reverse(text) where n % 7 = 1; delete from t where n % 11 = 3\" 2>/dev/null || sleep 0.1; done",
    victim: "mariadbd",
    prepare: |node| {
        need("/usr/sbin/mariadbd");
        let dir = node.inside(DIR);
        hand_over(&node.outside(DIR).join("tmp"), node.who());
        let mut install = node.command(need("/usr/bin/mariadb-install-db"));
        install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        install.arg(format!("--datadir={}", dir.join("db").display())).env("TMPDIR", dir.join("tmp"));
        command::run_ok(&mut install, LIMIT);
    },
};

const REDIS_THAT_REWRITES_ITS_FILE: Trial = Trial {
    who: Who::Me,
    script: "cd $1
        (while :; do redis-server --port 0 --unixsocket $1/s --dir $1 --save '' --appendonly yes \\
            --auto-aof-rewrite-percentage 20 --auto-aof-rewrite-min-size 100kb >log; done) &
        until redis-cli -s s ping >/dev/null 2>&1; do sleep 0.1; done
        touch ready
        while :; do
            redis-benchmark -s $1/s -t set,lpush -n 3000 -r 500 -d 200 -q >/dev/null 2>&1
            redis-cli -s s bgrewriteaof >/dev/null 2>&1 || sleep 0.1
        done",
    victim: "redis-server",
    prepare: |_| {
        need("/usr/bin/redis-benchmark");
    },
};

const SQLITE_WITH_A_WRITE_AHEAD_LOG: Trial = Trial {
    who: Who::Me,
    script: "cd $1
        sqlite3 db 'pragma journal_mode=wal; create table t (n integer primary key, data blob)' >/dev/null
        work() { while :; do sqlite3 -cmd '.timeout 5000' db \"begin immediate; insert into t (data) values (randomblob(3000));
            insert into t (data) select randomblob(500) from t limit 20; delete from t where n % 5 = $1; commit;
            pragma wal_checkpoint(truncate);\" >/dev/null; done; }
        work 1 & work 2 &
        touch ready
        while :; do sqlite3 -cmd '.timeout 5000' db 'pragma integrity_check' | grep -qx ok || echo damaged >&2; sleep 0.2; done",
    victim: "sqlite3",
    prepare: |_| {
        need("/usr/bin/sqlite3");
    },
};

const GIT: Trial = Trial {
    who: Who::Me,
    script: "cd $1
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q repository; cd repository; git config gc.auto 0
        i=0
        touch ../ready
        while :; do
            i=$((i + 1)); rm -f .git/*.lock .git/refs/heads/*.lock
            mkdir -p d$((i % 7)); seq $i $((i * 17 % 3000 + i)) >d$((i % 7))/f$((i % 40)); rm -f d$((i % 5))/f$((i % 23))
            git add -A; git commit -q -m $i; git branch -f b$((i % 4)) >/dev/null
            [ $((i % 6)) = 0 ] && git checkout -q -f b$(((i + 1) % 4)); [ $((i % 9)) = 0 ] && git gc -q --prune=now
            [ $((i % 5)) = 0 ] && git stash -q && git reset -q --hard HEAD
        done 2>/dev/null",
    victim: "git",
    prepare: |_| {
        need("/usr/bin/git");
    },
};

/// 12,000 files; branches that differ in a third of them.
const GIT_ON_A_LARGE_REPOSITORY: Trial = Trial {
    who: Who::Me,
    script: "cd $1/repository
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        i=0
        touch ../ready
        while :; do
            i=$((i + 1)); rm -f .git/*.lock .git/refs/heads/*.lock
            git checkout -q -f b$((i % 3)); git status --porcelain | grep -q . && git clean -q -f -d
            for f in d$((i % 40))/*; do echo $i >>$f; done; git rm -q -r --ignore-unmatch d$((i % 37))/f1*; git add -A
            git commit -q -m $i; [ $((i % 2)) = 0 ] && git merge -q -s ours -m $i b$(((i + 1) % 3)); [ $((i % 4)) = 0 ] && git repack -q -a -d
        done 2>/dev/null",
    victim: "git",
    prepare: |node| {
        need("/usr/bin/git");
        let script = "git init -q repository && cd repository && git config gc.auto 0 && git config user.email a@b && git config user.name a
            for d in $(seq 0 39); do mkdir d$d; for f in $(seq 300); do echo $d $f >d$d/f$f; done; done
            git add -A; git commit -q -m all
            for b in 0 1 2; do
                git checkout -q -b b$b; for d in $(seq $b 3 39); do sed -i s/^/$b/ d$d/*; done; git commit -q -a -m $b
            done";
        let mut make = node.command("sh");
        make.args(["-c", &format!("cd \"$1\" && {script}"), "sh"]).arg(node.inside(DIR));
        command::run_ok(&mut make, LIMIT);
    },
};

const TAR_RSYNC_AND_MAKE: Trial = Trial {
    who: Who::Me,
    script: "cd $1; mkdir source out copy
        for i in 1 2 3 4 5; do echo \"int f$i(int x) { return x + $i; }\" >source/f$i.c; done
        echo 'int f1(int); int main(void) { return f1(-1); }' >source/main.c
        printf 'all: p\\np: $(patsubst %%.c,%%.o,$(wildcard *.c))\\n\\tcc -o $@ $^\\n' >source/Makefile
        ln source/f1.c source/linked; ln -s f1.c source/pointer; truncate -s 5M source/sparse; echo end >>source/sparse
        i=0
        touch ready
        while :; do
            i=$((i + 1)); echo \"/* $i */\" >>source/f$((i % 5 + 1)).c
            make -s -j2 -C source
            tar -cSf out/all.tar source; rm -rf out/source; tar -xSf out/all.tar -C out
            rsync -aHS --delete out/source/ copy/; rm -f copy/f$((i % 3 + 1)).o
            rsync -a --inplace source/ copy/
        done 2>/dev/null",
    victim: "tar",
    prepare: |_| {
        need("/usr/bin/rsync");
    },
};

const REPLACING_FILES_AS_PACKAGE_MANAGERS_DO: Trial = Trial {
    who: Who::Me,
    script: "cd $1; mkdir -p lib/a lib/b info
        exec_one() { exec python3 -c '
import os, sys, random
random.seed(int(sys.argv[1]))
while True:
    name = \"lib/%s/f%d\" % (random.choice(\"ab\"), random.randrange(20))
    new, old = name + \".new\" + sys.argv[1], name + \".old\" + sys.argv[1]
    with open(new, \"wb\") as file:
        file.write(os.urandom(random.randrange(20000)))
        os.fchmod(file.fileno(), random.choice([0o644, 0o755, 0o4755]))
        if random.random() < 0.1: os.fsync(file.fileno())
    for path in (old,):
        try: os.unlink(path)
        except FileNotFoundError: pass
    try: os.link(name, old)
    except FileNotFoundError: pass
    os.rename(new, name)
    os.utime(name, ns=(random.randrange(1 << 60), random.randrange(1 << 60)), follow_symlinks=False)
    if random.random() < 0.7:
        try: os.unlink(old)
        except FileNotFoundError: pass
    with open(\"info/status\" + sys.argv[1], \"a\") as file: file.write(name + \"\\n\")
    if random.random() < 0.01: os.truncate(\"info/status\" + sys.argv[1], 10)
' $1; }
        for i in 1 2 3; do (while :; do (exec_one $i); done) & done
        touch ready; wait",
    victim: "python3",
    prepare: |_| {},
};

/// Several processes that do all kinds of things to the same files, also through shared maps.
const RANDOM_CHANGES: Trial = Trial {
    who: Who::Me,
    script: "touch $1/ready; $2 $1 17; echo \"it ended: $?\" >&2; cat $1/result >&2",
    victim: "file_storm",
    prepare: |_| {},
};

#[test]
fn postgres() {
    identical(&POSTGRES, SHORT);
}

#[test]
fn mariadb() {
    identical(&MARIADB, SHORT);
}

#[test]
fn redis_that_rewrites_its_file() {
    identical(&REDIS_THAT_REWRITES_ITS_FILE, SHORT);
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    identical(&SQLITE_WITH_A_WRITE_AHEAD_LOG, SHORT);
}

#[test]
fn git() {
    identical(&GIT, SHORT);
}

#[test]
fn git_on_a_large_repository() {
    identical(&GIT_ON_A_LARGE_REPOSITORY, SHORT);
}

#[test]
fn tar_rsync_and_make() {
    identical(&TAR_RSYNC_AND_MAKE, SHORT);
}

#[test]
fn replacing_files_as_package_managers_do() {
    identical(&REPLACING_FILES_AS_PACKAGE_MANAGERS_DO, SHORT);
}

#[test]
fn random_changes() {
    identical(&RANDOM_CHANGES, SHORT);
}

#[test]
#[ignore = "takes long: make soak"]
fn all_for_long() {
    let all = [
        POSTGRES,
        MARIADB,
        REDIS_THAT_REWRITES_ITS_FILE,
        SQLITE_WITH_A_WRITE_AHEAD_LOG,
        GIT,
        GIT_ON_A_LARGE_REPOSITORY,
        TAR_RSYNC_AND_MAKE,
        REPLACING_FILES_AS_PACKAGE_MANAGERS_DO,
        RANDOM_CHANGES,
    ];
    for trial in &all {
        identical(trial, LONG);
    }
}
