//! `acrtask base proposals`: shows newer tags of base images, and their changes in a local
//! Dockerfile.
//!
//! The server has no sources, so the diff is made here, for the files in a local folder.

mod dockerfile;

use std::path::{Path, PathBuf};

use acrtask_api::{
    image::{BaseProposal, TagState},
    run::Page,
    task::Task,
};
use jiff::Timestamp;

use self::dockerfile::{TagChange, rewrite, unified_diff};
use super::remote::{block_on, client, print_json, print_message};
use crate::{
    args::{base::ProposalsArgs, server::ListOutput},
    error::CliError,
    exit::Exit,
    render::{proposals, style::Style},
};

/// Folders whose Dockerfiles are not the project's own.
const SKIPPED_FOLDERS: [&str; 3] = ["node_modules", "target", "vendor"];
/// Maximum depth of the search for Dockerfiles.
const MAX_DEPTH: usize = 12;
/// Maximum size of a Dockerfile in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Runs `acrtask base proposals`.
pub(crate) fn proposals(args: &ProposalsArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let mut found: Page<BaseProposal> =
        block_on(async { Ok(client.get(&["bases", "proposals"], &[]).await?) })?;
    if let Some(task) = &args.task {
        found.items.retain(|proposal| proposal.task == *task);
    }
    if args.diff {
        let task = args.task.as_deref().unwrap_or_default();
        let task: Task = block_on(async { Ok(client.get(&["tasks", task], &[]).await?) })?;
        return print_diff(&task, &found.items, &args.path);
    }
    if !args.all {
        found
            .items
            .retain(|proposal| !matches!(proposal.state, TagState::Current | TagState::Waiting));
    }
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = proposals::render_proposals(&found.items, args.all, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

/// Prints the proposals of a task as a diff of the Dockerfiles at `path`.
fn print_diff(task: &Task, proposals: &[BaseProposal], path: &Path) -> Result<Exit, CliError> {
    let changes: Vec<TagChange> = proposals
        .iter()
        .filter(|proposal| proposal.state == TagState::Proposed)
        .filter_map(|proposal| {
            Some(TagChange {
                image: proposal.image.clone(),
                used: proposal.used.clone()?,
                newest: proposal.newest.clone()?,
            })
        })
        .collect();
    let name = &task.definition.name;
    if changes.is_empty() {
        print_message(&format!("no newer tags for {name}"));
        return Ok(Exit::Succeeded);
    }
    let read_error = |path: &Path, error: &std::io::Error| {
        CliError::usage(format!("cannot read {}", path.display())).because(error)
    };
    let (root, files) = if path.is_dir() {
        let own = task
            .definition
            .build
            .as_ref()
            .map(|build| &build.dockerfile);
        let files = match own.map(|own| path.join(own)).filter(|file| file.is_file()) {
            Some(file) => vec![file],
            None => {
                let mut files = Vec::new();
                collect_dockerfiles(path, 0, &mut files)
                    .map_err(|error| read_error(path, &error))?;
                files.sort();
                files
            }
        };
        (path.to_owned(), files)
    } else {
        let root = path.parent().map(Path::to_owned).unwrap_or_default();
        (root, vec![path.to_owned()])
    };
    let mut out = String::new();
    let mut manual = 0;
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|error| read_error(file, &error))?;
        let shown = file.strip_prefix(&root).unwrap_or(file);
        let shown = shown.to_string_lossy().replace('\\', "/");
        match rewrite(&text, &changes) {
            Ok(new) => {
                out += &unified_diff(&shown, &text, &new.text);
                manual += new.manual.len();
                for (line, why) in new.manual {
                    print_message(&format!("{shown}:{line}: {why}"));
                }
            }
            Err(reason) => print_message(&format!("skipped {shown}: {reason}")),
        }
    }
    if out.is_empty() && manual == 0 {
        let images: Vec<String> = changes
            .iter()
            .map(|change| format!("{}:{}", change.image, change.used))
            .collect();
        return Err(CliError::usage(format!(
            "no Dockerfile in {} names {}",
            path.display(),
            images.join(" or ")
        ))
        .help(format!(
            "name the folder of the context of {name}, or the Dockerfile itself: `acrtask base proposals --diff {name} PATH`"
        )));
    }
    super::print(out.as_bytes())
}

/// Collects the files below `folder` whose names look like those of Dockerfiles.
fn collect_dockerfiles(
    folder: &Path,
    depth: usize,
    found: &mut Vec<PathBuf>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let own = !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name.as_ref());
            if own && depth < MAX_DEPTH {
                collect_dockerfiles(&entry.path(), depth + 1, found)?;
            }
        } else if kind.is_file() && is_dockerfile(&name) && entry.metadata()?.len() <= MAX_SIZE {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn is_dockerfile(name: &str) -> bool {
    let name = name.to_lowercase();
    ["dockerfile", "containerfile"].iter().any(|suffix| {
        name == *suffix
            || name.starts_with(&format!("{suffix}."))
            || name.ends_with(&format!(".{suffix}"))
    })
}
