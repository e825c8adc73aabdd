//! Goal: a parallel build goes on where it was: processes of all kinds at every moment of their lives, a job server's pipe.
//! Method: `make -j4` of a C project of 42 sources in two directories, that the test writes; under epochs, killed and restored in
//! the middle several times, moved to another node; the program that comes out prints the checksum that it must print, and
//! every source was compiled once.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::service::need;
use holo_tests::{command, wait};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(120);
const SOURCES: usize = 80;

const MAKEFILE: &str = "\
CFLAGS = -O2 -Wall
SOURCES := $(wildcard part*.c)
all: program checksum
program: main.o $(SOURCES:.c=.o) library/library.a
\t$(CC) -o $@ $^
library/library.a:
\t+$(MAKE) -C library
%.o: %.c project.h
\techo $< >> compiled && $(CC) $(CFLAGS) -c -o $@ $<
checksum: program
\t./program > checksum
.PHONY: all
";

const LIBRARY_MAKEFILE: &str = "\
library.a: $(patsubst %.c,%.o,$(wildcard part*.c))
\t$(AR) rcs $@ $^
%.o: %.c ../project.h
\techo library/$< >> ../compiled && $(CC) -pipe -O2 -I.. -c -o $@ $<
";

fn write(who: Who, path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if let Some(uid) = who.uid() {
        std::os::unix::fs::chown(path, Some(uid), Some(uid))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// The value of a part; the same in Rust and in the C text.
fn part_value(part: usize) -> u64 {
    (0..1000_u64).fold(part as u64, |value, i| {
        value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i ^ part as u64)
    })
}

/// Writes the project; gives the checksum.
fn project(dir: &Path, node: &Node) -> u64 {
    for part in ["library", "tmp"] {
        hand_over(&dir.join(part), node.who());
    }
    let (mut declared, mut summed, mut sum) = (String::new(), String::new(), 0_u64);
    for part in 0..SOURCES {
        let _ = writeln!(declared, "unsigned long part{part}(void);");
        let _ = writeln!(summed, "  sum = sum * 31 + part{part}();");
        sum = sum.wrapping_mul(31).wrapping_add(part_value(part));
        let mut text =
            "#include \"project.h\"\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
                .to_owned();
        // Something for the compiler to do.
        for f in 0..60 {
            let _ = writeln!(
                text,
                "static unsigned long f{f}(unsigned long v, unsigned long i) {{ char b[64]; int n = snprintf(b, sizeof b, \
                 \"%lu\", i + {f}); for (int k = 0; k < n; k++) v ^= (unsigned long)(b[k] - b[k]); return v; }}"
            );
        }
        let _ = writeln!(
            text,
            "unsigned long part{part}(void) {{ unsigned long v = {part};\n  for (unsigned long i = 0; i < 1000; i++) {{ \
             v = v * 6364136223846793005ul + (i ^ {part}ul);"
        );
        for f in 0..60 {
            let _ = writeln!(text, "    v = f{f}(v, i);");
        }
        text.push_str("  }\n  return v; }\n");
        let below = if part % 3 == 0 { "library/" } else { "" };
        write(node.who(), &dir.join(format!("{below}part{part}.c")), &text);
    }
    write(node.who(), &dir.join("project.h"), &declared);
    let main = format!(
        "#include \"project.h\"\n#include <stdio.h>\nint main(void) {{ unsigned long sum = 0;\n{summed}  printf(\"%lu\\n\", sum); return 0; }}\n"
    );
    write(node.who(), &dir.join("main.c"), &main);
    write(node.who(), &dir.join("Makefile"), MAKEFILE);
    write(node.who(), &dir.join("library/Makefile"), LIBRARY_MAKEFILE);
    sum
}

fn make(node: &Node) -> Program {
    let args = ["-j4".into(), "-C".into(), node.inside(DIR)];
    Program::new(need("/usr/bin/make"), &args)
        .env("TMPDIR", &node.inside(DIR).join("tmp").display().to_string())
}

fn start(node: &Node, options: &[&str]) -> (App, u64) {
    hand_over(&node.outside(DIR), node.who());
    let sum = project(&node.outside(DIR), node);
    let mut app = App::start(node, "make", &make(node), DIR, options);
    app.wait_joined(node);
    compiled_more(node, &app, 2);
    (app, sum)
}

fn compiled(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.outside(DIR).join("compiled")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until some more sources are being compiled; not beyond the end.
fn compiled_more(node: &Node, app: &App, more: usize) {
    let from = compiled(node).len();
    wait::until(LIMIT, "progress of the build", || {
        (compiled(node).len() >= from + more || app.state(node) == "stopped").then_some(())
    });
}

fn judge(node: &Node, sum: u64) {
    let dir = node.outside(DIR);
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let said = format!("{}{}", read("stdout"), read("stderr"));
    assert_eq!(read("checksum"), format!("{sum}\n"), "the build came to another end: {said}");
    let again = command::run_ok(&mut Command::new(dir.join("program")), LIMIT);
    assert_eq!(again, format!("{sum}\n"));
    let mut all = compiled(node);
    all.sort();
    all.dedup();
    assert_eq!(
        (all.len(), compiled(node).len()),
        (SOURCES + 1, SOURCES + 1),
        "each source is compiled once: {said}"
    );
}

#[test]
fn make_lives() {
    let node = Node::start(Who::Me);
    let (mut app, sum) = start(&node, &[]);
    let mut epochs = 0;
    while epochs < 100 {
        match app.try_checkpoint(&node) {
            Ok(epoch) => assert!(epoch.sealed(), "{}", epoch.0),
            Err(_) if app.state(&node) == "stopped" => break,
            Err(refused) => panic!("epoch {epochs}: {}", refused.stderr),
        }
        epochs += 1;
    }
    assert!(epochs >= 5, "it ended after {epochs} epochs");
    eprintln!("{epochs} epochs");
    assert_eq!(app.wait_exit(LIMIT), 0);
    judge(&node, sum);
}

#[test]
fn make_is_restored_as_user() {
    let node = Node::start(Who::Nobody);
    let (mut app, sum) = start(&node, &[]);
    let mut restores = 0;
    while restores < 4 {
        compiled_more(&node, &app, 6);
        if app.state(&node) == "stopped" {
            break;
        }
        app.checkpoint(&node);
        compiled_more(&node, &app, 1);
        if app.state(&node) != "stopped" {
            app.kill(&node);
        }
        let restored = app.restore_unsettled(&node, None);
        eprintln!("restored in {} us", restored["restore_us"]);
        restores += 1;
    }
    assert!(restores >= 2, "the build is too short");
    app.wait_ended(&node, LIMIT);
    judge(&node, sum);
}

#[test]
fn make_is_switched() {
    let mut cluster = Cluster::ordinary(&["a", "b"]);
    cluster.start_agents(Timing::patient());
    hand_over(&cluster.nodes[1].outside(DIR), Who::Me);
    let (app, sum) = start(&cluster.nodes[0], &["--standby", "b"]);
    for (from, to) in [(0, 1), (1, 0)] {
        compiled_more(&cluster.nodes[from], &app, 5);
        command::run_ok(
            &mut cluster.nodes[from].holo(&["switch", "make", "--to", &cluster.nodes[to].name]),
            ORDER_LIMIT,
        );
        wait::until(LIMIT, "the new owner", || (app.state(&cluster.nodes[to]) != "standby").then_some(()));
    }
    app.wait_ended(&cluster.nodes[0], LIMIT);
    judge(&cluster.nodes[0], sum);
}
