//! Requests that set a commit status, for each forge. Pure.
//!
//! Sources: the documentation of the forges' APIs for statuses (GitHub, Gitea, Forgejo, Azure
//! DevOps), commit statuses (GitLab), and build statuses (Bitbucket).

use acrtask_model::RunState;
use acrtask_trigger::Provider;
use http::HeaderValue;
use serde_json::{Value, json};
use url::Url;

use super::Target;

/// Longest description that all forges accept, in characters.
const MAX_DESCRIPTION: usize = 140;

/// Phase of a run, as forges distinguish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusPhase {
    /// The run waits in the queue.
    Queued,
    /// The run waits for an approval of its commit.
    AwaitingApproval,
    /// A runner executes the run.
    Running,
    /// The run is finished.
    Finished(RunState),
}

impl StatusPhase {
    pub(crate) fn from_run(state: RunState, pending: bool) -> Self {
        match state {
            RunState::Queued if pending => Self::AwaitingApproval,
            RunState::Queued => Self::Queued,
            RunState::Leased | RunState::Running => Self::Running,
            over => Self::Finished(over),
        }
    }

    fn description(self, reason: Option<&str>) -> String {
        let text = match self {
            Self::Queued => "queued".to_owned(),
            Self::AwaitingApproval => match reason {
                Some(reason) => format!("waits for an approval of this commit: {reason}"),
                None => "waits for an approval of this commit".into(),
            },
            Self::Running => "running".into(),
            Self::Finished(state) => match reason {
                Some(reason) if state != RunState::Succeeded => format!("{state}: {reason}"),
                _ => state.to_string(),
            },
        };
        if text.chars().count() <= MAX_DESCRIPTION {
            return text;
        }
        let cut: String = text.chars().take(MAX_DESCRIPTION - 1).collect();
        format!("{cut}…")
    }

    /// Chooses the forge's name for waiting, running, succeeded, failed, error or canceled.
    fn choose(self, names: [&'static str; 6]) -> &'static str {
        let [waiting, running, succeeded, failed, error, canceled] = names;
        match self {
            Self::Queued | Self::AwaitingApproval => waiting,
            Self::Running => running,
            Self::Finished(RunState::Succeeded) => succeeded,
            Self::Finished(RunState::Failed) => failed,
            Self::Finished(RunState::Canceled) => canceled,
            Self::Finished(_) => error,
        }
    }
}

/// A login for a forge's API.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    /// Empty for a token that is stored as a secret.
    pub(crate) username: String,
    pub(crate) token: acrtask_model::Secret,
}

/// An HTTP request that sets a commit status.
#[derive(Debug, Clone)]
pub(crate) struct StatusRequest {
    pub(crate) url: Url,
    pub(crate) authorization: HeaderValue,
    pub(crate) body: Value,
}

/// Builds the request that sets the status of a commit. `run_page` is the link for readers.
///
/// # Errors
/// The reason why the forge gets no status, as a sentence.
pub(crate) fn status_request(
    target: &Target,
    phase: StatusPhase,
    reason: Option<&str>,
    run_page: Option<&str>,
    login: &Login,
) -> Result<StatusRequest, String> {
    let description = phase.description(reason);
    let commit = target.commit.as_str();
    let context = target.context.as_str();
    let name: Vec<&str> = target.repository.split('/').collect();
    let (segments, body): (Vec<&str>, Value) = match target.provider {
        Provider::GitHub | Provider::Gitea | Provider::Forgejo => {
            let state =
                phase.choose(["pending", "pending", "success", "failure", "error", "error"]);
            let mut segments = vec!["repos"];
            segments.extend(&name);
            segments.extend(["statuses", commit]);
            let mut body = json!({"state": state, "context": context, "description": description});
            set_page(&mut body, "target_url", run_page);
            (segments, body)
        }
        Provider::GitLab => {
            let state = phase.choose([
                "pending", "running", "success", "failed", "failed", "canceled",
            ]);
            let segments = vec!["projects", &target.repository, "statuses", commit];
            let mut body = json!({"state": state, "name": context, "description": description});
            set_page(&mut body, "target_url", run_page);
            (segments, body)
        }
        Provider::BitbucketCloud | Provider::BitbucketServer => {
            let state = phase.choose([
                "INPROGRESS",
                "INPROGRESS",
                "SUCCESSFUL",
                "FAILED",
                "FAILED",
                if target.provider == Provider::BitbucketCloud {
                    "STOPPED"
                } else {
                    "FAILED"
                },
            ]);
            let segments = if target.provider == Provider::BitbucketCloud {
                let mut segments = vec!["repositories"];
                segments.extend(&name);
                segments.extend(["commit", commit, "statuses", "build"]);
                segments
            } else {
                vec!["rest", "build-status", "1.0", "commits", commit]
            };
            // Bitbucket requires a URL. Without a page it is that of the repository's host.
            let run_page =
                run_page.map_or_else(|| format!("https://{}/", target.host), str::to_owned);
            // Bitbucket limits a key to 40 characters.
            let key = short_key(context);
            let body = json!({"state": state, "key": key, "name": context, "description": description, "url": run_page});
            (segments, body)
        }
        Provider::AzureDevops => {
            let [project, repository] = name[..] else {
                return Err(format!("`{}` is not PROJECT/REPOSITORY", target.repository));
            };
            let state = phase.choose([
                "pending",
                "pending",
                "succeeded",
                "failed",
                "error",
                "error",
            ]);
            let segments = vec![
                project,
                "_apis",
                "git",
                "repositories",
                repository,
                "commits",
                commit,
                "statuses",
            ];
            let (_, task) = context.split_once('/').unwrap_or(("", context));
            let mut body = json!({
                "state": state,
                "description": description,
                "context": {"genre": "acrtask", "name": task},
            });
            set_page(&mut body, "targetUrl", run_page);
            (segments, body)
        }
        Provider::Generic => return Err("a generic sender supports no commit statuses".into()),
    };
    let mut url = target.api.clone();
    url.path_segments_mut()
        .map_err(|()| format!("{} is not the URL of an API", target.api))?
        .pop_if_empty()
        .extend(segments);
    if target.provider == Provider::AzureDevops {
        url.set_query(Some("api-version=7.1"));
    }
    Ok(StatusRequest {
        url,
        authorization: authorization(target.provider, login)?,
        body,
    })
}

fn set_page(body: &mut Value, key: &str, run_page: Option<&str>) {
    if let Some(run_page) = run_page {
        body[key] = run_page.into();
    }
}

fn short_key(context: &str) -> String {
    use sha2::{Digest as _, Sha256};
    if context.len() <= 40 {
        return context.to_owned();
    }
    let digest = Sha256::digest(context.as_bytes());
    let digest: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
    let start: String = context.chars().take(23).collect();
    format!("{start}-{digest}")
}

fn authorization(provider: Provider, login: &Login) -> Result<HeaderValue, String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let token = login.token.expose();
    let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{token}")));
    let text = match provider {
        Provider::Gitea | Provider::Forgejo => format!("token {token}"),
        Provider::AzureDevops => basic(&login.username),
        Provider::BitbucketCloud
            if !login.username.is_empty() && login.username != "x-token-auth" =>
        {
            basic(&login.username)
        }
        _ => format!("Bearer {token}"),
    };
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| "the token contains characters that an HTTP header cannot carry".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}
