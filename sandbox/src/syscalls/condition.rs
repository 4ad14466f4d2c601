//! What a filter can see of a call's arguments: six registers, no memory.

/// Which calls of a name are notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// All of them.
    All,
    /// Those where one of the rules holds.
    Only(Rules),
    /// All but those where one of the rules holds.
    Except(Rules),
}

/// Alternatives; each is a list of tests that must all hold.
pub(crate) type Rules = &'static [&'static [Test]];

/// One test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Test {
    /// Which argument, 0 to 5.
    pub(crate) argument: u8,
    /// The test.
    pub(crate) compare: Compare,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// The lower 32 bits under a mask. The kernel takes an `int` from the lower half of the register, so a test
    /// that saw the upper half would miss what the kernel does (CVE-2019-10063).
    Int {
        /// The bits that count.
        mask: u32,
        /// What they must be.
        value: u32,
    },
    /// All 64 bits are zero.
    NullPointer,
}

/// The `int` argument equals `value`.
pub(crate) const fn int(argument: u8, value: u32) -> Test {
    bits(argument, u32::MAX, value)
}

/// The bits of `mask` in the `int` argument equal `value`.
pub(crate) const fn bits(argument: u8, mask: u32, value: u32) -> Test {
    assert!(value & !mask == 0, "a value outside the mask never matches");
    Test {
        argument,
        compare: Compare::Int { mask, value },
    }
}

/// The bits of `mask` in the `int` argument equal one of two values, which differ in a single bit: one test
/// instead of two rules.
pub(crate) const fn either(argument: u8, mask: u32, one: u32, other: u32) -> Test {
    assert!(
        (one ^ other).is_power_of_two(),
        "a mask would let other values pass too"
    );
    bits(argument, mask & !(one ^ other), one & other)
}

/// The pointer argument is null.
pub(crate) const fn null(argument: u8) -> Test {
    Test {
        argument,
        compare: Compare::NullPointer,
    }
}

impl Test {
    fn holds(&self, args: &[u64; 6]) -> bool {
        let Some(&value) = args.get(usize::from(self.argument)) else {
            return false;
        };
        match self.compare {
            Compare::Int { mask, value: wanted } => value as u32 & mask == wanted,
            Compare::NullPointer => value == 0,
        }
    }
}

/// Whether one of the rules holds.
pub(super) fn any_holds(rules: Rules, args: &[u64; 6]) -> bool {
    rules.iter().any(|rule| rule.iter().all(|test| test.holds(args)))
}
