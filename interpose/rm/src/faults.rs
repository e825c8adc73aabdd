//! Failures made on purpose, so that tests can see what a kind that fails in some phase leaves behind.
//!
//! The agent wraps every kind if `HOLO_FAULTS` names a file when it starts. While the file says `KIND PHASE before`, or `after`,
//! that phase of that kind fails: before it has done anything, or when it has done all. Of kinds that are one for each process the
//! last process's fails, when the others are done. Behind `before` or `after` may stand `kill`: then the agent dies of it, as by `kill -9`.

use crate::asks::Asking;
use crate::manager::{DumpCx, ResourceManager, RmError, RmResult, SwitchCx};
use crate::remote::Remote;
use std::path::Path;
use std::sync::Arc;

/// A kind that fails when it is told to.
pub struct Faulty {
    inner: Box<dyn ResourceManager>,
    /// Says what is to fail.
    orders: Arc<Path>,
    /// One for each process.
    each: bool,
}

impl Faulty {
    /// Wraps a kind, of which there is one for `each` process or one for all.
    #[must_use]
    pub fn new(inner: Box<dyn ResourceManager>, orders: Arc<Path>, each: bool) -> Self {
        Self { inner, orders, each }
    }

    fn fail(&self, phase: &str, when: &str, last: bool) -> RmResult<()> {
        let order = std::fs::read_to_string(&self.orders).unwrap_or_default();
        let own = format!("{} {phase} {when}", self.inner.name());
        let how = order.trim().strip_prefix(&own);
        if how == Some(" kill") && (last || !self.each) {
            // SAFETY: no memory is passed.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            // It comes at the end of the call.
            std::process::abort();
        }
        if how == Some("") && (last || !self.each) {
            return Err(RmError::Kernel {
                operation: "failing by order in",
                object: own,
                source: std::io::Error::from_raw_os_error(libc::EIO),
            });
        }
        Ok(())
    }

    fn dumping(
        &mut self,
        phase: &str,
        cx: &mut DumpCx,
        act: fn(&mut dyn ResourceManager, &mut DumpCx) -> RmResult<()>,
    ) -> RmResult<()> {
        let last = cx.index + 1 == cx.processes.len();
        self.fail(phase, "before", last)?;
        act(self.inner.as_mut(), cx)?;
        self.fail(phase, "after", last)
    }

    fn switching(
        &mut self,
        phase: &str,
        cx: &mut SwitchCx,
        act: fn(&mut dyn ResourceManager, &mut SwitchCx) -> RmResult<()>,
    ) -> RmResult<()> {
        let last = cx.index + 1 == cx.tree.len();
        self.fail(phase, "before", last)?;
        act(self.inner.as_mut(), cx)?;
        self.fail(phase, "after", last)
    }
}

impl ResourceManager for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn wants_mark(&self) -> bool {
        self.inner.wants_mark()
    }

    fn mark(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.inner.mark(cx)
    }

    fn pre_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.dumping("pre_dump", cx, |inner, cx| inner.pre_dump(cx))
    }

    fn watch(&mut self, cx: &mut DumpCx) -> RmResult<bool> {
        let last = cx.index + 1 == cx.processes.len();
        self.fail("watch", "before", last)?;
        let is_wanted = self.inner.watch(cx)?;
        self.fail("watch", "after", last)?;
        Ok(is_wanted)
    }

    fn ahead(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.dumping("ahead", cx, |inner, cx| inner.ahead(cx))
    }

    fn ahead_lost(&mut self) {
        self.inner.ahead_lost();
    }

    fn bytes(&self) -> &[(&'static str, u64)] {
        self.inner.bytes()
    }

    fn ask(&mut self, remote: &Remote, asking: &mut Asking) {
        self.inner.ask(remote, asking);
    }

    fn look(&mut self, remote: &Remote) {
        self.inner.look(remote);
    }

    fn dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.dumping("dump", cx, |inner, cx| inner.dump(cx))
    }

    fn released(&mut self) {
        self.inner.released();
    }

    fn post_dump(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        self.dumping("post_dump", cx, |inner, cx| inner.post_dump(cx))
    }

    fn sealed(&mut self) {
        self.inner.sealed();
    }

    fn engine(&self) -> Option<&'static str> {
        self.inner.engine()
    }

    fn parts_us(&self) -> &[(String, u64)] {
        self.inner.parts_us()
    }

    fn abort_dump(&mut self, cx: &mut DumpCx) {
        self.inner.abort_dump(cx);
    }

    fn pre_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        self.switching("pre_switch", cx, |inner, cx| inner.pre_switch(cx))
    }

    fn switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        self.switching("switch", cx, |inner, cx| inner.switch(cx))
    }

    fn post_switch(&mut self, cx: &mut SwitchCx) -> RmResult<()> {
        self.switching("post_switch", cx, |inner, cx| inner.post_switch(cx))
    }

    fn abort_switch(&mut self, cx: &mut SwitchCx) {
        self.inner.abort_switch(cx);
    }
}
