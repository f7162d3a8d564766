//! What a context's text means.
//!
//! Source: the argument of `docker build` (`PATH | URL | -`), with `oci://` and `/dev/null` of `az acr run`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use acrtask_model::{ImageRef, Secret};
use url::Url;

/// A context, as its text names it. Nothing was looked at yet. Printed, also for debugging, it shows no password.
#[derive(Clone)]
pub enum ContextSpec {
    /// A path without the ending of an archive. What it is, the file system decides.
    Folder(PathBuf),
    /// A git repository: `URL#ref:folder`.
    Git(GitUrl),
    /// An archive, or a single Dockerfile, by URL.
    HttpTarball(Url),
    /// A path with the ending of an archive. What it is, the file system decides.
    TarballFile(PathBuf),
    /// An artifact in a registry: `oci://REF`.
    Oci(ImageRef),
    /// `-`: an archive or a single Dockerfile on standard input.
    Stdin,
    /// `/dev/null`: nothing.
    None,
}

/// A git repository, and what to take of it. Every part has been checked to be harmless as an argument.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GitUrl {
    /// What is given to git. Never has a password in it.
    pub url: String,
    /// The protocol.
    pub transport: GitTransport,
    /// The host; empty for [`GitTransport::File`].
    pub host: String,
    /// User and password that stood in the URL.
    pub credential: Option<(String, Secret)>,
    /// Branch, tag, commit or pull request; the default branch without it.
    pub reference: Option<String>,
    /// A folder inside the repository, relative to its root, without `..`.
    pub folder: Option<String>,
}

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitTransport {
    /// `https://`
    Https,
    /// `http://`, in clear.
    Http,
    /// `ssh://`, `git@host:path`
    Ssh,
    /// `git://`, in clear and without authentication.
    Git,
    /// `file://`
    File,
}

impl GitTransport {
    /// Git's name for it, in its `protocol.<name>.allow`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Git => "git",
            Self::File => "file",
        }
    }
}

/// Why a text is no context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a context: {reason}")]
pub struct ParseError {
    /// The text, without a password.
    pub text: String,
    /// What is wrong.
    pub reason: String,
    /// What to write instead.
    pub help: String,
}

/// Hosts whose pages for people, `https://HOST/OWNER/REPOSITORY`, are easily taken for a repository's URL.
const FORGES: [&str; 4] = ["github.com", "gitlab.com", "bitbucket.org", "codeberg.org"];

/// Endings of archives.
const ARCHIVES: [&str; 9] = [
    ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz",
];

impl ContextSpec {
    /// Reads a context's text.
    ///
    /// # Errors
    /// [`ParseError`], which says what to write instead.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let fail = |reason: &str, help: &str| {
            Err(ParseError {
                text: shown_text(text),
                reason: reason.into(),
                help: help.into(),
            })
        };
        if text.is_empty() {
            return fail(
                "it is empty",
                "write `.` for the current folder, or `/dev/null` for none",
            );
        }
        if text.chars().any(char::is_control) {
            return fail("it has control characters in it", "write a path or a URL");
        }
        match text {
            "-" => return Ok(Self::Stdin),
            "/dev/null" => return Ok(Self::None),
            _ => {}
        }
        if text.starts_with('-') {
            return fail(
                "it begins with `-`, as an option does",
                &format!("write `./{text}` for a folder of that name"),
            );
        }
        if let Some(reference) = text.strip_prefix("oci://") {
            return match reference.parse::<ImageRef>() {
                Ok(reference) => Ok(Self::Oci(reference.or_latest())),
                Err(error) => fail(&error.reason, "write `oci://REGISTRY/REPOSITORY:TAG`"),
            };
        }
        if let Some((helper, _)) = text.split_once("::")
            && !helper.contains(['/', '.'])
        {
            return fail(
                "remote helpers of git are not run",
                "write an https:// or ssh:// URL, or `git@HOST:PATH`",
            );
        }
        match text.split_once("://") {
            Some((scheme, _)) if !scheme.contains('/') => Self::parse_url(text, scheme),
            _ if text.starts_with("github.com/") => {
                Self::parse_git(text, &format!("https://{text}"))
            }
            _ if is_scp_form(text) => Self::parse_git(text, text),
            _ => Ok(Self::parse_path(text)),
        }
    }

    fn parse_path(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        if ARCHIVES.iter().any(|ending| lower.ends_with(ending)) {
            Self::TarballFile(text.into())
        } else {
            Self::Folder(text.into())
        }
    }

    fn parse_url(text: &str, scheme: &str) -> Result<Self, ParseError> {
        let fail = |reason: String, help: &str| {
            Err(ParseError {
                text: shown_text(text),
                reason,
                help: help.into(),
            })
        };
        match scheme {
            "git" | "ssh" | "git+ssh" | "git+https" | "file" => {
                return Self::parse_git(text, text.trim_start_matches("git+"));
            }
            "http" | "https" => {}
            other => {
                return fail(
                    format!("`{other}://` is not a protocol that contexts come over"),
                    "use https://, ssh://, git@HOST:PATH, oci://, or a path",
                );
            }
        }
        let url = match Url::parse(text) {
            Ok(url) if url.has_host() => url,
            Ok(_) => return fail("the URL has no host".into(), "write https://HOST/PATH"),
            Err(error) => {
                return fail(
                    format!("the URL is not valid: {error}"),
                    "write https://HOST/PATH",
                );
            }
        };
        // Azure DevOps has no `.git` at the end.
        if url.path().ends_with(".git") || url.path().contains("/_git/") {
            if url.query().is_some() {
                return fail(
                    "a git URL has no `?`".into(),
                    "write what to check out behind a `#`: URL#REF:FOLDER",
                );
            }
            return Self::parse_git(text, text);
        }
        let pages = url
            .path_segments()
            .map_or(0, |parts| parts.filter(|part| !part.is_empty()).count());
        if url.host_str().is_some_and(|host| FORGES.contains(&host)) && pages == 2 {
            let path = url.path().trim_end_matches('/');
            let host = url.host_str().unwrap_or_default();
            return fail(
                "this is the page of a repository, for people".into(),
                &format!("write https://{host}{path}.git"),
            );
        }
        if url.fragment().is_some() {
            return fail(
                "only git URLs have a `#`, and a git URL ends with `.git`".into(),
                "write URL.git#REF:FOLDER, or leave out what follows `#`",
            );
        }
        Ok(Self::HttpTarball(url))
    }

    fn parse_git(text: &str, url: &str) -> Result<Self, ParseError> {
        GitUrl::parse(url)
            .map(Self::Git)
            .map_err(|(reason, help)| ParseError {
                text: shown_text(text),
                reason,
                help,
            })
    }
}

/// A problem and what to write instead.
type Problem = (String, String);

impl GitUrl {
    fn parse(text: &str) -> Result<Self, Problem> {
        let (address, fragment) = match text.split_once('#') {
            Some((address, fragment)) => (address, Some(fragment)),
            None => (text, None),
        };
        let (reference, folder) =
            match fragment.map(|fragment| fragment.split_once(':').unwrap_or((fragment, ""))) {
                Some((reference, folder)) => (checked_ref(reference)?, checked_folder(folder)?),
                None => (None, None),
            };
        let (url, transport, host, credential) = if is_scp_form(address) {
            let host = scp_host(address)?;
            (address.to_owned(), GitTransport::Ssh, host, None)
        } else {
            parse_remote(address)?
        };
        Ok(Self {
            url,
            transport,
            host,
            credential,
            reference,
            folder,
        })
    }
}

impl GitUrl {
    /// Parses the URL of a submodule or a redirect: a full URL or `user@host:path`, without a reference and a folder.
    ///
    /// # Errors
    /// The reason, and what to write instead.
    pub fn of_remote(text: &str) -> Result<Self, (String, String)> {
        let help =
            || "write a full https:// or ssh:// URL, or one relative to the repository".to_owned();
        let text = text.strip_prefix("git+").unwrap_or(text);
        let odd = text.starts_with('-') || text.chars().any(char::is_control);
        if odd || text.contains(['#', '?']) || !(text.contains("://") || is_scp_form(text)) {
            return Err(("it is not a URL".into(), help()));
        }
        let scheme = text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c));
        if scheme.is_some_and(|end| text[end..].starts_with("::")) {
            return Err(("remote helpers of git are not run".into(), help()));
        }
        Self::parse(text)
    }

    /// The port that the repository is at.
    pub(crate) fn port(&self) -> u16 {
        let url = Url::parse(&self.url).ok();
        let default = match self.transport {
            GitTransport::Https => 443,
            GitTransport::Http => 80,
            GitTransport::Git => 9418,
            GitTransport::Ssh | GitTransport::File => 22,
        };
        url.and_then(|url| url.port()).unwrap_or(default)
    }
}

type Remote = (String, GitTransport, String, Option<(String, Secret)>);

fn parse_remote(address: &str) -> Result<Remote, Problem> {
    let problem = |reason: String| {
        (
            reason,
            "write https://HOST/PATH.git, ssh://git@HOST/PATH, or git@HOST:PATH".to_owned(),
        )
    };
    let mut url =
        Url::parse(address).map_err(|error| problem(format!("the URL is not valid: {error}")))?;
    let transport = match url.scheme() {
        "https" => GitTransport::Https,
        "http" => GitTransport::Http,
        "ssh" => GitTransport::Ssh,
        "git" => GitTransport::Git,
        "file" => GitTransport::File,
        other => {
            return Err(problem(format!(
                "`{other}://` is not a protocol that git is used with"
            )));
        }
    };
    if transport == GitTransport::File {
        if url.has_host() {
            return Err((
                "a file:// URL with a host".into(),
                "write file:///PATH for a repository on this machine".into(),
            ));
        }
        return Ok((url.to_string(), transport, String::new(), None));
    }
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .map(str::to_owned);
    let host = host.ok_or_else(|| problem("the URL has no host".into()))?;
    check_word(&host)?;
    if url.path().trim_matches('/').is_empty() {
        return Err(problem("the URL has no path".into()));
    }
    let password = url.password().map(percent_decoded);
    let mut credential = None;
    match transport {
        GitTransport::Https | GitTransport::Http => {
            if !url.username().is_empty() {
                // A token alone stands where the user does.
                credential = Some(match password {
                    Some(password) => (percent_decoded(url.username()), Secret::new(password)),
                    None => (
                        "x-access-token".into(),
                        Secret::new(percent_decoded(url.username())),
                    ),
                });
            }
            let _ = url.set_username("");
        }
        _ if password.is_some() => {
            return Err(problem(format!("{}:// has no passwords", transport.name())));
        }
        _ => check_word(url.username())?,
    }
    let _ = url.set_password(None);
    Ok((url.to_string(), transport, host, credential))
}

/// `user@host:path`, as ssh writes it.
fn is_scp_form(text: &str) -> bool {
    let Some((before, _)) = text.split_once(':') else {
        return false;
    };
    before.contains('@') && !before.contains('/')
}

fn scp_host(address: &str) -> Result<String, Problem> {
    let (login, path) = address.split_once(':').unwrap_or((address, ""));
    let (user, host) = login.split_once('@').unwrap_or(("", login));
    if user.is_empty() || host.is_empty() || path.is_empty() || path.starts_with('-') {
        return Err((
            "it looks like `user@host:path` and is not".into(),
            "write `git@HOST:PATH`".into(),
        ));
    }
    check_word(user)?;
    check_word(host)?;
    Ok(host.to_owned())
}

/// A host or a user of ssh: what ssh would take for an option, and what a shell would take for more than a
/// word, is none.
fn check_word(word: &str) -> Result<(), Problem> {
    let word = word
        .strip_prefix('[')
        .and_then(|word| word.strip_suffix(']'))
        .unwrap_or(word);
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.:+".contains(&b);
    if word.starts_with('-') || !word.bytes().all(good) {
        return Err((
            format!("`{word}` is not the name of a host or a user"),
            "write a host name".into(),
        ));
    }
    Ok(())
}

/// Git's rules on the names of references, as far as they keep a name from being something else: an
/// option, a pattern, a range, an expression.
///
/// Source: git-check-ref-format(1).
fn checked_ref(reference: &str) -> Result<Option<String>, Problem> {
    if reference.is_empty() {
        return Ok(None);
    }
    let problem = |reason: &str| {
        Err((
            format!("`{reference}` is not the name of a branch, a tag, a commit or a pull request: {reason}"),
            "write URL#REF:FOLDER, where REF is as in `main`, `v1.2`, `refs/pull/1/head` or a commit".to_owned(),
        ))
    };
    if reference.starts_with('-') {
        return problem("it begins with `-`");
    }
    if let Some(bad) = reference
        .chars()
        .find(|c| c.is_control() || " ~^:?*[\\".contains(*c))
    {
        return problem(&format!("it has `{}` in it", bad.escape_default()));
    }
    if reference.len() > 1024 {
        return problem("it is too long");
    }
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    if reference.contains("..")
        || reference.contains("@{")
        || reference.ends_with('.')
        || reference == "@"
        || reference.split('/').any(bad_part)
    {
        return problem("git does not allow such a name");
    }
    Ok(Some(reference.to_owned()))
}

fn checked_folder(folder: &str) -> Result<Option<String>, Problem> {
    let parts: Vec<&str> = folder
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err((
            format!("the folder `{folder}` has `..` in it"),
            "write a folder inside the repository".into(),
        ));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

/// A URL's text without what stands before `@` in its authority, unless that is a bare user of ssh.
pub(crate) fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) if !scheme.ends_with("ssh") || rest[..at].contains(':') => {
            format!("{scheme}://{}", &rest[at + 1..])
        }
        _ => text.to_owned(),
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)?;
        match (&self.reference, &self.folder) {
            (None, None) => Ok(()),
            (reference, None) => write!(f, "#{}", reference.as_deref().unwrap_or_default()),
            (reference, Some(folder)) => {
                write!(f, "#{}:{folder}", reference.as_deref().unwrap_or_default())
            }
        }
    }
}

/// The context's text, without passwords.
impl fmt::Display for ContextSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |f: &mut fmt::Formatter<'_>, path: &Path| write!(f, "{}", path.display());
        match self {
            Self::Folder(folder) => path(f, folder),
            Self::TarballFile(file) => path(f, file),
            Self::Git(git) => git.fmt(f),
            Self::HttpTarball(url) => f.write_str(&shown_url(url)),
            Self::Oci(reference) => write!(f, "oci://{reference}"),
            Self::Stdin => f.write_str("-"),
            Self::None => f.write_str("/dev/null"),
        }
    }
}

impl fmt::Debug for ContextSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContextSpec({self})")
    }
}

/// A download's URL for people: no password, and no query, which is where signatures are.
pub(crate) fn shown_url(url: &Url) -> String {
    shown_text(url.as_str())
}

fn shown_text(text: &str) -> String {
    let text = without_password(text);
    match text.split_once('?') {
        Some((before, _)) if before.contains("://") => format!("{before}?..."),
        _ => text,
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
