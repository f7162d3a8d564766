//! Splitting of the bytes of a log into events, with bounded memory. Pure.

/// Longest event, in bytes. A longer line cannot be an event.
pub(crate) const MAX_EVENT: usize = 64 << 20;

/// Line of a log with its position in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawEvent<'b> {
    pub(crate) start: u64,
    /// Position after the line end. For a line that is too long: position at which this is certain.
    pub(crate) end: u64,
    /// Content without the line end. `None` if the line is longer than an event can be.
    pub(crate) content: Option<&'b [u8]>,
}

/// Splitter of a log that arrives in parts of any size.
#[derive(Debug, Clone, Default)]
pub(crate) struct Splitter {
    /// Position of the next byte.
    offset: u64,
    /// Beginning of a line that has no end yet.
    partial: Vec<u8>,
    /// The current line is too long. Its bytes are dropped up to the next line end.
    is_too_long: bool,
}

impl Splitter {
    /// Creates a splitter for bytes from `offset` on, where a line starts.
    pub(crate) fn at(offset: u64) -> Self {
        Self {
            offset,
            ..Self::default()
        }
    }

    /// Returns the position of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the size of the buffer in bytes.
    pub(crate) fn buffered(&self) -> usize {
        self.partial.capacity()
    }

    /// Passes each event that ends in `bytes` to `each`.
    pub(crate) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(RawEvent<'_>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let line_end = memchr::memchr(b'\n', rest);
            let (piece, after) = rest.split_at(line_end.map_or(rest.len(), |at| at + 1));
            rest = after;
            let start = self.offset - self.partial.len() as u64;
            self.offset += piece.len() as u64;
            if !self.is_too_long && self.partial.len() + piece.len() > MAX_EVENT {
                self.is_too_long = true;
                self.partial = Vec::new();
                each(RawEvent {
                    start,
                    end: start + MAX_EVENT as u64 + 1,
                    content: None,
                });
            }
            if line_end.is_none() {
                if !self.is_too_long {
                    self.partial.extend_from_slice(piece);
                }
                continue;
            }
            if !std::mem::take(&mut self.is_too_long) {
                let partial = std::mem::take(&mut self.partial);
                let line = if partial.is_empty() {
                    piece
                } else {
                    self.partial = partial;
                    self.partial.extend_from_slice(piece);
                    &self.partial
                };
                each(RawEvent {
                    start,
                    end: self.offset,
                    content: line.strip_suffix(b"\n"),
                });
                self.partial.clear();
                // Most events are small; a large one must not occupy memory for long.
                self.partial.shrink_to(1 << 20);
            }
        }
    }

    /// Passes each event that ends in `bytes` to `each`, except those in the middle of `bytes` for
    /// which `may_match` returns `false`.
    pub(crate) fn push_filtered(
        &mut self,
        bytes: &[u8],
        may_match: impl FnOnce(&[u8]) -> bool,
        mut each: impl FnMut(RawEvent<'_>),
    ) {
        let first = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        let last = memchr::memrchr(b'\n', bytes).map_or(first, |at| at + 1);
        self.push(&bytes[..first], &mut each);
        let middle = &bytes[first..last];
        if may_match(middle) {
            self.push(middle, &mut each);
        } else {
            // The first part ended with a line end, so no line is open.
            self.offset += middle.len() as u64;
        }
        self.push(&bytes[last..], each);
    }

    /// Passes a last event without a line end to `each`. A lost runner may leave one behind.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(RawEvent<'_>)) {
        let partial = std::mem::take(&mut self.partial);
        if !partial.is_empty() {
            each(RawEvent {
                start: self.offset - partial.len() as u64,
                end: self.offset,
                content: Some(&partial),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(bytes: &[u8], cuts: &[usize]) -> Vec<(u64, u64, Vec<u8>)> {
        let mut splitter = Splitter::default();
        let mut found = Vec::new();
        let mut push = |event: RawEvent<'_>| {
            found.push((event.start, event.end, event.content.unwrap().to_vec()));
        };
        let mut at = 0;
        for &cut in cuts {
            splitter.push(&bytes[at..cut], &mut push);
            at = cut;
        }
        splitter.push(&bytes[at..], &mut push);
        splitter.finish(&mut push);
        found
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_the_parts(
            text in "[ab\n]{0,40}",
            cuts in proptest::collection::vec(0usize..40, 0..5),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let found = split(text.as_bytes(), &cuts);
            prop_assert_eq!(&found, &split(text.as_bytes(), &[]));
            let lines: Vec<Vec<u8>> =
                found.iter().map(|(_, _, line)| line.clone()).collect();
            let expected: Vec<Vec<u8>> =
                text.split_terminator('\n').map(|line| line.as_bytes().to_vec()).collect();
            prop_assert_eq!(lines, expected);
            for (start, end, line) in found {
                let slice = &text.as_bytes()[start as usize..end as usize];
                prop_assert_eq!(slice.strip_suffix(b"\n").unwrap_or(slice), &line[..]);
            }
        }
    }
}
