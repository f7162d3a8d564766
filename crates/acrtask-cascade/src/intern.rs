//! Byte strings as small numbers: each string is stored once and found in constant time.
//!
//! A graph of a million images stores each name and each digest once, end to end in one allocation.
//! Digests are stored as bytes, which need a third of the space of their text.

use std::hash::{BuildHasher, RandomState};

use acrtask_model::Digest;
use hashbrown::HashTable;

/// Numbers for byte strings, in the order of their first appearance.
#[derive(Debug, Default, Clone)]
pub(crate) struct Interner {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Interner {
    /// Returns the number of `key`; assigns the next number if `key` is new.
    pub(crate) fn intern(&mut self, key: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(key);
        let Self {
            bytes, ends, table, ..
        } = self;
        if let Some(found) = table.find(hash, |id| slice(bytes, ends, *id) == key) {
            return *found;
        }
        let id = u32::try_from(ends.len()).unwrap_or(u32::MAX);
        assert!(id < u32::MAX, "a graph holds fewer than 2^32 - 1 names");
        bytes.extend_from_slice(key);
        ends.push(bytes.len());
        let hasher = &self.hasher;
        table.insert_unique(hash, id, |id| hasher.hash_one(slice(bytes, ends, *id)));
        id
    }

    /// Returns the number of `key`, or `None` if it was never interned.
    pub(crate) fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |id| self.get(*id) == key).copied()
    }

    /// Returns the bytes of a number from this interner.
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        slice(&self.bytes, &self.ends, id)
    }

    /// Returns the text of a number. Empty if the bytes are not UTF-8.
    pub(crate) fn text(&self, id: u32) -> &str {
        std::str::from_utf8(self.get(id)).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns the same strings numbered in their sort order, and the new number of each old one.
    ///
    /// Results computed from sorted numbers do not depend on the order of arrival.
    pub(crate) fn sorted(&self) -> (Self, Vec<u32>) {
        let mut order: Vec<u32> = (0..).take(self.len()).collect();
        order.sort_unstable_by(|a, b| self.get(*a).cmp(self.get(*b)));
        let mut new = Self {
            bytes: Vec::with_capacity(self.bytes.len()),
            ends: Vec::with_capacity(self.len()),
            table: HashTable::with_capacity(self.len()),
            hasher: self.hasher.clone(),
        };
        let mut renumbered = vec![0; self.len()];
        for old in order {
            renumbered[old as usize] = new.intern(self.get(old));
        }
        (new, renumbered)
    }

    /// Returns the allocated memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.capacity()
            + self.ends.capacity() * size_of::<usize>()
            + self.table.capacity() * (size_of::<u32>() + 1)
    }
}

fn slice<'a>(bytes: &'a [u8], ends: &[usize], id: u32) -> &'a [u8] {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] };
    &bytes[start..ends[id]]
}

/// Returns a digest as bytes. The algorithm is not stored, because the lengths differ.
pub(crate) fn pack(digest: &Digest) -> Vec<u8> {
    let hex = digest
        .as_str()
        .split_once(':')
        .map_or("", |(_, hex)| hex)
        .as_bytes();
    let value = |digit: u8| match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit - b'a' + 10,
    };
    hex.chunks_exact(2)
        .map(|pair| value(pair[0]) << 4 | value(pair[1]))
        .collect()
}

/// Returns the digest of packed bytes.
#[allow(
    clippy::expect_used,
    reason = "the input is always an output of `pack`"
)]
pub(crate) fn unpack(bytes: &[u8]) -> Digest {
    let mut text = String::with_capacity(7 + bytes.len() * 2);
    text.push_str(if bytes.len() == 32 {
        "sha256:"
    } else {
        "sha512:"
    });
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text.parse().expect("a packed digest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interner_finds_and_sorts_numbers() {
        let mut names = Interner::default();
        for name in ["c", "", "a", "c", "b"] {
            names.intern(name.as_bytes());
        }
        assert_eq!(names.len(), 4);
        assert_eq!(names.find(b"a"), Some(2));
        assert_eq!(names.find(b"d"), None);
        assert_eq!(names.text(0), "c");
        let (sorted, renumbered) = names.sorted();
        assert_eq!(renumbered, [3, 0, 1, 2]);
        assert_eq!(sorted.text(3), "c");
        assert_eq!(sorted.find(b"b"), Some(2));
    }

    #[test]
    fn packed_digests_round_trip() {
        for text in [
            format!("sha256:{}", "0123456789abcdef".repeat(4)),
            format!("sha512:{}", "f0".repeat(64)),
        ] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(unpack(&pack(&digest)), digest);
        }
    }
}
