//! Goal: what others changed below a root while the application did not run on that node is seen when it comes there: the files are
//! those of the epoch, what was there is kept aside, and it is told; what the application itself had left there is not.
//! Method: an application is switched to and fro between two nodes, or killed; meanwhile somebody changes files where it is not.
#![allow(missing_docs, clippy::unwrap_used)]

use holo_tests::app::{App, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::{ends_well, goes_on};
use holo_tests::{command, epochs, wait};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DIR: &str = "data/work";
const LIMIT: Duration = Duration::from_secs(30);
const SCRIPT: &str = "cd $1; mkdir -p still/deep still/gone
    for name in still/changed still/removed still/deep/file still/swapped still/gone/file; do echo $name >$name; done
    while [ ! -e stop ]; do
        i=$((i + 1)); echo $i >n; echo $i >still/n; rm -f new.*; echo $i >new.$i; printf '%-20s' $i 1<>progress; sleep 0.01
    done
    echo ok >result";

fn start(node: &Node, options: &[&str]) -> App {
    let dir = node.inside(DIR);
    hand_over(&node.outside(DIR), node.who());
    let program = Program::new("/bin/sh", &["-c", SCRIPT, "sh", dir.to_str().unwrap()]);
    let mut app = App::start(node, "work", &program, DIR, options);
    app.wait_joined(node);
    goes_on(node, "its start");
    app
}

/// Somebody changes files that the application does not.
fn meddle(node: &Node) {
    let still = node.outside(DIR).join("still");
    fs::write(still.join("changed"), "by others\n").unwrap();
    fs::remove_file(still.join("gone/file")).unwrap();
    fs::remove_file(still.join("swapped")).unwrap();
    // An ordinary user can move no directory of root's.
    hand_over(&still.join("swapped"), node.who());
    fs::write(still.join("swapped/file"), "by others\n").unwrap();
    fs::rename(still.join("removed"), still.join("renamed")).unwrap();
    fs::write(still.join("deep/added"), "by others\n").unwrap();
}

/// What `meddle` did is undone, and kept aside.
fn is_put_right(node: &Node) {
    let still = node.outside(DIR).join("still");
    for name in ["changed", "removed", "deep/file", "swapped", "gone/file"] {
        assert_eq!(fs::read_to_string(still.join(name)).unwrap(), format!("still/{name}\n"));
    }
    for name in ["renamed", "deep/added"] {
        assert!(!still.join(name).exists(), "{name}");
    }
    let kept = node.outside("state/replaced/work").join(below_root(&node.inside(DIR))).join("still");
    for name in ["changed", "swapped/file", "deep/added"] {
        assert_eq!(fs::read_to_string(kept.join(name)).unwrap(), "by others\n", "{name}");
    }
    assert_eq!(fs::read_to_string(kept.join("renamed")).unwrap(), "still/removed\n");
}

fn below_root(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap().to_owned()
}

/// Changed, swapped, renamed, added; two directories of which something is missing.
const TOLD: &str = "6 files of the application were changed here by others";

fn told(texts: &Value) -> Vec<String> {
    let texts = texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    texts.filter(|text| text.contains("changed here by others")).collect()
}

/// What is told of it in `holo ps`, of an application that is protected.
fn shown(app: &App, node: &Node) -> Vec<String> {
    let row = app.row(node).unwrap();
    assert_eq!(row["state"], "running", "{row}");
    told(&row["reasons"])
}

fn switch(from: &Node, to: &Node) -> Vec<String> {
    let order = ["switch", "work", "--to", &to.name, "--json"];
    let said = command::run_ok(&mut from.holo(&order), LIMIT);
    goes_on(to, "the switch");
    told(&serde_json::from_str::<Value>(&said).unwrap()["remarks"])
}

#[test]
fn a_stand_by_tells_of_it() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::patient());
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    hand_over(&b.outside(DIR), Who::Me);
    let mut app = start(a, &["--standby", "b"]);
    app.checkpoint(a);
    // What the application itself has left behind is nobody else's.
    for (from, to) in [(a, b), (b, a), (a, b), (b, a)] {
        assert_eq!(switch(from, to), [""; 0], "{}", to.log());
        goes_on(to, "an epoch");
        app.checkpoint(to);
    }
    wait::until(LIMIT, "its end on b", || app.real_pids(b).is_empty().then_some(()));
    meddle(b);
    app.checkpoint(a);
    goes_on(a, "an epoch");
    app.checkpoint(a);
    let said = switch(a, b);
    assert!(said.len() == 1 && said[0].starts_with(TOLD), "{said:?}");
    assert!(said[0].contains("state/replaced/work") && said[0].contains("/still"), "{said:?}");
    let deep = |node: &Node| node.outside(DIR).join("still/deep");
    assert_eq!(epochs::differences(&deep(a), &deep(b)), []);
    is_put_right(b);
    assert!(b.log().contains(&format!("holod: work: {TOLD}")), "{}", b.log());
    assert_eq!(shown(&app, b), said);
    app.checkpoint(b);
    // It is not told for ever.
    assert_eq!(switch(b, a), [""; 0]);
    assert_eq!(switch(a, b), [""; 0]);
    assert_eq!(shown(&app, b), [""; 0]);
    ends_well(b, &mut app);
}

#[test]
fn a_take_over_tells_of_it() {
    let mut cluster = Cluster::new(&["a", "b"], Who::Me);
    cluster.start_agents(Timing::default());
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    hand_over(&b.outside(DIR).join("still"), Who::Me);
    // Where it has never been, too.
    fs::write(b.outside(DIR).join("still/changed"), "by others\n").unwrap();
    let mut app = start(a, &["--standby", "b"]);
    app.checkpoint(a);
    wait::until(LIMIT, "b is armed", || b.log().contains("armed: will take over").then_some(()));
    cluster.kill(0);
    app.forget();
    let b = &cluster.nodes[1];
    wait::until(LIMIT, "take-over by b", || (app.state(b) == "running").then_some(()));
    goes_on(b, "the take-over");
    let said = shown(&app, b);
    let file = b.inside(DIR).join("still/changed");
    assert!(said.len() == 1 && said[0].starts_with("1 file of the application was changed here"), "{said:?}");
    assert!(said[0].ends_with(&format!(": {}", file.display())), "{said:?}");
    ends_well(b, &mut app);
}

fn restores(who: Who) {
    let mut node = Node::start(who);
    let mut app = start(&node, &[]);
    for meddles in [false, true, false] {
        app.checkpoint(&node);
        goes_on(&node, "an epoch");
        app.kill(&node);
        if meddles {
            wait::until(LIMIT, "its end in the record", || {
                let row = app.row(&node)?;
                row["reasons"].to_string().contains("was killed by").then_some(())
            });
            // It is saved a moment after it is shown.
            std::thread::sleep(Duration::from_millis(200));
            meddle(&node);
            // It is remembered.
            node.kill_agent();
            node.start_agent();
        }
        let said = told(&app.restore(&node, None)["remarks"]);
        assert_eq!(said.len(), usize::from(meddles), "{said:?}");
        assert!(said.iter().all(|text| text.starts_with(TOLD)), "{said:?}");
        assert_eq!(shown(&app, &node), said);
        if meddles {
            is_put_right(&node);
        }
        goes_on(&node, "the restore");
    }
    // Killed with its agent: nobody saw its end, and nobody else is blamed for what it had written.
    app.checkpoint(&node);
    goes_on(&node, "an epoch");
    let pids = app.real_pids(&node);
    node.kill_agent();
    holo_tests::process::wait_gone(&holo_tests::process::kill_trees(&pids), LIMIT);
    node.start_agent();
    assert_eq!(told(&app.restore(&node, None)["remarks"]), [""; 0]);
    ends_well(&node, &mut app);
}

#[test]
fn a_restore_tells_of_it() {
    restores(Who::Me);
}

#[test]
fn a_restore_as_a_user_tells_of_it() {
    restores(Who::Nobody);
}
