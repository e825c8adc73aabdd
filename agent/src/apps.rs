//! The applications of this node.

use crate::app::{App, Failure, Hooks, HooksCell, Paths, events, now_ns};
use crate::config::Config;
use crate::ended;
use crate::guard::Guard;
use crate::join;
use crate::late::Memory;
use crate::members::Leaf;
use crate::record::{Instance, Record};
use holo_api::local::{AppInfo, AppOptions, ErrorKind};
use holo_image::Store;
use holo_rm::page::Page;
use holo_rm::tree::start_time;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// All of them.
pub struct Apps {
    /// Settings.
    pub config: Arc<Config>,
    /// Name of this node.
    pub node: String,
    /// Places.
    pub paths: Paths,
    store: Store,
    all: Mutex<BTreeMap<String, Arc<App>>>,
    /// Announced by `holo run`: token to name and the pid that will be it.
    announced: Mutex<HashMap<u64, (String, i32)>>,
    /// See [`Guard`].
    pub guard: Arc<Guard>,
    hooks: HooksCell,
    tables: join::Tables,
}

/// What a joining process is.
enum Placed {
    /// The application itself, which begins.
    First(Arc<App>),
    /// The same process with another program.
    Again(Arc<App>),
    /// A process of an application that runs.
    Member(Arc<App>),
}

fn make_dirs(config: &Config) -> io::Result<Paths> {
    use std::os::unix::fs::DirBuilderExt;
    let state = config.state_dir.clone();
    let make = |dir: &Path| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", dir.display())))
    };
    make(&state)?;
    let state = state.canonicalize()?;
    let pages = page_dir(&state)?;
    let paths = Paths {
        records: state.join("records"),
        changes: pages.join("changes"),
        pages,
        sites: state.join("sites"),
        staging: state.join("staging"),
        replaced: state.join("replaced"),
        left: state.join("left"),
        output: state.join("output"),
        state,
    };
    for dir in [
        &paths.records,
        &paths.pages,
        &paths.sites,
        &paths.changes,
        &paths.staging,
        &paths.replaced,
        &paths.left,
        &paths.output,
    ] {
        make(dir)?;
    }
    clear_staging(&paths.staging);
    Ok(paths)
}

/// Removes what an earlier agent held for an epoch when it was killed.
fn clear_staging(staging: &Path) {
    for left in fs::read_dir(staging).into_iter().flatten().flatten() {
        if let Err(cause) = fs::remove_dir_all(left.path()).or_else(|_| fs::remove_file(left.path())) {
            eprintln!("holod: {}: {cause}", left.path().display());
        }
    }
}

/// Control pages and tables of file changes lie in shared memory where there is some: pages of a file on a disk would be
/// written back again and again, and the application's stores to them would wait for that. The directory is this state
/// directory's own, whatever other nodes share.
fn page_dir(state: &Path) -> io::Result<PathBuf> {
    let shared = Path::new("/dev/shm");
    if nix::unistd::access(shared, nix::unistd::AccessFlags::W_OK).is_err() {
        return Ok(state.join("pages"));
    }
    let id_path = state.join("id");
    let id = match fs::read_to_string(&id_path) {
        Ok(id) if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => id,
        _ => {
            let mut bytes = [0u8; 16];
            fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            fs::write(&id_path, &id)?;
            id
        }
    };
    Ok(shared.join(format!("holo-{id}")))
}

fn name_from(command: &[u8]) -> String {
    let base = command.rsplit(|byte| *byte == b'/').next().unwrap_or(b"");
    let name: String = base
        .iter()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() || b"._-".contains(byte) { char::from(*byte) } else { '_' }
            },
        )
        .take(48)
        .collect();
    let name = name.trim_start_matches(['.', '-']).to_owned();
    if name.is_empty() { "app".into() } else { name }
}

impl Apps {
    /// Opens the state directory; finds what ran before this agent did.
    ///
    /// # Errors
    /// The directory or the store cannot be used.
    pub fn open(config: Arc<Config>, node: String) -> Result<Arc<Self>, Failure> {
        let failed = |cause: &dyn std::fmt::Display| Failure::new(ErrorKind::Failed, cause.to_string());
        let paths = make_dirs(&config).map_err(|cause| failed(&cause))?;
        let store = Store::open(&paths.state).map_err(|cause| failed(&cause))?;
        let guard = Arc::new(Guard::open(&paths.state).map_err(|cause| failed(&cause))?);
        let apps = Arc::new(Self {
            config,
            node,
            paths,
            store,
            all: Mutex::default(),
            announced: Mutex::default(),
            guard,
            hooks: HooksCell::default(),
            tables: join::Tables::default(),
        });
        let mut records = Record::load_all(&apps.paths.records).map_err(|cause| failed(&cause))?;
        for name in apps.store.apps().map_err(|cause| failed(&cause))? {
            if !records.iter().any(|record| record.name == name) {
                records.push(Record { name, ..Record::default() });
            }
        }
        for record in records {
            if let Err(cause) = apps.add(record) {
                eprintln!("holod: {cause}");
            }
        }
        Ok(apps)
    }

    /// Whom to ask and to tell; once.
    pub fn set_hooks(&self, hooks: Arc<dyn Hooks>) {
        let set = self.hooks.set(hooks);
        assert!(set.is_ok(), "there is one cluster");
    }

    fn add(self: &Arc<Self>, mut record: Record) -> Result<Arc<App>, Failure> {
        let name = record.name.clone();
        let store = self
            .store
            .app(&name)
            .map_err(|cause| Failure::new(ErrorKind::BadImage, format!("{name}: {cause}")))?;
        let known = record.instance.take();
        let lives = |at: &Instance| start_time(at.real_pid) == Some(at.started);
        let (found, gone) = match known {
            Some(at) if lives(&at) => (Some(at), None),
            gone => (None, gone),
        };
        // It told itself if it exited. Otherwise it was killed, most likely with all of this node.
        let exit_code = gone.as_ref().and_then(|at| Page::open(&at.page).ok()?.exit_code());
        if let (Some(at), Some(code)) = (&gone, exit_code) {
            record.ended = ended::text(at.real_pid, &name, Some(i32::from(code) << 8));
            record.exited = true;
        }
        let (paths, config, node) = (self.paths.clone(), self.config.clone(), self.node.clone());
        let app = App::new(record, store, paths, config, node, self.guard.clone(), self.hooks.clone());
        if let Some(instance) = found {
            match Page::open(&instance.page) {
                Ok(page) => {
                    let page = Arc::new(page);
                    let leaf = Leaf { page: Arc::clone(&page), path: instance.page.clone() };
                    let process = (instance.real_pid, instance.cluster_pid as i32, leaf);
                    app.find_changes();
                    let memory = app.memory_of(&instance);
                    app.adopt(instance, page, None, vec![process], memory);
                }
                Err(cause) => {
                    let why = format!(
                        "the control page {} cannot be used: {cause}; `holo stop {name}` and `holo restore {name}` make a new one",
                        instance.page.display()
                    );
                    app.find_unusable(instance, why);
                }
            }
        }
        if let Some(gone) = gone {
            app.others.ended();
            app.change_record(|_| {});
            let _ = fs::remove_file(&gone.page);
        }
        self.all.lock().insert(name, Arc::clone(&app));
        Ok(app)
    }

    /// An application.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn get(&self, name: &str) -> Result<Arc<App>, Failure> {
        self.all.lock().get(name).cloned().ok_or_else(|| {
            Failure::new(
                ErrorKind::NotFound,
                format!("no application `{name}` on this node; `holo ps` lists them"),
            )
        })
    }

    /// An application, made if this node has not heard of it.
    ///
    /// # Errors
    /// A bad name, a store that cannot be used.
    pub fn get_or_add(self: &Arc<Self>, name: &str) -> Result<Arc<App>, Failure> {
        match self.get(name) {
            Ok(app) => Ok(app),
            Err(_) => {
                holo_image::check_app_name(name)
                    .map_err(|cause| Failure::new(ErrorKind::Usage, cause.to_string()))?;
                self.add(Record { name: name.into(), ..Record::default() })
            }
        }
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<App>> {
        self.all.lock().values().cloned().collect()
    }

    /// The agent ends: so do clones that wait.
    pub fn retire_clones(&self) {
        self.list().iter().for_each(|app| app.hot.end());
    }

    /// For `holo ps`.
    #[must_use]
    pub fn info(&self) -> Vec<AppInfo> {
        self.list().iter().map(|app| app.info()).collect()
    }

    /// A free name like `wanted`.
    fn free_name(&self, wanted: &str) -> String {
        let taken = |name: &str| self.all.lock().get(name).is_some_and(|app| app.living().is_some());
        let mut name = wanted.to_owned();
        let mut number = 2;
        while taken(&name) {
            name = format!("{wanted}-{number}");
            number += 1;
        }
        name
    }

    /// `holo run` announces a command that process `pid` will be.
    ///
    /// # Errors
    /// The name is taken by a running application, or no name; a file cannot be watched.
    pub fn register(
        self: &Arc<Self>,
        name: &str,
        options: AppOptions,
        argv: Vec<Vec<u8>>,
        pid: i32,
    ) -> Result<(String, u64), Failure> {
        events::check_here(&options.on_change)?;
        let name = if name.is_empty() {
            self.free_name(&name_from(argv.first().map_or(b"".as_slice(), Vec::as_slice)))
        } else {
            name.to_owned()
        };
        let app = self.get_or_add(&name)?;
        if let Some(instance) = app.living() {
            let message =
                format!("{name} runs already, as process {}; choose another --name", instance.real_pid);
            return Err(Failure::new(ErrorKind::Refused, message));
        }
        if let Some(hooks) = self.hooks.get() {
            hooks.launch(&name, &options.standby)?;
        }
        let run = now_ns();
        app.change_record(|record| {
            record.options = options;
            record.argv = argv;
            record.run = run;
            record.instance = None;
            record.ended.clear();
            record.exited = false;
        });
        self.announced.lock().insert(run, (name.clone(), pid));
        Ok((name, run))
    }

    /// A process joins. The answer is sent from here.
    ///
    /// # Errors
    /// A broken connection.
    pub fn join(self: &Arc<Self>, stream: &UnixStream, request: &join::Request) -> io::Result<()> {
        let placed = match self.place(request) {
            Ok(placed) => placed,
            Err(failure) => return join::refuse(stream, &failure.message),
        };
        let app = match &placed {
            Placed::First(app) | Placed::Again(app) | Placed::Member(app) => app,
        };
        // Children that were forked before keep the page that they have.
        let path = self.paths.pages.join(format!("{}.{}.{}.page", app.name, request.real_pid, now_ns()));
        let page = Arc::new(Page::create_at(&path)?);
        let tables = self.tables.of(&self.paths.sites, request);
        let Some(started) = start_time(request.real_pid) else { return Ok(()) };
        let leaf = Leaf { page: Arc::clone(&page), path: path.clone() };
        let instance = Instance { real_pid: request.real_pid, started, cluster_pid: request.pid, page: path };
        let process = (request.real_pid, request.pid as i32, leaf.clone());
        let changes = match &placed {
            // Nobody counted the start of the first program.
            Placed::First(app) => {
                app.begin_changes(Some(request.real_pid)).inspect(|table| table.count_start())
            }
            Placed::Again(app) | Placed::Member(app) => app.changes.lock().clone(),
        };
        // Before the process goes on: from then on it may make others.
        let is_lone = !matches!(placed, Placed::First(_)) && app.is_lone();
        page.control().header.lone.store(u32::from(is_lone), Relaxed);
        match &placed {
            Placed::First(app) => {
                app.adopt(instance, Arc::clone(&page), None, vec![process], Memory::There);
            }
            Placed::Again(app) => app.adopt_again(instance, Arc::clone(&page)),
            Placed::Member(app) => app.members.joined(request.real_pid, request.pid as i32, leaf),
        }
        join::welcome(stream, &page, &tables, changes.as_deref())
    }

    /// Does a joining process belong to an application that runs here? By what the kernel tells of it.
    #[must_use]
    pub fn has(&self, request: &join::Request) -> bool {
        let announced =
            self.announced.lock().get(&request.token).is_some_and(|(_, pid)| *pid == request.real_pid);
        let of = |app: &Arc<App>| is_main_of(app, request) || app.members.is_kin(request.real_pid);
        announced || self.list().iter().any(of)
    }

    /// Which application a joining process is, or belongs to.
    fn place(self: &Arc<Self>, request: &join::Request) -> Result<Placed, Failure> {
        // The same process again: it has executed another program.
        if let Some(app) = self.list().into_iter().find(|app| is_main_of(app, request)) {
            return Ok(Placed::Again(app));
        }
        if request.token != 0 {
            let announced = self.announced.lock().get(&request.token).cloned();
            if let Some((name, _)) = announced.filter(|(_, pid)| *pid == request.real_pid) {
                self.announced.lock().remove(&request.token);
                return self.get(&name).map(Placed::First);
            }
        }
        if let Some(app) = self.list().into_iter().find(|app| app.members.is_kin(request.real_pid)) {
            return Ok(Placed::Member(app));
        }
        if request.token != 0 {
            // An orphan that executes a program; its application still lives, or waits for it.
            let of_run = |app: &Arc<App>| {
                let record = app.record();
                record.run == request.token && record.instance.is_some()
            };
            let app = self.list().into_iter().find(of_run);
            return app.map(Placed::Member).ok_or_else(|| {
                Failure::new(
                    ErrorKind::Refused,
                    "the application that this process belongs to has ended here",
                )
            });
        }
        let exe = fs::read_link(format!("/proc/{}/exe", request.real_pid)).unwrap_or_default();
        let argv: Vec<Vec<u8>> = fs::read(format!("/proc/{}/cmdline", request.real_pid))
            .unwrap_or_default()
            .split(|byte| *byte == 0)
            .filter(|arg| !arg.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        let wanted = if request.name.is_empty() {
            self.free_name(&name_from(exe.as_os_str().as_encoded_bytes()))
        } else {
            request.name.clone()
        };
        let options = AppOptions { every_ms: 1000, ..AppOptions::default() };
        let (name, token) = self.register(&wanted, options, argv, request.real_pid)?;
        self.announced.lock().remove(&token);
        self.get(&name).map(Placed::First)
    }

    /// Forgets an application.
    ///
    /// # Errors
    /// It runs, or its files cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let app = self.get(name)?;
        if app.living().is_some() {
            return Err(Failure::new(
                ErrorKind::Refused,
                format!("{name} runs; `holo stop {name}` it first"),
            ));
        }
        app.hot.end();
        app.store.remove().map_err(|cause| Failure::new(ErrorKind::Failed, format!("{name}: {cause}")))?;
        Record::remove(&self.paths.records, name)
            .map_err(|cause| Failure::new(ErrorKind::Failed, format!("{name}: {cause}")))?;
        self.all.lock().remove(name);
        let replaced = self.paths.replaced.join(name);
        if fs::remove_dir_all(&replaced).is_err() {
            // Something that was moved away may be immutable.
            let _ = holo_cfor::remove_all(&replaced);
        }
        let _ = app.others.remove();
        let _ = fs::remove_file(self.paths.output.join(format!("{name}.log")));
        let _ = fs::remove_file(self.paths.changes.join(name));
        Ok(())
    }
}

/// Is the file one that this user owns?
#[must_use]
pub fn is_ours(path: &Path) -> bool {
    // SAFETY: no memory is passed.
    fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == unsafe { libc::geteuid() })
}

/// Is a joining process the main process of an application?
fn is_main_of(app: &Arc<App>, request: &join::Request) -> bool {
    let at = app.record().instance;
    at.is_some_and(|at| at.real_pid == request.real_pid && start_time(at.real_pid) == Some(at.started))
}
