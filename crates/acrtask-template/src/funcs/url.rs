//! Parsing and joining of URLs, like Go's `net/url`.

use super::{Env, Function, Outcome, functions, map_at, text_at};
use crate::{
    error::Fault,
    format::quote,
    value::{Element, Entries, Value},
};

pub(crate) static TABLE: &[Function] = functions! {
    "urlParse" (Text) url_parse;
    "urlJoin" (Dict) url_join;
};

/// A part of a URL with its own escaping rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Path,
    User,
    Host,
    Query,
    Fragment,
}

fn needs_escape(byte: u8, part: Part) -> bool {
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
        return false;
    }
    match part {
        Part::Path => !b"$&+,/:;=@".contains(&byte),
        Part::User => !b"$&+,;=".contains(&byte),
        Part::Host => !b"!$&'()*+,;=:[]<>\"".contains(&byte),
        Part::Query => true,
        Part::Fragment => !b"$&+,/:;=?@!()*".contains(&byte),
    }
}

fn escape(text: &str, part: Part) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte == b' ' && part == Part::Query {
            out.push('+');
        } else if needs_escape(byte, part) {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

/// Escapes a text like `url.QueryEscape`.
pub(crate) fn query_escape(text: &str) -> String {
    escape(text, Part::Query)
}

fn unescape(text: &str, part: Part) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let code = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            // In a host, only bytes beyond ASCII are escaped.
            Some(byte) if part != Part::Host || !byte.is_ascii() => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                let shown = String::from_utf8_lossy(&rest[..rest.len().min(3)]).into_owned();
                return Err(format!("invalid URL escape {}", quote(&shown)));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| "the escaped bytes are not text".to_owned())
}

#[derive(Debug, Default)]
struct Url {
    scheme: String,
    opaque: String,
    /// Name and optional password, both unescaped.
    user: Option<(String, Option<String>)>,
    host: String,
    path: String,
    query: String,
    fragment: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err("net/url: invalid control character in URL".to_owned());
        }
        let mut url = Self::default();
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        url.fragment = unescape(fragment, Part::Fragment)?;
        let (scheme, rest) = split_scheme(rest)?;
        url.scheme = scheme.to_ascii_lowercase();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        url.query = query.to_owned();
        if !rest.starts_with('/') {
            if !scheme.is_empty() {
                url.opaque = rest.to_owned();
                return Ok(url);
            }
            let segment = rest.split('/').next().unwrap_or_default();
            if segment.contains(':') {
                return Err("first path segment in URL cannot contain colon".to_owned());
            }
        }
        let has_authority =
            rest.starts_with("//") && (!scheme.is_empty() || !rest.starts_with("///"));
        let path = if has_authority {
            let rest = &rest[2..];
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            url.read_authority(authority)?;
            path
        } else {
            rest
        };
        url.path = unescape(path, Part::Path)?;
        Ok(url)
    }

    fn read_authority(&mut self, authority: &str) -> Result<(), String> {
        let host = match authority.rsplit_once('@') {
            None => authority,
            Some((user, host)) => {
                let is_valid =
                    |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
                if !user.chars().all(is_valid) {
                    return Err("net/url: invalid userinfo".to_owned());
                }
                self.user = Some(match user.split_once(':') {
                    Some((name, password)) => (
                        unescape(name, Part::User)?,
                        Some(unescape(password, Part::User)?),
                    ),
                    None => (unescape(user, Part::User)?, None),
                });
                host
            }
        };
        let (name, after_host) = match host.strip_prefix('[') {
            Some(inner) => {
                let (address, after) = inner.split_once(']').ok_or("missing ']' in host")?;
                let (address, zone) = address.split_once("%25").unwrap_or((address, ""));
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err("invalid IP-literal".to_owned());
                }
                let zone = unescape(zone, Part::User)?;
                let percent = if zone.is_empty() { "" } else { "%" };
                (format!("[{address}{percent}{zone}]"), after)
            }
            None if host.contains(['[', ']']) => return Err("invalid IP-literal".to_owned()),
            None => {
                let (name, port) = host.split_at(host.rfind(':').unwrap_or(host.len()));
                (unescape(name, Part::Host)?, port)
            }
        };
        let port_is_valid = after_host.is_empty()
            || after_host
                .strip_prefix(':')
                .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
        if !port_is_valid {
            return Err(format!("invalid port {} after host", quote(after_host)));
        }
        if host.contains(' ') {
            return Err("invalid character \" \" in host name".to_owned());
        }
        self.host = format!("{name}{after_host}");
        Ok(())
    }

    /// Returns the host without its port and brackets.
    fn hostname(&self) -> &str {
        match self
            .host
            .strip_prefix('[')
            .and_then(|inner| inner.split_once(']'))
        {
            Some((name, _)) => name,
            None => self
                .host
                .rsplit_once(':')
                .map_or(&*self.host, |(name, _)| name),
        }
    }

    fn user_text(&self) -> String {
        match &self.user {
            None => String::new(),
            Some((name, None)) => escape(name, Part::User),
            Some((name, Some(password))) => {
                format!(
                    "{}:{}",
                    escape(name, Part::User),
                    escape(password, Part::User)
                )
            }
        }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.scheme.is_empty() {
            write!(f, "{}:", self.scheme)?;
        }
        if self.opaque.is_empty() {
            if !self.scheme.is_empty() || !self.host.is_empty() || self.user.is_some() {
                if !self.host.is_empty() || !self.path.is_empty() || self.user.is_some() {
                    f.write_str("//")?;
                }
                if self.user.is_some() {
                    write!(f, "{}@", self.user_text())?;
                }
                f.write_str(&escape(&self.host, Part::Host))?;
            }
            let path = if self.path == "*" {
                "*".to_owned()
            } else {
                escape(&self.path, Part::Path)
            };
            if !path.is_empty() && !path.starts_with('/') && !self.host.is_empty() {
                f.write_str("/")?;
            }
            let is_bare = self.scheme.is_empty() && self.host.is_empty() && self.user.is_none();
            if is_bare
                && path
                    .split('/')
                    .next()
                    .is_some_and(|segment| segment.contains(':'))
            {
                // Prevents that the segment is read as a scheme.
                f.write_str("./")?;
            }
            f.write_str(&path)?;
        } else {
            f.write_str(&self.opaque)?;
        }
        if !self.query.is_empty() {
            write!(f, "?{}", self.query)?;
        }
        if !self.fragment.is_empty() {
            write!(f, "#{}", escape(&self.fragment, Part::Fragment))?;
        }
        Ok(())
    }
}

fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    for (index, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if index > 0 => {}
            ':' if index == 0 => return Err("missing protocol scheme".to_owned()),
            ':' => return Ok((&text[..index], &text[index + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn url_parse(env: &mut Env, args: &[Value]) -> Outcome {
    let text = text_at(args, 0);
    let url = Url::parse(text).map_err(|reason| {
        Fault::call(format!(
            "unable to parse url: parse {}: {reason}",
            quote(text)
        ))
    })?;
    let parts = [
        ("scheme", url.scheme.as_str()),
        ("host", &url.host),
        ("hostname", url.hostname()),
        ("path", &url.path),
        ("query", &url.query),
        ("opaque", &url.opaque),
        ("fragment", &url.fragment),
        ("userinfo", &url.user_text()),
    ];
    let mut entries = Entries::new();
    for (key, part) in parts {
        entries.insert(key.into(), env.new_text(part)?);
    }
    env.new_map(Element::Any, entries)
}

fn url_join(env: &mut Env, args: &[Value]) -> Outcome {
    let map = map_at(args, 0);
    let part = |key: &str| match map.and_then(|map| env.heap.get(map).get(key)) {
        None => Ok(String::new()),
        Some(Value::Text(text)) => Ok(text.to_string()),
        Some(other) => Err(Fault::call(format!(
            "unable to parse {key} key, must be of type string, but {} found",
            other.kind_name()
        ))),
    };
    let user = part("userinfo")?;
    let mut url = Url {
        scheme: part("scheme")?,
        host: part("host")?,
        path: part("path")?,
        query: part("query")?,
        opaque: part("opaque")?,
        fragment: part("fragment")?,
        user: None,
    };
    if !user.is_empty() {
        let parsed = Url::parse(&format!("proto://{user}@host"))
            .map_err(|reason| Fault::call(format!("unable to parse userinfo in dict: {reason}")))?;
        url.user = parsed.user;
    }
    env.new_text(url.to_string())
}
