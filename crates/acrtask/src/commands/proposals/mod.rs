//! `acrtask base proposals`: newer tags of base images, and what they are in a Dockerfile that is at hand.
//!
//! The server has no sources: a diff is made here, of the files in a local folder.

mod dockerfile;

use std::path::{Path, PathBuf};

use acrtask_api::{
    image::{BaseProposal, TagState},
    run::Page,
    task::Task,
};
use jiff::Timestamp;

use self::dockerfile::{Change, rewrite, unified};
use super::remote::{block_on, client, print_json, say};
use crate::{
    args::{images::ProposalsArgs, server::ListOutput},
    error::CliError,
    exit::Exit,
    render::{proposals as show, style::Style},
};

/// Folders that hold no Dockerfile of one's own.
const PASSED_BY: [&str; 3] = ["node_modules", "target", "vendor"];
/// Folders inside each other that are looked through.
const DEPTH: usize = 12;
/// Largest Dockerfile, in bytes.
const LARGEST: u64 = 1 << 20;

/// `acrtask base proposals`.
pub(crate) fn proposals(args: &ProposalsArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let mut found: Page<BaseProposal> =
        block_on(async { Ok(client.get(&["bases", "proposals"], &[]).await?) })?;
    if let Some(task) = &args.task {
        found.items.retain(|one| one.task == *task);
    }
    if args.diff {
        let task = args.task.as_deref().unwrap_or_default();
        let task: Task = block_on(async { Ok(client.get(&["tasks", task], &[]).await?) })?;
        return diff(&task, &found.items, &args.path);
    }
    if !args.all {
        found
            .items
            .retain(|one| !matches!(one.state, TagState::Current | TagState::Waiting));
    }
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = show::proposals(&found.items, args.all, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

/// Prints what the proposals of a task are in the Dockerfiles at `path`.
fn diff(task: &Task, proposals: &[BaseProposal], path: &Path) -> Result<Exit, CliError> {
    let changes: Vec<Change> = proposals
        .iter()
        .filter(|one| one.state == TagState::Proposed)
        .filter_map(|one| {
            Some(Change {
                image: one.image.clone(),
                used: one.used.clone()?,
                newest: one.newest.clone()?,
            })
        })
        .collect();
    let name = &task.definition.name;
    if changes.is_empty() {
        say(&format!("no newer tag is proposed for {name}"));
        return Ok(Exit::Succeeded);
    }
    let unread = |path: &Path, error: &std::io::Error| {
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
                collect(path, 0, &mut files).map_err(|error| unread(path, &error))?;
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
    let mut left = 0;
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|error| unread(file, &error))?;
        let shown = file.strip_prefix(&root).unwrap_or(file);
        let shown = shown.to_string_lossy().replace('\\', "/");
        match rewrite(&text, &changes) {
            Ok(new) => {
                out += &unified(&shown, &text, &new.text);
                left += new.left.len();
                for (line, why) in new.left {
                    say(&format!("{shown}:{line}: {why}"));
                }
            }
            Err(reason) => say(&format!("{shown} is passed by: {reason}")),
        }
    }
    if out.is_empty() && left == 0 {
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
            "give the folder that the context of {name} is, or the Dockerfile itself: `acrtask base proposals --diff {name} PATH`"
        )));
    }
    super::print(out.as_bytes())
}

/// Files below `folder` that look like Dockerfiles.
fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let own = !name.starts_with('.') && !PASSED_BY.contains(&name.as_ref());
            if own && depth < DEPTH {
                collect(&entry.path(), depth + 1, found)?;
            }
        } else if kind.is_file() && is_dockerfile(&name) && entry.metadata()?.len() <= LARGEST {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn is_dockerfile(name: &str) -> bool {
    let name = name.to_lowercase();
    ["dockerfile", "containerfile"].iter().any(|word| {
        name == *word
            || name.starts_with(&format!("{word}."))
            || name.ends_with(&format!(".{word}"))
    })
}
