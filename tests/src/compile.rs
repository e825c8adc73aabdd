//! Builds the programs of `tests/workloads`, each once, into `target/workloads`.
//!
//! A source says its own flags on its first line, after `flags:`.

use crate::{command, paths};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn cache_dir() -> PathBuf {
    let dir = paths::target_dir().join("workloads");
    let usable = fs::create_dir_all(&dir).is_ok()
        && fs::write(dir.join(format!(".can-write-{}", std::process::id())), b"").is_ok();
    let _ = fs::remove_file(dir.join(format!(".can-write-{}", std::process::id())));
    if usable {
        return dir.canonicalize().unwrap_or(dir);
    }
    let dir = PathBuf::from(format!("/var/tmp/holo-workloads-{}", nix::unistd::getuid()));
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// Path of the built program of a source in `tests/workloads`.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn workload(source: &str) -> PathBuf {
    build(&paths::tests_dir().join("workloads").join(source))
}

/// What every header beside a source says.
fn headers(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map(|all| all.flatten().map(|e| e.path()).collect::<Vec<_>>());
    let mut paths: Vec<PathBuf> = entries.unwrap_or_default();
    paths.retain(|p| p.extension().is_some_and(|e| e == "h"));
    paths.sort();
    paths.iter().map(|p| fs::read_to_string(p).unwrap_or_default()).collect()
}

/// Path of the built program of a C or C++ source.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn build(source: &Path) -> PathBuf {
    let text = fs::read_to_string(source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    let headers = headers(source.parent().unwrap_or(Path::new(".")));
    let flags = text.lines().next().and_then(|l| l.split_once("flags:")).map_or("-O2", |(_, f)| f.trim());
    let mut hash = DefaultHasher::new();
    (&text, &headers).hash(&mut hash);
    let stem = source.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let program = cache_dir().join(format!("{stem}-{:016x}", hash.finish()));
    if program.exists() {
        return program;
    }
    let compiler = if source.extension().is_some_and(|e| e == "cc") { "g++" } else { "gcc" };
    let mine = program.with_extension(format!("{}", std::process::id()));
    let mut cc = Command::new(compiler);
    cc.arg("-Wall").arg("-Wextra").arg("-Wno-cast-function-type").arg("-g").arg(source).arg("-o").arg(&mine);
    cc.args(flags.split_whitespace());
    command::run_ok(&mut cc, Duration::from_secs(120));
    // Another test may have built it meanwhile, and run it: that one stays, with the name that its process shows.
    let linked = fs::hard_link(&mine, &program);
    assert!(linked.is_ok() || program.exists(), "{}: {linked:?}", program.display());
    let _ = fs::remove_file(&mine);
    program
}
