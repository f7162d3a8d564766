//! Parsers for flag values with their own syntax.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use acrtask_model::{ImageRef, Secret, TaskPattern};

/// `KEY=VALUE`. The value may be empty and may contain further `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Name; never empty.
    pub(crate) key: String,
    /// Everything after the first `=`.
    pub(crate) value: String,
}

impl FromStr for Pair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("", _)) => Err("a name is missing before the `=`".into()),
            Some((key, value)) => Ok(Self {
                key: key.into(),
                value: value.into(),
            }),
            None => Err(format!("write `{text}=...`: a name, `=`, and its value")),
        }
    }
}

/// Prefix of task names: `team/` or `team/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskPrefix(TaskPattern);

impl FromStr for TaskPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let prefix = text.strip_suffix('*').unwrap_or(text);
        if prefix.is_empty() {
            return Err("the prefix is empty; leave out the flag to include all tasks".into());
        }
        let pattern = format!("{prefix}*").parse();
        pattern.map(Self).map_err(|_| {
            format!("`{text}` is not the beginning of task names; write it like `team/`")
        })
    }
}

impl fmt::Display for TaskPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `KEY=VALUE`, or `KEY` with the value in the environment. The value is secret.
#[derive(Debug, Clone)]
pub(crate) struct SecretPair {
    key: String,
    value: Option<Secret>,
}

/// Rejection of a flag value that may be secret; the message never contains the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ValueError {
    /// Problem with the value.
    pub(crate) message: String,
    /// Correct form of the flag.
    pub(crate) help: String,
}

/// Splits `text` at its first `=`; [`SecretPair::resolve`] reports errors.
#[expect(
    clippy::unnecessary_wraps,
    reason = "clap's signature for a value parser"
)]
pub(crate) fn parse_secret_pair(text: &str) -> Result<SecretPair, std::convert::Infallible> {
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
    /// Returns the name and the value; `env` looks up the value if the flag has none.
    pub(crate) fn resolve(
        &self,
        flag: &str,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(String, Secret), ValueError> {
        if self.key.is_empty() {
            return Err(ValueError {
                message: format!("{flag} has no name before the `=`"),
                help: format!(
                    "write `{flag} NAME`, with the value in the environment variable NAME, or `{flag} NAME=VALUE`"
                ),
            });
        }
        let value = match &self.value {
            Some(value) => value.clone(),
            None => Secret::new(env(&self.key).ok_or_else(|| ValueError {
                message: format!(
                    "{flag} {} takes its value from the environment variable {}, which is not set",
                    self.key, self.key
                ),
                help: format!("set the variable: `{}=... acrtask ...`", self.key),
            })?),
        };
        Ok((self.key.clone(), value))
    }
}

/// `--credential` as typed. It may contain a password by mistake, so it is not parsed where clap
/// could print it.
#[derive(Debug, Clone)]
pub(crate) struct CredentialArg(Secret);

/// Wraps `text`; [`CredentialArg::parse`] reports errors.
#[expect(
    clippy::unnecessary_wraps,
    reason = "clap's signature for a value parser"
)]
pub(crate) fn parse_credential_arg(text: &str) -> Result<CredentialArg, std::convert::Infallible> {
    Ok(CredentialArg(Secret::new(text)))
}

/// Login whose password has not been read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CredentialSpec {
    /// `HOST[:PORT]`.
    pub(crate) host: String,
    /// User name.
    pub(crate) user: String,
    /// Source of the password.
    pub(crate) password: PasswordSource,
}

/// Sources of a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PasswordSource {
    /// A file; a final line break is not part of the password.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// An environment variable.
    Env(String),
}

impl CredentialArg {
    /// Parses `HOST=USER:@FILE`, `HOST=USER:@-` or `HOST=USER:env:NAME`.
    pub(crate) fn parse(&self) -> Result<CredentialSpec, ValueError> {
        let refuse = |message: &str| ValueError {
            message: format!("--credential: {message}"),
            help: "write --credential HOST=USER:@FILE, HOST=USER:@- or HOST=USER:env:NAME".into(),
        };
        let (host, login) = self
            .0
            .expose()
            .split_once('=')
            .ok_or_else(|| refuse("an `=` is missing after the host"))?;
        if host.is_empty() {
            return Err(refuse("a host is missing before the `=`"));
        }
        // As in HTTP basic authentication, a user name cannot contain a colon.
        let (user, from) = login
            .split_once(':')
            .ok_or_else(|| refuse("the source of the password is missing"))?;
        let password = match (from.strip_prefix('@'), from.strip_prefix("env:")) {
            (Some("-"), _) => PasswordSource::Stdin,
            (Some(path), _) if !path.is_empty() => PasswordSource::File(path.into()),
            (_, Some(name)) if !name.is_empty() => PasswordSource::Env(name.into()),
            _ => {
                return Err(refuse(
                    "a password on the command line is readable by every process",
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

/// Parses a time: `90s`, `10m`, `1h30m`, or a number of seconds; zero is an error.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|time| Duration::try_from(time).ok())
            .ok_or("write 90s, 10m, 1h30m, or a number of seconds")?,
    };
    if time.is_zero() {
        return Err("the time must be greater than zero".into());
    }
    Ok(time)
}

/// Parses a time: a span before now, a date in this machine's time zone, or RFC 3339.
pub(crate) fn parse_time(text: &str) -> Result<jiff::Timestamp, String> {
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

/// Parses `true` or `false` in any case, as the cloud service does.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("write true or false".into()),
    }
}

/// Parses a number of bytes: `1048576`, `512K`, `64M`, `4G`; zero is an error.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    match parse_size_or_zero(text)? {
        0 => Err(SIZE.into()),
        bytes => Ok(bytes),
    }
}

const SIZE: &str = "write a number of bytes, optionally with K, M or G after it: 64M";

/// Parses a number of bytes like `parse_size`, and accepts zero.
pub(crate) fn parse_size_or_zero(text: &str) -> Result<u64, String> {
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

/// Parses `--public-url`: a server's address as other machines reach it.
pub(crate) fn parse_public_url(text: &str) -> Result<url::Url, String> {
    crate::client::server_url(text).map_err(|error| error.to_string())
}

/// Source of a token: `env:NAME` or `@FILE`. It may contain the token itself by mistake, so it
/// cannot be printed.
#[derive(Debug, Clone)]
pub(crate) struct TokenSource(Secret);

/// Wraps `text`; [`TokenSource::parse`] reports errors.
#[expect(
    clippy::unnecessary_wraps,
    reason = "clap's signature for a value parser"
)]
pub(crate) fn parse_token_source(text: &str) -> Result<TokenSource, std::convert::Infallible> {
    Ok(TokenSource(Secret::new(text)))
}

impl TokenSource {
    /// Parses `env:NAME`, `@FILE` or `@-`.
    pub(crate) fn parse(&self, flag: &str) -> Result<PasswordSource, ValueError> {
        let text = self.0.expose();
        match (text.strip_prefix('@'), text.strip_prefix("env:")) {
            (Some("-"), _) => Ok(PasswordSource::Stdin),
            (Some(path), _) if !path.is_empty() => Ok(PasswordSource::File(path.into())),
            (_, Some(name)) if !name.is_empty() => Ok(PasswordSource::Env(name.into())),
            _ => Err(ValueError {
                message: format!(
                    "{flag}: a token on the command line is readable by every process"
                ),
                help: format!(
                    "write `{flag} env:NAME`, with the token in the environment variable NAME, or `{flag} @FILE`"
                ),
            }),
        }
    }
}

/// `-t` of `acrtask build`: an image name, with or without a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuildTag(String);

impl FromStr for BuildTag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // Checks only the form, with the default registry if the name has none.
        let tag = Self(text.into());
        if !tag.is_template() {
            text.parse::<ImageRef>()
                .map_err(|error| error.to_string())?;
        }
        Ok(tag)
    }
}

impl BuildTag {
    /// Returns `true` for a template, which becomes a reference once the run's values are known.
    fn is_template(&self) -> bool {
        self.0.contains("{{") || self.0.contains('$')
    }

    /// Returns the name for a build: a template unchanged, otherwise the whole reference.
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

    /// Returns the whole reference; adds `registry` to a name without one.
    ///
    /// # Errors
    /// Fails if `must_name` is set and neither the name nor `registry` names a registry: the image
    /// is pushed.
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
    fn time_parses_spans_dates_and_timestamps() {
        let at = |text: &str| parse_time(text).map(|time| time.to_string());
        assert_eq!(
            at("2026-01-31T12:00:00Z"),
            Ok("2026-01-31T12:00:00Z".into())
        );
        assert!(parse_time("2026-01-31").is_ok());
        let ago = |text: &str| {
            let then = parse_time(text).unwrap();
            jiff::Timestamp::now().duration_since(then).as_hours()
        };
        assert_eq!(ago("24h"), 24);
        assert!((167..=169).contains(&ago("7d")));
        assert!((167..=169).contains(&ago("1w")));
        assert!(parse_time("yesterday").is_err());
    }

    #[test]
    fn pair_splits_at_the_first_equals_sign() {
        let pair = |t: &str| t.parse::<Pair>().map(|p| (p.key, p.value));
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("=b").is_err());
        assert!(pair("a").is_err());
    }

    #[test]
    fn secret_pair_resolves_from_flag_or_environment_and_errors_omit_the_value() {
        let env = |name: &str| (name == "TOKEN").then(|| "from-env".to_owned());
        let resolve = |text: &str| {
            let Ok(pair) = parse_secret_pair(text);
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
    fn credential_parses_password_sources_and_errors_omit_the_password() {
        let parse = |text: &str| {
            let Ok(arg) = parse_credential_arg(text);
            arg.parse()
        };
        let spec = |password| CredentialSpec {
            host: "r.io:5000".into(),
            user: "me".into(),
            password,
        };
        assert_eq!(
            parse("r.io:5000=me:@/p"),
            Ok(spec(PasswordSource::File("/p".into())))
        );
        assert_eq!(parse("r.io:5000=me:@-"), Ok(spec(PasswordSource::Stdin)));
        assert_eq!(
            parse("r.io:5000=me:env:PW"),
            Ok(spec(PasswordSource::Env("PW".into())))
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
    fn token_source_parses_and_errors_omit_the_token() {
        let parse = |text: &str| {
            let Ok(from) = parse_token_source(text);
            from.parse("--git-access-token")
        };
        assert_eq!(parse("@/t"), Ok(PasswordSource::File("/t".into())));
        assert_eq!(parse("env:T"), Ok(PasswordSource::Env("T".into())));
        for bad in ["hunter2", "@", "env:", ""] {
            assert!(!format!("{:?}", parse(bad).unwrap_err()).contains("hunter2"));
        }
    }

    #[test]
    fn size_parses_suffixes_and_rejects_zero() {
        for (text, bytes) in [("1", 1), ("4k", 4096), ("64M", 64 << 20), ("4G", 4 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "G", "-1", "1.5G", "99999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn duration_parses_units_and_rejects_zero() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("1h 30m", 5400),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for bad in ["", "0", "-5s", "soon", "5 apples"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn build_tag_gets_the_registry_only_if_it_has_none() {
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
