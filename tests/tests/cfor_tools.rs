//! Goal: `holo cfor` tells what an application changed, since its last epoch and between epochs, compares files with epochs
//! and packs and unpacks them; what makes no sense is refused with the documented code.
//! Method: a shell that does on order what the test says, so that every change is known.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::command::{self, Finished};
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::wait;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(20);
/// Reads orders, one a line, and says when each is done.
const SHELL: &str = "cd \"$1\"; while :; do read -r order <orders; eval \"$order\"; : >done; done";

struct Bench {
    node: Node,
    app: App,
}

impl Bench {
    fn start() -> Self {
        let node = Node::start(Who::Me);
        let files = node.outside(DIR);
        hand_over(&files, Who::Me);
        fs::create_dir(files.join("dir")).unwrap();
        fs::write(files.join("big"), vec![1; 1 << 20]).unwrap();
        for name in ["old", "gone", "dir/kept"] {
            fs::write(files.join(name), name.repeat(2000)).unwrap();
        }
        nix::unistd::mkfifo(&files.join("orders"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let dir = node.inside(DIR);
        let args = ["-c", SHELL, "sh", dir.to_str().unwrap()];
        let mut app = App::start(&node, "work", &Program::new("/bin/sh", &args), DIR, &[]);
        app.wait_joined(&node);
        Self { node, app }
    }

    /// Has the application do something.
    fn order(&self, order: &str) {
        let files = self.node.outside(DIR);
        let _ = fs::remove_file(files.join("done"));
        fs::write(files.join("orders"), format!("{order}\n")).unwrap();
        wait::until(LIMIT, order, || files.join("done").exists().then_some(()));
    }

    fn holo(&self, args: &[&str]) -> Finished {
        command::run(&mut self.node.holo(&[&["cfor"], args].concat()), LIMIT)
    }

    fn json(&self, args: &[&str], code: i32) -> Value {
        let done = self.holo(&[args, &["--json"]].concat());
        assert_eq!(done.code(), code, "{args:?}: {}{}", done.stdout, done.stderr);
        serde_json::from_str(&done.stdout).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.node.outside(DIR).join(name).canonicalize().unwrap().to_str().unwrap().to_owned()
    }
}

/// Clocks of file systems are coarse: what is made after this is told from what was made before.
fn tick() {
    std::thread::sleep(Duration::from_millis(20));
}

/// The changes of a name below the root.
fn find<'a>(found: &'a Value, name: &str) -> Option<&'a Value> {
    let all = found["changes"].as_array().unwrap();
    all.iter().find(|one| one["path"].as_str().unwrap().ends_with(&format!("/{DIR}/{name}")))
}

/// What the orders of the tests change.
fn expect(found: &Value) {
    let of = |name: &str| find(found, name).unwrap_or_else(|| panic!("{name} in {found:#}"));
    assert_eq!(of("big")["ranges"], json!([{"at": 36864, "len": 8192}]), "{found:#}");
    assert_eq!((&of("new")["what"], &of("new")["bytes"]), (&json!("renamed"), &json!(0)));
    assert!(of("new")["from"].as_str().unwrap().ends_with("/old"));
    assert_eq!(of("gone")["what"], "removed");
    assert_eq!(
        (&of("fresh")["what"], &of("fresh")["bytes"], &of("fresh")["size"]),
        (&json!("added"), &json!(6), &json!(6))
    );
    assert!(find(found, "dir/kept").is_none() && find(found, "old").is_none(), "{found:#}");
}

#[test]
fn what_changed_and_whether_it_is_the_same() {
    let mut bench = Bench::start();
    bench.order(":");
    let first = bench.app.checkpoint(&bench.node).number("epoch").to_string();
    // Its record of the epoch before is complete from the second one on.
    let second = bench.app.checkpoint(&bench.node).number("epoch").to_string();
    let quiet = bench.json(&["log", "work"], 0);
    assert_eq!(
        (&quiet["complete"], &quiet["bytes"], &quiet["changes"]),
        (&json!(true), &json!(0), &json!([]))
    );
    tick();
    bench.order(
        "printf 0123456789 | dd of=big bs=1 seek=40955 conv=notrunc 2>/dev/null; mv old new; rm gone; echo fresh >fresh",
    );
    // A program that has ended may not have been counted yet.
    let live = bench.json(&["log", "work"], 0);
    assert_eq!(
        (&live["from"]["epoch"], &live["complete"]),
        (&json!(second.parse::<u64>().unwrap()), &json!(true))
    );
    expect(&live);
    let verified = bench.json(&["verify", "work"], 1);
    expect(&verified);
    let third = bench.app.checkpoint(&bench.node);
    // Two pages of one file, one of the other, as far as it goes.
    let bytes = &third.0["bytes_by_kind"];
    assert_eq!((&bytes["files.recorded"], &bytes["files.whole"]), (&json!(8192 + 6), &json!(0)), "{bytes}");
    let third = third.number("epoch").to_string();
    expect(&bench.json(&["log", "work", "--epoch", &third], 0));
    let diff = bench.json(&["diff", "work"], 0);
    expect(&diff);
    assert_eq!(diff, bench.json(&["diff", "work", "--epoch", &second, "--to-epoch", &third], 0));
    expect(&bench.json(&["diff", "work", "--epoch", &first], 0));
    assert_eq!(bench.json(&["verify", "work"], 0)["changes"], json!([]));
    assert_eq!(bench.json(&["log", "work"], 0)["changes"], json!([]));
    let text = bench.holo(&["diff", "work"]).stdout;
    assert!(text.contains("36864..45056") && text.contains("/old -> "), "{text}");
    bench.app.kill(&bench.node);
}

/// File systems give the number of a file that is gone to one that comes: that one was not renamed.
#[test]
fn numbers_are_used_again() {
    let mut bench = Bench::start();
    bench.order(":");
    bench.app.checkpoint(&bench.node);
    tick();
    // Whichever number is free is used by one of so many.
    bench.order(
        "rm gone; for i in 0 1 2 3 4 5 6 7 8 9; do for j in 0 1 2 3 4 5 6 7 8 9; do : >new$i$j; done; done",
    );
    let live = bench.json(&["log", "work"], 0);
    assert_eq!(find(&live, "gone").map(|gone| &gone["what"]), Some(&json!("removed")), "{live:#}");
    for number in 0..100 {
        let name = format!("new{number:02}");
        assert_eq!(find(&live, &name).map(|new| &new["what"]), Some(&json!("added")), "{name} in {live:#}");
    }
    bench.app.kill(&bench.node);
}

#[test]
fn packed_files() {
    let mut bench = Bench::start();
    bench.order("ln old linked; ln -s old pointer; truncate -s 100G sparse; echo end >>sparse");
    let epoch = bench.app.checkpoint(&bench.node).number("epoch").to_string();
    let scratch = tempfile::tempdir_in(bench.node.outside("data")).unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (packed, later) = (at("first.pack"), at("later.pack"));
    assert_eq!(bench.holo(&["pack", "work", &packed]).code(), 0);
    let bytes = fs::metadata(&packed).unwrap().len();
    assert!(bytes < 100_000, "{bytes} bytes of text and holes");
    let shown = bench.json(&["show", &packed], 0);
    let mut of_epoch = bench.json(&["show", "work", "--epoch", &epoch], 0);
    assert_eq!(shown["entries"], of_epoch["entries"]);
    let entries = of_epoch["entries"].take();
    let find = |name: &str| {
        let path = bench.path(name);
        entries.as_array().unwrap().iter().find(|one| one["path"] == path.as_str()).cloned().unwrap()
    };
    assert_eq!(
        (&find("old")["inode"], &find("sparse")["size"]),
        (&find("linked")["inode"], &json!((100u64 << 30) + 4))
    );
    let text = bench.holo(&["show", &packed]).stdout;
    assert!(text.contains(" -> old") && text.contains("107374182404"), "{text}");
    // Out again, elsewhere, and identical there.
    let into = at("out");
    assert_eq!(bench.holo(&["unpack", &packed, "--into", &into]).code(), 0);
    assert_eq!(bench.json(&["verify", &packed, "--under", &into], 0)["changes"], json!([]));
    assert_eq!(bench.json(&["verify", "work", "--under", &into], 0)["changes"], json!([]));
    let copy = PathBuf::from(format!("{into}{}", bench.path("dir/kept")));
    assert_eq!(fs::read(&copy).unwrap(), b"dir/kept".repeat(2000));
    fs::write(&copy, b"other").unwrap();
    let differs = bench.json(&["verify", &packed, "--under", &into], 1);
    assert_eq!(differs["changes"][0]["size"], 5, "{differs:#}");
    // Against what came later.
    bench.order("printf x | dd of=big bs=1 conv=notrunc 2>/dev/null; rm pointer");
    bench.app.checkpoint(&bench.node);
    assert_eq!(bench.holo(&["pack", "work", &later]).code(), 0);
    for args in [&["diff", &packed, &later][..], &["diff", &packed, "work"], &["diff", "work"]] {
        let diff = bench.json(args, 0);
        assert_eq!(must_find(&diff, "big")["ranges"], json!([{"at": 0, "len": 4096}]), "{args:?}");
        assert_eq!(must_find(&diff, "pointer")["what"], "removed");
    }
    // An epoch's files without packing.
    let raw = at("raw");
    assert_eq!(bench.holo(&["unpack", "work", "--epoch", &epoch, "--into", &raw]).code(), 0);
    assert_eq!(bench.json(&["verify", &packed, "--under", &raw], 0)["changes"], json!([]));
    refusals(&bench, &packed, &scratch);
    bench.app.kill(&bench.node);
    let done = bench.holo(&["log", "work"]);
    assert!(done.code() == 4 && done.stderr.contains("does not run here"), "{}", done.stderr);
    assert_eq!(bench.holo(&["log", "work", "--epoch", "2"]).code(), 0);
}

fn must_find<'a>(found: &'a Value, name: &str) -> &'a Value {
    find(found, name).unwrap_or_else(|| panic!("{name} in {found:#}"))
}

/// What makes no sense, or is damaged.
fn refusals(bench: &Bench, packed: &str, scratch: &tempfile::TempDir) {
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let mut bytes = fs::read(packed).unwrap();
    bytes[200] ^= 1;
    fs::write(at("damaged"), &bytes).unwrap();
    fs::write(at("foreign"), b"a text").unwrap();
    let cases: [(&[&str], i32, &str); 13] = [
        (&["log", "nobody"], 3, "nobody"),
        (&["show", "nobody"], 3, "nobody"),
        (&["show", "work", "--epoch", "99"], 3, "no epoch 99"),
        (&["log", "work", "--epoch", "1"], 3, "no epoch before 1"),
        (&["show", &at("none")], 1, "No such file"),
        (&["show", &at("damaged")], 6, "does not match its checksum"),
        (&["verify", &at("foreign")], 6, "no packed file"),
        (&["show", packed, "--epoch", "1"], 2, "--epoch is for applications"),
        (&["diff", packed], 2, "say what to compare"),
        (&["show", "a file"], 2, "named with a slash"),
        (&["unpack", packed, "--into", scratch.path().to_str().unwrap()], 2, "not empty"),
        (&["pack", "work", packed], 1, "File exists"),
        (&["verify", packed, "--under", &at("none")], 1, "No such file"),
    ];
    for (args, code, words) in cases {
        let done = bench.holo(args);
        assert!(
            done.code() == code && done.stderr.contains(words),
            "{args:?}: {} {}",
            done.code(),
            done.stderr
        );
    }
}
