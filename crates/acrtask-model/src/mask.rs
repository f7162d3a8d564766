//! Secrets are taken out of everything that a step prints, before anybody sees it.
//!
//! A secret is found as it is, in base 64 (standard and URL alphabet, at each of the three
//! alignments), and split over chunks: [`Masker::push`] holds back the end of a chunk for as long as
//! it could be the beginning of a secret.
//!
//! An automaton looks for the first [`MIN_LEN`] bytes of every pattern, and the few places that it finds
//! are compared byte for byte: it stays small however large a secret is, where one over whole secrets
//! would take hundreds of times their size. Left out: other encodings (URL, hexadecimal, compressed).

use std::{collections::BTreeMap, fmt, sync::Arc};

use aho_corasick::{AhoCorasick, Input};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

use crate::secret::Secret;

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// Shortest text that is masked, in bytes: shorter ones would blank out ordinary words.
const MIN_LEN: usize = 4;

/// The patterns of a set of secrets; cheap to share between the streams of a run.
#[derive(Clone, Default)]
pub struct Patterns(
    /// Nothing where there is nothing to mask.
    Option<Arc<Needles>>,
);

/// What is looked for; neither `groups` nor one of them is empty.
struct Needles {
    /// By their first [`MIN_LEN`] bytes, in the order of the automaton's patterns. Each group has its longest
    /// first, so that a secret which contains another one is masked whole.
    groups: Vec<Vec<Vec<u8>>>,
    /// Finds where a group begins.
    starts: AhoCorasick,
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.0.as_ref().map_or(&[][..], |needles| &needles.groups);
        write!(
            f,
            "Patterns({})",
            groups.iter().map(Vec::len).sum::<usize>()
        )
    }
}

impl Patterns {
    /// The patterns that give `secrets` away. A secret of several lines is also found line by line.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut groups: BTreeMap<[u8; MIN_LEN], Vec<Vec<u8>>> = BTreeMap::new();
        let mut add = |needle: Vec<u8>| {
            if let Some(start) = needle.first_chunk() {
                groups.entry(*start).or_default().push(needle);
            }
        };
        for secret in secrets {
            let value = secret.expose();
            let trimmed = value.trim();
            let lines = || value.lines().map(str::trim);
            for text in [value, trimmed].into_iter().chain(lines()) {
                if text.len() >= MIN_LEN {
                    base64_forms(text.as_bytes()).into_iter().for_each(&mut add);
                }
            }
            // Line by line, so that a line is not held back for as long as the next one may belong to it;
            // as a whole only where a line of it is too short to be masked alone.
            lines().for_each(|line| add(line.as_bytes().to_vec()));
            if lines().any(|line| (1..MIN_LEN).contains(&line.len())) {
                add(trimmed.as_bytes().to_vec());
            }
        }
        if groups.is_empty() {
            return Self::default();
        }
        let starts = AhoCorasick::new(groups.keys())
            .expect("patterns of four bytes stay far below the automaton's 2^31 states");
        let mut groups: Vec<Vec<Vec<u8>>> = groups.into_values().collect();
        for group in &mut groups {
            group.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
            group.dedup();
        }
        Self(Some(Arc::new(Needles { groups, starts })))
    }

    /// A whole text, masked.
    pub fn mask(&self, text: &str) -> String {
        let mut masker = Masker::new(self.clone());
        let mut out = masker.push(text.as_bytes());
        out.extend(masker.finish());
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// The parts of the base 64 of any text with `value` inside that depend on `value` alone.
fn base64_forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for lead in 0..3usize {
        // `lead` unknown bytes before it: the first group that mixes them in is left out, and so is
        // the last one when it mixes in what follows.
        let skip = (3 - lead) % 3;
        let Some(rest) = value.get(skip..) else {
            continue;
        };
        let aligned = &rest[..rest.len() / 3 * 3];
        if aligned.len() >= 6 {
            forms.push(STANDARD_NO_PAD.encode(aligned).into_bytes());
            forms.push(URL_SAFE_NO_PAD.encode(aligned).into_bytes());
        }
    }
    // A short secret that was encoded alone.
    for form in [STANDARD_NO_PAD.encode(value), URL_SAFE_NO_PAD.encode(value)] {
        forms.push(form.into_bytes());
    }
    forms
}

impl Needles {
    /// Whether a pattern begins with `part`, which is shorter than a start.
    fn any_begins_with(&self, part: &[u8]) -> bool {
        let after = self
            .groups
            .partition_point(|group| group[0].as_slice() < part);
        self.groups
            .get(after)
            .is_some_and(|group| group[0].starts_with(part))
    }
}

/// What a text begins with.
enum Beginning {
    /// A pattern, of so many bytes.
    Whole(usize),
    /// What could be the beginning of a pattern: more has to come to tell.
    Unfinished,
    /// Nothing that is looked for.
    Other,
}

/// What `text` begins with, of the patterns of one `group`. With `end` nothing follows it.
fn beginning(group: &[Vec<u8>], text: &[u8], end: bool) -> Beginning {
    for needle in group {
        if text.starts_with(needle) {
            return Beginning::Whole(needle.len());
        }
        if !end && needle.starts_with(text) {
            return Beginning::Unfinished;
        }
    }
    Beginning::Other
}

/// Masks one stream of bytes.
pub struct Masker {
    patterns: Patterns,
    held: Vec<u8>,
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is held may be most of a secret.
        write!(f, "Masker({} bytes held)", self.held.len())
    }
}

impl Masker {
    /// A masker for one stream.
    pub fn new(patterns: Patterns) -> Self {
        Self {
            patterns,
            held: Vec::new(),
        }
    }

    /// Takes a chunk in, and gives back what is safe to show.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(chunk);
        self.drain(false)
    }

    /// The end of the stream: what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        self.drain(true)
    }

    fn drain(&mut self, end: bool) -> Vec<u8> {
        let Some(needles) = &self.patterns.0 else {
            return std::mem::take(&mut self.held);
        };
        let held = &self.held;
        let mut out = Vec::with_capacity(held.len());
        // Up to `shown` everything is in `out`; from `at` on patterns are looked for.
        let (mut shown, mut at) = (0, 0);
        while let Some(start) = needles.starts.find(Input::new(held).range(at..)) {
            at = start.start();
            let rest = &held[at..];
            match beginning(&needles.groups[start.pattern()], rest, end) {
                Beginning::Whole(len) => {
                    out.extend_from_slice(&held[shown..at]);
                    out.extend_from_slice(MASK.as_bytes());
                    at += len;
                    shown = at;
                }
                Beginning::Unfinished => {
                    out.extend_from_slice(&held[shown..at]);
                    self.held.drain(..at);
                    return out;
                }
                Beginning::Other => at += 1,
            }
        }
        // The last bytes may be the first ones of a start.
        let tail = at.max(held.len().saturating_sub(MIN_LEN - 1));
        let safe = if end {
            held.len()
        } else {
            (tail..held.len())
                .find(|at| needles.any_begins_with(&held[*at..]))
                .unwrap_or(held.len())
        };
        out.extend_from_slice(&held[shown..safe]);
        self.held.drain(..safe);
        out
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn patterns(secrets: &[&str]) -> Patterns {
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(*s)).collect();
        Patterns::new(&secrets)
    }

    #[test]
    fn masks_plain_base64_and_lines() {
        let p = patterns(&["hunter2-and-more", "line one\nline two\n"]);
        assert_eq!(p.mask("a hunter2-and-more b"), "a *** b");
        assert_eq!(p.mask("x line two y"), "x *** y");
        for lead in ["", "u", "us", "use"] {
            let encoded = STANDARD.encode(format!("{lead}:hunter2-and-more"));
            let masked = p.mask(&encoded);
            assert!(masked.contains(MASK), "{lead}: {masked}");
        }
        assert_eq!(patterns(&[]).mask("as it is"), "as it is");
        assert_eq!(patterns(&["ab"]).mask("cab"), "cab", "too short to mask");
    }

    #[test]
    fn longest_secret_first() {
        assert_eq!(
            patterns(&["abcd", "abcdefgh"]).mask("abcdefgh abcd"),
            "*** ***"
        );
    }

    #[test]
    fn a_line_is_not_held_back_for_the_next() {
        let mut masker = Masker::new(patterns(&["first line\nsecond line\n"]));
        assert_eq!(masker.push(b"first line\n"), b"***\n");
        assert_eq!(masker.push(b"first li"), b"");
        assert_eq!(masker.push(b"ght\nsecond line"), b"first light\n***");
        assert_eq!(
            masker.push(b"\n"),
            b"\n",
            "the end of the line is no secret"
        );
    }

    #[test]
    fn a_secret_with_a_short_line_is_masked_whole() {
        assert_eq!(
            patterns(&["line one\nab\n"]).mask("line one\nab\n"),
            "***\n"
        );
        assert_eq!(patterns(&["a\nb\nc"]).mask("a\nb\nc"), "***");
    }

    #[test]
    fn what_is_held_cannot_be_printed() {
        let mut masker = Masker::new(patterns(&["hunter2"]));
        masker.push(b"hunter");
        assert_eq!(format!("{masker:?}"), "Masker(6 bytes held)");
    }

    /// What the automaton does, by the definition: at each byte the longest needle counts.
    fn naive(secrets: &[String], text: &str) -> String {
        let patterns: Vec<Secret> = secrets.iter().map(Secret::new).collect();
        let needles = Patterns::new(&patterns).0;
        let needles: Vec<Vec<u8>> = needles.iter().flat_map(|n| n.groups.concat()).collect();
        let mut rest = text.as_bytes();
        let mut out = Vec::new();
        while !rest.is_empty() {
            let longest = needles
                .iter()
                .filter(|needle| rest.starts_with(needle))
                .map(Vec::len)
                .max();
            out.extend_from_slice(longest.map_or(&rest[..1], |_| MASK.as_bytes()));
            rest = &rest[longest.unwrap_or(1)..];
        }
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn a_secret_split_anywhere_is_masked(before in "[a-z ]{0,20}", cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let text = format!("{before}S3CRET-value-9{before}");
            let p = patterns(&["S3CRET-value-9"]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c % (text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut masker = Masker::new(p);
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                out.extend(masker.push(&text.as_bytes()[pair[0]..pair[1]]));
            }
            out.extend(masker.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{before}***{before}"));
        }

        #[test]
        fn the_longest_secret_at_the_first_place_counts(
            secrets in proptest::collection::vec("[ab]{4,9}", 0..5),
            text in "[ab]{0,60}",
            chunk in 1usize..9,
        ) {
            let values: Vec<Secret> = secrets.iter().map(Secret::new).collect();
            let mut masker = Masker::new(Patterns::new(&values));
            let mut out = Vec::new();
            for chunk in text.as_bytes().chunks(chunk) {
                out.extend(masker.push(chunk));
            }
            out.extend(masker.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), naive(&secrets, &text));
        }

        #[test]
        fn text_without_a_secret_is_untouched(text in "[a-q \n]{0,200}") {
            let masked = patterns(&["S3CRET-value-9"]).mask(&text);
            prop_assert_eq!(masked, text);
        }
    }
}
