//! Ranges of bytes in requests for blobs.

/// Range of bytes: from the first one to the last one, or to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte. `None`: the end of the blob.
    pub last: Option<u64>,
}

/// An error for a text that is not `bytes=FIRST-[LAST]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the range is not `bytes=FIRST-LAST`")]
pub struct RangeError;

impl ByteRange {
    /// Parses the header `x-ms-range` or `range`.
    ///
    /// # Errors
    /// Returns an error if `text` is not one range from an offset on.
    pub fn parse(text: &str) -> Result<Self, RangeError> {
        let (first, last) = text
            .trim()
            .strip_prefix("bytes=")
            .and_then(|text| text.split_once('-'))
            .ok_or(RangeError)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| RangeError);
        let range = Self {
            first: number(first)?,
            last: match last.trim() {
                "" => None,
                last => Some(number(last)?),
            },
        };
        match range.last {
            Some(last) if last < range.first => Err(RangeError),
            _ => Ok(range),
        }
    }

    /// Returns the end of the range in a blob of `length` bytes. `None` if the range begins after
    /// the end of the blob.
    pub fn end(&self, length: u64) -> Option<u64> {
        let end = match self.last {
            Some(last) => last.saturating_add(1).min(length),
            None => length,
        };
        (self.first < end).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_with_the_blob() {
        let range = ByteRange::parse("bytes=3-9").unwrap();
        assert_eq!(
            (range.end(20), range.end(5), range.end(3)),
            (Some(10), Some(5), None)
        );
        let open = ByteRange::parse("bytes=0-").unwrap();
        assert_eq!((open.end(5), open.end(0)), (Some(5), None));
        let all = ByteRange::parse("bytes=0-18446744073709551615").unwrap();
        assert_eq!(all.end(5), Some(5));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "bytes=",
            "bytes=-5",
            "bytes=5-3",
            "bytes=0-1,3-4",
            "lines=0-1",
            "bytes=x-",
        ] {
            assert_eq!(ByteRange::parse(text), Err(RangeError), "{text}");
        }
    }
}
