//! State that the constructor writes, while there is one thread, and that is only read afterwards.

use core::cell::UnsafeCell;

/// Such a state.
pub(crate) struct Early<T>(UnsafeCell<T>);

// SAFETY: written by the constructor only, before there is a second thread.
unsafe impl<T> Sync for Early<T> {}

impl<T> Early<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) fn get(&self) -> &T {
        // SAFETY: nobody writes any more, or this is the constructor itself.
        unsafe { &*self.0.get() }
    }

    /// To write.
    ///
    /// # Safety
    /// In the constructor only; no other reference is alive.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get_mut(&self) -> &mut T {
        // SAFETY: the caller's word.
        unsafe { &mut *self.0.get() }
    }
}
