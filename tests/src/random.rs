//! Chance that can be repeated.

/// Numbers that follow from a seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero; small seeds begin alike.
        let mut random = Self(seed ^ 0x9e37_79b9_7f4a_7c15);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// At least one byte, and at most this many.
    pub fn bytes(&mut self, most: u64) -> Vec<u8> {
        let count = 1 + self.below(most);
        (0..count).map(|_| self.next() as u8).collect()
    }
}
