//! Which repository: the many spellings of its URL come to one.
//!
//! `https://GitHub.com/o/r.git`, `ssh://git@github.com/o/r` and `git@github.com:o/r.git` are the same. Left out of
//! the comparison: user, password, the protocol with its own port, a `.git` at the end, upper and lower case. Case
//! is left out of paths too: forges do not tell names apart by it, and a run too many is better than one missed.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

/// A repository, as a delivery names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Its name at the forge: `owner/name`.
    pub full_name: String,
    /// Its URLs for `git clone`, as the sender wrote them; none, where the sender tells none.
    pub urls: Vec<String>,
    /// Its default branch, where the sender tells it.
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

    pub(crate) fn with_default(mut self, branch: Option<String>) -> Self {
        self.default_branch = branch
            .map(|name| {
                name.strip_prefix("refs/heads/")
                    .map(str::to_owned)
                    .unwrap_or(name)
            })
            .filter(|name| !name.is_empty());
        self
    }

    /// Whether it is the repository at `url`. Where the sender told no URL that can be read, its name has to be the
    /// end of the URL's path.
    pub fn is(&self, url: &RepositoryUrl) -> bool {
        let mut known = self
            .urls
            .iter()
            .filter_map(|text| RepositoryUrl::parse(text))
            .peekable();
        if known.peek().is_some() {
            return known.any(|known| known == *url);
        }
        let name = self.full_name.trim_matches('/').to_lowercase();
        if !name.contains('/') {
            return false;
        }
        url.path
            .strip_suffix(name.as_str())
            .is_some_and(|before| before.is_empty() || before.ends_with('/'))
    }

    /// Returns the first of its URLs that belongs to none of `limits`, or its name where it has no URL. `None`: all of
    /// them are allowed.
    ///
    /// One host may serve HTTPS and SSH at ports of their own, so ports are not compared: which task runs has to be
    /// decided by [`RepositoryUrl`] as a whole.
    pub fn outside(&self, limits: &[RepositoryUrl]) -> Option<&str> {
        if self.urls.is_empty() {
            let is_allowed = limits.iter().any(|limit| self.is(limit));
            return (!is_allowed).then_some(&self.full_name);
        }
        let is_allowed = |url: &&String| {
            let url = RepositoryUrl::parse(url);
            url.is_some_and(|url| limits.iter().any(|limit| limit.is_beside(&url)))
        };
        let mut urls = self.urls.iter();
        urls.find(|url| !is_allowed(url)).map(String::as_str)
    }
}

/// A repository's URL in the one spelling that is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepositoryUrl {
    host: String,
    /// Only one that is not the protocol's own.
    port: Option<u16>,
    path: String,
}

impl RepositoryUrl {
    /// Reads a URL or git's short form for SSH, `user@host:path`. Nothing for what names no host and path.
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
        Some(Self::known_aliases(host, port, path))
    }

    /// The path, in lower case, without `.git`: `owner/name`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns `true` for the same path on the same host, whatever the port. Bitbucket Server puts `scm/` before the path
    /// of HTTPS only.
    fn is_beside(&self, other: &Self) -> bool {
        let bare = |url: &Self| {
            url.path
                .strip_prefix("scm/")
                .unwrap_or(&url.path)
                .to_owned()
        };
        self.host == other.host && bare(self) == bare(other)
    }

    /// Hosts that forges have for the same repositories.
    fn known_aliases(host: String, port: Option<u16>, path: &str) -> Self {
        // SSH by the port of HTTPS, for those whom a firewall keeps from port 22.
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
        // Azure DevOps: ORG.visualstudio.com/PROJECT/_git/NAME, dev.azure.com/ORG/PROJECT/_git/NAME and
        // ssh.dev.azure.com:v3/ORG/PROJECT/NAME. A repository named as its project may leave the project out.
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
    fn one(expected: &str, spellings: &[&str]) {
        for text in spellings {
            let url = RepositoryUrl::parse(text).map(|url| url.to_string());
            assert_eq!(url.as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn spellings_come_to_one() {
        one(
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
        one(
            "git.example.com:7999/proj/a b",
            &["ssh://git@git.example.com:7999/PROJ/a%20b.git"],
        );
        one("[::1]:3000/o/r", &["http://[::1]:3000/o/r.git"]);
        one(
            "dev.azure.com/fabrikam/web/site",
            &[
                "https://fabrikam@dev.azure.com/fabrikam/Web/_git/Site",
                "https://fabrikam.visualstudio.com/Web/_git/Site",
                "https://fabrikam.visualstudio.com/DefaultCollection/Web/_git/Site",
                "git@ssh.dev.azure.com:v3/fabrikam/Web/Site",
                "fabrikam@vs-ssh.visualstudio.com:v3/fabrikam/Web/Site",
            ],
        );
        one(
            "dev.azure.com/fabrikam/web/web",
            &["https://dev.azure.com/fabrikam/_git/Web"],
        );
    }

    #[test]
    fn what_names_no_repository() {
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
    fn other_repositories_are_others() {
        let task = RepositoryUrl::parse("https://github.com/org/repo").unwrap();
        let is = |name: &str, urls: &[&str]| {
            Repository::new(name)
                .with_urls(urls.iter().map(|url| Some(*url)))
                .is(&task)
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
    fn every_url_has_to_be_allowed() {
        let limits = [RepositoryUrl::parse("https://git.example.com/team/app.git").unwrap()];
        let outside = |urls: &[&str]| {
            let repository =
                Repository::new("team/app").with_urls(urls.iter().map(|url| Some(*url)));
            repository.outside(&limits).map(str::to_owned)
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
        assert!(Repository::new("prod/app").outside(&limits).is_some());
        assert!(Repository::new("app").outside(&limits).is_some());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            if let Some(url) = RepositoryUrl::parse(&text) {
                prop_assert_eq!(RepositoryUrl::parse(&text), Some(url));
            }
        }

        #[test]
        fn protocols_agree(owner in "[a-z][a-z0-9-]{0,10}", name in "[a-z][a-z0-9._-]{0,10}[a-z0-9]") {
            prop_assume!(!name.ends_with(".git"));
            let https = RepositoryUrl::parse(&format!("https://forge.example/{owner}/{name}.git")).unwrap();
            let scp = RepositoryUrl::parse(&format!("git@Forge.example:{owner}/{name}")).unwrap();
            let ssh = RepositoryUrl::parse(&format!("ssh://git@forge.example:22/{owner}/{name}.git")).unwrap();
            prop_assert_eq!(&https, &scp);
            prop_assert_eq!(&https, &ssh);
        }
    }
}
