//! A store in memory, and trees to try things on.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holo_cfor::{
    Captured, ContentSink, ContentSource, Hint, Inode, Part, Report, Targets, Tree, apply, scan, stage,
};

/// Content by hash; the parts of a file are kept apart, so that appending is seen to be cheap.
#[derive(Default)]
pub struct Store {
    pub parts: HashMap<[u8; 32], Vec<u8>>,
    pub bytes_put: u64,
}

pub type Content = Vec<[u8; 32]>;

impl Store {
    fn part(&mut self, data: &mut dyn Read, len: u64) -> io::Result<[u8; 32]> {
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, len);
        self.bytes_put += len;
        let name = *blake3::hash(&bytes).as_bytes();
        self.parts.insert(name, bytes);
        Ok(name)
    }
}

impl ContentSink for Store {
    type Content = Content;

    fn put(&mut self, data: &mut dyn Read, len: u64) -> io::Result<Content> {
        Ok(vec![self.part(data, len)?])
    }

    fn patch(&mut self, base: &Content, parts: &[Part], fresh: &mut dyn Read) -> io::Result<Content> {
        let base: Vec<u8> = base.iter().flat_map(|name| self.parts[name].clone()).collect();
        let mut content = Content::new();
        for part in parts {
            content.push(match part {
                // Known already: costs nothing.
                Part::Base { at, len } => {
                    let bytes = &base[*at as usize..(at + len) as usize];
                    let name = *blake3::hash(bytes).as_bytes();
                    self.parts.insert(name, bytes.to_vec());
                    name
                }
                Part::Fresh { len } => self.part(&mut fresh.take(*len), *len)?,
            });
        }
        Ok(content)
    }
}

impl ContentSource for Store {
    type Content = Content;

    fn open<'a>(&'a mut self, content: &'a Content) -> io::Result<Box<dyn Read + 'a>> {
        let bytes: Option<Vec<_>> = content.iter().map(|name| self.parts.get(name).cloned()).collect();
        let bytes = bytes.ok_or(io::ErrorKind::NotFound)?.concat();
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

/// A directory for one test: trees `a` and `b`, staging, what was replaced.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "staging"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, store: Store::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn scan(&self) -> Tree {
        scan(&[self.path("a")], &[], &[]).unwrap()
    }

    pub fn capture<'a>(
        &mut self,
        previous: Option<&Captured<Content>>,
        hint: &dyn Fn(&Inode) -> Hint<'a>,
    ) -> Captured<Content> {
        let staged = stage(self.scan(), previous, hint, &self.path("staging")).unwrap();
        let captured = staged.store(&mut self.store).unwrap();
        captured.validate().unwrap();
        assert_eq!(fs::read_dir(self.path("staging")).unwrap().count(), 0, "staging is left empty");
        captured
    }

    /// Targets that lead from `a` to `b`.
    pub fn targets(&self, replaced: bool) -> Targets {
        Targets {
            gone: Vec::new(),
            map: HashMap::from([(self.path("a").into_os_string().into_encoded_bytes(), self.path("b"))]),
            replaced: replaced.then(|| self.path("replaced")),
            excludes: Vec::new(),
            since: None,
            holds_later: false,
        }
    }

    /// Captures `a`, applies it to `b`, expects no errors.
    #[allow(dead_code)]
    pub fn transfer(&mut self, replaced: bool) -> Report {
        let captured = self.capture(None, &|_| Hint::Attributes);
        let targets = self.targets(replaced);
        let report = apply(&captured, &mut self.store, &targets).unwrap();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        report
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is immutable could not be removed.
        release_all(self.dir.path());
    }
}

/// Flags of a file or directory (`chattr`); fails where there are none.
#[allow(dead_code)]
pub fn flags(path: &Path) -> io::Result<u32> {
    let mut word = 0u64;
    // SAFETY: one word, which outlives the call.
    let done = unsafe { libc::ioctl(opened(path)?.as_raw_fd(), 0x8008_6601, &raw mut word) };
    if done == 0 { Ok(word as u32) } else { Err(io::Error::last_os_error()) }
}

/// Sets some flags and clears others.
#[allow(dead_code)]
pub fn set_flags(path: &Path, on: u32, off: u32) -> io::Result<()> {
    let word = u64::from(flags(path)? & !off | on);
    // SAFETY: one word, which outlives the call.
    let done = unsafe { libc::ioctl(opened(path)?.as_raw_fd(), 0x4008_6602, &raw const word) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn opened(path: &Path) -> io::Result<fs::File> {
    fs::File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)
}

/// Makes all below `path` changeable.
#[allow(dead_code)]
pub fn release_all(path: &Path) {
    let Ok(meta) = path.symlink_metadata() else { return };
    if (meta.is_dir() || meta.is_file()) && flags(path).is_ok_and(|flags| flags & 0x30 != 0) {
        let _ = set_flags(path, 0, 0x30);
    }
    if meta.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().for_each(|entry| release_all(&entry.path()));
    }
}

/// Content of every regular file below `path`.
#[allow(dead_code)]
pub fn contents(path: &Path, found: &mut HashSet<Vec<u8>>) {
    for entry in fs::read_dir(path).into_iter().flatten().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            contents(&entry.path(), found);
        } else if kind.is_file() {
            found.insert(fs::read(entry.path()).unwrap());
        }
    }
}

/// An access list: what owner, user `id`, group, mask and others may.
#[allow(dead_code)]
pub fn access_list(perms: [u16; 5], id: u32) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in [1u16, 2, 4, 16, 32].into_iter().zip(perms) {
        list.extend(tag.to_le_bytes());
        list.extend(perm.to_le_bytes());
        list.extend(if tag == 2 { id } else { u32::MAX }.to_le_bytes());
    }
    list
}

/// Sets an attribute, or removes it.
#[allow(dead_code)]
pub fn set_attribute(path: &Path, key: &str, value: Option<&[u8]>) -> io::Result<()> {
    let text = |bytes: &[u8]| std::ffi::CString::new(bytes).unwrap();
    let (path, key) = (text(path.as_os_str().as_encoded_bytes()), text(key.as_bytes()));
    let done = match value {
        // SAFETY: both texts end with zero; value and length are of one slice.
        Some(v) => unsafe { libc::lsetxattr(path.as_ptr(), key.as_ptr(), v.as_ptr().cast(), v.len(), 0) },
        // SAFETY: both texts end with zero.
        None => unsafe { libc::lremovexattr(path.as_ptr(), key.as_ptr()) },
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
