//! The values of flags that have a form of their own.

use std::{path::PathBuf, str::FromStr, time::Duration};

use acrtask_model::{ImageRef, Secret};

/// `KEY=VALUE`. The value may be empty and may hold further `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Never empty.
    pub(crate) key: String,
    /// Everything behind the first `=`.
    pub(crate) value: String,
}

impl FromStr for Pair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("", _)) => Err("there is nothing before the `=`".into()),
            Some((key, value)) => Ok(Self {
                key: key.into(),
                value: value.into(),
            }),
            None => Err(format!(
                "write `{text}=...`: a name, `=`, and what it stands for"
            )),
        }
    }
}

/// `KEY=VALUE`, or `KEY` for a value from the environment, that must not be seen.
#[derive(Debug, Clone)]
pub(crate) struct SecretPair {
    key: String,
    value: Option<Secret>,
}

/// Why a flag's value that may be secret was refused; says nothing of the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ValueError {
    /// What is wrong.
    pub(crate) message: String,
    /// What to write.
    pub(crate) help: String,
}

/// Takes `text` apart; [`SecretPair::resolve`] says what is wrong with it.
#[expect(
    clippy::unnecessary_wraps,
    reason = "clap's signature for a value parser"
)]
pub(crate) fn secret_pair(text: &str) -> Result<SecretPair, std::convert::Infallible> {
    Ok(match text.split_once('=') {
        Some((key, value)) => SecretPair {
            key: key.into(),
            value: Some(Secret::new(value)),
        },
        None => SecretPair {
            key: text.into(),
            value: None,
        },
    })
}

impl SecretPair {
    /// Its name and its value, which `env` looks up where the flag gives none.
    pub(crate) fn resolve(
        &self,
        flag: &str,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(String, Secret), ValueError> {
        if self.key.is_empty() {
            return Err(ValueError {
                message: format!("{flag} has nothing before the `=`"),
                help: format!(
                    "write `{flag} NAME`, with the value in the environment variable NAME, or `{flag} NAME=VALUE`"
                ),
            });
        }
        let value = match &self.value {
            Some(value) => value.clone(),
            None => Secret::new(env(&self.key).ok_or_else(|| ValueError {
                message: format!(
                    "{flag} {} takes its value from the environment, which has no {}",
                    self.key, self.key
                ),
                help: format!("set the variable: `{}=... acrtask ...`", self.key),
            })?),
        };
        Ok((self.key.clone(), value))
    }
}

/// `--credential` as typed; may hold a password by mistake, so it is not parsed where clap could print it.
#[derive(Debug, Clone)]
pub(crate) struct CredentialArg(Secret);

/// Takes `text` in; [`CredentialArg::parse`] says what is wrong with it.
#[expect(
    clippy::unnecessary_wraps,
    reason = "clap's signature for a value parser"
)]
pub(crate) fn credential_arg(text: &str) -> Result<CredentialArg, std::convert::Infallible> {
    Ok(CredentialArg(Secret::new(text)))
}

/// A login whose password is still to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CredentialSpec {
    /// `HOST[:PORT]`.
    pub(crate) host: String,
    /// The user's name.
    pub(crate) user: String,
    /// Where the password is.
    pub(crate) password: PasswordFrom,
}

/// Where a password is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PasswordFrom {
    /// In a file, without its last line end.
    File(PathBuf),
    /// On standard input.
    Stdin,
    /// In a variable of the environment.
    Env(String),
}

impl CredentialArg {
    /// Its parts.
    pub(crate) fn parse(&self) -> Result<CredentialSpec, ValueError> {
        let refuse = |message: &str| ValueError {
            message: format!("--credential: {message}"),
            help: "write --credential HOST=USER:@FILE, HOST=USER:@- or HOST=USER:env:NAME".into(),
        };
        let (host, login) = self
            .0
            .expose()
            .split_once('=')
            .ok_or_else(|| refuse("there is no `=` behind the host"))?;
        if host.is_empty() {
            return Err(refuse("there is no host before the `=`"));
        }
        // A user's name may hold colons no more than an HTTP basic login's may.
        let (user, from) = login
            .split_once(':')
            .ok_or_else(|| refuse("there is nothing that says where the password is"))?;
        let password = match (from.strip_prefix('@'), from.strip_prefix("env:")) {
            (Some("-"), _) => PasswordFrom::Stdin,
            (Some(path), _) if !path.is_empty() => PasswordFrom::File(path.into()),
            (_, Some(name)) if !name.is_empty() => PasswordFrom::Env(name.into()),
            _ => {
                return Err(refuse(
                    "a password is not taken from the command line, where every process can read it",
                ));
            }
        };
        Ok(CredentialSpec {
            host: host.into(),
            user: user.into(),
            password,
        })
    }
}

/// A time: `90s`, `10m`, `1h30m`, or a number of seconds; not zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|time| Duration::try_from(time).ok())
            .ok_or("write 90s, 10m, 1h30m, or a number of seconds")?,
    };
    if time.is_zero() {
        return Err("a run needs more time than none".into());
    }
    Ok(time)
}

/// Parses a time: a span before now, a date of this machine's time zone, or RFC 3339.
pub(crate) fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    let zone = jiff::tz::TimeZone::system();
    let help = "write 24h, 7d, 2026-01-31 or 2026-01-31T12:00:00Z";
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<jiff::civil::Date>() {
        let midnight = date.to_zoned(zone).map_err(|_| help)?;
        return Ok(midnight.timestamp());
    }
    let span: jiff::Span = text.parse().map_err(|_| help)?;
    let now = jiff::Timestamp::now().to_zoned(zone);
    let before = now.checked_sub(span.abs()).map_err(|_| help)?;
    Ok(before.timestamp())
}

/// `true` or `false`, in any case, as the cloud service takes them.
pub(crate) fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("write true or false".into()),
    }
}

/// A number of bytes that is not zero: `1048576`, `512K`, `64M`, `4G`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    match size_or_none(text)? {
        0 => Err(SIZE.into()),
        bytes => Ok(bytes),
    }
}

const SIZE: &str = "write a number of bytes, perhaps with K, M or G behind it: 64M";

/// The same, or zero.
pub(crate) fn size_or_none(text: &str) -> Result<u64, String> {
    let wrong = || SIZE.to_owned();
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// `--public-url`: the address of a server, as others write it.
pub(crate) fn public_url(text: &str) -> Result<url::Url, String> {
    crate::client::server_url(text).map_err(|error| error.to_string())
}

/// Where a token is: `env:NAME` or `@FILE`. May hold the token itself by mistake, so it cannot be printed.
#[derive(Debug, Clone)]
pub(crate) struct TokenFrom(Secret);

/// Takes `text` in; [`TokenFrom::parse`] says what is wrong with it.
#[expect(
    clippy::unnecessary_wraps,
    reason = "clap's signature for a value parser"
)]
pub(crate) fn token_from(text: &str) -> Result<TokenFrom, std::convert::Infallible> {
    Ok(TokenFrom(Secret::new(text)))
}

impl TokenFrom {
    /// Where it is.
    pub(crate) fn parse(&self, flag: &str) -> Result<PasswordFrom, ValueError> {
        let text = self.0.expose();
        match (text.strip_prefix('@'), text.strip_prefix("env:")) {
            (Some("-"), _) => Ok(PasswordFrom::Stdin),
            (Some(path), _) if !path.is_empty() => Ok(PasswordFrom::File(path.into())),
            (_, Some(name)) if !name.is_empty() => Ok(PasswordFrom::Env(name.into())),
            _ => Err(ValueError {
                message: format!(
                    "{flag}: a token is not taken from the command line, where every process can read it"
                ),
                help: format!(
                    "write `{flag} env:NAME`, with the token in the environment variable NAME, or `{flag} @FILE`"
                ),
            }),
        }
    }
}

/// `-t` of `acrtask build`: a name that may lack its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuildTag(String);

impl FromStr for BuildTag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // With a registry before it where it has none: only its form matters here.
        let tag = Self(text.into());
        if !tag.is_template() {
            text.parse::<ImageRef>()
                .map_err(|error| error.to_string())?;
        }
        Ok(tag)
    }
}

impl BuildTag {
    /// Returns `true` for a template, which becomes a reference with values of the run.
    fn is_template(&self) -> bool {
        self.0.contains("{{") || self.0.contains('$')
    }

    /// Returns the name for a build: a template as it is, else the whole reference.
    ///
    /// # Errors
    /// As [`Self::with_registry`].
    pub(crate) fn name(
        &self,
        registry: Option<&str>,
        must_name: bool,
    ) -> Result<String, ValueError> {
        if self.is_template() {
            return Ok(self.0.clone());
        }
        let reference = self.with_registry(registry, must_name)?;
        Ok(reference.to_string())
    }

    /// The whole reference; `registry` is put before a name that has none of its own.
    ///
    /// # Errors
    /// A name without a registry, and no registry given, where it `must_name` one because it is pushed.
    fn with_registry(
        &self,
        registry: Option<&str>,
        must_name: bool,
    ) -> Result<ImageRef, ValueError> {
        let refuse = |message: String| ValueError {
            message,
            help: format!(
                "write `-t HOST/{0}`, or `-r HOST` beside `-t {0}`, or `--no-push`",
                self.0
            ),
        };
        let own = self
            .0
            .split_once('/')
            .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
        let text = match registry {
            Some(registry) if !own => format!("{registry}/{}", self.0),
            None if !own && must_name => {
                return Err(refuse(format!(
                    "the image `{}` has no registry, so there is nowhere to push it",
                    self.0
                )));
            }
            _ => self.0.clone(),
        };
        text.parse::<ImageRef>()
            .map(ImageRef::or_latest)
            .map_err(|error| refuse(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let at = |text: &str| moment(text).map(|time| time.to_string());
        assert_eq!(
            at("2026-01-31T12:00:00Z"),
            Ok("2026-01-31T12:00:00Z".into())
        );
        assert!(moment("2026-01-31").is_ok());
        let ago = |text: &str| {
            let then = moment(text).unwrap();
            jiff::Timestamp::now().duration_since(then).as_hours()
        };
        assert_eq!(ago("24h"), 24);
        assert!((167..=169).contains(&ago("7d")));
        assert!((167..=169).contains(&ago("1w")));
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn pairs() {
        let pair = |t: &str| t.parse::<Pair>().map(|p| (p.key, p.value));
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("=b").is_err());
        assert!(pair("a").is_err());
    }

    #[test]
    fn a_secret_comes_from_the_flag_or_from_the_environment_and_is_never_named_in_an_error() {
        let env = |name: &str| (name == "TOKEN").then(|| "from-env".to_owned());
        let resolve = |text: &str| {
            let Ok(pair) = secret_pair(text);
            pair.resolve("--set-secret", env)
                .map(|(k, v)| (k, v.expose().to_owned()))
        };
        assert_eq!(resolve("a=hunter2"), Ok(("a".into(), "hunter2".into())));
        assert_eq!(resolve("TOKEN"), Ok(("TOKEN".into(), "from-env".into())));
        assert!(resolve("OTHER").unwrap_err().to_string().contains("OTHER"));
        let refused = resolve("=hunter2").unwrap_err();
        assert!(!format!("{refused:?}").contains("hunter2"));
    }

    #[test]
    fn credentials_name_where_the_password_is_and_never_hold_it() {
        let parse = |text: &str| {
            let Ok(arg) = credential_arg(text);
            arg.parse()
        };
        let spec = |password| CredentialSpec {
            host: "r.io:5000".into(),
            user: "me".into(),
            password,
        };
        assert_eq!(
            parse("r.io:5000=me:@/p"),
            Ok(spec(PasswordFrom::File("/p".into())))
        );
        assert_eq!(parse("r.io:5000=me:@-"), Ok(spec(PasswordFrom::Stdin)));
        assert_eq!(
            parse("r.io:5000=me:env:PW"),
            Ok(spec(PasswordFrom::Env("PW".into())))
        );
        for bad in [
            "r.io",
            "r.io=me",
            "=me:@f",
            "r.io=me:hunter2",
            "r.io=me:@",
            "r.io=me:env:",
        ] {
            let refused = parse(bad).unwrap_err();
            assert!(!format!("{refused:?}").contains("hunter2"), "{bad}");
        }
    }

    #[test]
    fn a_token_is_where_it_is_said_to_be_and_never_in_an_error() {
        let parse = |text: &str| {
            let Ok(from) = token_from(text);
            from.parse("--git-access-token")
        };
        assert_eq!(parse("@/t"), Ok(PasswordFrom::File("/t".into())));
        assert_eq!(parse("env:T"), Ok(PasswordFrom::Env("T".into())));
        for bad in ["hunter2", "@", "env:", ""] {
            assert!(!format!("{:?}", parse(bad).unwrap_err()).contains("hunter2"));
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("4k", 4096), ("64M", 64 << 20), ("4G", 4 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "G", "-1", "1.5G", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("1h 30m", 5400),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "0", "-5s", "soon", "5 apples"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_registry_is_put_before_names_that_have_none() {
        let full = |tag: &str, registry: Option<&str>, push: bool| {
            tag.parse::<BuildTag>()
                .unwrap()
                .with_registry(registry, push)
                .map(|r| r.to_string())
        };
        assert_eq!(
            full("hello:v1", Some("reg.io"), true).unwrap(),
            "reg.io/hello:v1"
        );
        assert_eq!(
            full("team/hello", Some("reg.io"), true).unwrap(),
            "reg.io/team/hello:latest"
        );
        assert_eq!(
            full("other.io/hello:v1", Some("reg.io"), true).unwrap(),
            "other.io/hello:v1"
        );
        assert_eq!(
            full("localhost:5000/a:1", None, true).unwrap(),
            "localhost:5000/a:1"
        );
        assert_eq!(
            full("hello:v1", None, false).unwrap(),
            "docker.io/library/hello:v1"
        );
        assert!(
            full("hello:v1", None, true)
                .unwrap_err()
                .help
                .contains("-r HOST")
        );
        assert!("Hello".parse::<BuildTag>().is_err());
        for template in ["hello:{{.Run.ID}}", "$Registry/hello:$ID"] {
            let tag: BuildTag = template.parse().unwrap();
            assert_eq!(tag.name(None, true).unwrap(), template);
        }
    }
}
