//! The task file in a run's files.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use acrtask_spec::TaskSource;

use crate::{Files, Job, JobError};

/// The files that are looked for in the context where none is named, in this order.
pub const TASK_FILES: [&str; 2] = ["acr-task.yaml", "acb.yaml"];

const EXAMPLE: &str = "\
version: v1.1.0
steps:
  - build: -t $Registry/app:$ID .
  - cmd: $Registry/app:$ID --self-test
  - push: [$Registry/app:$ID]";

/// A file that was named.
pub(crate) fn named(job: &Job<'_>, path: &str) -> Result<TaskSource, JobError> {
    match place(&job.files, Path::new(path)) {
        Some(found) => open(&found, path.to_owned()),
        None => Err(
            JobError::new(format!("there is no task file `{path}`")).help(format!(
                "it was looked for in the context ({})",
                job.context
            )),
        ),
    }
}

/// The file where it usually is.
pub(crate) fn usual(job: &Job<'_>) -> Result<TaskSource, JobError> {
    let shown = |name: &str| match &job.files {
        Files::OfTheOperator(_) if Path::new(&job.context) != Path::new(".") => {
            Path::new(&job.context).join(name).display().to_string()
        }
        _ => name.to_owned(),
    };
    for name in TASK_FILES {
        if let Some(found) = place(&job.files, Path::new(name)) {
            return open(&found, shown(name));
        }
    }
    let place = match job.files {
        Files::None => format!("{}, which is an empty context", job.context),
        _ => job.context.clone(),
    };
    Err(
        JobError::new(format!("there is no task file in {place}")).help(format!(
            "looked for {}; name another one with -f, or write this to {}:\n\n{EXAMPLE}",
            TASK_FILES.join(" and "),
            TASK_FILES[0]
        )),
    )
}

/// Where the file `path` is. In files from elsewhere no link leads out.
fn place(files: &Files, path: &Path) -> Option<PathBuf> {
    let found = match files {
        Files::OfTheOperator(root) => root.join(path),
        Files::FromElsewhere(root) => acrtask_source::paths::inside(root, path).ok()?,
        Files::None => return None,
    };
    found.is_file().then_some(found)
}

fn open(path: &Path, name: String) -> Result<TaskSource, JobError> {
    match std::fs::File::open(path) {
        Ok(file) => read_source(file, name),
        Err(error) => {
            Err(JobError::new(format!("cannot read the task file {name}")).because(error))
        }
    }
}

/// Reads a task file that is called `name`, and no more of it than it takes to see that it is too large, which
/// [`acrtask_spec::resolve`] then says.
///
/// # Errors
///
/// [`JobError`] where it cannot be read, or is not UTF-8.
pub fn read_source(from: impl Read, name: String) -> Result<TaskSource, JobError> {
    let mut bytes = Vec::new();
    from.take(acrtask_spec::MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            JobError::new(format!("cannot read the task file {name}")).because(error)
        })?;
    let text = if bytes.len() > acrtask_spec::MAX_FILE {
        // Cut in the middle of a character, perhaps.
        String::from_utf8_lossy(&bytes).into_owned()
    } else {
        String::from_utf8(bytes).map_err(|error| {
            JobError::new(format!("the task file {name} is not UTF-8 text"))
                .because(error.utf8_error())
        })?
    };
    Ok(TaskSource { name, text })
}
