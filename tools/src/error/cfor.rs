//! What can go wrong with the files of epochs.

use std::io;
use std::path::{Path, PathBuf};

use holo_api::files::TreesError;
use holo_cfor::pack::PackError;

use super::CliError;

/// An error of `holo cfor`.
#[derive(Debug, thiserror::Error)]
pub enum CforError {
    /// The store of epochs said no.
    #[error(transparent)]
    Store(#[from] holo_image::Error),
    /// File trees of an epoch.
    #[error("{name}, epoch {epoch}: {source}")]
    Trees {
        /// Application.
        name: String,
        /// Epoch.
        epoch: u64,
        /// Cause.
        source: TreesError,
    },
    /// An application has no epoch yet.
    #[error("{0} has no epoch yet")]
    NoEpoch(String),
    /// An epoch has none before it to compare it with.
    #[error("{name} keeps no epoch before {epoch} to compare it with")]
    NoEpochBefore {
        /// Application.
        name: String,
        /// Epoch.
        epoch: u64,
    },
    /// A content in the store.
    #[error("reading a file of {of}: {source}")]
    Content {
        /// Application.
        of: String,
        /// Cause.
        source: io::Error,
    },
    /// File trees here.
    #[error(transparent)]
    Files(#[from] holo_cfor::Error),
    /// A packed file.
    #[error("{path} {source}")]
    Packed {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: PackError,
    },
}

impl CforError {
    pub(crate) fn packed(path: &Path, source: PackError) -> Self {
        Self::Packed { path: path.to_owned(), source }
    }

    /// The documented exit code.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) | Self::Trees { source: TreesError::Store(error), .. } => store_code(error),
            Self::Trees { .. } | Self::Content { .. } => 6,
            Self::Packed { source, .. } => match source {
                PackError::Foreign
                | PackError::Version { .. }
                | PackError::Damaged { .. }
                | PackError::Tree(_) => 6,
                PackError::Source(_) | PackError::Io(_) => 1,
            },
            Self::NoEpoch(_) | Self::NoEpochBefore { .. } => 3,
            Self::Files(_) => 1,
        }
    }
}

fn store_code(error: &holo_image::Error) -> u8 {
    if error.is_not_found() {
        3
    } else if error.is_bad_image() {
        6
    } else {
        1
    }
}

impl From<holo_image::Error> for CliError {
    fn from(error: holo_image::Error) -> Self {
        CforError::from(error).into()
    }
}

impl From<holo_cfor::Error> for CliError {
    fn from(error: holo_cfor::Error) -> Self {
        CforError::from(error).into()
    }
}
