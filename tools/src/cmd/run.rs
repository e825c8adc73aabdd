//! `holo run`: register with the agent, then become the command. Exit status, terminal, signals and parentage are
//! the command's own, because it is this process.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holo_api::local::{AppOptions, BUDGET_PERMILLE_DEFAULT, EVERY_MS_DEFAULT, ErrorKind, Reply, Request};

use crate::args::{Every, Run};
use crate::client::{Client, QUICK};
use crate::daemon::{self, warn};
use crate::error::{CliError, EXIT_RUN_REFUSED};
use crate::exec;
use crate::paths::Agent;
use crate::program::{Credentials, Unreachable, unreachable};

/// Arguments sent for display; the command itself gets all of its own.
const SHOWN_ARGS_MAX: usize = 256;
const SHOWN_ARG_BYTES_MAX: usize = 4096;

type Env = Vec<(OsString, OsString)>;

/// Returns only when the command could not be executed.
pub(super) fn main(args: &Run, agent: Result<Agent, CliError>) -> u8 {
    let require = args.require || env::var_os("HOLO_REQUIRE").is_some_and(|value| value == "1");
    let path_var = env::var_os("PATH");
    let file = match exec::find(&args.command[0], path_var.as_deref()) {
        Ok(file) => file,
        Err(error) => return fail(&error.to_string(), error.exit_code()),
    };
    let why = unreachable(&file, Credentials::of_process());
    if let Some(why) = &why {
        if require {
            return fail(&format!("{why}; not executed, as protection is required"), EXIT_RUN_REFUSED);
        }
        warn(&format!("{why}; it runs unprotected"));
    }
    let env = match protect(args, agent, why, require) {
        Ok(env) => env,
        Err(error) if require || ours_to_mend(&error) => {
            return fail(&format!("{error}; {} was not executed", file.display()), EXIT_RUN_REFUSED);
        }
        Err(error) => {
            warn(&format!("{error}; {} runs unprotected", file.display()));
            Vec::new()
        }
    };
    let error = exec::exec(&file, &args.command, &env);
    fail(&error.to_string(), error.exit_code())
}

fn fail(message: &str, code: u8) -> u8 {
    warn(message);
    code
}

/// A wrong option, or a name in use: the user asked for something else than what would happen without holo, so
/// running the command untouched is no answer.
fn ours_to_mend(error: &CliError) -> bool {
    match error {
        CliError::Agent { kind, .. } => match kind {
            ErrorKind::Usage | ErrorKind::Refused | ErrorKind::NotFound => true,
            ErrorKind::Unprotected | ErrorKind::BadImage | ErrorKind::Unreachable | ErrorKind::Failed => {
                false
            }
        },
        CliError::Usage(_) | CliError::Path { .. } | CliError::Unprotected(_) => true,
        CliError::NoAgent { .. }
        | CliError::ForeignAgent { .. }
        | CliError::Broken { .. }
        | CliError::Start(_)
        | CliError::Keys(_)
        | CliError::Cfor(_)
        | CliError::Output(_) => false,
    }
}

/// Registers; returns what to add to the environment.
fn protect(
    args: &Run,
    agent: Result<Agent, CliError>,
    why: Option<Unreachable>,
    require: bool,
) -> Result<Env, CliError> {
    let agent = agent?;
    let request = Request::Register {
        name: args.name.clone().unwrap_or_default(),
        options: options(args)?,
        argv: args.command.iter().take(SHOWN_ARGS_MAX).map(|arg| shown(arg)).collect(),
        unprotected: why.as_ref().map(ToString::to_string),
    };
    daemon::ensure(&agent)?;
    let mut client = Client::ask(&agent.socket, &request, QUICK)?;
    let Reply::Registered { env, warning, .. } = client.answer()? else { return Err(client.unexpected()) };
    if why.is_some() {
        // It is on the list with its reason; its children must not join in its place.
        return Ok(Vec::new());
    }
    if let Some(warning) = warning {
        if require {
            return Err(CliError::Unprotected(warning));
        }
        warn(&warning);
    }
    let present = env::var_os("LD_PRELOAD");
    let set = |(key, value): (Vec<u8>, Vec<u8>)| {
        let (key, value) = (OsString::from_vec(key), OsString::from_vec(value));
        let value = if key == "LD_PRELOAD" { exec::preload(&value, present.as_deref()) } else { value };
        (key, value)
    };
    let mut env: Env = env.into_iter().map(set).collect();
    if require {
        // The library may find a reason that we do not see from here.
        env.push(("HOLO_REQUIRE".into(), "1".into()));
    }
    Ok(env)
}

fn shown(arg: &OsStr) -> Vec<u8> {
    let bytes = arg.as_bytes();
    bytes[..bytes.len().min(SHOWN_ARG_BYTES_MAX)].to_vec()
}

fn options(args: &Run) -> Result<AppOptions, CliError> {
    let (every_ms, budget_permille) = match (args.every, args.budget) {
        (Every::Fixed(_), Some(_)) => {
            return Err(CliError::Usage("--budget is for --every auto".to_owned()));
        }
        (Every::Fixed(time), None) => (millis(time), 0),
        (Every::Auto, budget) => (EVERY_MS_DEFAULT, budget.unwrap_or(BUDGET_PERMILLE_DEFAULT)),
    };
    Ok(AppOptions {
        every_ms,
        budget_permille,
        growth_bytes: args.growth.unwrap_or(0),
        on_change: watched(&args.on_change)?,
        roots: args.roots.iter().map(|root| absolute(root)).collect::<Result<_, _>>()?,
        excludes: args.excludes.iter().map(|path| left_out(path)).collect::<Result<_, _>>()?,
        standby: args.standby.clone(),
        consistency: args.consistency.into(),
        keep_epochs: args.keep.unwrap_or(0),
        keep_secs: args.keep_for.map_or(0, |time| millis(time).div_ceil(1000)),
        park_ms_max: args.park_max.map_or(0, millis),
    })
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Files to watch, absolute; links stay: what they lead to may change. `none` alone: no file.
pub(super) fn watched(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, CliError> {
    if files == [Path::new("none")] {
        return Ok(Vec::new());
    }
    let absolute = |file: &PathBuf| match std::path::absolute(file) {
        Ok(path) => Ok(path.into_os_string().into_vec()),
        Err(source) => Err(CliError::Path { what: "watch the file", path: file.clone(), source }),
    };
    if files.iter().any(|file| file == Path::new("none")) {
        return Err(CliError::Usage("--on-change none goes with no other file; is it ./none?".to_owned()));
    }
    files.iter().map(absolute).collect()
}

/// A path without links and dots, as far as it is there yet: the last name may be a link itself.
fn left_out(path: &Path) -> Result<Vec<u8>, CliError> {
    let fail = |source| CliError::Path { what: "leave out", path: path.to_owned(), source };
    let whole = std::path::absolute(path).map_err(fail)?;
    let (Some(mut above), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(fail(std::io::Error::from_raw_os_error(libc::EINVAL)));
    };
    let mut names = vec![name];
    loop {
        match (above.canonicalize(), above.parent(), above.file_name()) {
            (Ok(mut found), ..) => {
                found.extend(names.iter().rev());
                return Ok(found.into_os_string().into_vec());
            }
            (Err(cause), Some(parent), Some(name)) if cause.kind() == std::io::ErrorKind::NotFound => {
                names.push(name);
                above = parent;
            }
            (Err(cause), ..) => return Err(fail(cause)),
        }
    }
}

/// The directory without links and dots: the agent, elsewhere, must mean the same one.
fn absolute(root: &Path) -> Result<Vec<u8>, CliError> {
    let fail = |source| CliError::Path { what: "use as a root the directory", path: root.to_owned(), source };
    let path: PathBuf = root.canonicalize().map_err(fail)?;
    if !path.is_dir() {
        return Err(fail(std::io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    Ok(path.into_os_string().into_vec())
}
