//! The store: a directory with applications.

use std::{
    collections::HashMap,
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
};

use crate::{
    app::AppStore,
    aside::ASIDE_DIR,
    disk::{Disk, RealDisk},
    error::{Error, Result},
    head::WHOLE_BYTES_MAX,
    lock,
    state::AppInner,
};

/// Prefix of what is being removed; no application's name starts with a dot.
const GONE: &str = ".gone-";
/// Bound on an application's name.
const NAME_BYTES_MAX: usize = 64;

/// Applications and their epochs, below one directory. One process writes an application at a time.
pub struct Store {
    disk: Arc<dyn Disk>,
    apps_dir: PathBuf,
    writable: bool,
    /// See [`Head::follow`](crate::head::Head::follow).
    whole_max: u64,
    open: Mutex<HashMap<String, Weak<AppInner>>>,
}

impl Store {
    /// Opens a store to write, and makes it if it does not exist.
    pub fn open(dir: impl AsRef<Path>) -> Result<Store> {
        Store::open_on(Arc::new(RealDisk), dir)
    }

    /// Opens a store to write on a disk of the caller's choice.
    pub fn open_on(disk: Arc<dyn Disk>, dir: impl AsRef<Path>) -> Result<Store> {
        let store = Store::at(disk, dir.as_ref(), true);
        store.disk.create_dir(&store.apps_dir).map_err(Error::io("create", &store.apps_dir))?;
        // So that a new store does not vanish whole with the power.
        let dir = dir.as_ref();
        store.disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        match store.disk.sync_dir(parent) {
            // Not ours to read, so not ours to make durable.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {}
            outcome => outcome.map_err(Error::io("sync", parent))?,
        }
        for name in store.names()? {
            if name.starts_with(GONE) {
                remove_app_dir(&*store.disk, &store.apps_dir.join(name))?;
            }
        }
        Ok(store)
    }

    /// Looks at a store that another process may be writing; nothing is changed or locked.
    pub fn inspect(dir: impl AsRef<Path>) -> Store {
        Store::at(Arc::new(RealDisk), dir.as_ref(), false)
    }

    fn at(disk: Arc<dyn Disk>, dir: &Path, writable: bool) -> Store {
        let whole_max = WHOLE_BYTES_MAX;
        Store { disk, apps_dir: dir.join("apps"), writable, whole_max, open: Mutex::default() }
    }

    /// Writes small epochs as changes of others, too; large ones always are.
    #[cfg(any(test, feature = "sim"))]
    pub fn with_small_changes(self) -> Store {
        Store { whole_max: 0, ..self }
    }

    /// Opens an application; made if it does not exist, unless the store is only looked at.
    pub fn app(&self, name: &str) -> Result<AppStore> {
        self.app_or(name, self.writable)
    }

    /// Opens an application that exists.
    pub fn open_app(&self, name: &str) -> Result<AppStore> {
        self.app_or(name, false)
    }

    fn app_or(&self, name: &str, make: bool) -> Result<AppStore> {
        check_app_name(name)?;
        let mut open = lock(&self.open);
        if let Some(inner) = open.get(name).and_then(Weak::upgrade).filter(|inner| !inner.is_gone()) {
            return Ok(AppStore::of(inner));
        }
        if !make && !self.contains(name)? {
            return Err(Error::NoSuchApp { name: name.into() });
        }
        let inner = AppInner::open(self.disk.clone(), &self.apps_dir, name, self.writable, self.whole_max)?;
        open.retain(|_, inner| inner.strong_count() > 0);
        open.insert(name.into(), Arc::downgrade(&inner));
        Ok(AppStore::of(inner))
    }

    /// Does an application exist?
    pub fn contains(&self, name: &str) -> Result<bool> {
        Ok(self.apps()?.iter().any(|known| known == name))
    }

    /// Names of the applications, sorted.
    pub fn apps(&self) -> Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|name| check_app_name(name).is_ok());
        names.sort();
        Ok(names)
    }

    fn names(&self) -> Result<Vec<String>> {
        match self.disk.list(&self.apps_dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(Error::io("list", &self.apps_dir)),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("dir", &self.apps_dir).field("writable", &self.writable).finish()
    }
}

/// Is it a name for an application? `[A-Za-z0-9._-]{1,64}`, no dot in front.
pub fn check_app_name(name: &str) -> Result<()> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good =
        (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(letter) && !name.starts_with('.');
    if good { Ok(()) } else { Err(Error::BadName { name: name.into() }) }
}

/// Takes an application's directory out of sight, durably, and returns where it is now.
pub(crate) fn retire_app(disk: &dyn Disk, apps_dir: &Path, name: &str) -> Result<PathBuf> {
    let (dir, gone) = (apps_dir.join(name), apps_dir.join(format!("{GONE}{name}")));
    remove_app_dir(disk, &gone)?;
    disk.rename(&dir, &gone).map_err(Error::io("rename", &dir))?;
    disk.sync_dir(apps_dir).map_err(Error::io("sync", apps_dir))?;
    Ok(gone)
}

/// Removes what an application's directory can contain; fine if it does not exist.
pub(crate) fn remove_app_dir(disk: &dyn Disk, dir: &Path) -> Result<()> {
    for sub in ["epochs", ASIDE_DIR, "pages", "."] {
        let sub = if sub == "." { dir.to_path_buf() } else { dir.join(sub) };
        let names = match disk.list(&sub) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            names => names.map_err(Error::io("list", &sub))?,
        };
        for name in names {
            let path = sub.join(name);
            disk.remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        disk.remove_dir(&sub).map_err(Error::io("remove", &sub))?;
    }
    Ok(())
}
