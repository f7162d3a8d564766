//! The request by which a forge is told where a run stands. Pure.
//!
//! Sources: the forges' own documentation of their APIs for statuses (GitHub, Gitea, Forgejo, Azure DevOps), commit
//! statuses (GitLab), and builds of commits (Bitbucket).

use acrtask_model::RunState;
use acrtask_trigger::Provider;
use http::HeaderValue;
use serde_json::{Value, json};
use url::Url;

use super::Target;

/// Longest description that all forges take.
const DESCRIPTION: usize = 140;

/// Where a run stands, as a forge is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nobody has begun.
    Queued,
    /// It waits for an approval.
    Held,
    /// It is carried out.
    Running,
    /// It is over.
    Over(RunState),
}

impl Word {
    pub(crate) fn of(state: RunState, pending: bool) -> Self {
        match state {
            RunState::Queued if pending => Self::Held,
            RunState::Queued => Self::Queued,
            RunState::Leased | RunState::Running => Self::Running,
            over => Self::Over(over),
        }
    }

    fn description(self, reason: Option<&str>) -> String {
        let text = match self {
            Self::Queued => "queued".to_owned(),
            Self::Held => match reason {
                Some(reason) => format!("waits for an approval of this commit: {reason}"),
                None => "waits for an approval of this commit".into(),
            },
            Self::Running => "running".into(),
            Self::Over(state) => match reason {
                Some(reason) if state != RunState::Succeeded => format!("{state}: {reason}"),
                _ => state.to_string(),
            },
        };
        if text.chars().count() <= DESCRIPTION {
            return text;
        }
        let cut: String = text.chars().take(DESCRIPTION - 1).collect();
        format!("{cut}…")
    }

    /// The word of a forge, of those for: it waits, it runs, good, bad, broken, canceled.
    fn choose(self, words: [&'static str; 6]) -> &'static str {
        let [waits, runs, good, bad, broken, canceled] = words;
        match self {
            Self::Queued | Self::Held => waits,
            Self::Running => runs,
            Self::Over(RunState::Succeeded) => good,
            Self::Over(RunState::Failed) => bad,
            Self::Over(RunState::Canceled) => canceled,
            Self::Over(_) => broken,
        }
    }
}

/// A login for a forge's API.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    /// Empty for a token that was stored as a secret.
    pub(crate) username: String,
    pub(crate) token: acrtask_model::Secret,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct StatusRequest {
    pub(crate) url: Url,
    pub(crate) authorization: HeaderValue,
    pub(crate) body: Value,
}

/// The request that tells `target` where a run stands. `page`: what people are led to.
///
/// # Errors
/// Why there is none, as a sentence.
pub(crate) fn status(
    target: &Target,
    word: Word,
    reason: Option<&str>,
    page: Option<&str>,
    login: &Login,
) -> Result<StatusRequest, String> {
    let description = word.description(reason);
    let commit = target.commit.as_str();
    let context = target.context.as_str();
    let name: Vec<&str> = target.repository.split('/').collect();
    let (segments, body): (Vec<&str>, Value) = match target.provider {
        Provider::GitHub | Provider::Gitea | Provider::Forgejo => {
            let state = word.choose(["pending", "pending", "success", "failure", "error", "error"]);
            let mut segments = vec!["repos"];
            segments.extend(&name);
            segments.extend(["statuses", commit]);
            let mut body = json!({"state": state, "context": context, "description": description});
            set(&mut body, "target_url", page);
            (segments, body)
        }
        Provider::GitLab => {
            let state = word.choose([
                "pending", "running", "success", "failed", "failed", "canceled",
            ]);
            let segments = vec!["projects", &target.repository, "statuses", commit];
            let mut body = json!({"state": state, "name": context, "description": description});
            set(&mut body, "target_url", page);
            (segments, body)
        }
        Provider::BitbucketCloud | Provider::BitbucketServer => {
            let state = word.choose([
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
            // It wants a page; where there is none, that of the commit's own host does.
            let page = page.map_or_else(|| format!("https://{}/", target.host), str::to_owned);
            // A key has 40 characters at most.
            let key = key(context);
            let body = json!({"state": state, "key": key, "name": context, "description": description, "url": page});
            (segments, body)
        }
        Provider::AzureDevops => {
            let [project, repository] = name[..] else {
                return Err(format!("`{}` is not PROJECT/REPOSITORY", target.repository));
            };
            let state = word.choose([
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
            set(&mut body, "targetUrl", page);
            (segments, body)
        }
        Provider::Generic => return Err("a sender of this kind has no statuses".into()),
    };
    let mut url = target.api.clone();
    url.path_segments_mut()
        .map_err(|()| format!("{} is no address of an API", target.api))?
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

fn set(body: &mut Value, key: &str, page: Option<&str>) {
    if let Some(page) = page {
        body[key] = page.into();
    }
}

fn key(context: &str) -> String {
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
        .map_err(|_| "the token holds what no header can".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}
