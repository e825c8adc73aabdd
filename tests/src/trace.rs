//! Counts of system calls, as the kernel saw them (`strace -f`) and as holo did (`HOLO_TRACE`).
//!
//! Holo counts from the end of its start-up, marked by an attempt to open `<file>.start`, until the process begins to
//! end, when it opens `<file>.<pid>` to write lines of `number count`. Its counts are ordinary memory: `fork` copies
//! them, `vfork` shares them until `exec`, `exec` begins again. The reader of strace's output does the same.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

/// Calls by name.
pub type Counts = BTreeMap<String, u64>;

/// The state of one memory image while strace's lines are read.
#[derive(Clone, Default)]
struct Image {
    started: bool,
    ended: bool,
    counts: Counts,
    /// Calls of other threads while the process writes its counts: seen by both, counted by one or not.
    late: Counts,
}

/// What the kernel saw of a process.
#[derive(Debug, Default)]
pub struct Seen {
    /// Calls until its end.
    pub counts: Counts,
    /// Calls of other threads after that.
    pub late: Counts,
}

/// The counts that the kernel saw, by the pid whose end wrote a trace file.
///
/// `lines` is the output of `strace -f -o`; `file` is the value of `HOLO_TRACE_FILE`.
#[must_use]
pub fn from_strace(lines: &str, file: &str) -> HashMap<u32, Seen> {
    let mut images: Vec<Image> = Vec::new();
    let mut image_of: HashMap<u32, usize> = HashMap::new();
    // Images of threads that were seen before the line that says who made them.
    let mut orphans: HashMap<u32, usize> = HashMap::new();
    let mut done: HashMap<u32, (usize, Counts)> = HashMap::new();
    // A call that was interrupted in the output by another thread's counts once, where it ends.
    let mut unfinished: HashMap<u32, String> = HashMap::new();
    for line in lines.lines() {
        let Some((tid, text)) = line.trim_start().split_once(' ') else { continue };
        let (Ok(tid), text) = (tid.parse::<u32>(), text.trim_start()) else { continue };
        let image = *image_of.entry(tid).or_insert_with(|| {
            images.push(Image::default());
            orphans.insert(tid, images.len() - 1);
            images.len() - 1
        });
        // The end is where the call begins: another thread's line may cut this one in two.
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if begins
            && text.contains(&format!("\"{file}.{tid}\""))
            && images[image].started
            && !images[image].ended
        {
            images[image].ended = true;
            done.insert(tid, (image, ended(&images[image].counts)));
        }
        let whole = if let Some(start) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(tid, start.to_owned());
            // exec and exit never come back under this name: they are counted when they begin.
            count(&mut images[image], start);
            continue;
        } else if let Some(rest) = text.strip_prefix("<... ") {
            let begun = unfinished.remove(&tid).unwrap_or_default();
            format!("{begun}{}", rest.split_once("resumed>").map_or("", |(_, r)| r))
        } else {
            if begins {
                count(&mut images[image], text);
            }
            text.to_owned()
        };
        if whole.contains(&format!("\"{file}.start\"")) {
            images[image] = Image { started: true, ..Image::default() };
            orphans.remove(&tid);
        }
        follow(&whole, tid, &mut images, &mut image_of, &mut orphans);
    }
    let seen = |(image, counts): (usize, Counts)| Seen { counts, late: images[image].late.clone() };
    done.into_iter().map(|(tid, end)| (tid, seen(end))).collect()
}

/// Counts at the end: the `exit_group` to come belongs to them.
fn ended(counts: &Counts) -> Counts {
    let mut counts = counts.clone();
    *counts.entry("exit_group".to_owned()).or_default() += 1;
    counts
}

fn name_of(text: &str) -> Option<&str> {
    text.split_once('(')
        .map(|(name, _)| name)
        .filter(|n| n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

fn count(image: &mut Image, text: &str) {
    if let Some(name) = name_of(text) {
        let counts = if image.ended { &mut image.late } else { &mut image.counts };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
}

/// What a finished call does to the memory images.
fn follow(
    whole: &str,
    tid: u32,
    images: &mut Vec<Image>,
    image_of: &mut HashMap<u32, usize>,
    orphans: &mut HashMap<u32, usize>,
) {
    let result =
        whole.rsplit_once("= ").and_then(|(_, r)| r.split(' ').next()).and_then(|r| r.parse::<i64>().ok());
    match (name_of(whole), result) {
        (Some("execve" | "execveat"), Some(0)) => {
            images.push(Image::default());
            image_of.insert(tid, images.len() - 1);
        }
        (Some("fork" | "vfork" | "clone" | "clone3"), Some(child @ 1..)) => {
            let (Ok(child), image) = (u32::try_from(child), image_of[&tid]) else { return };
            let mine = if whole.starts_with("vfork") || whole.contains("CLONE_VM") {
                image
            } else {
                images.push(images[image].clone());
                images.len() - 1
            };
            // The child may have run before its creator's line ended, and even started another program.
            if let Some(early) = orphans.remove(&child) {
                for (name, n) in images[early].counts.clone() {
                    *images[mine].counts.entry(name).or_default() += n;
                }
                if image_of.get(&child) == Some(&early) {
                    image_of.insert(child, mine);
                }
            } else {
                image_of.insert(child, mine);
            }
        }
        _ => {}
    }
}

/// The counts that holo wrote for a process, by the names in `names`.
///
/// # Panics
/// When the file is not there or has other lines.
#[must_use]
pub fn from_holo(file: &Path, names: &HashMap<u64, String>) -> Counts {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.lines()
        .map(|line| {
            let (number, n) = line.split_once(' ').unwrap_or_else(|| panic!("{}: {line}", file.display()));
            let parse =
                |s: &str| s.parse::<u64>().unwrap_or_else(|e| panic!("{}: {line}: {e}", file.display()));
            let name = names.get(&parse(number)).cloned();
            (name.unwrap_or_else(|| format!("syscall_{number}")), parse(n))
        })
        .collect()
}

/// Names of the calls of this processor, by number, from the kernel's header.
///
/// # Panics
/// When the header is not installed.
#[must_use]
pub fn call_names() -> HashMap<u64, String> {
    let path = ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"];
    let text = path.iter().find_map(|p| fs::read_to_string(p).ok());
    let text = text.unwrap_or_else(|| panic!("no {}: install linux-libc-dev", path[0]));
    text.lines()
        .filter_map(|line| {
            let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
            Some((number.trim().parse().ok()?, name.to_owned()))
        })
        .collect()
}

/// Where the two differ, one line each. `ignored` calls may differ; `own` calls the library makes itself too, so that the
/// kernel may see more of them.
#[must_use]
pub fn differences(kernel: &Seen, holo: &Counts, ignored: &[&str], own: &[&str]) -> Vec<String> {
    let Seen { counts: kernel, late } = kernel;
    let mut names: Vec<&String> = kernel.keys().chain(holo.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| !ignored.contains(&name.as_str()))
        .filter_map(|name| {
            let (k, h) = (kernel.get(name).copied().unwrap_or(0), holo.get(name).copied().unwrap_or(0));
            let by_the_library = own.contains(&name.as_str()) && k >= h;
            let meanwhile = h > k && h - k <= late.get(name).copied().unwrap_or(0);
            (k != h && !by_the_library && !meanwhile).then(|| format!("{name}: the kernel saw {k}, holo {h}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strace_is_read_by_memory_image() {
        let text = r#"
10 execve("/bin/x", ["x"], 0x0) = 0
10 brk(NULL) = 0x55
10 open("/t/f.start", O_RDONLY) = -1 ENOENT (No such file or directory)
10 read(0, "", 1) = 0
10 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 11
11 write(1, "x", 1 <unfinished ...>
10 wait4(-1,  <unfinished ...>
11 <... write resumed>) = 1
11 open("/t/f.11", O_WRONLY <unfinished ...>
11 <... open resumed>) = 3
11 write(3, "", 0) = 0
11 exit_group(0) = ?
11 +++ exited with 0 +++
10 <... wait4 resumed>NULL, 0, NULL) = 11
10 --- SIGCHLD {si_signo=SIGCHLD} ---
10 open("/t/f.10", O_WRONLY) = 3
10 exit_group(0) = ?
"#;
        let all = from_strace(text, "/t/f");
        let counts =
            |pid: u32| all[&pid].counts.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
        assert_eq!(counts(10), "clone=1 exit_group=1 read=1 wait4=1");
        assert_eq!(counts(11), "clone=1 exit_group=1 read=1 write=1");
    }

    #[test]
    fn a_vfork_child_counts_for_its_parent_until_exec() {
        let text = "7 open(\"/f.start\", 0) = -1 ENOENT (x)\n7 vfork( <unfinished ...>\n8 dup2(1, 2) = 2\n\
                    8 execve(\"/a\", [], 0) = 0\n8 read(0, 0, 0) = 0\n7 <... vfork resumed>) = 8\n\
                    7 open(\"/f.7\", 0) = 3\n";
        let all = from_strace(text, "/f");
        assert_eq!((all[&7].counts.get("vfork"), all[&7].counts.get("dup2")), (Some(&1), Some(&1)));
        assert_eq!(all[&7].counts.get("read"), None);
    }
}
