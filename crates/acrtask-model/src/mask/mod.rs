//! Masking of secrets in all output of a step, before it leaves the process.
//!
//! A secret is found unchanged, escaped, in hexadecimal and in base 64 (see [`forms`]), even if it
//! is split over chunks. [`Masker::push`] buffers the end of a chunk as long as it could be the
//! beginning of a secret.
//!
//! A bit table finds the first four bytes of every form in a text. Only the few matches are
//! compared in full. The cost depends on the text and hardly on the number of secrets.

// Long because: the search and the tests of every form that it finds belong together.

mod forms;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use forms::{Beginning, Form, START, Start, Tail};

use crate::secret::Secret;

/// Replacement of a secret.
pub const MASK: &str = "***";

/// Minimum length of a masked text, in bytes. Shorter ones would hide ordinary words.
pub const MIN_LEN: usize = START;

/// The patterns of a set of secrets. Cheap to share between the streams of a run.
#[derive(Clone, Default)]
pub struct Patterns(
    /// `None` if no text is masked.
    Option<Arc<Needles>>,
);

/// The forms of all secrets. Neither `groups` nor any of its elements is empty.
struct Needles {
    forms: Vec<Form>,
    /// The first [`START`] bytes of beginnings in ascending order. Each entry lists the complete
    /// beginnings and the indices of their forms.
    groups: Vec<(Key, Vec<(Start, usize)>)>,
    /// Filter for the positions where a group may begin.
    filter: Filter,
}

type Key = [u8; START];

/// A bit for each hash of a beginning. Most bytes of a text need only one lookup.
struct Filter(Box<[u64; 1 << (Filter::BITS - 6)]>);

impl Filter {
    const BITS: u32 = 16;

    fn new<'a>(starts: impl Iterator<Item = &'a Key>) -> Self {
        let mut bits = Box::new([0; 1 << (Self::BITS - 6)]);
        for start in starts {
            let hash = Self::hash(*start);
            bits[hash / 64] |= 1 << (hash % 64);
        }
        Self(bits)
    }

    fn hash(start: Key) -> usize {
        let mixed = u32::from_le_bytes(start).wrapping_mul(0x9E37_79B1);
        (mixed >> (u32::BITS - Self::BITS)) as usize
    }

    fn may_contain(&self, start: Key) -> bool {
        let hash = Self::hash(start);
        self.0[hash / 64] >> (hash % 64) & 1 == 1
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forms = self.0.as_ref().map_or(0, |needles| needles.forms.len());
        write!(f, "Patterns({forms})")
    }
}

impl Patterns {
    /// Returns the patterns of all forms of `secrets`. A secret of several lines is also found line
    /// by line.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            for (text, plain) in masked_texts(secret.expose()) {
                forms::append_forms(text, plain, &mut forms);
            }
        }
        let mut groups: BTreeMap<Key, Vec<(Start, usize)>> = BTreeMap::new();
        for (at, form) in forms.iter().enumerate() {
            for start in form.starts() {
                if let Some(key) = start.first_chunk() {
                    groups.entry(*key).or_default().push((start, at));
                }
            }
        }
        if groups.is_empty() {
            return Self::default();
        }
        Self(Some(Arc::new(Needles {
            forms,
            filter: Filter::new(groups.keys()),
            groups: groups.into_iter().collect(),
        })))
    }

    /// Masks a complete text.
    pub fn mask(&self, text: &str) -> String {
        let mut masker = Masker::new(self.clone());
        let mut out = masker.push(text.as_bytes());
        out.extend(masker.finish());
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// Minimum length of a part of a secret that [`mask_fragments`] masks, in bytes.
const MIN_FRAGMENT: usize = 6;

/// Masks every part of a secret in `text` of at least [`MIN_FRAGMENT`] bytes. For short texts that
/// quote fragments of a text with secrets, such as messages of a parser.
pub fn mask_fragments<'a>(text: &str, secrets: impl IntoIterator<Item = &'a Secret>) -> String {
    let mut hidden = vec![false; text.len()];
    for secret in secrets {
        let value = secret.expose().as_bytes();
        let parts: HashSet<&[u8]> = value.windows(MIN_FRAGMENT).collect();
        for (at, part) in text.as_bytes().windows(MIN_FRAGMENT).enumerate() {
            if parts.contains(part) {
                hidden[at..at + MIN_FRAGMENT].fill(true);
            }
        }
    }
    let mut out = String::with_capacity(text.len());
    let mut masked = false;
    for (at, c) in text.char_indices() {
        let hide = hidden[at..at + c.len_utf8()].contains(&true);
        match (hide, masked) {
            (false, _) => out.push(c),
            (true, false) => out.push_str(MASK),
            (true, true) => {}
        }
        masked = hide;
    }
    out
}

/// Returns the texts of a secret to mask, each of at least [`MIN_LEN`] bytes: its lines and the
/// complete value. `true` if the text is masked unchanged, `false` if only its encoded forms are.
fn masked_texts(value: &str) -> BTreeMap<&str, bool> {
    let trimmed = value.trim();
    let lines: Vec<&str> = value.lines().map(str::trim).collect();
    // Masking line by line avoids delaying a line until the next one is known. The complete value
    // is masked only if a line is too short to be masked alone.
    let short_line = lines.iter().any(|line| (1..MIN_LEN).contains(&line.len()));
    let mut texts = BTreeMap::from([
        (value.trim_end_matches(['\r', '\n']), false),
        (value, false),
        (trimmed, short_line),
    ]);
    texts.extend(lines.into_iter().map(|line| (line, true)));
    texts.retain(|text, _| text.len() >= MIN_LEN);
    texts
}

impl Needles {
    /// Returns the first position from `at` on where a form can begin, and those forms.
    fn find(&self, text: &[u8], at: usize) -> Option<(usize, &[(Start, usize)])> {
        let starts = text.get(at..)?.windows(START).enumerate();
        for (position, start) in starts {
            let Some(start) = start.first_chunk().filter(|s| self.filter.may_contain(**s)) else {
                continue;
            };
            let found = self.groups.binary_search_by(|(key, _)| key.cmp(start));
            if let Ok(group) = found {
                return Some((at + position, &self.groups[group].1));
            }
        }
        None
    }

    /// Returns `true` if a form can begin with `part`, which is shorter than a [`Key`].
    fn any_begins_with(&self, part: &[u8]) -> bool {
        let after = self.groups.partition_point(|(start, _)| &start[..] < part);
        let next = self.groups.get(after);
        next.is_some_and(|(start, _)| start.starts_with(part))
    }

    /// Returns the longest form of a `group` at the beginning of `text`. With `end`, no bytes
    /// follow `text`.
    fn longest_match(&self, group: &[(Start, usize)], text: &[u8], end: bool) -> Beginning {
        let mut best = Beginning::Other;
        for (start, form) in group {
            let compared = start.len().min(text.len());
            if !text[..compared].eq_ignore_ascii_case(&start[..compared]) {
                continue;
            }
            match (self.forms[*form].match_beginning(text, end), best) {
                (Beginning::Unfinished, _) => return Beginning::Unfinished,
                (Beginning::Complete(len, _), Beginning::Complete(longest, _))
                    if len <= longest => {}
                (found @ Beginning::Complete(..), _) => best = found,
                (Beginning::Other, _) => {}
            }
        }
        best
    }
}

/// Masks one stream of bytes.
pub struct Masker {
    patterns: Patterns,
    buffer: Vec<u8>,
    /// The character that may follow a masked base 64 text and is masked with it.
    tail: Option<Tail>,
    /// Number of buffered bytes at which they are compared again. It grows with the buffer, so that
    /// a long secret in small chunks is not compared from its beginning for each of them.
    min_len: usize,
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The buffered bytes may be most of a secret.
        write!(f, "Masker({} bytes buffered)", self.buffer.len())
    }
}

impl Masker {
    /// Returns a masker for one stream.
    pub fn new(patterns: Patterns) -> Self {
        Self {
            patterns,
            buffer: Vec::new(),
            tail: None,
            min_len: 0,
        }
    }

    /// Processes a chunk, and returns the bytes that are safe to display.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.buffer.extend_from_slice(chunk);
        if self.buffer.len() < self.min_len {
            return Vec::new();
        }
        self.drain(false)
    }

    /// Ends the stream, and returns the rest of the buffer.
    pub fn finish(&mut self) -> Vec<u8> {
        self.drain(true)
    }

    fn drain(&mut self, end: bool) -> Vec<u8> {
        self.min_len = 0;
        let Some(needles) = &self.patterns.0 else {
            return std::mem::take(&mut self.buffer);
        };
        let buffer = &self.buffer;
        let mut out = Vec::with_capacity(buffer.len());
        // Everything before `shown` is in `out`. The search for patterns continues at `at`.
        let (mut shown, mut at) = (0, 0);
        let skip_tail = |tail: &mut Option<Tail>, at: usize| match buffer.get(at) {
            Some(byte) => usize::from(tail.take().is_some_and(|tail| tail.accepts(*byte))),
            None => 0,
        };
        at += skip_tail(&mut self.tail, at);
        shown += at;
        while let Some((start, group)) = needles.find(buffer, at) {
            at = start;
            let rest = &buffer[at..];
            match needles.longest_match(group, rest, end) {
                Beginning::Complete(len, tail) => {
                    out.extend_from_slice(&buffer[shown..at]);
                    out.extend_from_slice(MASK.as_bytes());
                    at += len;
                    self.tail = tail;
                    at += skip_tail(&mut self.tail, at);
                    shown = at;
                }
                Beginning::Unfinished => {
                    out.extend_from_slice(&buffer[shown..at]);
                    self.min_len = rest.len() + rest.len() / 4096 * 512;
                    self.buffer.drain(..at);
                    return out;
                }
                Beginning::Other => at += 1,
            }
        }
        // The last bytes may be the first ones of a beginning.
        let tail = at.max(buffer.len().saturating_sub(START - 1));
        let safe = if end {
            buffer.len()
        } else {
            (tail..buffer.len())
                .find(|at| needles.any_begins_with(&buffer[*at..]))
                .unwrap_or(buffer.len())
        };
        out.extend_from_slice(&buffer[shown..safe]);
        self.buffer.drain(..safe);
        out
    }
}

#[cfg(test)]
mod tests {
    use base64::{
        Engine as _,
        engine::general_purpose::{STANDARD, URL_SAFE},
    };
    use proptest::prelude::*;

    use super::*;

    fn patterns(secrets: &[&str]) -> Patterns {
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(*s)).collect();
        Patterns::new(&secrets)
    }

    #[test]
    fn plain_base64_and_multiline_secrets_are_masked() {
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
    fn fragments_of_a_secret_in_a_message_are_masked() {
        let secrets = [
            Secret::new(r"first-half\$second-half"),
            Secret::new("größe"),
        ];
        let text = "write `env: ['MY=first-half', 'second-half']`, größer";
        let masked = mask_fragments(text, &secrets);
        assert_eq!(masked, "write `env: ['MY=***', '***']`, ***r");
        assert_eq!(mask_fragments("first", &secrets), "first");
    }

    #[test]
    fn longest_secret_takes_precedence() {
        assert_eq!(
            patterns(&["abcd", "abcdefgh"]).mask("abcdefgh abcd"),
            "*** ***"
        );
    }

    #[test]
    fn line_is_not_delayed_until_the_next() {
        let mut masker = Masker::new(patterns(&["first line\nsecond line\n"]));
        assert_eq!(masker.push(b"first line\n"), b"***\n");
        assert_eq!(masker.push(b"first li"), b"");
        assert_eq!(masker.push(b"ght\nsecond line"), b"first light\n***");
        assert_eq!(
            masker.push(b"\n"),
            b"\n",
            "the line end is not part of a secret"
        );
    }

    #[test]
    fn secret_with_a_short_line_is_masked_completely() {
        assert_eq!(
            patterns(&["line one\nab\n"]).mask("line one\nab\n"),
            "***\n"
        );
        assert_eq!(patterns(&["a\nb\nc"]).mask("a\nb\nc"), "***");
    }

    #[test]
    fn debug_output_hides_the_buffer() {
        let mut masker = Masker::new(patterns(&["hunter2"]));
        masker.push(b"hunter");
        assert_eq!(format!("{masker:?}"), "Masker(6 bytes buffered)");
    }

    /// Masks by definition: at each byte the longest secret is masked.
    fn mask_naively(secrets: &[String], text: &str) -> String {
        let mut rest = text;
        let mut out = String::new();
        while let Some(c) = rest.chars().next() {
            let here = secrets.iter().filter(|secret| rest.starts_with(*secret));
            let longest = here.map(String::len).max();
            match longest {
                Some(_) => out.push_str(MASK),
                None => out.push(c),
            }
            rest = &rest[longest.unwrap_or(1)..];
        }
        out
    }

    type Write = fn(&str) -> String;

    /// Encodes a text in the way of various programs.
    const FORMS: &[(&str, Write)] = &[
        ("plain", |text| text.to_owned()),
        ("base 64", |text| STANDARD.encode(text)),
        ("base 64 for URLs", |text| URL_SAFE.encode(text)),
        ("JSON", |text| serde_json::to_string(text).unwrap()),
        ("JSON in JSON", |text| {
            let inner = serde_json::to_string(text).unwrap();
            serde_json::to_string(&inner).unwrap()
        }),
        ("JSON of Go", |text| {
            let text = serde_json::to_string(text).unwrap();
            let text = text.replace('<', "\\u003c").replace('>', "\\u003e");
            text.replace('&', "\\u0026")
        }),
        ("JSON of PHP", |text| {
            serde_json::to_string(text).unwrap().replace('/', "\\/")
        }),
        ("Rust", |text| format!("{text:?}")),
        ("percent, upper", |text| percent(text, true, "%20")),
        ("percent, lower", |text| percent(text, false, "%20")),
        ("form", |text| percent(text, true, "+")),
        ("percent twice", |text| {
            percent(&percent(text, true, "+"), true, "+")
        }),
        ("printf %q", |text| {
            let escape = |c: char| match c.is_alphanumeric() {
                true => c.to_string(),
                false => format!("\\{c}"),
            };
            text.chars().map(escape).collect()
        }),
        ("single quotes", |text| {
            format!("'{}'", text.replace('\'', "'\\''"))
        }),
        ("double quotes in single", |text| {
            format!("'{}'", text.replace('\'', "'\"'\"'"))
        }),
        ("CSV", |text| format!("\"{}\"", text.replace('"', "\"\""))),
        ("SQL", |text| format!("'{}'", text.replace('\'', "''"))),
        ("compose", |text| text.replace('$', "$$")),
        ("XML", |text| {
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            let text = text.replace('>', "&gt;").replace('"', "&quot;");
            text.replace('\'', "&#39;")
        }),
        ("XML by number", |text| {
            text.chars()
                .map(|c| format!("&#x{:X};", c as u32))
                .collect()
        }),
        ("hex", |text| hex(text, "")),
        ("HEX", |text| hex(text, "").to_uppercase()),
        ("od", |text| hex(text, " ")),
        ("hex with colons", |text| hex(text, ":")),
        ("C", |text| format!("\\x{}", hex(text, "\\x"))),
        ("octal", |text| {
            text.bytes().map(|byte| format!("\\{byte:03o}")).collect()
        }),
        ("fold", |text| {
            // A line break within the first characters is not detected.
            let (first, rest) = text.split_at(text.len() - 1);
            format!("{first}\n{rest}")
        }),
        ("base 64 in lines", |text| {
            let text = STANDARD.encode(text);
            let lines: Vec<&str> = text
                .as_bytes()
                .chunks(8)
                .map(|line| std::str::from_utf8(line).unwrap())
                .collect();
            lines.join("\n")
        }),
    ];

    fn hex(text: &str, separator: &str) -> String {
        let bytes: Vec<String> = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(separator)
    }

    fn percent(text: &str, upper: bool, blank: &str) -> String {
        let escape = |byte: u8| match (byte, upper) {
            (b' ', _) => blank.to_owned(),
            (b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~', _) => {
                char::from(byte).to_string()
            }
            (_, true) => format!("%{byte:02X}"),
            (_, false) => format!("%{byte:02x}"),
        };
        text.bytes().map(escape).collect()
    }

    #[test]
    fn secret_of_quotes_and_signs_is_masked_in_every_form() {
        for value in ["p@ss/w\"ord+1", "it's $5 & <more>\\", "größe/ß+€ 😀"] {
            for (name, write) in FORMS {
                if *name == "fold" && !value.is_ascii() {
                    continue;
                }
                let masked = patterns(&[value]).mask(&write(value));
                let left = masked.trim_matches(['"', '\'', '\\', 'x', '=']);
                assert_eq!(
                    left.replace(MASK, ""),
                    "",
                    "{name}: {value:?} in {masked:?}"
                );
            }
        }
    }

    #[test]
    fn masked_base64_reveals_no_letter_of_a_secret() {
        let value = "hunter2-and-more!";
        for lead in ["", "u", "us", "use"] {
            for rest in ["", "r", "re", "res"] {
                let lead = format!("{lead}:");
                let encoded = STANDARD.encode(format!("{lead}{value}{rest}"));
                let masked = patterns(&[value]).mask(&encoded);
                let (before, after) = masked.split_once(MASK).unwrap();
                // The remaining bits are too few for a letter of the secret.
                assert!(before.len() * 6 < lead.len() * 8 + 6, "{masked}");
                assert!(
                    after.trim_end_matches('=').len() * 6 < rest.len() * 8 + 6,
                    "{masked}"
                );
            }
        }
    }

    #[test]
    fn masking_is_linear_in_a_text_of_beginnings() {
        let secret = format!("{}b", "a\\".repeat(2000));
        let patterns = patterns(&[&secret]);
        let mut masker = Masker::new(patterns);
        let began = std::time::Instant::now();
        for _ in 0..20_000 {
            masker.push(b"a");
        }
        masker.finish();
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    proptest! {
        #[test]
        fn secret_split_anywhere_is_masked(before in "[a-z ]{0,20}", cuts in proptest::collection::vec(0usize..60, 0..6)) {
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
        fn longest_secret_at_the_first_position_is_masked(
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
            prop_assert_eq!(String::from_utf8(out).unwrap(), mask_naively(&secrets, &text));
        }

        #[test]
        fn chunks_do_not_change_the_result(
            secrets in proptest::collection::vec(r#"[ab%&'\\\\ ]{4,9}"#, 1..4),
            text in r#"[ab%2&'\\\\ +5\n]{0,80}"#,
            chunk in 1usize..9,
        ) {
            let values: Vec<Secret> = secrets.iter().map(Secret::new).collect();
            let patterns = Patterns::new(&values);
            let mut masker = Masker::new(patterns.clone());
            let mut out = Vec::new();
            for chunk in text.as_bytes().chunks(chunk) {
                out.extend(masker.push(chunk));
            }
            out.extend(masker.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), patterns.mask(&text));
        }

        #[test]
        fn any_secret_is_masked_in_any_form(value in "[ -~]{6,20}", lead in "[ -~]{0,4}", form in 0..FORMS.len()) {
            prop_assume!(value.trim().len() >= 6);
            let value = value.trim();
            let (name, write) = FORMS[form];
            let text = write(&format!("{lead}{value}{lead}"));
            let masked = patterns(&[value]).mask(&text);
            prop_assert!(masked.contains(MASK), "{}: {:?} in {:?}", name, value, masked);
        }

        #[test]
        fn text_without_a_secret_is_untouched(text in "[a-q \n]{0,200}") {
            let masked = patterns(&["S3CRET-value-9"]).mask(&text);
            prop_assert_eq!(masked, text);
        }
    }
}
