//! Reads a file of `/proc` in few calls: such a file says nothing of its length, and is made anew by each call.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// More than most have.
const ROOM_BYTES: usize = 16 << 10;

/// All of a file.
///
/// # Errors
/// The kernel's.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut out = vec![0; ROOM_BYTES];
    let mut filled = 0;
    loop {
        match file.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
        if filled == out.len() {
            out.resize(filled * 2, 0);
        }
    }
    out.truncate(filled);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: all of a file comes, whatever its length. Method: files shorter, as long as and longer than the first room.
    #[test]
    fn whole_files() {
        let path = std::env::temp_dir().join(format!("holo-proc-file-{}", std::process::id()));
        for bytes in [0, 1, ROOM_BYTES - 1, ROOM_BYTES, ROOM_BYTES + 1, 5 * ROOM_BYTES + 7] {
            let content: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
            std::fs::write(&path, &content).unwrap();
            assert!(read(&path).unwrap() == content, "{bytes} bytes");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).is_err());
    }
}
