//! Memory functions that compiled code expects: there is no libc here.

holo_sys::memory_functions!();
