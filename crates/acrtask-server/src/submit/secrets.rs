//! Checks of secrets and logins, stored for tasks or sent with one run; and stored secrets that are missing.

use std::collections::BTreeMap;

use acrtask_api::run::{RunCredential, SecretText};
use acrtask_model::{count, mask::MIN_LEN};
use acrtask_store::StoreError;

use super::{
    Draft, Problems,
    checks::{check_host, check_names, check_printable},
};
use crate::App;

/// Largest value of a secret, user name or password, in bytes.
const MAX_VALUE: usize = 64 << 10;
/// Largest total of the secrets and logins that come with one run, in bytes of names and values.
const MAX_TOTAL: usize = 256 << 10;

/// Checks that the value of a secret has an allowed size, and that logs can mask it.
pub(crate) fn check_value(key: &str, value: &str, problems: &mut Problems) {
    check_length(key, value, problems);
    let length = value.trim().len();
    let problem = format!(
        "`{key}` has {} without the white space around it: secrets shorter than {MIN_LEN} bytes cannot be \
         masked in logs; set a value of at least {MIN_LEN} bytes",
        count(length, "byte")
    );
    if value.chars().count() < MIN_LEN {
        problems.add(problem);
    } else if length < MIN_LEN {
        problems.add_rule(problem);
    }
}

/// Checks the user name of a login.
pub(crate) fn check_username(key: &str, username: &str, problems: &mut Problems) {
    if username.is_empty() {
        problems.add(format!("`{key}` is empty"));
    }
    check_length(key, username, problems);
    check_printable(key, username, problems);
}

fn check_length(key: &str, value: &str, problems: &mut Problems) {
    let problem = || {
        format!(
            "`{key}` has {} bytes, and may have {MAX_VALUE}",
            value.len()
        )
    };
    if value.chars().count() > MAX_VALUE {
        problems.add(problem());
    } else if value.len() > MAX_VALUE {
        problems.add_rule(problem());
    }
}

/// Checks the secrets and logins that come with a run. The database stores them with it.
pub(super) fn check_brought(
    values: &BTreeMap<String, SecretText>,
    credentials: &[RunCredential],
    problems: &mut Problems,
) {
    check_names(values.keys(), problems);
    for (name, value) in values {
        check_value(&format!("secrets.{name}"), &value.0, problems);
    }
    for (at, login) in credentials.iter().enumerate() {
        check_host(&login.host, problems);
        check_username(
            &format!("credentials[{at}].username"),
            &login.username,
            problems,
        );
        check_value(
            &format!("credentials[{at}].password"),
            &login.password.0,
            problems,
        );
    }
    let values = values
        .iter()
        .map(|(name, value)| name.len() + value.0.len());
    let logins = credentials
        .iter()
        .map(|login| login.host.len() + login.username.len() + login.password.0.len());
    let total: usize = values.chain(logins).sum();
    if total > MAX_TOTAL {
        problems.add_rule(format!(
            "`secrets` and `credentials` of the run take {} KiB together, and may take {} KiB: put large values into a file \
             of the context",
            total.div_ceil(1024),
            MAX_TOTAL >> 10
        ));
    }
}

/// Names of stored secrets that are not there: looked for under the task `scope` first, then among those of all tasks.
///
/// # Errors
/// When the database cannot be used.
pub async fn missing_secrets(app: &App, draft: &Draft) -> Result<Vec<String>, StoreError> {
    let (scope, names) = draft.stored();
    missing_among(app, scope, names).await
}

/// Returns those of `names` that no stored secret has: looked for under the task `scope` first, then among those of
/// all tasks.
///
/// # Errors
/// When the database cannot be used.
pub(crate) async fn missing_among<'n>(
    app: &App,
    scope: Option<&str>,
    names: impl Iterator<Item = &'n str>,
) -> Result<Vec<String>, StoreError> {
    let mut missing = Vec::new();
    for name in names {
        if stored_secret(app, scope, name).await?.is_none() {
            missing.push(name.to_owned());
        }
    }
    missing.dedup();
    Ok(missing)
}

/// Explains that stored secrets are missing, and how to set the first one.
pub(crate) fn no_secret(missing: &[String], task: Option<&str>) -> String {
    let only = task.map_or(String::new(), |task| format!(" --task {task}"));
    format!(
        "there is no secret `{}`; set it with `acrtask secret set {}{only}`",
        missing.join("`, `"),
        missing.first().map_or("NAME", String::as_str)
    )
}

/// A stored secret, and the scope that it was found in.
pub(crate) async fn stored_secret<'s>(
    app: &App,
    task_id: Option<&'s str>,
    name: &str,
) -> Result<Option<(&'s str, Vec<u8>)>, StoreError> {
    for scope in task_id.into_iter().chain([""]) {
        if let Some(sealed) = app.store.secret(scope, name).await? {
            return Ok(Some((scope, sealed)));
        }
    }
    Ok(None)
}
