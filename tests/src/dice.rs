//! Random numbers determined by a seed, so that a failed test can be repeated.

/// Sequence of random numbers (xorshift64).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Starts a sequence. A seed of 0 counts as 1.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// Returns a number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(limit)).expect("the remainder is below a `u32`")
    }
}
