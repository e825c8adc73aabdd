//! File trees to look at: of an epoch in the store, or in a packed file.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use holo_api::files;
use holo_cfor::log::Ranges;
use holo_cfor::pack::{PackError, Packed, Piece};
use holo_cfor::{
    Captured, CapturedByInode, CapturedWithoutFlags, ContentSource, Delta, Extent, Report, Targets, Touched,
    Tree,
};
use holo_image::{Blob, EpochReader, PAGE_BYTES, Store};
use serde::Serialize;

use crate::args::Source;
use crate::client;
use crate::error::{CforError, CliError};
use crate::paths::Agent;

const PAGE: u64 = PAGE_BYTES as u64;

/// What is compared or shown, for people and in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Title {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<PathBuf>,
    /// Time of the scan.
    pub(super) at: String,
}

impl std::fmt::Display for Title {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.name, &self.file, self.epoch) {
            (Some(name), _, Some(epoch)) => write!(f, "epoch {epoch} of {name} ({})", self.at),
            (_, Some(file), _) => write!(f, "{} ({})", file.display(), self.at),
            (name, None, _) => write!(f, "{} ({})", name.as_deref().unwrap_or("here"), self.at),
        }
    }
}

/// A time for people and JSON.
pub(super) fn time(time: holo_cfor::Time) -> String {
    let at = jiff::Timestamp::new(time.seconds, time.nanos.cast_signed());
    at.map_or_else(|_| format!("{}.{:09}", time.seconds, time.nanos), |at| at.to_string())
}

/// Opened trees.
pub(super) enum Held {
    Epoch { name: String, epoch: u64, reader: Box<EpochReader>, captured: Captured<Blob> },
    File { path: PathBuf, captured: Captured<Piece>, contents: Box<dyn ContentSource<Content = Piece>> },
}

/// Where the agent keeps its epochs; without an agent, where one would.
pub(super) fn state_dir(agent: &Agent) -> PathBuf {
    client::status(&agent.socket).map_or_else(|_| agent.state_dir.clone(), |status| status.state_dir.into())
}

struct Epochs<'a>(&'a EpochReader);

impl ContentSource for Epochs<'_> {
    type Content = Blob;

    fn open<'a>(&'a mut self, content: &'a Blob) -> io::Result<Box<dyn Read + 'a>> {
        Ok(Box::new(self.0.blob_reader(content).map_err(io::Error::other)?))
    }
}

impl Held {
    pub(super) fn open(source: &Source, epoch: Option<u64>, agent: &Agent) -> Result<Self, CliError> {
        match source {
            Source::File(path) if epoch.is_none() => Self::file(path),
            Source::File(path) => {
                let path = path.display();
                Err(CliError::Usage(format!(
                    "{path} is a packed file: it is of one epoch, --epoch is for applications"
                )))
            }
            Source::App(name) => {
                let app = Store::inspect(state_dir(agent)).open_app(name)?;
                let last = || app.last().map(|meta| meta.epoch);
                let Some(epoch) = epoch.or_else(last) else {
                    return Err(CforError::NoEpoch(name.clone()).into());
                };
                let reader = Box::new(app.open_epoch(epoch)?);
                let mut captured: Captured<Blob> =
                    files::trees::<_, CapturedWithoutFlags<Blob>, CapturedByInode<Blob>>(&reader)
                        .map_err(|source| CforError::Trees { name: name.clone(), epoch, source })?;
                for (at, blob) in &mut captured.contents {
                    if let Some(inode) = captured.tree.inodes.get(*at as usize) {
                        files::complete(&reader, inode.identity.dev, inode.identity.ino, blob);
                    }
                }
                Ok(Self::Epoch { name: name.clone(), epoch, reader, captured })
            }
        }
    }

    /// The epoch before another one.
    pub(super) fn before(name: &str, epoch: u64, agent: &Agent) -> Result<Self, CliError> {
        let app = Store::inspect(state_dir(agent)).open_app(name)?;
        let before = app.epochs().into_iter().map(|meta| meta.epoch).rfind(|one| *one < epoch);
        let before = before.ok_or_else(|| CforError::NoEpochBefore { name: name.into(), epoch })?;
        Self::open(&Source::App(name.into()), Some(before), agent)
    }

    fn file(path: &Path) -> Result<Self, CliError> {
        let file =
            File::open(path).map_err(|source| CliError::Path { what: "open", path: path.into(), source })?;
        let packed = Packed::open(BufReader::new(file)).map_err(|cause| CforError::packed(path, cause))?;
        let (captured, contents) = packed.split();
        Ok(Self::File { path: path.into(), captured, contents: Box::new(contents) })
    }

    pub(super) fn tree(&self) -> &Tree {
        match self {
            Self::Epoch { captured, .. } => &captured.tree,
            Self::File { captured, .. } => &captured.tree,
        }
    }

    pub(super) fn epoch(&self) -> Option<u64> {
        match self {
            Self::Epoch { epoch, .. } => Some(*epoch),
            Self::File { .. } => None,
        }
    }

    pub(super) fn title(&self) -> Title {
        let at = time(self.tree().taken_at);
        match self {
            Self::Epoch { name, epoch, .. } => {
                Title { name: Some(name.clone()), epoch: Some(*epoch), file: None, at }
            }
            Self::File { path, .. } => Title { file: Some(path.clone()), at, ..Title::default() },
        }
    }

    /// What it is called in an error.
    fn failed(&self, source: io::Error) -> CliError {
        match self {
            Self::Epoch { name, .. } => CliError::from(CforError::Content { of: name.clone(), source }),
            Self::File { path, .. } => CforError::packed(path, PackError::Source(source)).into(),
        }
    }

    /// The content of a file, by inode.
    fn content(&mut self, inode: u32) -> io::Result<Box<dyn Read + '_>> {
        match self {
            Self::Epoch { reader, captured, .. } => {
                let blob = captured.contents.get(&inode).ok_or(io::ErrorKind::NotFound)?;
                Ok(Box::new(reader.blob_reader(blob).map_err(io::Error::other)?))
            }
            Self::File { captured, contents, .. } => {
                contents.open(captured.contents.get(&inode).ok_or(io::ErrorKind::NotFound)?)
            }
        }
    }

    /// Where the content of a file differs from what `other` yields for `data`.
    pub(super) fn touched(
        &mut self,
        at: u32,
        data: &[Extent],
        other: &mut dyn Read,
    ) -> Result<Ranges, CliError> {
        let own = self.tree().inodes[at as usize].data().to_vec();
        let found =
            self.content(at).and_then(|mut content| holo_cfor::touched((&own, &mut content), (data, other)));
        found.map_err(|cause| self.failed(cause))
    }

    pub(super) fn pack(&mut self, out: &mut impl io::Write) -> Result<(), PackError> {
        match self {
            Self::Epoch { reader, captured, .. } => {
                holo_cfor::pack::write(captured, &mut Epochs(reader), out)
            }
            Self::File { captured, contents, .. } => {
                holo_cfor::pack::write(captured, &mut Boxed(contents), out)
            }
        }
    }

    pub(super) fn apply(&mut self, targets: &Targets) -> Result<Report, holo_cfor::Error> {
        match self {
            Self::Epoch { reader, captured, .. } => holo_cfor::apply(captured, &mut Epochs(reader), targets),
            Self::File { captured, contents, .. } => {
                holo_cfor::apply(captured, &mut Boxed(contents), targets)
            }
        }
    }
}

struct Boxed<'b>(&'b mut Box<dyn ContentSource<Content = Piece>>);

impl ContentSource for Boxed<'_> {
    type Content = Piece;

    fn open<'a>(&'a mut self, content: &'a Piece) -> io::Result<Box<dyn Read + 'a>> {
        self.0.open(content)
    }
}

/// What differs in `b`.
pub(super) fn compare(mut a: Held, mut b: Held) -> Result<Vec<Delta>, CliError> {
    let (a_tree, b_tree) = (a.tree().clone(), b.tree().clone());
    holo_cfor::compare(
        &a_tree,
        &b_tree,
        |_| false,
        |a_at, b_at| {
            let (a_data, b_data) = (a_tree.inodes[a_at as usize].data(), b_tree.inodes[b_at as usize].data());
            if let (Held::Epoch { captured: a, .. }, Held::Epoch { captured: b, .. }) = (&a, &b)
                && let (Some(a), Some(b)) = (a.contents.get(&a_at), b.contents.get(&b_at))
                && let Some(ranges) = of_pages((a_data, a), (b_data, b))
            {
                return Ok(Touched::Ranges(ranges));
            }
            let opened = b.content(b_at).map(|mut content| a.touched(a_at, b_data, &mut content));
            match opened {
                Ok(found) => Ok(Touched::Ranges(found?)),
                Err(cause) => Err(b.failed(cause)),
            }
        },
    )
}

/// Where two contents of the store differ, by the names of their pages. `None`: they do not lie in pages.
fn of_pages((a_data, a): (&[Extent], &Blob), (b_data, b): (&[Extent], &Blob)) -> Option<Ranges> {
    let places = |data: &[Extent]| data.iter().map(|one| (one.at, one.len)).collect::<Vec<_>>();
    let pages = if a_data == b_data && a == b {
        Vec::new()
    } else {
        a.differing_pages(&places(a_data), b, &places(b_data))?
    };
    let mut found = Ranges::new();
    pages.iter().for_each(|page| found.insert(page * PAGE, PAGE));
    Some(found)
}
