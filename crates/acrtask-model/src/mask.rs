//! Secrets are taken out of everything that a step prints, before anybody sees it.
//!
//! A secret is found as it is, in base 64 (standard and URL alphabet, at each of the three
//! alignments), and split over chunks: [`Masker::push`] holds back the end of a chunk for as long as
//! it could be the beginning of a secret.

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
pub struct Patterns {
    /// Longest first, so that a secret which contains another one is masked whole.
    needles: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Patterns({})", self.needles.len())
    }
}

impl Patterns {
    /// The patterns that give `secrets` away. A secret of several lines is also found line by line.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut needles = Vec::new();
        for secret in secrets {
            let value = secret.expose();
            let whole = std::iter::once(value).chain(std::iter::once(value.trim()));
            for text in whole.chain(value.lines().map(str::trim)) {
                if text.len() >= MIN_LEN {
                    needles.push(text.as_bytes().to_vec());
                    needles.extend(base64_forms(text.as_bytes()));
                }
            }
        }
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self { needles }
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

/// Masks one stream of bytes.
#[derive(Debug)]
pub struct Masker {
    patterns: Patterns,
    held: Vec<u8>,
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
        if self.patterns.needles.is_empty() {
            return std::mem::take(&mut self.held);
        }
        let mut out = Vec::with_capacity(self.held.len());
        let mut at = 0;
        'bytes: while at < self.held.len() {
            let rest = &self.held[at..];
            for needle in &self.patterns.needles {
                if rest.starts_with(needle) {
                    out.extend_from_slice(MASK.as_bytes());
                    at += needle.len();
                    continue 'bytes;
                }
                // The longest needle that might still complete here decides: wait for more.
                if !end && rest.len() < needle.len() && needle.starts_with(rest) {
                    break 'bytes;
                }
            }
            out.push(rest[0]);
            at += 1;
        }
        self.held.drain(..at);
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
        fn text_without_a_secret_is_untouched(text in "[a-q \n]{0,200}") {
            let masked = patterns(&["S3CRET-value-9"]).mask(&text);
            prop_assert_eq!(masked, text);
        }
    }
}
