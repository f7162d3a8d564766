//! What commands that speak to a server share: which server, a runtime, texts that come from files.

use std::{io::Read, path::Path};

use acrtask_model::Secret;

use crate::{
    args::{
        PathOrStdin,
        server::{RemoteArgs, ServerArgs, ValueFrom},
        values::PasswordFrom,
    },
    client::{Client, Connection, config::Config, shown},
    error::CliError,
    exit::Exit,
    render::text,
};

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The server that `args` mean.
///
/// # Errors
/// None is known, or there is no token for it.
pub(crate) fn client(args: &ServerArgs) -> Result<Client, CliError> {
    let connection = Config::read()?.connection(args, var)?.ok_or_else(|| {
        CliError::usage("no server is known")
            .help("log in: `acrtask login https://HOST`, or set ACRTASK_SERVER and ACRTASK_TOKEN")
    })?;
    with_token(&connection)
}

/// The server that a run goes to; nothing where it stays on this machine.
pub(crate) fn for_run(args: &RemoteArgs) -> Result<Option<Client>, CliError> {
    if args.local {
        return Ok(None);
    }
    if let Some(connection) = Config::read()?.connection(&args.server, var)? {
        return with_token(&connection).map(Some);
    }
    let given = args
        .queue
        .given()
        .or_else(|| args.no_wait.then_some("--no-wait"));
    match given {
        Some(flag) => Err(CliError::usage(format!(
            "{flag} is for runs on a server, and no server is known"
        ))
        .help("log in: `acrtask login https://HOST`, or name the server with --server")),
        None => Ok(None),
    }
}

fn with_token(connection: &Connection) -> Result<Client, CliError> {
    if connection.token.is_none() {
        let url = shown(&connection.url);
        return Err(
            CliError::usage(format!("there is no token for {url}")).help(format!(
                "log in: `acrtask login {url}`, or give the token in ACRTASK_TOKEN"
            )),
        );
    }
    Ok(Client::new(connection)?)
}

/// Runs on a runtime of its own until `future` is done.
pub(crate) fn block_on<T>(
    future: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::unreachable("cannot start").because(&error))?;
    let done = runtime.block_on(future);
    // A read of standard input cannot be called off.
    runtime.shutdown_background();
    done
}

/// Prints `value` as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<Exit, CliError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::unreachable("the answer cannot be written").because(&error))?;
    text.push('\n');
    super::write_out(text::json(&text).as_bytes())
}

/// Writes a line to standard error.
pub(crate) fn say(line: &str) {
    write_error(&format!("{line}\n"));
}

/// Writes `text` to standard error, without what could do more to a terminal than show it. Where
/// standard error is closed, the exit code still tells.
pub(crate) fn write_error(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(text::terminal(text).as_bytes());
}

/// The value that `from` leads to; `what` is what it is.
pub(crate) fn value(from: &ValueFrom, what: &str) -> Result<Secret, CliError> {
    let from = match (&from.from_env, &from.from_file) {
        (Some(name), _) => PasswordFrom::Env(name.clone()),
        (None, Some(PathOrStdin::Path(path))) => PasswordFrom::File(path.clone()),
        (None, Some(PathOrStdin::Stdin) | None) => PasswordFrom::Stdin,
    };
    secret(&from, what)
}

/// The secret that `from` leads to, without its last line end.
pub(crate) fn secret(from: &PasswordFrom, what: &str) -> Result<Secret, CliError> {
    let fail = |place: &str, error: &(dyn std::error::Error + 'static)| {
        CliError::usage(format!("cannot read {what} from {place}")).because(error)
    };
    let text = match from {
        PasswordFrom::File(path) => {
            read_file(path).map_err(|error| fail(&path.display().to_string(), &error))?
        }
        PasswordFrom::Stdin => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| fail("standard input", &error))?;
            text
        }
        PasswordFrom::Env(name) => std::env::var(name)
            .map_err(|error| fail(&format!("the environment variable {name}"), &error))?,
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(CliError::usage(format!("{what} is empty"))
            .help("give it on standard input, in a file or in a variable of the environment"));
    }
    Ok(Secret::new(text))
}

fn read_file(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}
