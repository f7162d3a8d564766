//! The environment of the programs that tests start.
//!
//! No user setting reaches them: no login of `acrtask login`, no `ACRTASK_*`, and no configuration
//! of Docker, git or SSH. A test sets what it needs.

use std::{ffi::OsStr, path::Path, process::Command};

/// Variables that every program needs to run on this machine.
const KEPT: [&str; 16] = [
    "PATH",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_ALL",
    "TERM",
    "USER",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
    // Engine of the tests.
    "DOCKER_HOST",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "DOCKER_API_VERSION",
];

/// Returns a command for `program` without the user's variables. Its home and configuration are in
/// `home`.
pub fn isolated(program: impl AsRef<OsStr>, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_STATE_HOME", home.join("state"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_no_variables_of_the_user() {
        let output = isolated("env", Path::new("/nowhere")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let names = text.lines().filter_map(|line| line.split_once('='));
        for (name, value) in names {
            let own = ["HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"].contains(&name);
            assert!(own || KEPT.contains(&name), "{name}");
            assert!(!own || value.starts_with("/nowhere"), "{name}");
        }
    }
}
