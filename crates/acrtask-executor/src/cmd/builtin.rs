//! The built-in commands that lines use between containers: `true false echo exit pwd ls cat date`.
//!
//! They can access the workspace and the home folder only. They support the forms that task files
//! use: `echo -n`, `ls [-a] [PATH ...]` with one name per line, `cat [FILE ...]`, and `date [-u]
//! [+FORMAT]` in UTC.

use acrtask_spec::cmd_line::Word;
use tokio::io::AsyncReadExt;

use super::{
    Flow,
    body::working_folder,
    expand,
    io::{Exit, Io, PIPE},
};
use crate::{
    context::StepContext,
    error::error_chain,
    output::now,
    workspace::{WorkspaceError, resolve_path},
};

/// Runs a built-in command.
pub(crate) async fn run(ctx: &StepContext, line: &[Word], io: &mut Io) -> Flow {
    let words = match expand::expand_words(line, now()) {
        Ok(words) => words,
        Err(why) => return Flow::Next(Exit::refused(2, why)),
    };
    let Some((name, args)) = words.split_first() else {
        return Flow::Next(Exit::OK);
    };
    let folder = working_folder(&ctx.step);
    Flow::Next(match name.as_str() {
        "true" => Exit::OK,
        "false" => Exit::code(1),
        "exit" => return exit_line(args),
        "pwd" => print(io, &format!("{folder}\n")).await,
        "echo" => print(io, &echo(args)).await,
        "date" => date(args, io).await,
        "cat" => cat(ctx, &folder, args, io).await,
        "ls" => ls(ctx, &folder, args, io).await,
        other => Exit::refused(127, format!("{other} is not a built-in command")),
    })
}

fn exit_line(args: &[String]) -> Flow {
    match args.first().map(|code| code.parse::<u8>()) {
        None => Flow::Leave(Exit::OK),
        Some(Ok(code)) => Flow::Leave(Exit::code(code.into())),
        Some(Err(_)) => Flow::Leave(Exit::refused(2, "exit takes a number from 0 to 255")),
    }
}

async fn print(io: &Io, text: &str) -> Exit {
    match io.stdout.lock().await.write(text.as_bytes()).await {
        Ok(()) => Exit::OK,
        Err(_) => Exit::code(141),
    }
}

fn echo(args: &[String]) -> String {
    match args.split_first() {
        Some((first, rest)) if first == "-n" => rest.join(" "),
        _ => format!("{}\n", args.join(" ")),
    }
}

async fn date(args: &[String], io: &Io) -> Exit {
    let format = match args.iter().find(|arg| *arg != "-u") {
        Some(format) if format.starts_with('+') => format.as_str(),
        Some(other) => {
            return Exit::refused(
                1,
                format!("date: only +FORMAT is supported here, not `{other}`"),
            );
        }
        None => "",
    };
    match expand::format_date(format, now()) {
        Ok(text) => print(io, &format!("{text}\n")).await,
        Err(why) => Exit::refused(1, why),
    }
}

async fn cat(ctx: &StepContext, folder: &str, args: &[String], io: &mut Io) -> Exit {
    let files: Vec<&str> = if args.is_empty() {
        vec!["-"]
    } else {
        args.iter().map(String::as_str).collect()
    };
    let mut exit = Exit::OK;
    for file in files {
        let copied = if file == "-" {
            copy_stdin(io).await
        } else {
            copy_file(ctx, folder, file, io).await
        };
        match copied {
            Ok(true) => {}
            Ok(false) => return Exit::code(141),
            Err(error) => exit = Exit::refused(1, format!("cat: {}", error_chain(&error))),
        }
        if ctx.cancel.is_cancelled() {
            break;
        }
    }
    exit
}

/// Returns `false` if the reader has closed the pipe.
async fn copy_stdin(io: &mut Io) -> Result<bool, WorkspaceError> {
    let Some(mut stdin) = io.stdin.take() else {
        return Ok(true);
    };
    let mut buffer = vec![0; PIPE];
    loop {
        let count = stdin.read(&mut buffer).await.map_err(read_error)?;
        if count == 0 {
            return Ok(true);
        }
        if io
            .stdout
            .lock()
            .await
            .write(&buffer[..count])
            .await
            .is_err()
        {
            return Ok(false);
        }
    }
}

fn read_error(source: std::io::Error) -> WorkspaceError {
    WorkspaceError::Io {
        attempted: "read".into(),
        source,
    }
}

async fn copy_file(
    ctx: &StepContext,
    folder: &str,
    file: &str,
    io: &Io,
) -> Result<bool, WorkspaceError> {
    let mut content = ctx
        .run
        .workspace
        .open_file(&resolve_path(folder, file)?)
        .await?;
    while let Some(chunk) = content.recv().await {
        let chunk = chunk.map_err(read_error)?;
        if io.stdout.lock().await.write(&chunk).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn ls(ctx: &StepContext, folder: &str, args: &[String], io: &Io) -> Exit {
    let (flags, mut paths): (Vec<&String>, Vec<&str>) = (
        args.iter().filter(|arg| arg.starts_with('-')).collect(),
        args.iter()
            .map(String::as_str)
            .filter(|arg| !arg.starts_with('-'))
            .collect(),
    );
    let all = flags.iter().any(|flag| flag.contains(['a', 'A']));
    if paths.is_empty() {
        paths.push(".");
    }
    let several = paths.len() > 1;
    let mut exit = Exit::OK;
    for (i, path) in paths.iter().enumerate() {
        let listed = async {
            let resolved = resolve_path(folder, path)?;
            ctx.run.workspace.list_entries(&resolved).await
        };
        let text = match listed.await {
            Ok(entries) => format_names(path, &entries, all),
            Err(error) => {
                exit = Exit::refused(2, format!("ls: {}", error_chain(&error)));
                continue;
            }
        };
        let head = match (several, i) {
            (true, 0) => format!("{path}:\n"),
            (true, _) => format!("\n{path}:\n"),
            (false, _) => String::new(),
        };
        if io
            .stdout
            .lock()
            .await
            .write(format!("{head}{text}").as_bytes())
            .await
            .is_err()
        {
            return Exit::code(141);
        }
    }
    exit
}

/// Returns the sorted names, one per line. A file is listed under the name of the argument.
fn format_names(path: &str, entries: &[crate::archive::ListedEntry], all: bool) -> String {
    let is_folder = entries.first().is_some_and(|entry| entry.is_folder);
    if !is_folder {
        return format!("{path}\n");
    }
    let mut names: Vec<String> = entries
        .iter()
        .filter(|entry| entry.path.components().count() == 1)
        .map(|entry| entry.path.to_string_lossy().into_owned())
        .filter(|name| all || !name.starts_with('.'))
        .collect();
    names.sort();
    names.iter().map(|name| format!("{name}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::ListedEntry;

    #[test]
    fn echo_joins_arguments() {
        let echo = |args: &[&str]| echo(&args.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(echo(&["a", "b"]), "a b\n");
        assert_eq!(echo(&["-n", "a"]), "a");
        assert_eq!(echo(&[]), "\n");
    }

    #[test]
    fn ls_sorts_and_filters_names() {
        let entry = |path: &str, is_folder| ListedEntry {
            path: path.into(),
            is_folder,
        };
        let folder = [
            entry("", true),
            entry("b", false),
            entry(".x", false),
            entry("a", true),
            entry("a/c", false),
        ];
        assert_eq!(format_names(".", &folder, false), "a\nb\n");
        assert_eq!(format_names(".", &folder, true), ".x\na\nb\n");
        assert_eq!(format_names("f", &[entry("", false)], false), "f\n");
    }

    #[test]
    fn exit_takes_a_number() {
        assert!(matches!(
            exit_line(&["3".into()]),
            Flow::Leave(Exit { code: 3, .. })
        ));
        assert!(matches!(
            exit_line(&["x".into()]),
            Flow::Leave(Exit { code: 2, .. })
        ));
    }
}
