//! Images: the wire module, the page store, epochs on disk.
