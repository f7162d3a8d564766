//! Regular expressions of filters, with bounded work.
//!
//! The author of a task writes filters, and a registry sends the names. A runner matches them for
//! all its runs, so their work is bounded before it begins.
//!
//! Invariants:
//! - An expression is compiled only if its constructs are known and its estimated size is small.
//! - All matches of a purge share one [`Budget`]. A stopped budget ends the next match.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use fancy_regex::{Regex, RegexBuilder, RuntimeError};

/// Maximum estimated size of one expression: characters, times the counts of their repetitions.
const MAX_COST: u64 = 10_000;
/// Estimated size of a class of all characters but some, such as `.`.
const WIDE_COST: u64 = 10;
/// Maximum size of a compiled part of an expression and of the cache of its automaton, in bytes.
const MAX_COMPILED: usize = 1 << 20;
/// Maximum number of instructions of a compiled expression.
const MAX_PROGRAM: usize = 100_000;
/// Number of steps back that are enough for ordinary expressions and names.
const QUICK_STEPS: usize = 200;
/// Maximum number of steps back of one match.
const PATIENT_STEPS: usize = 100_000;
/// Total work of the matches of a purge. A match of an ordinary expression costs some 20, and one
/// million is about 20 milliseconds.
const BUDGET: u64 = 200_000_000;
/// Escapes with letters and digits that expressions may contain.
const ESCAPES: &str = "0123456789dDwWsSbBAzZnrtfvaxkhH";

/// Work that the matches of a purge may do together.
#[derive(Debug)]
pub struct Budget {
    remaining: AtomicU64,
    is_stopped: AtomicBool,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            remaining: AtomicU64::new(BUDGET),
            is_stopped: AtomicBool::new(false),
        }
    }
}

impl Budget {
    /// Makes every further match fail.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if no further match is possible.
    pub fn is_spent(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed) || self.remaining.load(Ordering::Relaxed) == 0
    }

    fn charge(&self, work: u64) -> Result<(), String> {
        if self.is_stopped.load(Ordering::Relaxed) {
            return Err("the purge was stopped".into());
        }
        let remaining = self
            .remaining
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_sub(work))
            });
        match remaining {
            Ok(before) if before > work => Ok(()),
            _ => Err(
                "the filters need too many steps for all these names; write simpler expressions, or fewer of them"
                    .into(),
            ),
        }
    }
}

/// Compiled expression.
#[derive(Clone)]
pub(crate) struct Expression {
    /// Expression as written.
    text: String,
    /// Expression as compiled.
    pattern: String,
    cost: u64,
    quick: Regex,
    /// The same expression with more steps. Compiled at its first use.
    patient: Arc<OnceLock<Option<Regex>>>,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.pattern).finish()
    }
}

impl Expression {
    /// Compiles `pattern`. Errors name it as `text`.
    pub(crate) fn compile(text: &str, pattern: String) -> Result<Self, String> {
        let failed =
            |reason: &str| format!("failed to build the regular expression `{text}`: {reason}");
        let pattern = with_ascii_classes(&pattern);
        check_constructs(&pattern).map_err(|reason| failed(&reason))?;
        let cost = estimate_cost(&pattern);
        if cost > MAX_COST {
            return Err(failed(
                "it is too large; write fewer or smaller repetitions such as {1,1000}",
            ));
        }
        let quick = build(&pattern, QUICK_STEPS).map_err(|error| failed(&error.to_string()))?;
        Ok(Self {
            text: text.into(),
            pattern,
            cost,
            quick,
            patient: Arc::default(),
        })
    }

    /// Returns the estimated size of the compiled expression.
    pub(crate) fn cost(&self) -> u64 {
        self.cost
    }

    /// Returns the expression as written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns `true` if the expression matches `name`.
    pub(crate) fn is_match(&self, name: &str, budget: &Budget) -> Result<bool, String> {
        let length = u64::try_from(name.len()).unwrap_or(u64::MAX);
        budget.charge(10 + length.saturating_mul(self.cost) / 256)?;
        let mut found = self.quick.is_match(name);
        if let Err(fancy_regex::Error::RuntimeError(RuntimeError::BacktrackLimitExceeded)) = found {
            budget.charge(PATIENT_STEPS as u64)?;
            let patient = self
                .patient
                .get_or_init(|| build(&self.pattern, PATIENT_STEPS).ok());
            if let Some(patient) = patient {
                found = patient.is_match(name);
            }
        }
        found.map_err(|error| {
            format!(
                "the regular expression `{}` cannot be matched with `{name}`: {error}",
                self.text
            )
        })
    }
}

fn build(pattern: &str, steps: usize) -> Result<Regex, fancy_regex::Error> {
    RegexBuilder::new(pattern)
        .backtrack_limit(steps)
        .delegate_size_limit(MAX_COMPILED)
        .delegate_dfa_size_limit(MAX_COMPILED)
        .delegate_dfa_skip_cache_capacity_check(false)
        .max_prog_size(MAX_PROGRAM)
        .build()
}

/// Replaces `\d`, `\w` and `\s` with classes of ASCII. Names have no other characters, and classes of
/// all alphabets are large.
fn with_ascii_classes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let (mut depth, mut is_first) = (0_usize, false);
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let escaped = chars.next();
                let class = match escaped.unwrap_or_default() {
                    'd' | 'D' => "0-9",
                    'w' | 'W' => "0-9A-Za-z_",
                    's' | 'S' => "\\t\\n\\f\\r ",
                    _ => "",
                };
                match escaped {
                    Some('D' | 'W' | 'S') => out.extend(["[^", class, "]"]),
                    Some('d' | 'w' | 's') if depth > 0 => out.push_str(class),
                    Some('d' | 'w' | 's') => out.extend(["[", class, "]"]),
                    other => out.extend(std::iter::once('\\').chain(other)),
                }
            }
            '[' => {
                is_first = depth == 0;
                depth += 1;
                out.push(c);
                continue;
            }
            '^' if is_first => {
                out.push(c);
                continue;
            }
            ']' if !is_first => {
                depth = depth.saturating_sub(1);
                out.push(c);
            }
            c => out.push(c),
        }
        is_first = false;
    }
    out
}

/// Refuses constructs whose compilation has no bound: calls of groups, recursion, conditions, absent
/// operators, look-behind of variable length, and classes of scripts and categories.
///
/// Does not interpret `[...]`: a text that looks like such a construct in a class is refused too.
fn check_constructs(pattern: &str) -> Result<(), String> {
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let Some(escaped) = rest.chars().next() else {
                    return Ok(());
                };
                if escaped.is_alphanumeric() && !ESCAPES.contains(escaped) {
                    return Err(format!(
                        "`\\{escaped}` is not supported here; names are ASCII, so write a class such as `[a-z]`"
                    ));
                }
                rest = &rest[escaped.len_utf8()..];
            }
            '(' if rest.starts_with('*') => {
                return Err("`(*` is not supported here; write `\\(` for a bracket".into());
            }
            '(' => {
                if let Some(group) = rest.strip_prefix('?') {
                    check_group(group)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks a group. `group` is the text behind `(?`.
fn check_group(group: &str) -> Result<(), String> {
    if let Some(content) = group
        .strip_prefix("<=")
        .or_else(|| group.strip_prefix("<!"))
    {
        return match has_fixed_length(content) {
            true => Ok(()),
            false => Err(
                "a look-behind, `(?<=` or `(?<!`, contains only characters, classes and `|` here"
                    .into(),
            ),
        };
    }
    let is_name = |name: &str| {
        name.split_once('>').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    let is_plain = group.starts_with([':', '=', '!', '>']);
    let named = group.strip_prefix("P<").or_else(|| group.strip_prefix('<'));
    // Without `x`: a comment or a space could hide a construct.
    let flags = group.trim_start_matches(['i', 'm', 's', 'U', '-']);
    let is_flags = flags.len() < group.len() && flags.starts_with([':', ')']);
    match is_plain || is_flags || named.is_some_and(is_name) {
        true => Ok(()),
        false => Err(format!(
            "`(?{}` is not supported here; write the expression without calls of groups, recursion, conditions and the flags `x` and `u`",
            group.chars().next().unwrap_or_default()
        )),
    }
}

/// Returns `true` if the text up to the next `)` has no repetition, and no group or bracket in a
/// class.
fn has_fixed_length(content: &str) -> bool {
    let (mut opened, mut closed) = (0_usize, 0_usize);
    let mut chars = content.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            ')' => return opened == closed,
            '(' | '*' | '+' | '?' | '{' => return false,
            '[' => opened += 1,
            ']' => closed += 1,
            _ => {}
        }
    }
    false
}

/// Estimates the size of the compiled expression. [`MAX_COMPILED`] bounds what this misjudges.
fn estimate_cost(pattern: &str) -> u64 {
    // The sum of a group, and its last element, which a count repeats.
    let mut groups: Vec<(u64, u64)> = vec![(0, 0)];
    let mut rest = pattern;
    let add = |groups: &mut Vec<(u64, u64)>, cost: u64| {
        if let Some((sum, last)) = groups.last_mut() {
            *sum = sum.saturating_add(*last);
            *last = cost;
        }
    };
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let escaped = rest.chars().next().unwrap_or_default();
                rest = rest.get(escaped.len_utf8()..).unwrap_or_default();
                add(&mut groups, 1);
            }
            '[' => {
                let (cost, behind) = read_class(rest);
                rest = behind;
                add(&mut groups, cost);
            }
            '(' => groups.push((0, 0)),
            ')' if groups.len() > 1 => {
                let (sum, last) = groups.pop().unwrap_or_default();
                add(&mut groups, sum.saturating_add(last).saturating_add(1));
            }
            '{' => {
                let counts = rest.split('}').next().unwrap_or_default();
                let counts = counts
                    .split(',')
                    .filter_map(|count| count.trim().parse().ok());
                if let (Some(most), Some((_, last))) = (counts.max(), groups.last_mut()) {
                    *last = last.saturating_mul(u64::max(most, 1));
                }
            }
            '.' => add(&mut groups, WIDE_COST),
            _ => add(&mut groups, 1),
        }
    }
    let all = groups.into_iter();
    all.fold(0, |sum, (own, last)| {
        sum.saturating_add(own).saturating_add(last)
    })
}

/// Returns the cost of a class, and the text behind it. `text` is behind its `[`.
fn read_class(text: &str) -> (u64, &str) {
    let (mut cost, mut depth, mut is_first) = (1_u64, 1_usize, true);
    let mut chars = text.char_indices();
    if text.starts_with('^') {
        cost += WIDE_COST;
        chars.next();
    }
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                chars.next();
                cost = cost.saturating_add(1);
            }
            '^' => cost = cost.saturating_add(WIDE_COST),
            ']' if is_first => {}
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => cost = cost.saturating_add(1),
        }
        is_first = false;
        if depth == 0 {
            return (cost, &text[at + 1..]);
        }
    }
    (cost, "")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn bombs_are_refused_before_compilation() {
        let start = Instant::now();
        for bomb in [
            // Aborted the process: five gigabytes for the expansions of a call of a group.
            r"(a\g<1>?\g<1>?\g<1>?)",
            r"(?<n>a\g<n>?)",
            r"(?<=(?:(?:\w{1,1000}){1000}){1000})x",
            r"(?<=[)]\w{1000})x",
            r"(?<!a+)x",
            r"(?:(?:\pL{1,1000}){1000}){1000}",
            r"\pL{200}",
            r"(?:(?:\w{1,1000}){1000}){1000}",
            r"((((a{1,100}){1,100}){1,100}){1,100}){1,100}",
            r"[\w\d]{1000}",
            "(?R)",
            "(a)(?1)",
            "(a(?+1))",
            "(?&n)",
            "(?P>n)",
            "(?(1)a|b)",
            "(?~a)",
            "(*FAIL)",
            "(?x)( ?R)",
            "(?#)(a)",
            "[(?R)]",
            r"\X{100}",
        ] {
            let refused = Expression::compile(bomb, bomb.to_owned());
            assert!(refused.is_err(), "{bomb}");
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn ordinary_expressions_are_compiled() {
        for text in [
            r"^v\d+\.\d+\.\d+(-rc\.\d{1,3})?$",
            r"^\d{4}\d{2}\d{2}T\d{2}\d{2}\d{2}Z$",
            "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
            "^(?!release-|latest$)",
            "(?<=-)rc",
            "(?<![a-z])rc|(?<=a|b)x",
            "(?i:V)1",
            "(?i-s:a)(?:x)(?>y)(?P<n>z)(?<m>z)",
            r"(\w)\1",
            r"^(\d{1,3}\.){3}\d{1,3}$",
            "[]a]b{2}",
            r"^[\d-x\W]{40}[^\D]\w{1,128}$",
            "[[:alpha:]]+",
        ] {
            let compiled = Expression::compile(text, text.to_owned());
            assert!(compiled.is_ok(), "{compiled:?}");
        }
    }

    #[test]
    fn classes_contain_only_ascii() {
        for (pattern, expected) in [
            (r"\d", "[0-9]"),
            (r"a[\dx]", "a[0-9x]"),
            (r"[^\D\]]\D", r"[^[^0-9]\]][^0-9]"),
            (r"[]\d]\d", "[]0-9][0-9]"),
            (r"\\d\[\d", r"\\d\[[0-9]"),
            ("a\\", "a\\"),
        ] {
            assert_eq!(with_ascii_classes(pattern), expected);
        }
        let matches = |text: &str, name: &str| {
            let compiled = Expression::compile(text, text.to_owned()).unwrap();
            compiled.is_match(name, &Budget::default()).unwrap()
        };
        assert!(matches(r"^[^\D]\w-\S$", "1_-x"));
        assert!(!matches(r"^\W$", "a"));
    }

    #[test]
    fn all_matches_share_a_budget() {
        // Each match needs as many steps as one match may have.
        let text = "^(?!x)((a|aa)+)$(?=y)";
        let slow = Expression::compile(text, text.to_owned()).unwrap();
        let start = Instant::now();
        let budget = Budget {
            remaining: AtomicU64::new(500_000),
            ..Budget::default()
        };
        let mut spent = None;
        for n in 0..90_000 {
            if let Err(error) = slow.is_match(&format!("{}-{n}", "a".repeat(18)), &budget) {
                spent = Some((n, error));
                break;
            }
        }
        let (n, error) = spent.unwrap();
        assert!(n < 10, "{n}");
        assert!(error.contains("too many steps"), "{error}");
        assert!(budget.is_spent());
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn ordinary_matches_cost_little() {
        let text = r"^(?!release-)v\d+\.\d+\.\d+$";
        let usual = Expression::compile(text, text.to_owned()).unwrap();
        let budget = Budget::default();
        for n in 0..10_000 {
            assert_eq!(usual.is_match(&format!("v1.2.{n}"), &budget), Ok(true));
        }
        let spent = BUDGET - budget.remaining.load(Ordering::Relaxed);
        assert!(spent < BUDGET / 100, "{spent}");
    }

    #[test]
    fn stopped_budget_ends_matches() {
        let usual = Expression::compile("a", "a".to_owned()).unwrap();
        let budget = Budget::default();
        assert_eq!(usual.is_match("a", &budget), Ok(true));
        budget.stop();
        assert_eq!(
            usual.is_match("a", &budget),
            Err("the purge was stopped".into())
        );
    }
}
