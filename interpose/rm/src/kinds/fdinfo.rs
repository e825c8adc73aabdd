//! `/proc/<pid>/fdinfo/<number>`: `name:<tab>value` lines, the rest depends on the kind.

use crate::manager::{Context, RmResult};
use crate::remote::Remote;

/// What the kernel says of a descriptor.
#[derive(Clone, Debug, Default)]
pub(crate) struct FdInfo {
    /// Offset.
    pub(crate) pos: i64,
    /// Status flags, and `O_CLOEXEC` of this very number.
    pub(crate) flags: i32,
    text: String,
}

impl FdInfo {
    /// Of descriptor `fd` of a process.
    pub(crate) fn read(remote: &Remote, fd: i32) -> RmResult<Self> {
        let text = remote.proc_text(&format!("fdinfo/{fd}")).on("reading fdinfo of descriptor", fd)?;
        Ok(Self::parse(text))
    }

    /// Of a socket, which has neither a position nor anything of its own.
    pub(crate) fn of_socket(flags: i32) -> Self {
        Self { flags, ..Self::default() }
    }

    pub(crate) fn parse(text: String) -> Self {
        let mut info = Self { text, ..Self::default() };
        info.pos = info.number("pos:", 10).unwrap_or(0) as i64;
        info.flags = info.number("flags:", 8).unwrap_or(0) as i32;
        info
    }

    /// Value of the first line with this name (with its colon).
    pub(crate) fn field<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.lines(name).next()
    }

    /// Values of all lines with this name.
    pub(crate) fn lines<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.text.lines().filter_map(move |line| line.trim_start().strip_prefix(name).map(str::trim))
    }

    /// A number.
    pub(crate) fn number(&self, name: &str, radix: u32) -> Option<u64> {
        u64::from_str_radix(self.field(name)?.split_whitespace().next()?, radix).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::FdInfo;

    // Goal: the kernel's own layouts are read. Method: lines as Linux 6.18 prints them.
    #[test]
    fn kernel_text() {
        let text = "pos:\t7\nflags:\t02000002\nmnt_id:\t17\nino:\t1\nclockid: 1\nticks: 3\nsettime flags: 01\n\
                    it_value: (0, 49406829)\nit_interval: (1, 0)\n";
        let info = FdInfo::parse(text.into());
        assert_eq!((info.pos, info.flags), (7, libc::O_CLOEXEC | libc::O_RDWR));
        assert_eq!(info.number("ticks:", 10), Some(3));
        assert_eq!(info.number("settime flags:", 8), Some(1));
        assert_eq!(info.field("sigmask:"), None);
    }
}
