//! Checks of secrets and logins, stored or sent with a run.

use std::collections::BTreeMap;

use acrtask_api::run::{RunCredential, SecretText};
use acrtask_model::{count, mask::MIN_LEN};

use super::{Problems, check_host, check_names, check_printable};

/// Largest value of a secret, user name or password, in bytes.
const MAX_VALUE: usize = 64 << 10;
/// Largest total of the secrets and logins sent with one run, in bytes of names and values.
const MAX_TOTAL: usize = 256 << 10;

/// Checks that the value of a secret has an allowed length, and that logs can mask it.
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
            "`{key}` has {} bytes, and the limit is {MAX_VALUE}",
            value.len()
        )
    };
    if value.chars().count() > MAX_VALUE {
        problems.add(problem());
    } else if value.len() > MAX_VALUE {
        problems.add_rule(problem());
    }
}

/// Checks the secrets and logins sent with a run. The database stores them with the run.
pub(crate) fn check_sent(
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
            "`secrets` and `credentials` of the run have {} KiB, and the limit is {} KiB: put large values into a file \
             of the context",
            total.div_ceil(1024),
            MAX_TOTAL >> 10
        ));
    }
}
