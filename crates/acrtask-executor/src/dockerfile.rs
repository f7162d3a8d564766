//! Parsing of `ARG` declarations and expansion of variables in `FROM` lines of Dockerfiles. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Parses `NAME[=DEFAULT] ...` into names and defaults.
pub fn parse_declarations(arguments: &str) -> Vec<(String, Option<String>)> {
    let words = shell_words::split(arguments).unwrap_or_default();
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
            None => (word, None),
        })
        .collect()
}

/// Maximum length of an expanded text, in bytes. No image name is as long, and each of a few lines
/// can double the length of the one before it.
const MAX_EXPANDED: usize = 16 << 10;
/// Maximum depth of nested defaults.
const MAX_DEPTH: usize = 32;

/// Maximum size of all texts of a Dockerfile and of their expansions, in bytes, for all platforms
/// together. Each of many lines can have the longest expansion.
const MAX_TOTAL: usize = 64 << 20;
/// Size that each instruction counts at least, in bytes.
const MIN_INSTRUCTION: usize = 16;

/// Error for a Dockerfile whose instructions and variables have more than 64 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the variables of the Dockerfile expand to more than 64 MiB of text for all platforms together; use fewer or shorter ones, or fewer platforms"
)]
pub struct ExpansionTooLarge;

/// The variables of a Dockerfile, and the size that further expansions may have.
#[derive(Debug, Clone)]
pub struct Variables {
    values: BTreeMap<String, String>,
    /// Names that were declared and have the value of the task.
    given: BTreeSet<String>,
    /// In bytes.
    remaining: usize,
}

impl Variables {
    /// Creates the variables of a Dockerfile with the values of `given`.
    pub fn new(given: BTreeMap<String, String>) -> Self {
        Self {
            values: given,
            given: BTreeSet::new(),
            remaining: MAX_TOTAL,
        }
    }

    /// Replaces all values. The remaining size stays, less that of the values.
    ///
    /// # Errors
    /// [`ExpansionTooLarge`] if the values of all platforms together are too large.
    pub fn reset(&mut self, given: BTreeMap<String, String>) -> Result<(), ExpansionTooLarge> {
        let sizes = given.iter().map(|(name, value)| name.len() + value.len());
        self.charge(sizes.sum())?;
        self.values = given;
        self.given.clear();
        Ok(())
    }

    /// Sets a variable. The value comes from [`Self::expand`] or from the task.
    pub fn set(&mut self, name: String, value: String) {
        self.given.remove(&name);
        self.values.insert(name, value);
    }

    /// Counts an instruction with `size` bytes of arguments.
    ///
    /// # Errors
    /// [`ExpansionTooLarge`] if all instructions together are too large.
    pub fn charge_instruction(&mut self, size: usize) -> Result<(), ExpansionTooLarge> {
        self.charge(size.saturating_add(MIN_INSTRUCTION))
    }

    fn charge(&mut self, size: usize) -> Result<(), ExpansionTooLarge> {
        self.remaining = self.remaining.checked_sub(size).ok_or(ExpansionTooLarge)?;
        Ok(())
    }

    /// Sets the variables of an `ARG` instruction before the first stage: to their values in
    /// `given`, or else to their expanded defaults.
    ///
    /// # Errors
    /// [`ExpansionTooLarge`] if all expansions together are too large.
    pub fn declare(
        &mut self,
        arguments: &str,
        given: &BTreeMap<String, String>,
    ) -> Result<(), ExpansionTooLarge> {
        self.charge_instruction(arguments.len())?;
        for (name, default) in parse_declarations(arguments) {
            match (given.get(&name), default) {
                // A value of the task may be long, and each line may name it.
                (Some(_), _) if self.given.contains(&name) => {}
                (Some(value), _) => {
                    self.charge(value.len())?;
                    self.set(name.clone(), value.clone());
                    self.given.insert(name);
                }
                (None, Some(text)) => {
                    let value = self.expand(&text)?;
                    self.set(name, value);
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// Expands `text`.
    ///
    /// # Errors
    /// [`ExpansionTooLarge`] if all expansions together are too large.
    pub fn expand(&mut self, text: &str) -> Result<String, ExpansionTooLarge> {
        let expanded = expand(text, &self.values);
        self.charge(text.len() + expanded.len())?;
        Ok(expanded)
    }
}

/// Expands `$NAME`, `${NAME}`, `${NAME:-DEFAULT}` and `${NAME:+OTHER}` as in a `FROM` line.
/// Truncates the result at 16 KiB.
pub fn expand(text: &str, args: &BTreeMap<String, String>) -> String {
    expand_at(text, args, 0)
}

fn expand_at(text: &str, args: &BTreeMap<String, String>, depth: usize) -> String {
    let mut out = String::new();
    let mut rest = text;
    if depth > MAX_DEPTH {
        return out;
    }
    let closings = find_closing_braces(text);
    while let Some(at) = rest.find('$').filter(|_| out.len() <= MAX_EXPANDED) {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if after.starts_with('{') {
            let open = text.len() - after.len();
            let Some(end) = closings.get(&open) else {
                out.push('$');
                rest = after;
                continue;
            };
            out.push_str(&expand_braced(&text[open + 1..*end], args, depth));
            rest = &text[end + 1..];
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

/// Returns the offset of the closing brace for the offset of each opening brace. One pass: a search
/// per brace takes quadratic time for a text of unclosed braces.
fn find_closing_braces(text: &str) -> HashMap<usize, usize> {
    let mut open = Vec::new();
    let mut closings = HashMap::new();
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open.push(offset),
            b'}' => {
                if let Some(opening) = open.pop() {
                    closings.insert(opening, offset);
                }
            }
            _ => {}
        }
    }
    closings
}

fn expand_braced(body: &str, args: &BTreeMap<String, String>, depth: usize) -> String {
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
    fn expand_substitutes_arguments() {
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
            ("${A", "${A"),
            ("${${A}", "${x"),
            ("${A}}", "x}"),
            ("$N", ""),
        ] {
            assert_eq!(expand(text, &args), expected, "{text}");
        }
    }

    #[test]
    fn unbounded_expansion_is_truncated() {
        let mut args = BTreeMap::from([("A".to_owned(), "0123456789".to_owned())]);
        for _ in 0..60 {
            let doubled = expand("$A$A", &args);
            args.insert("A".to_owned(), doubled);
        }
        assert_eq!(args["A"].len(), MAX_EXPANDED);
        let deep = 200_000;
        let nested = format!("{}x{}", "${N:-".repeat(deep), "}".repeat(deep));
        let nested = nested.as_str();
        // The size of a runtime thread's stack.
        std::thread::scope(|scope| {
            let small = std::thread::Builder::new().stack_size(2 << 20);
            let expanding = small.spawn_scoped(scope, || expand(nested, &args));
            assert_eq!(expanding.unwrap().join().unwrap(), "");
        });
    }

    #[test]
    fn unclosed_braces_are_expanded_in_one_pass() {
        // A search per brace takes minutes for this text.
        let text = "${".repeat(2 << 20);
        assert_eq!(expand(&text, &BTreeMap::new()).len(), MAX_EXPANDED);
    }
}
