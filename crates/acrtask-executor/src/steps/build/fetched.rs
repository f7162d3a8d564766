//! Files that a build has fetched from a network: who fetches them, and from where.
//!
//! A task need not be trusted with what this machine reaches. Contexts are fetched by this process, with the address that was
//! checked. What a Dockerfile adds is the builder's to fetch, by rules for its addresses; the addresses that names and
//! redirects lead to are looked up here, before the build. Left out: a name that leads elsewhere when the builder asks.

use std::{collections::BTreeMap, time::Duration};

use acrtask_model::events::Stream;
use acrtask_registry::net::{self, AddressPolicy, ForbiddenAddress};
use acrtask_source::{ContextSpec, GitOptions, Options, Origin, Workspace};
use parse_dockerfile::Instruction;

use crate::{
    Reach,
    context::StepContext,
    dockerfile::{declared, expand},
    error::chain,
};

/// Longest wait for the response to one URL. A host that takes longer is left to the builder.
const LOOKUP_TIME: Duration = Duration::from_secs(10);
/// Most URLs of one Dockerfile that are looked up. A build with more of them is refused.
const MAX_URLS: usize = 64;

/// Fetches a context that is a git repository or an archive, where the builder must not. The builder asks whatever address a
/// name or a redirect leads to, and takes whatever key an SSH host shows. At a runner it would also take a commit that
/// another build has fetched. `None`: the builder fetches it.
pub(super) async fn fetch(ctx: &StepContext, url: &str) -> Result<Option<Workspace>, String> {
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
    let ours = match &spec {
        ContextSpec::Git(git) => {
            run.reach == Reach::Public
                || !run.options.own_machine
                || run.git.ssh_keys.iter().any(|key| key.opens(git))
        }
        ContextSpec::HttpTarball(_) => run.reach == Reach::Public,
        _ => false,
    };
    if !ours {
        return Ok(None);
    }
    let options = Options {
        origin: Origin::TaskFile,
        allow_private_addresses: run.reach == Reach::Everything,
        // Submodules may be reached otherwise.
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
        .say(Stream::Stderr, &format!("fetching {spec}"))
        .await;
    let workspace = acrtask_source::fetch(&spec, &options)
        .await
        .map_err(|error| match error.help() {
            Some(help) => format!("{}; {help}", chain(&error)),
            None => chain(&error),
        })?;
    let history = workspace.root.join(".git");
    match tokio::fs::remove_dir_all(&history).await {
        // A folder of the repository has none.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", history.display()))
        }
        _ => Ok(Some(workspace)),
    }
}

/// Returns `true` for the URL of a git repository: what [`fetch`] serves as a folder.
pub(super) fn is_git(url: &str) -> bool {
    matches!(ContextSpec::parse(url), Ok(ContextSpec::Git(_)))
}

/// Refuses a URL that leads to an address that is not public. A host that does not answer is left to the builder.
pub(super) async fn check(url: &str) -> Result<(), String> {
    let Some(target) = Target::parse(url) else {
        return Ok(());
    };
    let looked_up = tokio::time::timeout(LOOKUP_TIME, target.look_up()).await;
    match looked_up {
        Ok(Err(reason)) => Err(format!(
            "{url} must not be fetched: {reason}; an operator who trusts the task allows it with \
             `--allow-private-addresses`"
        )),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// Checks each URL that the Dockerfile adds. `given` holds the build arguments.
pub(super) async fn check_dockerfile(
    text: &str,
    given: BTreeMap<String, String>,
) -> Result<(), String> {
    let urls = added_urls(text, &given);
    if urls.len() > MAX_URLS {
        return Err(format!(
            "the Dockerfile adds {} URLs, and at most {MAX_URLS} are taken; fetch the rest in a RUN",
            urls.len()
        ));
    }
    for url in urls {
        check(&url).await?;
    }
    Ok(())
}

/// A URL as far as its host counts.
#[derive(Debug)]
enum Target {
    /// One that the builder asks by HTTP, and may be sent elsewhere by.
    Http(url::Url),
    /// One that git or SSH connects to.
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

    async fn look_up(&self) -> Result<(), String> {
        match self {
            Self::Http(url) => {
                net::check_literal(AddressPolicy::PublicOnly, url).map_err(|e| e.to_string())?;
                let client = net::client(AddressPolicy::PublicOnly, true);
                let client = client.map_err(|error| chain(&error))?;
                match client.get(url.clone()).send().await {
                    Err(error) if error.is_redirect() || is_forbidden(&error) => Err(chain(&error)),
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

/// The sources of the Dockerfile's `ADD` that are URLs, with the values that their variables have as far as the text tells.
fn added_urls(text: &str, given: &BTreeMap<String, String>) -> Vec<String> {
    let is_url = |word: &str| word.contains("://") || word.starts_with("git@");
    let mut values = given.clone();
    let mut urls = Vec::new();
    let Ok(dockerfile) = parse_dockerfile::parse(text) else {
        // A frontend may understand it all the same.
        let words = text.split(|c: char| c.is_whitespace() || "\"'[],".contains(c));
        return words
            .filter(|word| is_url(word))
            .map(|word| expand(word, &values))
            .collect();
    };
    for instruction in &dockerfile.instructions {
        match instruction {
            Instruction::Arg(arg) => {
                for (name, default) in declared(&arg.arguments.value) {
                    if let Some(default) = default.filter(|_| !given.contains_key(&name)) {
                        let value = expand(&default, &values);
                        values.insert(name, value);
                    }
                }
            }
            Instruction::Env(env) => {
                for (name, value) in declared(&env.arguments.value) {
                    let value = value.map(|value| expand(&value, &values));
                    values.insert(name, value.unwrap_or_default());
                }
            }
            Instruction::Add(add) => {
                for source in &add.src {
                    if let parse_dockerfile::Source::Path(path) = source {
                        let word = expand(&path.value, &values);
                        if is_url(&word) {
                            urls.push(word);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_found_with_their_variables() {
        let text = "ARG H=127.0.0.1\nFROM scratch\nARG H\nENV P=8080\nADD a http://$H:$P/x /\n\
                    ADD [\"git@host:a.git\", \"https://${N:-b}/c\", \"/d\"]\n";
        let urls = added_urls(text, &BTreeMap::new());
        assert_eq!(
            urls,
            ["http://127.0.0.1:8080/x", "git@host:a.git", "https://b/c"]
        );
        let given = BTreeMap::from([("H".to_owned(), "localhost".to_owned())]);
        assert_eq!(added_urls(text, &given)[0], "http://localhost:8080/x");
        assert_eq!(added_urls("FROM", &given), [""; 0]);
        let strange = "FROM scratch\nADDED [\"http://$H/\"]\n";
        assert_eq!(added_urls(strange, &given), ["http://localhost/"]);
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
            let error = check(url).await.unwrap_err();
            assert!(error.contains("not a public address"), "{url}: {error}");
        }
        check("https://no-such-host.invalid/x").await.unwrap();
    }
}
