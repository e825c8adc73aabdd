//! Goal: manual pages, completions and the user reference cover every command.
//! Method: generates them, and looks for each command and option of the definition.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use clap::CommandFactory;
use common::{holo, out, run};
use holo_tools::args::Cli;

/// Paths of all commands, such as `node ls`, with their long options.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut command = Cli::command();
    command.build();
    let mut open = vec![(String::new(), command)];
    let mut found = Vec::new();
    while let Some((path, command)) = open.pop() {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name()).trim().to_owned();
            let options = sub.get_arguments().filter(|arg| !arg.is_global_set());
            let long = options.filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"));
            found.push((path.clone(), long.filter(|long| long != "--help").collect()));
            open.push((path, sub.clone()));
        }
    }
    found
}

#[test]
fn manual_pages() {
    let dir = tempfile::tempdir().unwrap();
    let done = run(holo(dir.path(), &["man", "--out", dir.path().join("man1").to_str().unwrap()]));
    assert!(done.status.success(), "{done:?}");
    for (path, _) in commands().iter().filter(|(path, _)| path != "man") {
        let page = dir.path().join("man1").join(format!("holo-{}.1", path.replace(' ', "-")));
        assert!(fs::read_to_string(&page).unwrap().contains(".TH"), "{}", page.display());
    }
    assert!(fs::read_to_string(dir.path().join("man1/holo.1")).unwrap().contains("checkpoint"));
}

#[test]
fn completions() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = out(&run(holo(dir.path(), &["completions", shell])));
        assert!(script.contains("checkpoint") && script.contains("consistency"), "{shell}");
    }
}

#[test]
fn the_reference_names_every_command_and_option() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    for (path, options) in commands() {
        assert!(text.contains(&format!("holo {path}")), "holo {path} is not in docs/cli.md");
        for option in options {
            assert!(text.contains(&format!("`{option}")), "{option} of holo {path} is not in docs/cli.md");
        }
    }
    for code in ["125", "126", "127", "HOLO_STATE_DIR", "HOLO_SOCKET", "HOLO_REQUIRE"] {
        assert!(text.contains(code), "{code} is not in docs/cli.md");
    }
}
