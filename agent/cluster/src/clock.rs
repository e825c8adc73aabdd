//! The clock of failover.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds that never jump and go on while the machine sleeps (`CLOCK_BOOTTIME`): a lease must not
/// survive a suspended machine.
pub(crate) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
    now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000
}

/// A number that no other run of an agent or application has.
pub(crate) fn random_id() -> u64 {
    let mut bytes = [0; 8];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    filled.expect("the kernel gives random bytes");
    // 0 means "none" in messages.
    u64::from_le_bytes(bytes).max(1)
}
