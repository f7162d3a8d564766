//! The forms in which a secret can appear in a text, and their detection.
//!
//! A [`Form`] contains one text and matches it leniently. Each character may appear unchanged or as
//! any of its [`escapes`], in any mixture. That covers JSON, Go's `%q`, `printf %q`, HTML, XML,
//! quoting by shells, and percent-encoding with any set of safe characters. It also covers several
//! of them in a row. A line break inside of a match is skipped, as `fold` and `base64` insert them.
//!
//! Left out: compression, encryption, base 32, reversed text, and columns that `hexdump -C` adds.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// Number of bytes at the beginning of a form for which a text is searched.
pub(super) const START: usize = 4;
/// The first bytes of a form: at least [`START`], at most [`MAX_START`].
pub(super) type Start = Vec<u8>;

/// Maximum length of the beginning that is compared before the form. It is sufficient for the first
/// escape.
const MAX_START: usize = 8;
/// Maximum number of backslashes before one character: three levels of quoting.
const MAX_BACKSLASHES: usize = 8;
/// Maximum nesting of `%25` and of `&amp;`.
const MAX_NESTING: usize = 2;
/// Maximum number of concurrent ends of a match, so that an ambiguous text cannot multiply them.
const MAX_BRANCHES: usize = 16;
/// Number of characters that must match before a line break is skipped. With fewer, the masker
/// would often delay the last line of a text.
const MIN_BEFORE_BREAK: usize = 4;
/// Minimum number of base 64 characters to search for.
const MIN_BASE64: usize = 5;

/// A text in a specific encoding.
#[derive(Clone)]
pub(super) struct Form {
    /// Characters before `text`. For base 64, those that encode bits of a byte before the secret.
    lead: String,
    text: Arc<str>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// The text itself.
    Text,
    /// Two hexadecimal digits for each byte of the text.
    Hex,
    /// The text is base 64, and is followed by a character that matches the [`Tail`].
    Base64(Option<Tail>),
}

/// The base 64 character with the last bits of a secret and the first bits of the following data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    mask: u8,
    bits: u8,
}

impl Tail {
    /// Returns `true` if `byte` can be this character.
    pub(super) fn accepts(self, byte: u8) -> bool {
        sextet(byte).is_some_and(|value| value & self.mask == self.bits)
    }
}

/// Result of the comparison of the beginning of a text with a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// The form, with its length in bytes and the character that may follow it.
    Complete(usize, Option<Tail>),
    /// Possibly the beginning of the form. The result depends on bytes that are still missing.
    Unfinished,
    /// Another text.
    Other,
}

/// Appends the forms of `text`: in hexadecimal, in base 64 at each alignment and, if `plain`,
/// unchanged.
pub(super) fn append_forms(text: &str, plain: bool, forms: &mut Vec<Form>) {
    let shared: Arc<str> = text.into();
    let kinds = [(Kind::Text, plain), (Kind::Hex, true)];
    for (kind, _) in kinds.into_iter().filter(|(_, wanted)| *wanted) {
        forms.push(Form {
            lead: String::new(),
            text: Arc::clone(&shared),
            kind,
        });
    }
    // Also without its first byte, in case a line of digits ends after that byte.
    if let Some(rest) = text.get(1..).filter(|rest| rest.len() > START) {
        forms.push(Form {
            lead: String::new(),
            text: rest.into(),
            kind: Kind::Hex,
        });
    }
    base64_forms(text.as_bytes(), forms);
}

/// Appends the base 64 forms of any data that contains `value`, from the first to the last
/// character that encodes bits of `value`.
fn base64_forms(value: &[u8], forms: &mut Vec<Form>) {
    let standard = base64_forms_in(value, |bytes| STANDARD_NO_PAD.encode(bytes), forms);
    if standard {
        base64_forms_in(value, |bytes| URL_SAFE_NO_PAD.encode(bytes), forms);
    }
}

/// Appends the forms in one alphabet. Returns `true` if another alphabet has other forms.
fn base64_forms_in(value: &[u8], encode: impl Fn(&[u8]) -> String, forms: &mut Vec<Form>) -> bool {
    let mut differs = false;
    // `before`: number of bytes of the first group that belong to the text before the secret.
    for before in 0..3usize {
        // Number of bytes of the secret that share a group with them.
        let shared = (3 - before) % 3;
        let Some(rest) = value.get(shared..) else {
            continue;
        };
        let mut body = encode(rest);
        // The last character also encodes bits of the following data, unless the groups are
        // complete.
        let tail = match rest.len() % 3 {
            0 => None,
            left => {
                let mask = if left == 1 { 0b11_0000 } else { 0b11_1100 };
                let last = body.pop().and_then(|c| sextet(c as u8)).unwrap_or(0);
                Some(Tail {
                    mask,
                    bits: last & mask,
                })
            }
        };
        let body: Arc<str> = body.into();
        let mut add = |lead: String| {
            differs |= format!("{lead}{body}").contains(['+', '/']);
            if lead.len() + body.len() >= MIN_BASE64 {
                forms.push(Form {
                    lead,
                    text: Arc::clone(&body),
                    kind: Kind::Base64(tail),
                });
            }
        };
        // Also alone, in case a line of base 64 ends within the shared group.
        add(String::new());
        if shared > 0 {
            // The first character with bits of the secret begins with unknown bits.
            let unknown_bits = if before == 1 { 2 } else { 4 };
            for unknown in 0..1u8 << unknown_bits {
                let mut group = vec![0; before];
                group[before - 1] = unknown;
                group.extend(&value[..shared]);
                let group = encode(&group);
                add(group[before..].to_owned());
            }
        }
    }
    differs
}

/// Returns the six bits that a character of base 64 encodes, in either alphabet.
fn sextet(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

impl Form {
    /// Returns all possible beginnings of the form.
    pub(super) fn starts(&self) -> BTreeSet<Start> {
        let mut starts = BTreeSet::new();
        match self.kind {
            Kind::Text | Kind::Base64(_) => {
                let mut first = String::new();
                first.extend(self.chars().take(START));
                // Letters and digits are escaped all together or not at all.
                let whole = matches!(self.kind, Kind::Text);
                starts_from(&first, Vec::new(), whole, &mut starts);
            }
            Kind::Hex => hex_starts(self.text.as_bytes(), &mut starts),
        }
        starts
    }

    /// Compares the beginning of `text` with the form. With `end`, no bytes follow `text`.
    pub(super) fn match_beginning(&self, text: &[u8], end: bool) -> Beginning {
        let found = match self.kind {
            Kind::Text | Kind::Base64(_) => self.match_text(text, end),
            Kind::Hex => match_hex(self.text.as_bytes(), text, end),
        };
        match (found, self.kind) {
            (Beginning::Complete(len, _), Kind::Base64(tail)) => Beginning::Complete(len, tail),
            (found, _) => found,
        }
    }

    fn chars(&self) -> impl Iterator<Item = char> {
        self.lead.chars().chain(self.text.chars())
    }

    fn match_text(&self, text: &[u8], end: bool) -> Beginning {
        // Most texts equal the form or differ at once.
        let lead = common_prefix_len(self.lead.as_bytes(), text);
        let same = match lead == self.lead.len() {
            true => lead + common_prefix_len(self.text.as_bytes(), &text[lead..]),
            false => lead,
        };
        if same == self.lead.len() + self.text.len() {
            return Beginning::Complete(same, None);
        }
        if same == text.len() {
            return match end {
                true => Beginning::Other,
                false => Beginning::Unfinished,
            };
        }
        let escaped = |byte: &u8| is_intro(*byte);
        if !escaped(&text[same]) && !text[..same].iter().any(escaped) {
            return Beginning::Other;
        }
        self.match_escaped(text, end)
    }

    /// Follows all ways in which `text` can encode the form, one character of the form after
    /// another.
    fn match_escaped(&self, text: &[u8], end: bool) -> Beginning {
        let (mut at, mut next) = (vec![0usize], Vec::new());
        let mut unfinished = false;
        for (position, c) in self.chars().enumerate() {
            for &offset in &at {
                let mut step = |offset: usize| {
                    let rest = &text[offset..];
                    unfinished |= match_char(c, rest, |len| add_offset(&mut next, offset + len));
                };
                step(offset);
                if position >= MIN_BEFORE_BREAK && c != '\n' {
                    match &text[offset..] {
                        [b'\n', ..] => step(offset + 1),
                        [b'\r', b'\n', ..] => step(offset + 2),
                        [b'\r'] => unfinished = true,
                        _ => {}
                    }
                }
            }
            std::mem::swap(&mut at, &mut next);
            next.clear();
            if at.is_empty() {
                break;
            }
        }
        if unfinished && !end {
            return Beginning::Unfinished;
        }
        match at.into_iter().max() {
            Some(len) => Beginning::Complete(len, None),
            None => Beginning::Other,
        }
    }
}

fn add_offset(offsets: &mut Vec<usize>, offset: usize) {
    if offsets.len() < MAX_BRANCHES && !offsets.contains(&offset) {
        offsets.push(offset);
    }
}

/// Returns the length of the common prefix of `a` and `b`.
fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    let pairs = a.iter().zip(b);
    pairs.take_while(|(a, b)| a == b).count()
}

/// Returns `true` if an escape or a line break can begin with `byte`.
fn is_intro(byte: u8) -> bool {
    matches!(
        byte,
        b'\\' | b'%' | b'=' | b'&' | b'+' | b'\'' | b'"' | b'$' | b'\r' | b'\n'
    )
}

/// Calls `found` with the length of each encoding of `c` at the beginning of `text`. Returns `true`
/// if more bytes could complete another one.
fn match_char(c: char, text: &[u8], mut found: impl FnMut(usize)) -> bool {
    let mut raw = [0; 4];
    let raw = c.encode_utf8(&mut raw).as_bytes();
    if text.starts_with(raw) {
        found(raw.len());
    }
    let mut unfinished = text.len() < raw.len() && raw.starts_with(text);
    if !text.first().copied().is_some_and(is_intro) {
        return unfinished;
    }
    if c == '\\' {
        let run = text.iter().take_while(|byte| **byte == b'\\').count();
        (2..=run.min(MAX_BACKSLASHES)).for_each(&mut found);
        unfinished |= run == text.len() && run <= MAX_BACKSLASHES;
    }
    for escape in escapes(c).iter() {
        unfinished |= match_escape(escape, text, 0, &mut found);
    }
    unfinished
}

/// Compares the beginning of `text` with `escape`, as [`match_char`] does. Hexadecimal digits match
/// in either case, and the introducer of an escape may itself be escaped.
fn match_escape(
    escape: &[u8],
    text: &[u8],
    consumed: usize,
    found: &mut impl FnMut(usize),
) -> bool {
    let Some((&first, escape)) = escape.split_first() else {
        found(consumed);
        return false;
    };
    let Some((byte, rest)) = text.split_first() else {
        return true;
    };
    if !byte.eq_ignore_ascii_case(&first) {
        return false;
    }
    let consumed = consumed + 1;
    let mut unfinished = false;
    match first {
        b'\\' => {
            let more = rest.iter().take_while(|byte| **byte == b'\\').count();
            if more >= MAX_BACKSLASHES {
                return false;
            }
            unfinished |= match_escape(escape, &rest[more..], consumed + more, found);
        }
        b'%' | b'&' => {
            let nested: &[u8] = if first == b'%' { b"25" } else { b"amp;" };
            let (mut rest, mut consumed) = (rest, consumed);
            for _ in 0..=MAX_NESTING {
                unfinished |= match_escape(escape, rest, consumed, found);
                if !rest.starts_with(nested) {
                    unfinished |= nested.starts_with(rest);
                    break;
                }
                rest = &rest[nested.len()..];
                consumed += nested.len();
            }
        }
        _ => unfinished |= match_escape(escape, rest, consumed, found),
    }
    unfinished
}

/// Returns the escapes of `c`, in lower case. [`match_escape`] accepts more.
fn escapes(c: char) -> Cow<'static, [Vec<u8>]> {
    static ASCII: LazyLock<Vec<Vec<Vec<u8>>>> =
        LazyLock::new(|| (0u8..128).map(|c| list_escapes(char::from(c))).collect());
    match ASCII.get(c as usize) {
        Some(escapes) => Cow::Borrowed(escapes),
        None => Cow::Owned(list_escapes(c)),
    }
}

fn list_escapes(c: char) -> Vec<Vec<u8>> {
    let mut raw = [0; 4];
    let raw = c.encode_utf8(&mut raw).as_bytes();
    let code = u32::from(c);
    let per_byte = |write: &dyn Fn(u8) -> String| {
        let text: String = raw.iter().map(|byte| write(*byte)).collect();
        text.into_bytes()
    };
    let mut units = [0; 2];
    let units = c.encode_utf16(&mut units).iter();
    let units: String = units.map(|unit| format!("\\u{unit:04x}")).collect();
    let mut all = vec![
        per_byte(&|byte| format!("%{byte:02x}")),
        per_byte(&|byte| format!("={byte:02x}")),
        per_byte(&|byte| format!("\\x{byte:02x}")),
        per_byte(&|byte| format!("\\{byte:03o}")),
        units.into_bytes(),
        format!("\\u{{{code:x}}}").into_bytes(),
        format!("\\U{code:08x}").into_bytes(),
        format!("&#{code};").into_bytes(),
        format!("&#x{code:x};").into_bytes(),
    ];
    if (0x80..0x100).contains(&code) {
        all.push(format!("\\x{code:02x}").into_bytes());
    }
    if code < 0x100 {
        all.push(format!("&#{code:02};").into_bytes());
        all.push(format!("&#{code:03};").into_bytes());
        all.push(format!("&#x{code:02x};").into_bytes());
    }
    if !c.is_alphanumeric() && c != '\\' {
        all.push([b"\\", raw].concat());
    }
    let named: &[&str] = match c {
        '\n' => &["\\n", "\r\n", "\\r\\n", "%0d%0a"],
        '\r' => &["\\r"],
        '\t' => &["\\t", "&tab;"],
        '\0' => &["\\0"],
        '\x07' => &["\\a"],
        '\x08' => &["\\b"],
        '\x0b' => &["\\v"],
        '\x0c' => &["\\f"],
        '\x1b' => &["\\e"],
        ' ' => &["+", "%2b", "&nbsp;"],
        '&' => &["&amp;"],
        '<' => &["&lt;"],
        '>' => &["&gt;"],
        '"' => &["&quot;", "\"\"", "\"'\"'\""],
        '\'' => &["&apos;", "''", "'\\''", "'\"'\"'"],
        '$' => &["$$"],
        _ => &[],
    };
    all.extend(named.iter().map(|text| text.as_bytes().to_vec()));
    all
}

/// Adds the first bytes of every encoding of `text`, after `before`. With `whole`, letters and
/// digits are escaped too if everything before them is.
fn starts_from(text: &str, mut before: Vec<u8>, whole: bool, starts: &mut BTreeSet<Start>) {
    if before.len() >= START {
        before.truncate(MAX_START);
        starts.insert(before);
        return;
    }
    let mut chars = text.chars();
    let Some(c) = chars.next() else { return };
    let rest = chars.as_str();
    let mut raw = [0; 4];
    let raw = c.encode_utf8(&mut raw).as_bytes();
    starts_from(rest, [&before, raw].concat(), false, starts);
    if c == '\\' {
        for run in 2..=START {
            let run = vec![b'\\'; run];
            starts_from(rest, [before.clone(), run].concat(), whole, starts);
        }
    }
    if c.is_ascii_alphanumeric() && !whole {
        return;
    }
    for escape in escapes(c).iter() {
        // Quoted-printable text never escapes a letter or digit.
        if escape[0] == b'=' && c.is_ascii_alphanumeric() {
            continue;
        }
        for written in [escape.clone(), uppercase_digits(escape)] {
            // The introducer of the escape, itself escaped up to the limits above.
            let outer: &[&[u8]] = match written[0] {
                b'\\' => &[b"\\", b"\\\\", b"\\\\\\"],
                b'%' => &[b"%", b"%25", b"%2525"],
                b'&' => &[b"&", b"&amp;", b"&amp;amp;"],
                _ => &[&written[..1]],
            };
            for outer in outer {
                let written = [&before, *outer, &written[1..]].concat();
                starts_from(rest, written, whole, starts);
            }
            if written[0] == b'\\' {
                // A longer run of backslashes fills a whole beginning.
                let run = [&before[..], &[b'\\'; START]].concat();
                starts.insert(run[..START].to_vec());
            }
        }
    }
}

/// Returns `escape` with hexadecimal digits in upper case and an unchanged introducer.
fn uppercase_digits(escape: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| match byte {
        b'a'..=b'f' => byte.to_ascii_uppercase(),
        other => *other,
    };
    escape.iter().map(digit).collect()
}

/// Possible separators between the digits of two bytes.
const SEPARATORS: &[&[u8]] = &[
    b" ", b":", b"-", b",", b"\n", b"\r\n", b"\\x", b"0x", b" 0x", b", 0x", b",0x", b", ", b"  ",
];

fn hex_starts(bytes: &[u8], starts: &mut BTreeSet<Start>) {
    let Some([first, second]) = bytes.first_chunk::<2>() else {
        return;
    };
    for upper in [false, true] {
        let digits = |byte: &u8| match upper {
            true => format!("{byte:02X}"),
            false => format!("{byte:02x}"),
        };
        let (first, second) = (digits(first), digits(second));
        let mut add = |text: &[u8]| starts.insert(text[..text.len().min(MAX_START)].to_vec());
        add([first.as_bytes(), second.as_bytes()].concat().as_slice());
        // With a line break, every line that ends in these digits would be delayed.
        for separator in SEPARATORS.iter().filter(|text| !text.ends_with(b"\n")) {
            add(&[first.as_bytes(), separator, second.as_bytes()].concat());
        }
    }
}

fn match_hex(bytes: &[u8], text: &[u8], end: bool) -> Beginning {
    let unfinished = match end {
        true => Beginning::Other,
        false => Beginning::Unfinished,
    };
    let mut at = 0;
    for (position, byte) in bytes.iter().enumerate() {
        let digits = [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]);
        let here = |at: usize| {
            let rest = &text[at..];
            let same = rest
                .iter()
                .zip(digits)
                .take_while(|(a, b)| a.to_ascii_lowercase() == *b);
            let same = same.count();
            match same {
                2 => Beginning::Complete(at + 2, None),
                same if same == rest.len() => Beginning::Unfinished,
                _ => Beginning::Other,
            }
        };
        let mut best = here(at);
        if position > 0 && best == Beginning::Other {
            for separator in SEPARATORS {
                let rest = &text[at..];
                best = match rest.starts_with(separator) {
                    true => here(at + separator.len()),
                    false if separator.starts_with(rest) => Beginning::Unfinished,
                    false => continue,
                };
                if best != Beginning::Other {
                    break;
                }
            }
        }
        match best {
            Beginning::Complete(next, _) => at = next,
            Beginning::Unfinished => return unfinished,
            Beginning::Other => return Beginning::Other,
        }
    }
    Beginning::Complete(at, None)
}
