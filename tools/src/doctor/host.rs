//! Kernel version, ptrace policy, limits.

use std::fs;

use super::{Probe, Status};

const GROUP: &str = "host";

pub(super) fn probes() -> Vec<Probe> {
    vec![kernel(), yama(), map_count()]
}

fn kernel() -> Probe {
    let means = "6.7 has the fast dirty-page tracker; older kernels track with slower fallbacks";
    let uname = nix::sys::utsname::uname();
    let release =
        uname.as_ref().map_or_else(|_| String::new(), |u| u.release().to_string_lossy().into_owned());
    let machine = uname.map_or_else(|_| String::new(), |u| u.machine().to_string_lossy().into_owned());
    let probe = Probe::ok(GROUP, "kernel", means, format!("Linux {release} on {machine}")).needed();
    if machine != "x86_64" {
        return probe.bad(Status::Missing, "holo runs on x86-64 only");
    }
    match version(&release) {
        Some(v) if v >= (6, 7) => probe,
        // clone3 set_tid in a user namespace, close_range, time namespaces: all there since 5.11.
        Some(v) if v >= (5, 11) => probe.bad(Status::Degraded, "run a kernel of 6.7 or later"),
        Some(_) | None => probe.bad(Status::Missing, "run a kernel of 5.11 or later, best 6.7 or later"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn yama() -> Probe {
    let means = "the agent reads and writes the application's memory from outside";
    let text = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let Ok(text) = text else {
        return Probe::ok(
            GROUP,
            "ptrace_scope",
            means,
            "no Yama: processes of one user may read one another",
        )
        .needed();
    };
    let probe = Probe::ok(GROUP, "ptrace_scope", means, format!("ptrace_scope is {}", text.trim())).needed();
    match text.trim() {
        "0" => probe,
        // The library names the agent with PR_SET_PTRACER.
        "1" => probe,
        "2" if nix::unistd::geteuid().is_root() => probe,
        _ => probe.bad(Status::Missing, "set kernel.yama.ptrace_scope to 0 or 1 with sysctl"),
    }
}

fn map_count() -> Probe {
    let means = "an application with very many mappings needs as many again in its clone";
    let count = fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match count {
        Some(count) if count >= 65_530 => {
            Probe::ok(GROUP, "max_map_count", means, format!("{count} mappings"))
        }
        Some(count) => Probe::ok(GROUP, "max_map_count", means, format!("{count} mappings"))
            .bad(Status::Degraded, "raise vm.max_map_count to 65530 or more with sysctl"),
        None => {
            Probe::ok(GROUP, "max_map_count", means, "cannot be read").bad(Status::Degraded, "mount /proc")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("x"), None);
    }
}
