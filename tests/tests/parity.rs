//! Goal: the calls that holo sees are the calls that the kernel sees: nothing slips by its ways in.
//! Method: a program runs under strace and under holo's own counting at once; counts are compared by call, for every
//! process of it, from the end of holo's start-up on.
#![allow(missing_docs)]

use holo_tests::node::{Node, Who, hand_over};
use holo_tests::{command, paths, redis, trace};
use std::process::Stdio;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Calls that one side cannot count: a handler's return and a call that the kernel restarts are made by the kernel
/// itself; the parent's pid, a refused ring and questions about signal actions are answered without it.
const IGNORED: &[&str] = &["rt_sigreturn", "restart_syscall", "getppid", "io_uring_setup", "rt_sigaction"];

/// Calls that the library makes for itself in a running program.
const OWN: &[&str] = &["getpid", "gettid", "process_vm_readv", "rt_sigprocmask"];

/// Runs `prepare` in the directory first and `beside` (a shell script) at the same time, neither under holo.
fn parity(name: &str, prepare: &str, beside: &str, args: &[&str], processes_min: usize) {
    let node = Node::start(Who::Me);
    hand_over(&node.outside("data/work"), Who::Me);
    let shell = |script: &str| {
        let mut sh = node.command("/bin/sh");
        sh.arg("-c").arg(script).current_dir(node.outside("data/work")).stdin(Stdio::null());
        sh
    };
    command::run_ok(&mut shell(prepare), LIMIT);
    let (output, file) = (node.outside("data/strace"), node.outside("data/trace"));
    let mut strace = node.command("strace");
    strace.args(["-f", "-qq", "-s", "400", "-o"]).arg(&output);
    strace.arg("-E").arg(format!("LD_PRELOAD={}", paths::bin("libholo.so").display()));
    strace.arg("-E").arg("HOLO_TRACE=1").arg("-E").arg(format!("HOLO_TRACE_FILE={}", file.display()));
    strace.arg("--").args(args).current_dir(node.outside("data/work"));
    let mut other = shell(beside).spawn().expect("the script beside");
    let finished = command::run(strace.stdin(Stdio::null()), LIMIT);
    command::wait_child(&mut other, LIMIT, "the script beside");
    assert!(finished.status.success(), "{name}: {}", finished.stderr);
    let text = std::fs::read_to_string(&output).expect("strace's output");
    let (kernel, names) = (trace::from_strace(&text, &file.display().to_string()), trace::call_names());
    assert!(kernel.len() >= processes_min, "{name}: {} processes were counted", kernel.len());
    let (mut wrong, mut most) = (Vec::new(), 0);
    for (pid, seen) in &kernel {
        let counts = &seen.counts;
        let holo = trace::from_holo(&file.with_extension(pid.to_string()), &names);
        let total: u64 = counts.values().sum();
        eprintln!("{name}, process {pid}: {total} calls of {} kinds", counts.len());
        assert!(total > 0, "{name}: process {pid} made no calls");
        most = most.max(total);
        let differences = trace::differences(seen, &holo, IGNORED, OWN);
        wrong.extend(differences.into_iter().map(|d| format!("process {pid}: {d}")));
    }
    assert!(most > 5, "{name}: no process made more than {most} calls");
    assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
}

#[test]
fn sort() {
    parity("sort", "seq 200000 >in", "", &["/usr/bin/sort", "-r", "-S", "1M", "in", "-o", "out"], 1);
}

#[test]
fn tar() {
    let prepare = "mkdir d; for i in 1 2 3 4 5 6 7 8; do seq 9999 >d/$i; done";
    parity("tar", prepare, "", &["/bin/tar", "cf", "t.tar", "d"], 1);
    parity("tar", "seq 100 >1; tar cf t.tar 1; rm 1", "", &["/bin/tar", "xf", "t.tar"], 1);
}

/// Its subshells are forks, which count on from their parent's figures; what they start counts from its own start on.
#[test]
fn bash() {
    let script = "x=0; while [ $x -lt 300 ]; do x=$((x+1)); echo $x; done >out; read y <out; (exit 3) || echo $(echo $y) $y; \
                  trap 'echo t' USR1; kill -USR1 $$; /bin/true; wait";
    parity("bash", "", "", &["/bin/bash", "-c", script], 3);
}

#[test]
fn python3() {
    let script = "import threading,os,subprocess,socket,select,time\n\
                  t=[threading.Thread(target=time.sleep,args=(0.05,)) for _ in range(3)];[x.start() for x in t];[x.join() for x in t]\n\
                  a,b=socket.socketpair();a.send(b'x');select.select([b],[],[],1);b.recv(1)\n\
                  print(subprocess.run(['/bin/echo','hi'],capture_output=True).stdout);open('f','w').write('x'*100000);os.listdir('/')";
    parity("python3", "", "", &["/usr/bin/python3", "-c", script], 1);
}

#[test]
fn sqlite3() {
    let sql = "create table t(a,b);begin;with recursive n(i) as (select 1 union all select i+1 from n where i<20000) \
               insert into t select i,hex(i) from n;commit;select count(*),max(b) from t;vacuum;";
    parity("sqlite3", "", "", &["/usr/bin/sqlite3", "db", sql], 1);
}

#[test]
fn redis_server() {
    let port = redis::free_port().to_string();
    let beside = format!(
        "until redis-cli -p {port} ping >/dev/null 2>&1; do sleep 0.1; done; \
         for i in 1 2 3 4 5; do redis-cli -p {port} set k$i v; done >/dev/null; redis-cli -p {port} shutdown"
    );
    let args = ["/usr/bin/redis-server", "--port", &port, "--appendonly", "yes", "--save", ""];
    parity("redis-server", "", &beside, &args, 1);
}
