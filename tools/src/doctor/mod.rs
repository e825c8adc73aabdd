//! `holo doctor`: what this host can do, and why not. Each probe really tries, where it changes something in a child
//! process of its own.

mod agent;
mod calls;
mod child;
mod cpu;
mod host;
mod ipc;
mod memory;
mod namespaces;
mod restore;
mod ways;

use std::fmt;

use serde::Serialize;

use crate::paths::Agent;

/// Result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There, and works.
    Ok,
    /// Something is slower, smaller or needs a fallback.
    Degraded,
    /// Not there.
    Missing,
}

/// One thing that a host offers or not.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Group, for people.
    pub group: &'static str,
    /// Stable name, for scripts.
    pub name: &'static str,
    /// Result.
    pub status: Status,
    /// The main job needs it.
    pub required: bool,
    /// What was found.
    pub why: String,
    /// What it means for holo.
    pub means: &'static str,
    /// What would mend it; empty when nothing needs mending.
    pub mend: &'static str,
}

impl Probe {
    /// A probe that found what it wanted.
    fn ok(group: &'static str, name: &'static str, means: &'static str, why: impl Into<String>) -> Self {
        Self { group, name, status: Status::Ok, required: false, why: why.into(), means, mend: "" }
    }

    /// Something less than that.
    fn bad(self, status: Status, mend: &'static str) -> Self {
        Self { status, mend, ..self }
    }

    /// The main job needs it.
    fn needed(self) -> Self {
        Self { required: true, ..self }
    }

    /// A kernel feature that is there or not.
    fn feature(
        group: &'static str,
        name: &'static str,
        means: &'static str,
        tried: Result<String, String>,
        otherwise: (Status, &'static str),
    ) -> Self {
        match tried {
            Ok(why) => Self::ok(group, name, means, why),
            Err(why) => Self::ok(group, name, means, why).bad(otherwise.0, otherwise.1),
        }
    }
}

/// All probes.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The main job works here: checkpoint, restore, switch.
    pub ok: bool,
    /// Each of them.
    pub probes: Vec<Probe>,
}

/// Runs all probes.
#[must_use]
pub fn examine(agent: &Agent) -> Report {
    let mut probes = host::probes();
    probes.extend(namespaces::probes());
    probes.extend(calls::probes());
    probes.extend(memory::probes());
    probes.extend(restore::probes());
    probes.extend(ipc::probes());
    probes.extend(ways::probes());
    probes.extend(cpu::probes());
    probes.extend(agent::probes(agent));
    Report { ok: main_job_works(&probes), probes }
}

fn main_job_works(probes: &[Probe]) -> bool {
    !probes.iter().any(|probe| probe.required && probe.status == Status::Missing)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.probes.iter().map(|probe| probe.name.len()).max().unwrap_or(0);
        let mut group = "";
        for probe in &self.probes {
            if probe.group != group {
                group = probe.group;
                writeln!(f, "{group}")?;
            }
            let status = match probe.status {
                Status::Ok => "ok",
                Status::Degraded => "degraded",
                Status::Missing => "missing",
            };
            writeln!(f, "  {:width$}  {status:8}  {}", probe.name, crate::human::plain(&probe.why))?;
            if probe.status != Status::Ok {
                writeln!(f, "  {:width$}            means: {}", "", probe.means)?;
                if !probe.mend.is_empty() {
                    writeln!(f, "  {:width$}            mend: {}", "", probe.mend)?;
                }
            }
        }
        let count = |status| self.probes.iter().filter(|probe| probe.status == status).count();
        let verdict = if self.ok {
            "the main job works on this host"
        } else {
            "the main job does NOT work on this host"
        };
        writeln!(
            f,
            "\n{verdict}: {} ok, {} degraded, {} missing",
            count(Status::Ok),
            count(Status::Degraded),
            count(Status::Missing)
        )
    }
}

/// `name: what the kernel said`.
fn refused(what: &str, errno: i32) -> String {
    format!("{what}: {}", std::io::Error::from_raw_os_error(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_required_probes_decide() {
        let probe = || Probe::ok("g", "n", "m", "w");
        assert!(main_job_works(&[
            probe().bad(Status::Missing, ""),
            probe().needed().bad(Status::Degraded, "")
        ]));
        assert!(!main_job_works(&[probe(), probe().needed().bad(Status::Missing, "")]));
    }

    #[test]
    fn text_explains_what_is_not_ok() {
        let probes = vec![Probe::ok("memory", "good", "nothing", "found"), {
            Probe::ok("memory", "bad", "slow", "not found").bad(Status::Degraded, "a newer kernel")
        }];
        let text = Report { ok: true, probes }.to_string();
        assert!(text.contains("good  ok        found"));
        assert!(text.contains("means: slow") && text.contains("mend: a newer kernel"));
        assert!(!text.contains("means: nothing"));
        assert!(text.ends_with("works on this host: 1 ok, 1 degraded, 0 missing\n"));
    }
}
