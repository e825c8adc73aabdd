//! Whether a process has children that there is something to tell of: asked with all else at the beginning of a stop.

use crate::asks::{Asked, Asking};
use crate::remote::{Remote, call};
use holo_abi::sysno;
use std::sync::OnceLock;

const P_ALL: u64 = 0;
const INFO_BYTES: usize = 128;
const ANY: i32 =
    libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;

/// What was asked of a process.
#[derive(Default)]
pub(crate) struct Family(OnceLock<Option<Asked>>);

impl Remote {
    /// Asks for its children, in the list that it makes at the beginning of a stop.
    pub fn ask_for_children(&self, asking: &mut Asking) {
        let asked = asking.add(INFO_BYTES, |at| vec![call(sysno::waitid, &[P_ALL, 0, at, ANY as u64, 0])]);
        let _ = self.family.0.set(asked);
    }

    /// Whether a child of its may have ended, stopped or gone on without its having been told. Also where that is not known.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let Some(Some(asked)) = self.family.0.get() else { return true };
        let Ok((calls, info)) = self.answers().and_then(|answers| answers.of(asked)) else { return true };
        // Its number is zero where there is nothing to tell.
        match calls.first().map(|call| call.ret) {
            Some(0) => info[..4] != [0; 4],
            Some(ret) => ret != -i64::from(libc::ECHILD),
            None => true,
        }
    }
}
