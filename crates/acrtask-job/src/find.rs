//! The task file in a run's files.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use acrtask_spec::TaskSource;

use crate::{Files, Job, JobError};

/// Default names of a task file in the context, in order of preference.
pub const TASK_FILES: [&str; 2] = ["acr-task.yaml", "acb.yaml"];

const EXAMPLE: &str = "\
version: v1.1.0
steps:
  - build: -t $Registry/app:$ID .
  - cmd: $Registry/app:$ID --self-test
  - push: [$Registry/app:$ID]";

/// Reads the task file with the given path.
pub(crate) fn named_file(job: &Job<'_>, path: &str) -> Result<TaskSource, JobError> {
    match file_path(&job.files, Path::new(path)) {
        Some(found) => open_source(&found, path.to_owned()),
        None => Err(
            JobError::new(format!("the task file `{path}` does not exist"))
                .help(format!("put the file into the context ({})", job.context)),
        ),
    }
}

/// Reads the first existing task file with a default name.
pub(crate) fn default_file(job: &Job<'_>) -> Result<TaskSource, JobError> {
    let shown = |name: &str| match &job.files {
        Files::OperatorFolder(_) if Path::new(&job.context) != Path::new(".") => {
            Path::new(&job.context).join(name).display().to_string()
        }
        _ => name.to_owned(),
    };
    for name in TASK_FILES {
        if let Some(found) = file_path(&job.files, Path::new(name)) {
            return open_source(&found, shown(name));
        }
    }
    let location = match job.files {
        Files::None => format!("the empty context {}", job.context),
        _ => format!("the context {}", job.context),
    };
    Err(
        JobError::new(format!("{location} has no task file")).help(format!(
            "expected {}; name another one with -f, or write this to {}:\n\n{EXAMPLE}",
            TASK_FILES.join(" or "),
            TASK_FILES[0]
        )),
    )
}

/// Returns the path of a file. In fetched files no link may lead outside.
fn file_path(files: &Files, path: &Path) -> Option<PathBuf> {
    let found = match files {
        Files::OperatorFolder(root) => root.join(path),
        Files::Fetched(root) => acrtask_source::paths::resolve_inside(root, path).ok()?,
        Files::None => return None,
    };
    found.is_file().then_some(found)
}

fn open_source(path: &Path, name: String) -> Result<TaskSource, JobError> {
    match std::fs::File::open(path) {
        Ok(file) => read_source(file, name),
        Err(error) => {
            Err(JobError::new(format!("cannot read the task file {name}")).with_source(error))
        }
    }
}

/// Reads a task file with the name `name`. Stops after [`acrtask_spec::MAX_FILE`] bytes and one
/// more, so that [`acrtask_spec::resolve`] can report its size.
///
/// # Errors
///
/// [`JobError`] if it cannot be read or is not UTF-8.
pub fn read_source(from: impl Read, name: String) -> Result<TaskSource, JobError> {
    let mut bytes = Vec::new();
    from.take(acrtask_spec::MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            JobError::new(format!("cannot read the task file {name}")).with_source(error)
        })?;
    let text = if bytes.len() > acrtask_spec::MAX_FILE {
        // The limit may split a character.
        String::from_utf8_lossy(&bytes).into_owned()
    } else {
        String::from_utf8(bytes).map_err(|error| {
            JobError::new(format!("the task file {name} is not UTF-8 text"))
                .with_source(error.utf8_error())
        })?
    };
    Ok(TaskSource { name, text })
}
