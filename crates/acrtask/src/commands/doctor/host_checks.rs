//! Checks of the hosts that a task needs, its registry and its git host, from this machine and
//! without a login.

use std::time::Duration;

use acrtask_source::{ContextSpec, GitTransport, GitUrl};
use reqwest::{Response, StatusCode, redirect};
use url::Url;

use super::{Check, TaskState};
use crate::client::is_loopback;

/// Maximum wait for a response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Checks the registry and the git host of a task.
pub(super) async fn check_hosts(task: &TaskState) -> Vec<Check> {
    let (registry, source) = tokio::join!(check_registry(task), check_source(task));
    registry.into_iter().chain(source).collect()
}

/// Sends a request without a login. Only the status and the headers of the response matter.
async fn send_request(url: &Url) -> Result<Response, String> {
    acrtask_registry::install_crypto_provider();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("acrtask/", env!("CARGO_PKG_VERSION")))
        .timeout(TIMEOUT)
        .redirect(redirect::Policy::none());
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    let client = builder.build().map_err(|error| error.to_string())?;
    let response = client.get(url.clone()).send().await;
    response.map_err(|error| {
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

async fn check_registry(task: &TaskState) -> Option<Check> {
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
    let response = match send_request(&url).await {
        Ok(response) => response,
        Err(why) => {
            return Some(
                Check::warning(NAME, format!("cannot reach {host} from here: {why}"))
                    .help("check that the runners reach it, and that its name is correct"),
            );
        }
    };
    let status = response.status();
    let login = task.has_login(host);
    Some(match (status, login) {
        (StatusCode::OK, Ok(true)) => Check::ok(NAME, format!("{host} responds, and a login for it is stored")),
        (StatusCode::OK, _) => Check::ok(NAME, format!("{host} responds, and needs no login")),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Ok(true)) => {
            Check::ok(NAME, format!("{host} requires a login, and one is stored"))
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Ok(false)) => Check::warning(
            NAME,
            format!("{host} requires a login, and the server has none; only runners with their own login can push there"),
        )
        .help(set),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Err(error)) => Check::unknown(
            NAME,
            format!("{host} requires a login, but the stored logins are unknown: {error}"),
        ),
        (other, _) => Check::warning(NAME, format!("{host} responds with {other}, so it is not a registry"))
            .help("check that its name is correct"),
    })
}

/// Path and query of git's repository discovery.
const DISCOVERY: &str = "/info/refs?service=git-upload-pack";

async fn check_source(task: &TaskState) -> Option<Check> {
    const NAME: &str = "source";
    let definition = &task.task.definition;
    let Ok(ContextSpec::Git(git)) = ContextSpec::parse(definition.context.as_deref()?) else {
        return None;
    };
    let host = &credential_host(&git);
    let login = task.has_login(host);
    let name = task.name();
    if git.transport == GitTransport::Ssh {
        return Some(match login {
            Ok(true) => Check::ok(NAME, format!("a key for {host} is stored")),
            Ok(false) => Check::wrong(
                NAME,
                format!("the repository uses SSH, but no key for {host} is stored"),
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
    let response = match send_request(&url).await {
        Ok(response) => response,
        Err(why) => {
            return Some(
                Check::warning(NAME, format!("cannot reach {host} from here: {why}"))
                    .help("check that the runners reach it, and that its name is correct"),
            );
        }
    };
    let status = response.status();
    if let Some(moved) = new_address(&git, &url, &response) {
        return Some(
            Check::warning(NAME, format!("{} has moved to {}", git.url, moved.url))
                .help(format!("`acrtask task update {name} --context '{moved}'`")),
        );
    }
    if status.is_success() || status.is_redirection() {
        return Some(Check::ok(NAME, format!("{} is public", git.url)));
    }
    let needs_login = matches!(status.as_u16(), 401 | 403 | 404);
    Some(match (needs_login, login) {
        (true, Ok(true)) => Check::ok(
            NAME,
            format!("{} is private, and a login for {host} is stored", git.url),
        ),
        (true, Ok(false)) => Check::wrong(
            NAME,
            format!(
                "{} is private or does not exist ({status}), and no login for {host} is stored",
                git.url
            ),
        )
        .help(format!(
            "`acrtask credential set {host} --username x-access-token --task {name} < TOKEN`"
        )),
        (true, Err(error)) => Check::unknown(NAME, error),
        (false, _) => Check::warning(NAME, format!("{} responds with {status}", git.url))
            .help("check that its name is correct"),
    })
}

/// Returns the address that a response to `url` redirects to, if a repository can be there.
fn new_address(git: &GitUrl, url: &Url, response: &reqwest::Response) -> Option<GitUrl> {
    let location = response.headers().get(reqwest::header::LOCATION)?;
    let next = url.join(location.to_str().ok()?).ok()?;
    let address = next.as_str().strip_suffix(DISCOVERY)?;
    let mut moved = GitUrl::parse_remote_url(address).ok()?;
    moved.reference.clone_from(&git.reference);
    moved.folder.clone_from(&git.folder);
    response.status().is_redirection().then_some(moved)
}

/// Returns the host in the form for stored logins: over HTTP with its port, over SSH without.
fn credential_host(git: &GitUrl) -> String {
    let port = Url::parse(&git.url).ok().and_then(|url| url.port());
    match port {
        Some(port) if git.transport != GitTransport::Ssh => format!("{}:{port}", git.host),
        _ => git.host.clone(),
    }
}
