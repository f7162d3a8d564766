//! Errors for requests that a forge's API rejects, with the scopes that the token needs. Pure.

use acrtask_trigger::Provider;
use reqwest::StatusCode;
use serde_json::Value;
use url::Url;

use crate::error::CliError;

/// Maximum length of a forge's message in characters.
const MAX_MESSAGE: usize = 300;

/// Returns `true` for the login page that Azure DevOps returns to an unknown token, as a success or
/// as a redirect.
pub(super) fn is_login_page(provider: Provider, status: StatusCode) -> bool {
    provider == Provider::AzureDevops
        && (status == StatusCode::NON_AUTHORITATIVE_INFORMATION || status == StatusCode::FOUND)
}

/// Creates the error for `status`, the API's response to a request for `what`.
pub(super) fn to_error(
    provider: Provider,
    api: &Url,
    what: &str,
    status: StatusCode,
    body: &Value,
) -> CliError {
    let fields = [&body["message"], &body["error"]["message"], &body["error"]];
    let text = fields.into_iter().find_map(Value::as_str);
    let reason: String = match text {
        Some(text) => text.chars().take(MAX_MESSAGE).collect(),
        None => "without a reason".into(),
    };
    let message = format!("{api} answered {status} for {what}: {reason}");
    let needs = format!(
        "the token must be allowed to manage webhooks of the repository: at {}",
        required_scope(provider)
    );
    let expired = format!("the token is wrong, or has expired; {needs}");
    match status.as_u16() {
        401 => CliError::usage(message).help(expired),
        _ if is_login_page(provider, status) => CliError::usage(message).help(expired),
        403 | 404 => CliError::usage(message).help(needs),
        _ => CliError::unreachable(message),
    }
}

/// Creates the error for a webhook that is missing at the forge while its secret is unknown.
pub(super) fn unknown_secret(what: &str) -> CliError {
    CliError::usage(format!(
        "the forge does not have {what} yet, and the secret cannot be read again"
    ))
    .help("set a new secret: `--new-secret`")
}

/// Returns the scope that a token needs, in the forge's own terms.
fn required_scope(provider: Provider) -> &'static str {
    match provider {
        Provider::GitHub => "GitHub `admin:repo_hook` or \"Webhooks: read and write\"",
        Provider::GitLab => "GitLab `api` as a maintainer",
        Provider::Gitea | Provider::Forgejo => "Gitea and Forgejo `write:repository`",
        Provider::BitbucketCloud => {
            "Bitbucket `webhook` for an access token of the repository; `read:webhook:bitbucket` and `write:webhook:bitbucket` for an API token, stored in the file as EMAIL:TOKEN"
        }
        Provider::AzureDevops => {
            "Azure DevOps \"Code: Read\", of a user with \"Edit subscriptions\" in the project, such as its administrators"
        }
        Provider::BitbucketServer | Provider::Generic => "the forge as an administrator",
    }
}
