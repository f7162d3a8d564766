//! Functions shared by the commands that use a server: the connection, a runtime, output, and
//! secrets from files.

use std::{io::Read, path::Path};

use acrtask_model::Secret;

use crate::{
    args::{
        PathOrStdin,
        server::{RemoteArgs, ServerArgs, ValueSource},
        values::PasswordSource,
    },
    client::{Client, Connection, config::Config, display_url},
    error::CliError,
    exit::Exit,
    render::text,
};

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Connects to the server of `args`.
///
/// # Errors
/// Fails if no server is configured, or if no token is stored for it.
pub(crate) fn client(args: &ServerArgs) -> Result<Client, CliError> {
    let connection = Config::read()?.connection(args, var)?.ok_or_else(|| {
        CliError::usage("no server is configured")
            .help("log in: `acrtask login https://HOST`, or set ACRTASK_SERVER and ACRTASK_TOKEN")
    })?;
    authenticated_client(&connection)
}

/// Returns the server for a run; `None` if the run stays on this machine.
pub(crate) fn client_for_run(args: &RemoteArgs) -> Result<Option<Client>, CliError> {
    if args.local {
        return Ok(None);
    }
    if let Some(connection) = Config::read()?.connection(&args.server, var)? {
        return authenticated_client(&connection).map(Some);
    }
    let given = args
        .queue
        .first_given()
        .or_else(|| args.no_wait.then_some("--no-wait"));
    match given {
        Some(flag) => Err(CliError::usage(format!(
            "{flag} is for runs on a server, but no server is configured"
        ))
        .help("log in: `acrtask login https://HOST`, or set the server with --server")),
        None => Ok(None),
    }
}

fn authenticated_client(connection: &Connection) -> Result<Client, CliError> {
    if connection.token.is_none() {
        let url = display_url(&connection.url);
        return Err(
            CliError::usage(format!("no token is stored for {url}")).help(format!(
                "log in: `acrtask login {url}`, or set the token in ACRTASK_TOKEN"
            )),
        );
    }
    Ok(Client::new(connection)?)
}

/// Runs `future` to completion on its own runtime.
pub(crate) fn block_on<T>(
    future: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::unreachable("cannot start the runtime").because(&error))?;
    let result = runtime.block_on(future);
    // A blocking read of standard input cannot be canceled.
    runtime.shutdown_background();
    result
}

/// Prints `value` as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<Exit, CliError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::unreachable("cannot write the response").because(&error))?;
    text.push('\n');
    super::write_out(text::escape_json(&text).as_bytes())
}

/// Writes a line to standard error.
pub(crate) fn print_message(line: &str) {
    write_error(&format!("{line}\n"));
}

/// Writes `text` to standard error without terminal control sequences. A closed standard error is
/// ignored; the exit code still reports the error.
pub(crate) fn write_error(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(text::sanitize(text).as_bytes());
}

/// Reads the value of a secret; `what` names it in errors.
pub(crate) fn read_value(from: &ValueSource, what: &str) -> Result<Secret, CliError> {
    let from = match (&from.from_env, &from.from_file) {
        (Some(name), _) => PasswordSource::Env(name.clone()),
        (None, Some(PathOrStdin::Path(path))) => PasswordSource::File(path.clone()),
        (None, Some(PathOrStdin::Stdin) | None) => PasswordSource::Stdin,
    };
    read_secret(&from, what)
}

/// Reads a secret without its last line break; `what` names it in errors.
pub(crate) fn read_secret(from: &PasswordSource, what: &str) -> Result<Secret, CliError> {
    let fail = |source: &str, error: &(dyn std::error::Error + 'static)| {
        CliError::usage(format!("cannot read {what} from {source}")).because(error)
    };
    let text = match from {
        PasswordSource::File(path) => {
            read_file(path).map_err(|error| fail(&path.display().to_string(), &error))?
        }
        PasswordSource::Stdin => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| fail("standard input", &error))?;
            text
        }
        PasswordSource::Env(name) => std::env::var(name)
            .map_err(|error| fail(&format!("the environment variable {name}"), &error))?,
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(CliError::usage(format!("{what} is empty"))
            .help("provide it on standard input, in a file or in an environment variable"));
    }
    Ok(Secret::new(text))
}

fn read_file(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}
