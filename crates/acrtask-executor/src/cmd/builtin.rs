//! `true false echo exit pwd ls cat date`: the words that lines use between containers.
//!
//! They see the workspace and the home folder, nothing else, and do what the small forms that task files use
//! do: `echo -n`, `ls [-a] [PATH ...]` one name a line, `cat [FILE ...]`, `date [-u] [+FORMAT]` in UTC.

use acrtask_spec::cmd_line::Word;
use tokio::io::AsyncReadExt;

use super::{
    Flow,
    body::working_folder,
    io::{Exit, Io, PIPE},
    words,
};
use crate::{
    context::StepContext,
    error::chain,
    output::now,
    workspace::{WorkspaceError, resolve_path},
};

/// Runs one of the words.
pub(crate) async fn run(ctx: &StepContext, line: &[Word], io: &mut Io) -> Flow {
    let words = match words::expand_all(line, now()) {
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
        "exit" => return leave(args),
        "pwd" => print(io, &format!("{folder}\n")).await,
        "echo" => print(io, &echo(args)).await,
        "date" => date(args, io).await,
        "cat" => cat(ctx, &folder, args, io).await,
        "ls" => ls(ctx, &folder, args, io).await,
        other => Exit::refused(127, format!("{other} is not a built-in word")),
    })
}

fn leave(args: &[String]) -> Flow {
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
                format!("date: only +FORMAT is known here, not `{other}`"),
            );
        }
        None => "",
    };
    match words::date(format, now()) {
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
            Err(error) => exit = Exit::refused(1, format!("cat: {}", chain(&error))),
        }
        if ctx.cancel.is_cancelled() {
            break;
        }
    }
    exit
}

/// False where nobody reads any more.
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
    let mut content = ctx.run.workspace.open(&resolve_path(folder, file)?).await?;
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
            ctx.run.workspace.list(&resolved).await
        };
        let text = match listed.await {
            Ok(entries) => names(path, &entries, all),
            Err(error) => {
                exit = Exit::refused(2, format!("ls: {}", chain(&error)));
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

/// One name a line, sorted; a file is listed as it was named.
fn names(path: &str, entries: &[crate::archive::Listed], all: bool) -> String {
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
    use crate::archive::Listed;

    #[test]
    fn echoes() {
        let echo = |args: &[&str]| echo(&args.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(echo(&["a", "b"]), "a b\n");
        assert_eq!(echo(&["-n", "a"]), "a");
        assert_eq!(echo(&[]), "\n");
    }

    #[test]
    fn lists_names() {
        let entry = |path: &str, is_folder| Listed {
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
        assert_eq!(names(".", &folder, false), "a\nb\n");
        assert_eq!(names(".", &folder, true), ".x\na\nb\n");
        assert_eq!(names("f", &[entry("", false)], false), "f\n");
    }

    #[test]
    fn leaves() {
        assert!(matches!(
            leave(&["3".into()]),
            Flow::Leave(Exit { code: 3, .. })
        ));
        assert!(matches!(
            leave(&["x".into()]),
            Flow::Leave(Exit { code: 2, .. })
        ));
    }
}
