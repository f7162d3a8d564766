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

/// Longest text that variables come to, in bytes: no name of an image is as long, and each of a few lines may double
/// what the one before it came to.
const MAX_EXPANDED: usize = 16 << 10;
/// Defaults inside defaults that are looked into.
const MAX_DEPTH: usize = 32;

/// `$NAME`, `${NAME}`, `${NAME:-DEFAULT}` and `${NAME:+OTHER}`, as in a FROM; cut where it becomes longer than any name.
pub fn expand(text: &str, args: &BTreeMap<String, String>) -> String {
    expand_at(text, args, 0)
}

fn expand_at(text: &str, args: &BTreeMap<String, String>, depth: usize) -> String {
    let mut out = String::new();
    let mut rest = text;
    if depth > MAX_DEPTH {
        return out;
    }
    while let Some(at) = rest.find('$').filter(|_| out.len() <= MAX_EXPANDED) {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(body) = after.strip_prefix('{') {
            let Some(end) = closing(body) else {
                out.push('$');
                rest = after;
                continue;
            };
            out.push_str(&braced(&body[..end], args, depth));
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
    out.truncate(out.floor_char_boundary(MAX_EXPANDED));
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

fn braced(body: &str, args: &BTreeMap<String, String>, depth: usize) -> String {
    let expand = |text: &str| expand_at(text, args, depth + 1);
    let value = |name: &str| args.get(name).cloned().unwrap_or_default();
    let split = |by: &str| {
        body.split_once(by)
            .map(|(name, other)| (value(name), other))
    };
    if let Some((value, other)) = split(":-") {
        return if value.is_empty() {
            expand(other)
        } else {
            value
        };
    }
    if let Some((value, other)) = split(":+") {
        return if value.is_empty() {
            String::new()
        } else {
            expand(other)
        };
    }
    if let Some((name, other)) = body.split_once('-') {
        return args.get(name).cloned().unwrap_or_else(|| expand(other));
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

    #[test]
    fn what_grows_without_end_is_cut() {
        let mut args = BTreeMap::from([("A".to_owned(), "0123456789".to_owned())]);
        for _ in 0..60 {
            let doubled = expand("$A$A", &args);
            args.insert("A".to_owned(), doubled);
        }
        assert_eq!(args["A"].len(), MAX_EXPANDED);
        let deep = 200_000;
        let nested = format!("{}x{}", "${N:-".repeat(deep), "}".repeat(deep));
        let nested = nested.as_str();
        // On a thread of a runtime there is as much room.
        std::thread::scope(|scope| {
            let small = std::thread::Builder::new().stack_size(2 << 20);
            let expanding = small.spawn_scoped(scope, || expand(nested, &args));
            assert_eq!(expanding.unwrap().join().unwrap(), "");
        });
    }
}
