//! What a task needs beside the server: its registry and its git host, asked from this machine and without a login.

use std::time::Duration;

use acrtask_source::{ContextSpec, GitTransport, GitUrl};
use reqwest::{Response, StatusCode, redirect};
use url::Url;

use super::{Check, SeenTask};
use crate::client::is_loopback;

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Looks at both.
pub(super) async fn look(task: &SeenTask) -> Vec<Check> {
    let (registry, source) = tokio::join!(registry(task), source(task));
    registry.into_iter().chain(source).collect()
}

/// Asks without a login; nothing but how it is answered counts.
async fn ask(url: &Url) -> Result<Response, String> {
    acrtask_registry::install_crypto_provider();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("acrtask/", env!("CARGO_PKG_VERSION")))
        .timeout(LIMIT)
        .redirect(redirect::Policy::none());
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    let client = builder.build().map_err(|error| error.to_string())?;
    let answer = client.get(url.clone()).send().await;
    answer.map_err(|error| {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = error.to_string();
            cause = error.source();
        }
        text
    })
}

async fn registry(task: &SeenTask) -> Option<Check> {
    const NAME: &str = "registry";
    let host = task.task.definition.registry.as_deref()?;
    let guess = Url::parse(&format!("https://{host}/v2/")).ok()?;
    let url = if is_loopback(&guess) {
        Url::parse(&format!("http://{host}/v2/")).ok()?
    } else {
        guess
    };
    let set = format!(
        "`acrtask credential set {host} --username USER --task {}`",
        task.name()
    );
    let answer = match ask(&url).await {
        Ok(answer) => answer,
        Err(why) => {
            return Some(
                Check::warning(NAME, format!("{host} is not reached from here: {why}"))
                    .help("see whether the runners reach it, and whether its name is right"),
            );
        }
    };
    let status = answer.status();
    let login = task.has_login(host);
    Some(match (status, login) {
        (StatusCode::OK, Ok(true)) => Check::ok(NAME, format!("{host} answers, and a login for it is stored")),
        (StatusCode::OK, _) => Check::ok(NAME, format!("{host} answers, and needs no login")),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Ok(true)) => {
            Check::ok(NAME, format!("{host} wants a login, and one is stored"))
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Ok(false)) => Check::warning(
            NAME,
            format!("{host} wants a login, and the server has none; only runners with a login of their own can push there"),
        )
        .help(set),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Err(error)) => Check::unknown(
            NAME,
            format!("{host} wants a login, and whether one is stored is not known: {error}"),
        ),
        (other, _) => Check::warning(NAME, format!("{host} answers {other}, as a registry does not"))
            .help("see whether its name is right"),
    })
}

/// The end of the URL by which a repository is discovered.
const DISCOVERY: &str = "/info/refs?service=git-upload-pack";

async fn source(task: &SeenTask) -> Option<Check> {
    const NAME: &str = "source";
    let definition = &task.task.definition;
    let Ok(ContextSpec::Git(git)) = ContextSpec::parse(definition.context.as_deref()?) else {
        return None;
    };
    let host = &host_of(&git);
    let login = task.has_login(host);
    let name = task.name();
    if git.transport == GitTransport::Ssh {
        return Some(match login {
            Ok(true) => Check::ok(NAME, format!("a key for {host} is stored")),
            Ok(false) => Check::wrong(
                NAME,
                format!("the repository is reached by SSH, and no key for {host} is stored"),
            )
            .help(format!(
                "`acrtask credential set {host} --username git --task {name} < KEY`"
            )),
            Err(error) => Check::unknown(NAME, error),
        });
    }
    if !matches!(git.transport, GitTransport::Https | GitTransport::Http) {
        return None;
    }
    let url = format!("{}{DISCOVERY}", git.url.trim_end_matches('/'));
    let url = Url::parse(&url).ok()?;
    let answer = match ask(&url).await {
        Ok(answer) => answer,
        Err(why) => {
            return Some(
                Check::warning(NAME, format!("{host} is not reached from here: {why}"))
                    .help("see whether the runners reach it, and whether its name is right"),
            );
        }
    };
    let status = answer.status();
    if let Some(moved) = new_address(&git, &url, &answer) {
        return Some(
            Check::warning(NAME, format!("{} has moved to {}", git.url, moved.url))
                .help(format!("`acrtask task update {name} --context '{moved}'`")),
        );
    }
    if status.is_success() || status.is_redirection() {
        return Some(Check::ok(NAME, format!("{} is open to everybody", git.url)));
    }
    let wants = matches!(status.as_u16(), 401 | 403 | 404);
    Some(match (wants, login) {
        (true, Ok(true)) => Check::ok(
            NAME,
            format!("{} is private, and a login for {host} is stored", git.url),
        ),
        (true, Ok(false)) => Check::wrong(
            NAME,
            format!(
                "{} is private or is not there ({status}), and no login for {host} is stored",
                git.url
            ),
        )
        .help(format!(
            "`acrtask credential set {host} --username x-access-token --task {name} < TOKEN`"
        )),
        (true, Err(error)) => Check::unknown(NAME, error),
        (false, _) => Check::warning(NAME, format!("{} answers {status}", git.url))
            .help("see whether its name is right"),
    })
}

/// Returns the address that the answer to a request of `url` redirects to, if a repository can be there.
fn new_address(git: &GitUrl, url: &Url, answer: &reqwest::Response) -> Option<GitUrl> {
    let location = answer.headers().get(reqwest::header::LOCATION)?;
    let next = url.join(location.to_str().ok()?).ok()?;
    let address = next.as_str().strip_suffix(DISCOVERY)?;
    let mut moved = GitUrl::of_remote(address).ok()?;
    moved.reference.clone_from(&git.reference);
    moved.folder.clone_from(&git.folder);
    answer.status().is_redirection().then_some(moved)
}

/// The host as a login for it is stored: by HTTP with its port, by SSH without.
fn host_of(git: &GitUrl) -> String {
    let port = Url::parse(&git.url).ok().and_then(|url| url.port());
    match port {
        Some(port) if git.transport != GitTransport::Ssh => format!("{}:{port}", git.host),
        _ => git.host.clone(),
    }
}
