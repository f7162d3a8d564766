//! Words of Dockerfiles: what an `ARG` declares, and what variables in a `FROM` come to. Pure.

use std::collections::BTreeMap;

/// `NAME[=DEFAULT] ...`.
pub fn declared(arguments: &str) -> Vec<(String, Option<String>)> {
    let words = shell_words::split(arguments).unwrap_or_default();
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
            None => (word, None),
        })
        .collect()
}

/// `$NAME`, `${NAME}`, `${NAME:-DEFAULT}` and `${NAME:+OTHER}`, as in a FROM.
pub fn expand(text: &str, args: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(body) = after.strip_prefix('{') {
            let Some(end) = closing(body) else {
                out.push('$');
                rest = after;
                continue;
            };
            out.push_str(&braced(&body[..end], args));
            rest = &body[end + 1..];
        } else {
            let end = after
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(after.len());
            if end == 0 {
                out.push('$');
            } else if let Some(value) = args.get(&after[..end]) {
                out.push_str(value);
            }
            rest = &after[end..];
        }
    }
    out.push_str(rest);
    out
}

fn closing(body: &str) -> Option<usize> {
    let mut depth = 1;
    body.char_indices().find_map(|(i, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(i)
    })
}

fn braced(body: &str, args: &BTreeMap<String, String>) -> String {
    let value = |name: &str| args.get(name).cloned().unwrap_or_default();
    let split = |by: &str| {
        body.split_once(by)
            .map(|(name, other)| (value(name), other))
    };
    if let Some((value, other)) = split(":-") {
        return if value.is_empty() {
            expand(other, args)
        } else {
            value
        };
    }
    if let Some((value, other)) = split(":+") {
        return if value.is_empty() {
            String::new()
        } else {
            expand(other, args)
        };
    }
    if let Some((name, other)) = body.split_once('-') {
        return args
            .get(name)
            .cloned()
            .unwrap_or_else(|| expand(other, args));
    }
    value(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_arguments() {
        let args = BTreeMap::from([
            ("A".to_owned(), "x".to_owned()),
            ("E".to_owned(), String::new()),
        ]);
        for (text, expected) in [
            ("$A-b", "x-b"),
            ("${A}b", "xb"),
            ("${N:-d}", "d"),
            ("${E:-d}", "d"),
            ("${E-d}", ""),
            ("${A:+y}", "y"),
            ("${N:-${A}}", "x"),
            ("a$", "a$"),
            ("$N", ""),
        ] {
            assert_eq!(expand(text, &args), expected, "{text}");
        }
    }
}
