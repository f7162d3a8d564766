//! Runs cargo for the other commands.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Returns the checkout that this program was compiled from.
pub(crate) fn checkout() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here
        .ancestors()
        .nth(2)
        .context("xtask lies in crates/xtask")?;
    Ok(root.to_owned())
}

/// Returns a cargo command that runs in the checkout.
pub(crate) fn cargo(arguments: &[&str]) -> Result<Command> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(checkout()?);
    Ok(command)
}

/// Runs a command on the terminal. Returns an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Runs `cargo build` with `arguments`, which must select the program. Returns the path of the
/// program.
pub(crate) fn build_acrtask(arguments: &[&str]) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        target: Target,
        profile: Profile,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let json = ["build", "--message-format=json-render-diagnostics"];
    let output = cargo(&[&json[..], arguments].concat())?
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("acrtask does not build");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // Messages of another form do not name a program.
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages
        .filter(|message| !message.profile.test && message.target.name == "acrtask")
        .filter(|message| message.target.kind.iter().any(|kind| kind == "bin"))
        .find_map(|message| message.executable)
        .context("cargo did not progress where the program is")
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    if let Some(name) = Path::new(&words[0]).file_name() {
        words[0] = name.to_string_lossy().into_owned();
    }
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}
