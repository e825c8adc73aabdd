//! A hot clone: the processes of the application with their private memory, kept as of the last epoch while it runs elsewhere.
//!
//! What cannot exist twice, or not before the application runs here, is made when it is completed: descriptors, shared memory,
//! signals, timers, threads.

use super::body::{Body, Image};
use super::{Order, Phase, Prepared, Work, complete};
use crate::kinds::laid::{APART, Laid, zones_of};
use crate::kinds::memory::{self, MemoryState};
use crate::manager::{RmError, RmResult, SPACES, section_of};
use crate::registry::Registry;
use holo_image::EpochReader;
use std::path::PathBuf;
use std::sync::Arc;

/// A hot clone. Dropping it kills it.
pub struct Warm {
    body: Body,
    /// Files below these come with the epoch: what maps them is made last.
    roots: Vec<PathBuf>,
}

impl Warm {
    /// Makes one from `image`, and checks what a restore of it would check.
    ///
    /// # Errors
    /// Why it cannot be restored here, or not be kept.
    pub fn make(
        image: &Arc<EpochReader>,
        order: &Order,
        registry: &mut Registry,
        roots: Vec<PathBuf>,
    ) -> RmResult<Self> {
        let told = Image::read(image)?;
        if !told.terminals.ptys.is_empty() {
            return Err(RmError::Unsupported("it has pseudo-terminals, which are made at the switch".into()));
        }
        if let Some(state) = told.states.iter().find(|state| state.personality != 0) {
            return Err(RmError::Unsupported(format!("process {} has a personality", state.pid)));
        }
        let body = Body::make(told, order.restorer, order.page_path)?;
        let mut warm = Self { body, roots };
        warm.lay(image, order, registry)?;
        Ok(warm)
    }

    /// Brings it to a later epoch.
    ///
    /// # Errors
    /// It must be made anew: the application has another shape.
    pub fn update(
        &mut self,
        image: &Arc<EpochReader>,
        order: &Order,
        registry: &mut Registry,
    ) -> RmResult<()> {
        let told = Image::read(image)?;
        if let Some(why) = self.body.differs(&told) {
            return Err(RmError::Unsupported(why.into()));
        }
        self.body.told = told;
        self.lay(image, order, registry)
    }

    fn lay(&mut self, image: &Arc<EpochReader>, order: &Order, registry: &mut Registry) -> RmResult<()> {
        let mut work = Work::new(&mut self.body, image, order);
        work.run(Phase::Pre, registry)?;
        let Body { remotes, laid, pages, remarks, .. } = &mut self.body;
        for (index, (remote, laid)) in remotes.iter().zip(laid).enumerate() {
            pages.iter().for_each(|page| page.keep_alive());
            let state: MemoryState = section_of(image, memory::NAME, index, memory::VERSION)?;
            let laid = match laid {
                Some(laid) => laid,
                None => laid.insert(Laid::begin(remote, &state, remarks)?),
            };
            laid.update(remote, image, index as u64 * SPACES, &state, &self.roots)?;
            if !laid.is_whole(&zones_of(remote)?) {
                return Err(RmError::Unsupported(APART.into()));
            }
            laid.is_as_of(image);
        }
        Ok(())
    }

    /// Pages that were written to it since it was made.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.body.laid.iter().flatten().map(Laid::pages).sum()
    }

    /// The clone waits for us; to be called at least every few seconds.
    pub fn keep_alive(&self) {
        self.body.pages.iter().for_each(|page| page.keep_alive());
    }

    /// Brings it to `image` and makes the rest, up to the last step.
    ///
    /// # Errors
    /// Nothing is left then, and the image is as it was.
    pub fn complete(
        mut self,
        image: &Arc<EpochReader>,
        order: &Order,
        registry: &mut Registry,
    ) -> RmResult<Prepared> {
        let told = Image::read(image)?;
        if let Some(why) = self.body.differs(&told) {
            return Err(RmError::Unsupported(why.into()));
        }
        self.body.told = told;
        complete(self.body, image, order, registry, None)
    }
}
