//! Runs a probe in a forked child, so that what it changes ends with it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Longest run of a child; one that hangs is killed and reported.
const RUN_MAX: Duration = Duration::from_secs(5);

/// Runs `probe` in a child and returns the figures that it reports. `Err` says why there are none.
///
/// This process has one thread, so the child may do what it likes, but it reports through `report` only.
pub(super) fn run<const N: usize>(probe: impl FnOnce() -> [i64; N]) -> Result<[i64; N], String> {
    let (reader, writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))?;
    // SAFETY: one thread, so the child's heap and locks are sound; it ends in `_exit`.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(format!("fork: {}", std::io::Error::last_os_error()));
    }
    if pid == 0 {
        // SAFETY: no memory; a probe that hangs must not outlive the one who waits for it.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
        report(&writer, &probe());
    }
    drop(writer);
    let result = receive(reader);
    // SAFETY: our own child, not reaped yet; the status is not wanted.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    result
}

/// In a child: sends the figures and ends.
fn report(writer: &OwnedFd, figures: &[i64]) -> ! {
    let bytes: Vec<u8> = figures.iter().flat_map(|figure| figure.to_ne_bytes()).collect();
    // SAFETY: the buffer is alive; a pipe takes this little in one piece.
    unsafe {
        libc::write(writer.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
        libc::_exit(0)
    }
}

fn receive<const N: usize>(reader: OwnedFd) -> Result<[i64; N], String> {
    let deadline = Instant::now() + RUN_MAX;
    let mut file = File::from(reader);
    let mut bytes = vec![0; 8 * N];
    let mut filled = 0;
    while filled < bytes.len() {
        let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis();
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&mut poll, 1, i32::try_from(left_ms).unwrap_or(0)) };
        if ready == 0 {
            return Err(format!("the probe hung for {} s", RUN_MAX.as_secs()));
        }
        match file.read(&mut bytes[filled..]) {
            Ok(0) => return Err("the probe's process was killed".to_owned()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("the probe's pipe: {e}")),
        }
    }
    let mut figures = [0; N];
    for (figure, chunk) in figures.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        *figure = i64::from_ne_bytes(word);
    }
    Ok(figures)
}

/// Runs `probe` while a child of ours, a copy of this process, sleeps.
pub(super) fn beside<T>(probe: impl FnOnce(libc::pid_t) -> T) -> Result<T, String> {
    // SAFETY: the child makes system calls only.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(format!("fork: {}", std::io::Error::last_os_error()));
    }
    if pid == 0 {
        // SAFETY: calls without memory; the child never returns into this program, nor outlives it.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            loop {
                libc::pause();
            }
        }
    }
    let result = probe(pid);
    // SAFETY: our own child, not reaped yet; the status is not wanted.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    Ok(result)
}

/// 0, or the `errno` of the call that just returned -1.
pub(super) fn errno(result: i64) -> i64 {
    if result >= 0 {
        0
    } else {
        i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

/// A descriptor from a call.
pub(super) fn owned(fd: i64) -> Result<OwnedFd, i32> {
    let error = errno(fd);
    match i32::try_from(fd) {
        // SAFETY: the caller just got it from the kernel and gives it away.
        Ok(fd) if error == 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(i32::try_from(error).unwrap_or(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_arrive_and_death_is_told() {
        assert_eq!(run(|| [1, -2, i64::MAX]), Ok([1, -2, i64::MAX]));
        // SAFETY: ends the child without handlers.
        let died = run::<1>(|| unsafe { libc::_exit(3) });
        assert!(died.is_err_and(|why| why.contains("killed")));
    }
}
