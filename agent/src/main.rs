//! `holod`: the agent of a node.

use clap::Parser;
use holo_agent::apps::Apps;
use holo_agent::config::Options;
use holo_agent::{ports, server};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("holod: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    // The agent starts this process itself: see `holo_agent::guard`.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "guard")
        && let Some(dir) = arguments.next()
    {
        return Ok(holo_agent::guard::watch(dir.as_ref())?);
    }
    let config = Arc::new(Options::parse().complete()?);
    prepare_process();
    let listener = server::bind(&config.socket)?;
    let identity = ports::identity(&config)?;
    let apps = Apps::open(config, identity.name.clone())?;
    let cluster = ports::start(&identity, &apps)?;
    eprintln!("holod: node {} serves {}", apps.node, apps.config.socket.display());
    match server::bind_for_others(&apps.config.socket) {
        Ok(None) => {}
        Ok(Some(others)) => {
            let (apps, cluster) = (Arc::clone(&apps), Arc::clone(&cluster));
            std::thread::spawn(move || server::serve(&others, &apps, &cluster));
        }
        Err(cause) => eprintln!("holod: programs that become other users' cannot join: {cause}"),
    }
    server::serve(&listener, &apps, &cluster);
    Ok(())
}

/// Many descriptors (clones are made through high numbers), no death by a reader that hangs up, children of
/// children come to us.
fn prepare_process() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let ignore = libc::SIG_IGN;
    // SAFETY: own limits and signal actions, before any thread.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        libc::signal(libc::SIGPIPE, ignore);
    }
}
