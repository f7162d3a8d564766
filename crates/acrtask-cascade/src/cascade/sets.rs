//! Disjoint sets of small numbers.

/// Union-find over the numbers `0..count`.
pub(super) struct DisjointSets(Vec<usize>);

impl DisjointSets {
    /// Creates `count` sets of one number each.
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    /// Returns the representative of the set that contains `item`.
    pub(super) fn find(&mut self, mut item: usize) -> usize {
        while self.0[item] != item {
            self.0[item] = self.0[self.0[item]];
            item = self.0[item];
        }
        item
    }

    /// Merges the sets of two numbers.
    pub(super) fn union(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        let (low, high) = (a.min(b), a.max(b));
        self.0[high] = low;
    }
}
