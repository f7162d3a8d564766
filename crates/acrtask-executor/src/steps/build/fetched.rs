//! Files that a build fetches from a network: the fetching program and the allowed addresses.
//!
//! A task needs no trust for the network of this machine. This process fetches contexts, and
//! connects to the address that it checked. The builder fetches the files that a Dockerfile adds,
//! with rules for its addresses. Before the build, this process resolves the addresses of names and
//! redirects.
//!
//! Left out: a name that resolves to another address when the builder fetches the file.

use std::{collections::BTreeMap, time::Duration};

use acrtask_model::events::Stream;
use acrtask_registry::net::{self, AddressPolicy, ForbiddenAddress};
use acrtask_source::{ContextSpec, GitOptions, Options, Origin, Workspace};
use parse_dockerfile::Instruction;

use crate::{
    Reach,
    context::StepContext,
    dockerfile::{ExpansionTooLarge, Variables, parse_declarations},
    error::error_chain,
};

/// Maximum time to wait for the response to one URL. The builder handles a slower host.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of URLs in one Dockerfile. A build with more of them is refused.
const MAX_URLS: usize = 64;

/// Fetches a context that is a git repository or an archive, if the builder must not fetch it.
///
/// The builder connects to any address that a name or a redirect leads to, and accepts any key of
/// an SSH host. For a runner it would also use a commit that another build has fetched. Returns
/// `None` if the builder fetches the context.
pub(super) async fn fetch_context(
    ctx: &StepContext,
    url: &str,
) -> Result<Option<Workspace>, String> {
    let run = &ctx.run;
    let spec = match ContextSpec::parse(url) {
        Ok(spec) => spec,
        Err(_) if run.reach == Reach::Everything => return Ok(None),
        Err(error) => {
            return Err(format!(
                "`{}` cannot be fetched: {}; {}",
                error.text, error.reason, error.help
            ));
        }
    };
    let fetches_here = match &spec {
        ContextSpec::Git(git) => {
            run.reach == Reach::Public
                || !run.options.own_machine
                || run.git.ssh_keys.iter().any(|key| key.matches_url(git))
        }
        ContextSpec::HttpTarball(_) => run.reach == Reach::Public,
        _ => false,
    };
    if !fetches_here {
        return Ok(None);
    }
    let options = Options {
        origin: Origin::TaskFile,
        allow_private_addresses: run.reach == Reach::Everything,
        // Submodules may need other credentials.
        credentials: run.credentials(),
        ssh_keys: run.git.ssh_keys.clone(),
        git: GitOptions {
            submodules: true,
            ..GitOptions::default()
        },
        scratch_dir: run.options.scratch_root.clone(),
        ..Options::default()
    };
    ctx.output
        .print_line(Stream::Stderr, &format!("fetching {spec}"))
        .await;
    let workspace = acrtask_source::fetch(&spec, &options)
        .await
        .map_err(|error| match error.help() {
            Some(help) => format!("{}; {help}", error_chain(&error)),
            None => error_chain(&error),
        })?;
    let history = workspace.root.join(".git");
    match tokio::fs::remove_dir_all(&history).await {
        // A folder of the repository has no history.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", history.display()))
        }
        _ => Ok(Some(workspace)),
    }
}

/// Returns `true` for the URL of a git repository, which [`fetch_context`] returns as a folder.
pub(super) fn is_git(url: &str) -> bool {
    matches!(ContextSpec::parse(url), Ok(ContextSpec::Git(_)))
}

/// Refuses a URL that leads to an address that is not public. The builder handles a host that does
/// not respond.
pub(super) async fn check_url(url: &str) -> Result<(), String> {
    let Some(target) = Target::parse(url) else {
        return Ok(());
    };
    let checked = tokio::time::timeout(CHECK_TIMEOUT, target.check_address()).await;
    match checked {
        Ok(Err(reason)) => Err(format!(
            "{url} must not be fetched: {reason}; an operator who trusts the task allows it with \
             `--allow-private-addresses`"
        )),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// Checks each URL that the Dockerfile adds. `given` contains the build arguments.
pub(super) async fn check_dockerfile(
    text: String,
    given: BTreeMap<String, String>,
) -> Result<(), String> {
    let reading = tokio::task::spawn_blocking(move || added_urls(&text, &given)).await;
    let urls = reading.map_err(|error| error.to_string())?;
    let urls = urls.map_err(|error| error.to_string())?;
    if urls.len() > MAX_URLS {
        return Err(format!(
            "the Dockerfile adds {} URLs, and at most {MAX_URLS} are allowed; fetch the others in a RUN",
            urls.len()
        ));
    }
    for url in urls {
        check_url(&url).await?;
    }
    Ok(())
}

/// The host of a URL and the way to check it.
#[derive(Debug)]
enum Target {
    /// A URL for an HTTP request of the builder, which may be redirected.
    Http(url::Url),
    /// An address to which git or SSH connects.
    Other { host: String, port: u16 },
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(url) = url::Url::parse(text)
            && url.has_host()
        {
            let plain = matches!(url.scheme(), "http" | "https") && !is_git(text);
            return match url.host_str() {
                _ if plain => Some(Self::Http(url)),
                Some(host) => Some(Self::Other {
                    host: host.trim_matches(['[', ']']).to_owned(),
                    port: url.port_or_known_default().unwrap_or(22),
                }),
                None => None,
            };
        }
        // `git@host:path`.
        let (host, _) = text.split_once('@')?.1.split_once(':')?;
        Some(Self::Other {
            host: host.to_owned(),
            port: 22,
        })
    }

    async fn check_address(&self) -> Result<(), String> {
        match self {
            Self::Http(url) => {
                net::check_literal(AddressPolicy::PublicOnly, url).map_err(|e| e.to_string())?;
                let client = net::client(AddressPolicy::PublicOnly, true);
                let client = client.map_err(|error| error_chain(&error))?;
                match client.get(url.clone()).send().await {
                    Err(error) if error.is_redirect() || is_forbidden(&error) => {
                        Err(error_chain(&error))
                    }
                    // The body is not read.
                    Ok(_) | Err(_) => Ok(()),
                }
            }
            Self::Other { host, port } => match net::resolve_public(host, *port).await {
                Err(error) if error.is::<ForbiddenAddress>() => Err(error.to_string()),
                Ok(_) | Err(_) => Ok(()),
            },
        }
    }
}

fn is_forbidden(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.is::<ForbiddenAddress>())
}

/// Returns the URLs in `ADD` instructions of the Dockerfile, with the values of their variables as
/// far as the text defines them.
fn added_urls(
    text: &str,
    given: &BTreeMap<String, String>,
) -> Result<Vec<String>, ExpansionTooLarge> {
    let is_url = |word: &str| word.contains("://") || word.starts_with("git@");
    let mut variables = Variables::new(given.clone());
    let mut urls = Vec::new();
    let Ok(dockerfile) = parse_dockerfile::parse(text) else {
        // A frontend may be able to parse the text anyway.
        let words = text.split(|c: char| c.is_whitespace() || "\"'[],".contains(c));
        return words
            .filter(|word| is_url(word))
            .map(|word| variables.expand(word))
            .collect();
    };
    for instruction in &dockerfile.instructions {
        match instruction {
            Instruction::Arg(arg) => {
                for (name, default) in parse_declarations(&arg.arguments.value) {
                    if let Some(default) = default.filter(|_| !given.contains_key(&name)) {
                        let value = variables.expand(&default)?;
                        variables.set(name, value);
                    }
                }
            }
            Instruction::Env(env) => {
                for (name, value) in parse_declarations(&env.arguments.value) {
                    let value = variables.expand(&value.unwrap_or_default())?;
                    variables.set(name, value);
                }
            }
            Instruction::Add(add) => {
                for source in &add.src {
                    if let parse_dockerfile::Source::Path(path) = source {
                        let word = variables.expand(&path.value)?;
                        if is_url(&word) {
                            urls.push(word);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_urls_are_found_and_expanded() {
        let text = "ARG H=127.0.0.1\nFROM scratch\nARG H\nENV P=8080\nADD a http://$H:$P/x /\n\
                    ADD [\"git@host:a.git\", \"https://${N:-b}/c\", \"/d\"]\n";
        let urls = added_urls(text, &BTreeMap::new()).unwrap();
        assert_eq!(
            urls,
            ["http://127.0.0.1:8080/x", "git@host:a.git", "https://b/c"]
        );
        let given = BTreeMap::from([("H".to_owned(), "localhost".to_owned())]);
        assert_eq!(
            added_urls(text, &given).unwrap()[0],
            "http://localhost:8080/x"
        );
        assert_eq!(added_urls("FROM", &given).unwrap(), [""; 0]);
        let strange = "FROM scratch\nADDED [\"http://$H/\"]\n";
        assert_eq!(added_urls(strange, &given).unwrap(), ["http://localhost/"]);
    }

    #[tokio::test]
    async fn private_addresses_are_refused_in_every_spelling() {
        acrtask_registry::install_crypto_provider();
        for url in [
            "http://127.0.0.1:1/x",
            "http://2130706433/",
            "http://0x7f.1/",
            "https://[::ffff:127.0.0.1]/",
            "http://localhost:1/",
            "git@localhost:a.git",
            "ssh://git@localhost:2222/a.git",
            "https://localhost/a.git",
            "git://127.0.0.1/a.git",
        ] {
            let error = check_url(url).await.unwrap_err();
            assert!(error.contains("not a public address"), "{url}: {error}");
        }
        check_url("https://no-such-host.invalid/x").await.unwrap();
    }
}
