//! How epochs find the pages that changed. Looking at all pages works everywhere.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::child::{self, errno, owned};
use super::{Probe, Status, refused};

const GROUP: &str = "memory";
const PAGE_BYTES: usize = 4096;
const PAGES: usize = 4;
/// The page that the probes dirty.
const DIRTY: usize = 2;
/// A tracker that reports other pages than the one written.
const WRONG: i64 = -1;

pub(super) fn probes() -> Vec<Probe> {
    let (uffd, query, soft) = (tried(uffd_wp_async), tried(procmap_query), tried(soft_dirty));
    let engine = engine(&uffd, &query, &soft);
    let uffd = Probe::feature(
        GROUP,
        "uffd_wp_async",
        "changed pages are found by userfaultfd and PAGEMAP_SCAN",
        uffd,
        (Status::Degraded, "a kernel of 6.7 or later; allow userfaultfd in the container's seccomp profile"),
    );
    let query = Probe::feature(
        GROUP,
        "procmap_query",
        "an mremap over memory that such an epoch divided is made part by part",
        query,
        (Status::Degraded, "a kernel of 6.11 or later"),
    );
    let soft = Probe::feature(
        GROUP,
        "soft_dirty",
        "changed pages are found by soft-dirty bits where userfaultfd does not do",
        soft,
        (Status::Missing, ""),
    );
    vec![engine, uffd, query, soft]
}

/// What an agent with this environment uses: the rule is that of `holod --engine`.
fn engine(
    uffd: &Result<String, String>,
    query: &Result<String, String>,
    soft: &Result<String, String>,
) -> Probe {
    const REMEDY: &str = "a kernel of 6.11 or later, with userfaultfd allowed";
    const MEANS: &str = "how epochs find the pages that changed; holod --engine forces one";
    let forced = std::env::var("HOLO_ENGINE").ok().filter(|name| !name.is_empty() && name != "auto");
    let lacks = uffd.as_ref().err().or(query.as_ref().err());
    let probe = Probe::ok(GROUP, "engine", MEANS, "userfaultfd: only pages that changed are read");
    match (forced, lacks) {
        (Some(name), _) => Probe { why: format!("{name}: HOLO_ENGINE says so"), ..probe },
        (None, None) => probe,
        (None, Some(why)) if soft.is_ok() => {
            let why = format!(
                "soft-dirty: only pages that changed are read, but all page tables in each stop, and none ahead of it ({why})"
            );
            Probe { why, ..probe }.bad(Status::Degraded, REMEDY)
        }
        (None, Some(why)) => {
            Probe { why: format!("full-scan: all pages are read in every epoch ({why})"), ..probe }
                .bad(Status::Degraded, REMEDY)
        }
    }
}

fn tried(probe: impl FnOnce() -> Result<(), i64>) -> Result<String, String> {
    let [result] = child::run(|| [probe().err().unwrap_or(0)])?;
    match result {
        0 => Ok("tried, works".to_owned()),
        WRONG => Err("tried, does not find what it should".to_owned()),
        errno => Err(refused("tried", i32::try_from(errno).unwrap_or(libc::EIO))),
    }
}

/// Pages of memory, all touched.
fn pages() -> Result<*mut u8, i64> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping; it ends with the child that made it.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGES * PAGE_BYTES, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(errno(-1)) } else { Ok(at.cast()) }
}

fn dirty(at: *mut u8) {
    // SAFETY: inside the mapping of `pages`; volatile, since nobody reads it.
    unsafe { at.add(DIRTY * PAGE_BYTES).write_volatile(1) };
}

fn ioctl<T>(file: &impl AsRawFd, request: u64, arg: &mut T) -> Result<i64, i64> {
    // SAFETY: each request below belongs to the structure that is passed with it.
    let done = i64::from(unsafe { libc::ioctl(file.as_raw_fd(), request, arg) });
    if done < 0 { Err(errno(done)) } else { Ok(done) }
}

/// Layouts and numbers from `linux/userfaultfd.h` and `linux/fs.h`.
fn uffd_wp_async() -> Result<(), i64> {
    const UFFD_USER_MODE_ONLY: i32 = 1;
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    const API: u64 = 0xaa;
    const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
    const FEATURE_WP_ASYNC: u64 = 1 << 15;
    const REGISTER_MODE_WP: u64 = 2;
    let at = pages()?;
    // SAFETY: a call without memory.
    let uffd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
    let uffd = owned(uffd).map_err(i64::from)?;
    ioctl(&uffd, UFFDIO_API, &mut [API, FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC, 0])?;
    let bytes = (PAGES * PAGE_BYTES) as u64;
    ioctl(&uffd, UFFDIO_REGISTER, &mut [at as u64, bytes, REGISTER_MODE_WP, 0])?;
    let pagemap =
        File::open("/proc/self/pagemap").map_err(|e| i64::from(e.raw_os_error().unwrap_or(libc::EIO)))?;
    // The first scan protects all pages.
    scan(&pagemap, at)?;
    dirty(at);
    let page = at as u64 + (DIRTY * PAGE_BYTES) as u64;
    let found = scan(&pagemap, at)?;
    if found == Some((page, page + PAGE_BYTES as u64)) { Ok(()) } else { Err(WRONG) }
}

/// Gets and protects again; returns the only region, if there is just one.
fn scan(pagemap: &File, at: *mut u8) -> Result<Option<(u64, u64)>, i64> {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    const WP_MATCHING: u64 = 1;
    const CHECK_WPASYNC: u64 = 2;
    const PAGE_IS_WRITTEN: u64 = 2;
    let mut regions = [[0u64; 3]; PAGES];
    let start = at as u64;
    let end = start + (PAGES * PAGE_BYTES) as u64;
    let vector = regions.as_mut_ptr() as u64;
    // size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return mask
    let flags = WP_MATCHING | CHECK_WPASYNC;
    let mut arg = [96, flags, start, end, 0, vector, PAGES as u64, 0, 0, PAGE_IS_WRITTEN, 0, PAGE_IS_WRITTEN];
    let count = ioctl(pagemap, PAGEMAP_SCAN, &mut arg)?;
    Ok((count == 1).then_some((regions[0][0], regions[0][1])))
}

/// Asks for the zone of a page just mapped.
fn procmap_query() -> Result<(), i64> {
    const PROCMAP_QUERY: u64 = 0xc068_6611;
    let at = pages()? as u64;
    let maps = File::open("/proc/self/maps").map_err(|e| i64::from(e.raw_os_error().unwrap_or(libc::EIO)))?;
    // `struct procmap_query`: size, flags, address, and room for the answer, of which start and end come first.
    let mut query = [0u64; 13];
    (query[0], query[2]) = (size_of_val(&query) as u64, at);
    ioctl(&maps, PROCMAP_QUERY, &mut query)?;
    if query[3] <= at && at < query[4] { Ok(()) } else { Err(WRONG) }
}

fn soft_dirty() -> Result<(), i64> {
    const SOFT_DIRTY_BIT: u64 = 1 << 55;
    let code = |e: std::io::Error| i64::from(e.raw_os_error().unwrap_or(libc::EIO));
    let at = pages()?;
    let pagemap = File::open("/proc/self/pagemap").map_err(code)?;
    let mut clear = OpenOptions::new().write(true).open("/proc/self/clear_refs").map_err(code)?;
    clear.write_all(b"4").map_err(code)?;
    dirty(at);
    for page in 0..PAGES {
        let mut entry = [0; 8];
        let offset = (at as usize / PAGE_BYTES + page) * 8;
        pagemap.read_exact_at(&mut entry, offset as u64).map_err(code)?;
        if (u64::from_ne_bytes(entry) & SOFT_DIRTY_BIT != 0) != (page == DIRTY) {
            return Err(WRONG);
        }
    }
    Ok(())
}
