//! What it means when a forge's API says no, and what its token needs. Pure.

use acrtask_trigger::Provider;
use reqwest::StatusCode;
use serde_json::Value;
use url::Url;

use crate::error::CliError;

/// Longest text of a forge that is repeated.
const SAID: usize = 300;

/// Azure DevOps shows the page where people log in, as a success or as a redirect, to a token that it does not know.
pub(super) fn is_login_page(provider: Provider, status: StatusCode) -> bool {
    provider == Provider::AzureDevops
        && (status == StatusCode::NON_AUTHORITATIVE_INFORMATION || status == StatusCode::FOUND)
}

/// The error for `status`, with which the API at `api` answered a question about `what`.
pub(super) fn of(
    provider: Provider,
    api: &Url,
    what: &str,
    status: StatusCode,
    answer: &Value,
) -> CliError {
    let said = [
        &answer["message"],
        &answer["error"]["message"],
        &answer["error"],
    ];
    let said = said.into_iter().find_map(Value::as_str);
    let said: String = match said {
        Some(said) => said.chars().take(SAID).collect(),
        None => "it does not say why".into(),
    };
    let message = format!("{api} answered {status} for {what}: {said}");
    let needs = format!(
        "the token needs to manage webhooks of the repository: at {}",
        scope(provider)
    );
    let expired = format!("the token is wrong, or has expired; {needs}");
    match status.as_u16() {
        401 => CliError::usage(message).help(expired),
        _ if is_login_page(provider, status) => CliError::usage(message).help(expired),
        403 | 404 => CliError::usage(message).help(needs),
        _ => CliError::unreachable(message),
    }
}

/// The error for what the forge does not have, while its secret has been forgotten.
pub(super) fn secret_unknown(what: &str) -> CliError {
    CliError::usage(format!(
        "the forge does not have {what} yet, and its secret is known to nobody any more"
    ))
    .help("give it a new one: `--new-secret`")
}

/// What a token has to be allowed, in the forge's own words.
fn scope(provider: Provider) -> &'static str {
    match provider {
        Provider::GitHub => "GitHub `admin:repo_hook` or \"Webhooks: read and write\"",
        Provider::GitLab => "GitLab `api` as a maintainer",
        Provider::Gitea | Provider::Forgejo => "Gitea and Forgejo `write:repository`",
        Provider::BitbucketCloud => {
            "Bitbucket `webhook` for an access token of the repository; `read:webhook:bitbucket` and `write:webhook:bitbucket` for an API token, which stands in the file as EMAIL:TOKEN"
        }
        Provider::AzureDevops => {
            "Azure DevOps \"Code: Read\", of somebody who may \"Edit subscriptions\" of the project, as its administrators may"
        }
        Provider::BitbucketServer | Provider::Generic => "the forge as an administrator",
    }
}
