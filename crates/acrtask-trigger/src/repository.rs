//! Comparison of repositories by normalized URL.
//!
//! `https://GitHub.com/o/r.git`, `ssh://git@github.com/o/r` and `git@github.com:o/r.git` are equal.
//! The comparison ignores the user, the password, the protocol with its default port, a final
//! `.git` and letter case. It ignores case in paths too: forges do not distinguish names by case,
//! and an extra run is better than a missed one.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

/// A repository, as a delivery describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Name at the forge: `owner/name`.
    pub full_name: String,
    /// URLs for `git clone`, as the sender wrote them. Empty if the sender sends none.
    pub urls: Vec<String>,
    /// Default branch, if the sender sends it.
    pub default_branch: Option<String>,
}

impl Repository {
    pub(crate) fn new(full_name: impl Into<String>) -> Self {
        Self {
            full_name: full_name.into(),
            urls: Vec::new(),
            default_branch: None,
        }
    }

    pub(crate) fn with_urls<T: Into<String>>(
        mut self,
        urls: impl IntoIterator<Item = Option<T>>,
    ) -> Self {
        self.urls.extend(
            urls.into_iter()
                .flatten()
                .map(Into::into)
                .filter(|url| !url.is_empty()),
        );
        self
    }

    pub(crate) fn with_default_branch(mut self, branch: Option<String>) -> Self {
        self.default_branch = branch
            .map(|name| {
                name.strip_prefix("refs/heads/")
                    .map(str::to_owned)
                    .unwrap_or(name)
            })
            .filter(|name| !name.is_empty());
        self
    }

    /// Returns `true` if `url` is a URL of this repository. If the sender sent no readable URL, the
    /// path of `url` has to end with the name.
    pub fn matches_url(&self, url: &RepositoryUrl) -> bool {
        let mut urls = self
            .urls
            .iter()
            .filter_map(|text| RepositoryUrl::parse(text))
            .peekable();
        if urls.peek().is_some() {
            return urls.any(|own| own == *url);
        }
        let name = self.full_name.trim_matches('/').to_lowercase();
        if !name.contains('/') {
            return false;
        }
        url.path
            .strip_suffix(name.as_str())
            .is_some_and(|before| before.is_empty() || before.ends_with('/'))
    }

    /// Returns the first URL outside all `limits`, or the name if the sender sent no URL.
    /// `None` if all URLs are allowed.
    ///
    /// The check ignores ports, because one host may serve HTTPS and SSH at its own ports. To
    /// decide which task runs, compare whole [`RepositoryUrl`]s.
    pub fn find_url_outside(&self, limits: &[RepositoryUrl]) -> Option<&str> {
        if self.urls.is_empty() {
            let is_allowed = limits.iter().any(|limit| self.matches_url(limit));
            return (!is_allowed).then_some(&self.full_name);
        }
        let is_allowed = |url: &&String| {
            let url = RepositoryUrl::parse(url);
            url.is_some_and(|url| {
                limits
                    .iter()
                    .any(|limit| limit.has_same_host_and_path(&url))
            })
        };
        let mut urls = self.urls.iter();
        urls.find(|url| !is_allowed(url)).map(String::as_str)
    }
}

/// A repository's URL in normalized form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepositoryUrl {
    host: String,
    /// The port, unless it is the default port of the protocol.
    port: Option<u16>,
    path: String,
}

impl RepositoryUrl {
    /// Parses a URL or git's short form for SSH, `user@host:path`. `None` without a host and a
    /// path.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix("git+").unwrap_or(text);
        let (host, port, path) = if text.contains("://") {
            let url = Url::parse(text).ok()?;
            let own = match url.scheme() {
                "https" => 443,
                "http" => 80,
                "ssh" => 22,
                "git" => 9418,
                _ => return None,
            };
            let port = url.port().filter(|port| *port != own);
            (url.host_str()?.to_owned(), port, url.path().to_owned())
        } else {
            let (before, path) = text.split_once(':')?;
            if before.contains('/') || path.is_empty() {
                return None;
            }
            let host = before.rsplit_once('@').map_or(before, |(_, host)| host);
            (host.to_owned(), None, path.to_owned())
        };
        let path = percent_decode_str(&path).decode_utf8().ok()?;
        let path = path.trim_matches('/').to_lowercase();
        let path = path
            .strip_suffix(".git")
            .unwrap_or(&path)
            .trim_end_matches('/');
        let host = host.trim_end_matches('.').to_lowercase();
        if host.is_empty() || path.is_empty() || path.chars().any(char::is_control) {
            return None;
        }
        Some(Self::resolve_aliases(host, port, path))
    }

    /// Returns the path in lower case without `.git`: `owner/name`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns `true` for the same path on the same host with any port.
    ///
    /// Bitbucket Server adds `scm/` to the path of HTTPS URLs only.
    fn has_same_host_and_path(&self, other: &Self) -> bool {
        let bare = |url: &Self| {
            url.path
                .strip_prefix("scm/")
                .unwrap_or(&url.path)
                .to_owned()
        };
        self.host == other.host && bare(self) == bare(other)
    }

    /// Replaces the alternative hosts and paths of known forges.
    fn resolve_aliases(host: String, port: Option<u16>, path: &str) -> Self {
        // These hosts serve SSH at the port of HTTPS, for users behind a firewall.
        let by_https = match host.as_str() {
            "ssh.github.com" => Some("github.com"),
            "altssh.gitlab.com" => Some("gitlab.com"),
            "altssh.bitbucket.org" => Some("bitbucket.org"),
            _ => None,
        };
        if let Some(forge) = by_https {
            return Self {
                host: forge.into(),
                port: port.filter(|port| *port != 443),
                path: path.into(),
            };
        }
        // Azure DevOps has three forms: ORG.visualstudio.com/PROJECT/_git/NAME,
        // dev.azure.com/ORG/PROJECT/_git/NAME and ssh.dev.azure.com:v3/ORG/PROJECT/NAME.
        // The path of a repository with the name of its project may omit the project.
        let azure = if host == "dev.azure.com" {
            Some(path.to_owned())
        } else if host == "ssh.dev.azure.com" || host == "vs-ssh.visualstudio.com" {
            path.strip_prefix("v3/").map(str::to_owned)
        } else {
            host.strip_suffix(".visualstudio.com").map(|org| {
                format!(
                    "{org}/{}",
                    path.strip_prefix("defaultcollection/").unwrap_or(path)
                )
            })
        };
        if let Some(azure) = azure {
            let mut parts: Vec<&str> = azure.split('/').collect();
            parts.retain(|part| *part != "_git" && *part != "_ssh");
            if let [org, name] = parts[..] {
                parts = vec![org, name, name];
            }
            return Self {
                host: "dev.azure.com".into(),
                port: None,
                path: parts.join("/"),
            };
        }
        Self {
            host,
            port,
            path: path.into(),
        }
    }
}

impl fmt::Display for RepositoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "/{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn assert_spellings(expected: &str, spellings: &[&str]) {
        for text in spellings {
            let url = RepositoryUrl::parse(text).map(|url| url.to_string());
            assert_eq!(url.as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn spellings_of_one_repository_are_equal() {
        assert_spellings(
            "github.com/org/repo",
            &[
                "https://github.com/org/repo",
                "https://github.com/Org/Repo.git",
                "https://user:pass@GitHub.com:443/org/repo.git/",
                "http://github.com:80/org/repo",
                "git://github.com/org/repo.git",
                "git://github.com:9418/org/repo.git",
                "ssh://git@github.com/org/repo.git",
                "ssh://git@github.com:22/org/repo",
                "ssh://git@ssh.github.com:443/org/repo.git",
                "git@github.com:org/repo.git",
                "github.com:org/repo",
                "git@github.com:/org/repo.git",
                "git+https://github.com/org/repo.git",
                " https://github.com./org/repo ",
            ],
        );
        assert_spellings(
            "git.example.com:7999/proj/a b",
            &["ssh://git@git.example.com:7999/PROJ/a%20b.git"],
        );
        assert_spellings("[::1]:3000/o/r", &["http://[::1]:3000/o/r.git"]);
        assert_spellings(
            "dev.azure.com/fabrikam/web/site",
            &[
                "https://fabrikam@dev.azure.com/fabrikam/Web/_git/Site",
                "https://fabrikam.visualstudio.com/Web/_git/Site",
                "https://fabrikam.visualstudio.com/DefaultCollection/Web/_git/Site",
                "git@ssh.dev.azure.com:v3/fabrikam/Web/Site",
                "fabrikam@vs-ssh.visualstudio.com:v3/fabrikam/Web/Site",
            ],
        );
        assert_spellings(
            "dev.azure.com/fabrikam/web/web",
            &["https://dev.azure.com/fabrikam/_git/Web"],
        );
    }

    #[test]
    fn texts_without_host_and_path_are_not_parsed() {
        for text in [
            "",
            ".",
            "/srv/repo",
            "https://github.com",
            "https://github.com/",
            "file:///srv/r",
            "host:",
            "a/b:c",
        ] {
            assert_eq!(RepositoryUrl::parse(text), None, "{text}");
        }
    }

    #[test]
    fn different_repositories_do_not_match() {
        let task = RepositoryUrl::parse("https://github.com/org/repo").unwrap();
        let is = |name: &str, urls: &[&str]| {
            Repository::new(name)
                .with_urls(urls.iter().map(|url| Some(*url)))
                .matches_url(&task)
        };
        assert!(is("org/repo", &["git@github.com:org/repo.git"]));
        assert!(is(
            "anything",
            &["https://elsewhere.example/x/y", "ssh://github.com/org/repo"]
        ));
        assert!(!is("org/repo", &["https://evil.example/org/repo.git"]));
        assert!(!is("org/repo", &["https://github.com/org/repo2.git"]));
        assert!(!is("org/repo", &["https://github.com:8443/org/repo"]));
        assert!(is("Org/repo", &[]));
        assert!(!is("repo", &[]));
        assert!(!is("rg/repo", &[]));
    }

    #[test]
    fn limits_apply_to_every_url() {
        let limits = [RepositoryUrl::parse("https://git.example.com/team/app.git").unwrap()];
        let outside = |urls: &[&str]| {
            let repository =
                Repository::new("team/app").with_urls(urls.iter().map(|url| Some(*url)));
            repository.find_url_outside(&limits).map(str::to_owned)
        };
        for urls in [
            &["https://git.example.com/team/app.git"][..],
            &[
                "https://u:p@GIT.example.com:443/Team/App",
                "git@git.example.com:team/app.git",
            ],
            &[
                "https://git.example.com:3000/team/app",
                "ssh://git@git.example.com:7999/team/app",
            ],
            &["https://git.example.com/scm/team/app.git"],
            &[],
        ] {
            assert_eq!(outside(urls), None, "{urls:?}");
        }
        let own = "https://git.example.com/team/app.git";
        for wrong in [
            "https://git.example.com/prod/app.git",
            "git@git.example.com:prod/app.git",
            "ssh://git@elsewhere.example.com/team/app.git",
            "https://git.example.com@evil.example.com/team/app.git",
            "https://git.example.com/team/app.git/../../prod/app",
            "https://git.example.com/team%2F..%2Fprod/app.git",
            "file:///team/app.git",
            "not a url",
        ] {
            for urls in [[own, wrong], [wrong, own]] {
                assert_eq!(outside(&urls).as_deref(), Some(wrong), "{urls:?}");
            }
        }
        assert!(
            Repository::new("prod/app")
                .find_url_outside(&limits)
                .is_some()
        );
        assert!(Repository::new("app").find_url_outside(&limits).is_some());
    }

    proptest! {
        #[test]
        fn repository_url_parser_never_panics(text in "\\PC{0,60}") {
            if let Some(url) = RepositoryUrl::parse(&text) {
                prop_assert_eq!(RepositoryUrl::parse(&text), Some(url));
            }
        }

        #[test]
        fn protocols_lead_to_equal_urls(owner in "[a-z][a-z0-9-]{0,10}", name in "[a-z][a-z0-9._-]{0,10}[a-z0-9]") {
            prop_assume!(!name.ends_with(".git"));
            let https = RepositoryUrl::parse(&format!("https://forge.example/{owner}/{name}.git")).unwrap();
            let scp = RepositoryUrl::parse(&format!("git@Forge.example:{owner}/{name}")).unwrap();
            let ssh = RepositoryUrl::parse(&format!("ssh://git@forge.example:22/{owner}/{name}.git")).unwrap();
            prop_assert_eq!(&https, &scp);
            prop_assert_eq!(&https, &ssh);
        }
    }
}
