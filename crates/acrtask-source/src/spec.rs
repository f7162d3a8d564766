//! Parser for the text of a context.
//!
//! Source: the argument of `docker build` (`PATH \| URL \| -`), with `oci://` and `/dev/null` of
//! `az acr run`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use acrtask_model::{ImageRef, Secret};
use url::Url;

/// Parsed text of a context, without access to its content. `Display` and `Debug` output contains
/// no password.
#[derive(Clone)]
pub enum ContextSpec {
    /// Path without the ending of an archive. The file system decides its kind.
    Folder(PathBuf),
    /// Git repository: `URL#ref:folder`.
    Git(GitUrl),
    /// URL of an archive or a single Dockerfile.
    HttpTarball(Url),
    /// Path with the ending of an archive. The file system decides its kind.
    TarballFile(PathBuf),
    /// Artifact in a registry: `oci://REF`.
    Oci(ImageRef),
    /// `-`: archive or single Dockerfile on standard input.
    Stdin,
    /// `/dev/null`: empty context.
    None,
}

/// Git repository, with the parts to check out. Every part is checked to be harmless as an
/// argument.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GitUrl {
    /// URL for git, without a password.
    pub url: String,
    /// Protocol of the URL.
    pub transport: GitTransport,
    /// Host. Empty for [`GitTransport::File`].
    pub host: String,
    /// User and password from the URL.
    pub credential: Option<(String, Secret)>,
    /// Branch, tag, commit or pull request. `None`: the default branch.
    pub reference: Option<String>,
    /// Folder inside the repository, relative to its root, without `..`.
    pub folder: Option<String>,
}

/// Protocol of a git repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitTransport {
    /// `https://`
    Https,
    /// `http://`, without encryption.
    Http,
    /// `ssh://`, `git@host:path`
    Ssh,
    /// `git://`, without encryption and authentication.
    Git,
    /// `file://`
    File,
}

impl GitTransport {
    /// Returns git's name of the protocol, as in `protocol.<name>.allow`.
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

/// Error for a text that is not a context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a context: {reason}")]
pub struct ParseError {
    /// Text, without a password.
    pub text: String,
    /// Description of the problem.
    pub reason: String,
    /// Advice to the user.
    pub help: String,
}

/// Hosts with web pages at `https://HOST/OWNER/REPOSITORY`, which users confuse with the
/// repository's URL.
const FORGES: [&str; 4] = ["github.com", "gitlab.com", "bitbucket.org", "codeberg.org"];

/// File name endings of archives.
const ARCHIVES: [&str; 9] = [
    ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz",
];

impl ContextSpec {
    /// Parses the text of a context.
    ///
    /// # Errors
    /// [`ParseError`] with advice.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let fail = |reason: &str, help: &str| {
            Err(ParseError {
                text: redact_text(text),
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
            return fail("it contains control characters", "write a path or a URL");
        }
        match text {
            "-" => return Ok(Self::Stdin),
            "/dev/null" => return Ok(Self::None),
            _ => {}
        }
        if text.starts_with('-') {
            return fail(
                "it begins with `-`, like an option",
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
                "remote helpers of git are not supported",
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
                text: redact_text(text),
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
                    format!("`{other}://` is not a supported protocol for contexts"),
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
        // Repositories of Azure DevOps do not end with `.git`.
        if url.path().ends_with(".git") || url.path().contains("/_git/") {
            if url.query().is_some() {
                return fail(
                    "a git URL has no `?`".into(),
                    "write the reference and the folder after a `#`: URL#REF:FOLDER",
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
                "this is the web page of a repository".into(),
                &format!("write https://{host}{path}.git"),
            );
        }
        if url.fragment().is_some() {
            return fail(
                "only a git URL has a `#`, and it ends with `.git`".into(),
                "write URL.git#REF:FOLDER, or remove the `#` and the text after it",
            );
        }
        Ok(Self::HttpTarball(url))
    }

    fn parse_git(text: &str, url: &str) -> Result<Self, ParseError> {
        GitUrl::parse(url)
            .map(Self::Git)
            .map_err(|(reason, help)| ParseError {
                text: redact_text(text),
                reason,
                help,
            })
    }
}

/// Reason and advice.
type Problem = (String, String);

impl GitUrl {
    fn parse(text: &str) -> Result<Self, Problem> {
        let (address, fragment) = match text.split_once('#') {
            Some((address, fragment)) => (address, Some(fragment)),
            None => (text, None),
        };
        let (reference, folder) =
            match fragment.map(|fragment| fragment.split_once(':').unwrap_or((fragment, ""))) {
                Some((reference, folder)) => (check_reference(reference)?, check_folder(folder)?),
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
    /// Parses the URL of a submodule or a redirect: a full URL or `user@host:path`, without a
    /// reference and a folder.
    ///
    /// # Errors
    /// The reason and the advice.
    pub fn parse_remote_url(text: &str) -> Result<Self, (String, String)> {
        let help =
            || "write a full https:// or ssh:// URL, or one relative to the repository".to_owned();
        let text = text.strip_prefix("git+").unwrap_or(text);
        let odd = text.starts_with('-') || text.chars().any(char::is_control);
        if odd || text.contains(['#', '?']) || !(text.contains("://") || is_scp_form(text)) {
            return Err(("it is not a URL".into(), help()));
        }
        let scheme = text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c));
        if scheme.is_some_and(|end| text[end..].starts_with("::")) {
            return Err(("remote helpers of git are not supported".into(), help()));
        }
        Self::parse(text)
    }

    /// Returns the port of the repository.
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
                "`{other}://` is not a supported protocol for git"
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
    let password = url.password().map(percent_decode);
    let mut credential = None;
    match transport {
        GitTransport::Https | GitTransport::Http => {
            if !url.username().is_empty() {
                // A token without a password is in the place of the user name.
                credential = Some(match password {
                    Some(password) => (percent_decode(url.username()), Secret::new(password)),
                    None => (
                        "x-access-token".into(),
                        Secret::new(percent_decode(url.username())),
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

/// Returns `true` for the form `user@host:path` of ssh.
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
            "it resembles `user@host:path`, but is not valid".into(),
            "write `git@HOST:PATH`".into(),
        ));
    }
    check_word(user)?;
    check_word(host)?;
    Ok(host.to_owned())
}

/// Checks a host or a user of ssh. Refuses a word that ssh would parse as an option, or a shell as
/// several words.
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

/// Checks the name of a reference with git's rules. The check prevents a name from being an option,
/// a pattern, a range or an expression.
///
/// Source: git-check-ref-format(1).
fn check_reference(reference: &str) -> Result<Option<String>, Problem> {
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
        return problem(&format!("it contains `{}`", bad.escape_default()));
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

fn check_folder(folder: &str) -> Result<Option<String>, Problem> {
    let parts: Vec<&str> = folder
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err((
            format!("the folder `{folder}` contains `..`"),
            "write a folder inside the repository".into(),
        ));
    }
    if parts.first().is_some_and(|first| first.starts_with('-')) {
        return Err((
            format!("the folder `{folder}` begins with `-`, like an option"),
            "rename the folder".into(),
        ));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

/// Removes the user and password from a URL's authority, unless it is a user of ssh without a
/// password.
pub(crate) fn remove_password(text: &str) -> String {
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

/// Formats the text of the context, without passwords.
impl fmt::Display for ContextSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |f: &mut fmt::Formatter<'_>, path: &Path| write!(f, "{}", path.display());
        match self {
            Self::Folder(folder) => path(f, folder),
            Self::TarballFile(file) => path(f, file),
            Self::Git(git) => git.fmt(f),
            Self::HttpTarball(url) => f.write_str(&redact_url(url)),
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

/// Formats the URL of a download without its password and its query, which may contain a signature.
pub(crate) fn redact_url(url: &Url) -> String {
    redact_text(url.as_str())
}

fn redact_text(text: &str) -> String {
    let text = remove_password(text);
    match text.split_once('?') {
        Some((before, _)) if before.contains("://") => format!("{before}?..."),
        _ => text,
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
