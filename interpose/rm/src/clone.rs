//! A clone: a process made by the restorer and filled from an image, until it is the application again.
//!
//! ```text
//! body:     processes, empty                                  \
//! warm:     their private memory, kept as of the last epoch    > while the application runs elsewhere
//! complete: pre_switch -> switch -> post_switch (all kinds each, POST in reverse)
//! run:      every thread returns into its frame
//! ```
//!
//! Until `run` the clone runs no code of the application; if anything fails it is killed and nothing is lost.

mod body;
mod credentials;
mod late;
mod run;
mod warm;

pub use late::Late;
pub use warm::Warm;

use crate::kinds::memory;
use crate::kinds::process::ProcessState;
use crate::kinds::stops::stop_all;
use crate::manager::{Context, ResourceManager, RmError, RmResult, SwitchCx};
use crate::page::Page;
use crate::registry::Registry;
use crate::remote::Remote;
use crate::stopped::Stopped;
use body::{Body, Clone, Image};
use holo_abi::control::cut;
use holo_abi::sysno;
use holo_image::{Blob, EpochReader};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const TICKS_RUNNING: u32 = 20;

/// What a restore needs besides the image.
pub struct Order<'a> {
    /// `holo-restorer`.
    pub restorer: &'a Path,
    /// Contents staged by kinds.
    pub blobs: &'a BTreeMap<String, Blob>,
    /// See [`SwitchCx::stdio`].
    pub stdio: &'a [OwnedFd],
    /// See [`SwitchCx::output`].
    pub output: &'a Path,
    /// Where the files of control pages are to be, so that a later agent finds them: this, and `.<number>`.
    pub page_path: &'a Path,
    /// Pages may come while it runs already.
    pub may_run_early: bool,
}

/// Where the file of a control page is.
#[must_use]
pub fn page_path(order: &Path, number: usize) -> PathBuf {
    let mut path = order.as_os_str().to_owned();
    path.push(format!(".{number}"));
    path.into()
}

/// A process of a running application again.
#[derive(Clone)]
pub struct Restored {
    /// Its control page.
    pub page: Arc<Page>,
    /// File of it.
    pub page_path: PathBuf,
    /// Its pid on this node.
    pub pid: i32,
    /// Its pid as it sees itself.
    pub inner: i32,
}

/// A running application again.
pub struct Running {
    /// Its processes, the one that stands for it first.
    pub processes: Vec<Restored>,
    /// The keeper: ends as the application ends.
    pub keeper: Child,
    /// Pid on this node of the init of its namespace, which has all orphans as children.
    pub init: i32,
    /// When its first thread ran application code.
    pub first_instruction: Instant,
    /// What could not be kept.
    pub remarks: Vec<String>,
    /// Memory that is still to come.
    pub late: Option<Late>,
}

/// A complete clone that has not run yet. Dropping it kills it.
pub struct Prepared {
    remotes: Vec<Remote>,
    slots: Vec<Vec<usize>>,
    pages: Vec<Arc<Page>>,
    page_path: PathBuf,
    stopped: Vec<Stopped>,
    clone: Clone,
    image: Image,
    remarks: Vec<String>,
    late: Option<Late>,
}

/// Makes the application from `image`, up to the last step.
///
/// # Errors
/// Nothing is left then, and the image is as it was.
pub fn prepare(image: &Arc<EpochReader>, order: &Order, registry: &mut Registry) -> RmResult<Prepared> {
    let mut body = Body::make(Image::read(image)?, order.restorer, order.page_path)?;
    let late = if order.may_run_early { Some(body.late(image)?) } else { None };
    complete(body, image, order, registry, late)
}

#[derive(Clone, Copy)]
enum Phase {
    Pre,
    Main,
    Post,
    Abort,
}

/// What the phases work on and leave.
struct Work<'a> {
    body: &'a mut Body,
    image: &'a EpochReader,
    order: &'a Order<'a>,
    slots: Vec<Vec<usize>>,
    remarks: Vec<String>,
    late: Option<Late>,
}

impl<'a> Work<'a> {
    fn new(body: &'a mut Body, image: &'a EpochReader, order: &'a Order<'a>) -> Self {
        let slots = body.remotes.iter().map(|remote| vec![remote.leader]).collect();
        Self { body, image, order, slots, remarks: Vec::new(), late: None }
    }

    fn run(&mut self, phase: Phase, registry: &mut Registry) -> RmResult<()> {
        let Self { body, image, order, slots, remarks, late } = self;
        let Body { told, pages, remotes, ours, channel_fd, terminals, laid, .. } = &mut **body;
        let pids = told.pids();
        let mut step = |manager: &mut dyn ResourceManager, index: usize| {
            pages.iter().for_each(|page| page.keep_alive());
            let mut cx = SwitchCx {
                remote: &remotes[index],
                slots: &mut slots[index],
                laid: &mut laid[index],
                late: late.as_mut(),
                tree: remotes,
                index,
                image,
                blobs: order.blobs,
                remarks,
                channel: ours,
                channel_fd: *channel_fd,
                terminals,
                stdio: order.stdio,
                output: order.output,
                monotonic_offset_ns: 0,
            };
            match phase {
                Phase::Pre => manager.pre_switch(&mut cx),
                Phase::Main => manager.switch(&mut cx),
                Phase::Post => manager.post_switch(&mut cx),
                Phase::Abort => {
                    manager.abort_switch(&mut cx);
                    Ok(())
                }
            }
        };
        match phase {
            Phase::Pre | Phase::Main => registry.each(&pids, &mut step),
            Phase::Post | Phase::Abort => registry.each_reversed(&pids, &mut step),
        }
    }
}

/// Gives a body all that it has not yet.
fn complete(
    mut body: Body,
    image: &EpochReader,
    order: &Order,
    registry: &mut Registry,
    late: Option<Late>,
) -> RmResult<Prepared> {
    let stopped = stop_all(&body.told.stops, &body.told.pids(), &body.told.parents(), &body.remotes);
    let stopped = stopped.map_err(|cause| body.clone.obituary(cause))?;
    let mut work = Work::new(&mut body, image, order);
    work.late = late;
    let made = work
        .run(Phase::Pre, registry)
        .and_then(|()| work.run(Phase::Main, registry))
        .and_then(|()| work.run(Phase::Post, registry));
    if let Err(cause) = made {
        let _ = work.run(Phase::Abort, registry);
        // What killed it is the cause of all else.
        let damage = work.late.and_then(|late| late.damage());
        return Err(damage.map_or(cause, |what| RmError::BadSection { kind: memory::NAME, what }));
    }
    let (slots, mut remarks, mut late) = (work.slots, work.remarks, work.late);
    if let Some(late) = &mut late {
        late.keep(body.vault_fd())?;
    }
    late = late.filter(|late| !late.is_empty());
    remarks.splice(0..0, std::mem::take(&mut body.remarks));
    for remote in &body.remotes {
        remote
            .call(sysno::close_range, &[(body.channel_fd - 1) as u64, u64::from(u32::MAX), 0])
            .on("closing", "the channel")?;
    }
    let Body { told, pages, remotes, page_path, clone, .. } = body;
    for (branch, state) in told.tree.processes.iter().zip(&told.states) {
        hand_over(&pages[branch.page as usize], state, told.tree.pages[branch.page as usize]);
    }
    Ok(Prepared { remotes, slots, pages, page_path, stopped, clone, image: told, remarks, late })
}

/// The page becomes that of a running process, which `joined` with it.
fn hand_over(page: &Page, state: &ProcessState, joined: i32) {
    let header = page.header();
    // SAFETY: the clone only serves; nobody reads these words meanwhile.
    unsafe {
        (*header).pid = joined as u32;
        (*header).serve_at = state.holo[0];
        (*header).serve_start = state.holo[0];
        (*header).holo_start = state.holo[1];
        (*header).holo_end = state.holo[2];
    }
    let control = &page.control().header;
    control.ways.store(state.ways, Ordering::SeqCst);
    control.cut.store(cut::word(0, cut::RUN), Ordering::SeqCst);
}
