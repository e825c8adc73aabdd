//! What programs ask the kernel for once, and what it keeps of a process from then on: barriers between threads (`membarrier`),
//! states of the processor that are permitted on demand, the NUMA policy, what a core dump has, who goes first when memory runs out.

use super::kernel::bytes_of;
use crate::manager::{Context, RmError, RmResult};
use crate::remote::{Remote, call, outcome};
use holo_abi::control::Call;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::io;

/// `MEMBARRIER_CMD_GET_REGISTRATIONS`; each of the bits that it gives is the command that registers.
const REGISTRATIONS: u64 = 512;
/// All that can be registered on a kernel that does not tell (before Linux 6.3): a barrier that a process was not registered for fails.
const ANY_REGISTRATION: u64 = 4 | 16 | 64 | 256;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// States that a program must ask for (`asm/prctl.h`): tiles of AMX.
const ON_DEMAND: &[u64] = &[18];
/// Words of a mask of NUMA nodes: the kernel knows at most 1,024.
const NODE_WORDS: usize = 16;
/// Bits of such a mask, by the kernel's way to count them.
const NODE_BITS: u64 = NODE_WORDS as u64 * 64 + 1;
/// Where in what the calls write the policy and the local descriptor table are.
const MODE_AT: usize = 8;
const NODES_AT: usize = 16;
const TABLE_AT: usize = NODES_AT + NODE_WORDS * 8;

/// Bytes that [`calls`] write.
pub(crate) const BYTES: usize = TABLE_AT + 8;

/// Settings of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Registrations for `membarrier`, by the bits of their commands.
    membarrier: u64,
    /// States of the processor that are permitted, by number of bit.
    permitted: u64,
    /// NUMA policy of the first thread, with flags, and its nodes.
    policy: (u32, Vec<u64>),
    /// Files of `/proc`.
    files: Files,
}

/// Settings that are files of `/proc`, as they are read there; empty if they are not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Files {
    core: String,
    out_of_memory: String,
}

impl Files {
    /// Those of a process.
    pub(crate) fn of(remote: &Remote) -> Self {
        let read = |name| remote.proc_text(name).unwrap_or_default().trim().to_owned();
        Self { core: read("coredump_filter"), out_of_memory: read("oom_score_adj") }
    }

    /// Why one of them could not be set.
    fn set(&self, remote: &Remote) -> Option<io::Error> {
        let now = Self::of(remote);
        let write = |name: &str, text: &str| std::fs::write(remote.proc(name), text).err();
        // What is read without a prefix is hexadecimal.
        let core = (self.core != now.core).then(|| write("coredump_filter", &format!("0x{}", self.core)));
        let memory = (self.out_of_memory != now.out_of_memory && !self.out_of_memory.is_empty())
            .then(|| write("oom_score_adj", &self.out_of_memory));
        memory.flatten().or(core.flatten())
    }
}

/// Calls that tell the settings of a process, which write at `at`.
pub(crate) fn calls(at: u64) -> Vec<Call> {
    vec![
        call(sysno::membarrier, &[REGISTRATIONS, 0, 0]),
        call(sysno::arch_prctl, &[ARCH_GET_XCOMP_PERM, at]),
        call(sysno::get_mempolicy, &[at + MODE_AT as u64, at + NODES_AT as u64, NODE_BITS, 0, 0]),
        call(sysno::modify_ldt, &[0, at + TABLE_AT as u64, 8]),
    ]
}

impl Settings {
    /// What the calls gave; kernels, and filters of containers, that do not know a call have nothing to tell.
    pub(crate) fn of(pid: i32, made: &[Call], bytes: &[u8], files: Files) -> RmResult<Self> {
        let word = |at: usize| {
            bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        let given = |index: usize| made.get(index).and_then(|made| outcome(made).ok());
        if given(3).is_some_and(|bytes| bytes > 0) {
            let what = format!("process {pid} has a local descriptor table (modify_ldt)");
            return Err(RmError::Unsupported(what));
        }
        let nodes = (0..NODE_WORDS).map(|index| word(NODES_AT + index * 8)).collect();
        let untold = |cause: &io::Error| cause.raw_os_error() == Some(libc::EINVAL);
        let membarrier = match made.first().map(outcome) {
            Some(Ok(registered)) => registered,
            Some(Err(cause)) if untold(&cause) => ANY_REGISTRATION,
            Some(Err(_)) | None => 0,
        };
        Ok(Self {
            membarrier,
            permitted: given(1).map_or(0, |_| word(0)),
            policy: given(2).map_or((0, Vec::new()), |_| (word(MODE_AT) as u32, nodes)),
            files,
        })
    }

    /// What threads and memory that are made later inherit; what this node has not is remarked.
    pub(crate) fn begin(&self, remote: &Remote, remarks: &mut Vec<String>) -> RmResult<()> {
        for state in ON_DEMAND.iter().filter(|state| self.permitted & 1 << **state != 0) {
            remote
                .call(sysno::arch_prctl, &[ARCH_REQ_XCOMP_PERM, *state])
                .on("asking for", format!("state {state} of the processor"))?;
        }
        let (mode, nodes) = &self.policy;
        if *mode != 0 {
            let mut nodes = nodes.clone();
            nodes.resize(NODE_WORDS, 0);
            let words: [u64; NODE_WORDS] = nodes.try_into().unwrap_or_default();
            let at = remote.page.put(0, bytes_of(&words));
            let set = remote.call(sysno::set_mempolicy, &[u64::from(*mode), at, NODE_BITS]);
            if let Err(cause) = set {
                remarks.push(format!("the NUMA policy is this node's: {cause}"));
            }
        }
        Ok(())
    }

    /// What belongs to the process when its memory is there.
    pub(crate) fn end(&self, remote: &Remote, remarks: &mut Vec<String>) -> RmResult<()> {
        for bit in (0..32).filter(|bit| self.membarrier & 1 << bit != 0) {
            remote
                .call(sysno::membarrier, &[1 << bit, 0, 0])
                .on("registering for", format!("barriers of threads ({bit})"))?;
        }
        if let Some(cause) = self.files.set(remote) {
            remarks.push(format!("core dump filter or order of ends without memory: {cause}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::testing::TestClone;

    fn asked(remote: &Remote) -> RmResult<Settings> {
        let mut list = calls(remote.page.scratch_address(0));
        remote.run(&mut list, false).unwrap();
        Settings::of(remote.pid, &list, &remote.page.take(0, BYTES), Files::of(remote))
    }

    // Goal: settings of one process are those of another one afterwards. Method: set them in a process, read, set, read again.
    #[test]
    fn carried() {
        let (one, other) = (TestClone::new(), TestClone::new());
        for command in [4, 16, 64] {
            one.remote.call(sysno::membarrier, &[command, 0, 0]).unwrap();
        }
        std::fs::write(one.remote.proc("coredump_filter"), "0x13").unwrap();
        std::fs::write(one.remote.proc("oom_score_adj"), "77").unwrap();
        let mask = one.remote.page.put(4096, bytes_of(&[1u64; 1]));
        let policy = one.remote.call(sysno::set_mempolicy, &[2, mask, 64]).is_ok();
        let settings = asked(&one.remote).unwrap();
        assert_eq!(settings.files, Files { core: "00000013".into(), out_of_memory: "77".into() });
        assert_eq!(settings.policy.0, if policy { 2 } else { 0 });
        assert_ne!(asked(&other.remote).unwrap(), settings);
        let mut remarks = Vec::new();
        settings.begin(&other.remote, &mut remarks).unwrap();
        settings.end(&other.remote, &mut remarks).unwrap();
        assert_eq!(asked(&other.remote).unwrap(), settings);
        assert!(remarks.is_empty(), "{remarks:?}");
    }

    // Goal: a kernel that does not tell of registrations gets all of them, one that has no barriers none. Method: answers as of such.
    #[test]
    fn registrations_that_nobody_tells() {
        let with = |error: i32| {
            let mut list = calls(0);
            list[0].ret = i64::from(-error);
            Settings::of(7, &list, &[0; BYTES], Files::default()).unwrap().membarrier
        };
        assert_eq!(with(libc::EINVAL), ANY_REGISTRATION);
        assert_eq!(with(libc::ENOSYS), 0);
        let clone = TestClone::new();
        let settings = Settings { membarrier: ANY_REGISTRATION, ..asked(&clone.remote).unwrap() };
        settings.end(&clone.remote, &mut Vec::new()).unwrap();
        // PRIVATE_EXPEDITED
        clone.remote.call(sysno::membarrier, &[8, 0, 0]).unwrap();
    }

    // Goal: a process with a table of its own is refused. Method: answers as of such a one.
    #[test]
    fn a_table_of_its_own() {
        let mut list = calls(0);
        list[3].ret = 8;
        let refused = Settings::of(7, &list, &[0; BYTES], Files::default()).unwrap_err();
        assert!(refused.to_string().contains("local descriptor table"), "{refused}");
    }
}
