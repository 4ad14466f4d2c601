//! System calls by number, so that no library stands between an attempt and the kernel.
//!
//! Contract: every word that the kernel takes for an address points at memory that lives until the call
//! returns. All callers pass addresses of locals or of constants.

/// What the kernel said: a value, or an error number.
pub(crate) type Outcome = Result<i64, i32>;

/// Something that fits a register.
pub(crate) trait Word {
    /// The register's content.
    fn word(self) -> usize;
}

macro_rules! integers {
    ($($kind:ty),*) => {$(
        impl Word for $kind {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            fn word(self) -> usize {
                self as usize
            }
        }
    )*};
}
integers!(i32, u32, i64, u64, usize);

impl<T> Word for *const T {
    fn word(self) -> usize {
        self as usize
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self as usize
    }
}

/// Makes a system call with up to six register values.
pub(crate) fn call(number: i64, words: &[usize]) -> Outcome {
    let word = |index: usize| words.get(index).copied().unwrap_or(0);
    // SAFETY: addresses among the words are valid by this module's contract; everything else is the kernel's
    // to judge.
    // WHY: the attempts are about exact registers, which no safe wrapper passes unchanged.
    let value = unsafe { libc::syscall(number, word(0), word(1), word(2), word(3), word(4), word(5)) };
    if value == -1 { Err(errno()) } else { Ok(value) }
}

/// The error number of the last failed call.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// `sys!(SYS_name, word, word, …)`.
macro_rules! sys {
    ($number:expr $(, $word:expr)* $(,)?) => {
        $crate::raw::call($number, &[$($crate::raw::Word::word($word)),*])
    };
}
pub(crate) use sys;

/// A string for the kernel.
pub(crate) fn c(text: &str) -> std::ffi::CString {
    std::ffi::CString::new(text).expect("arguments hold no NUL")
}

/// Ends a child that a raw clone made, without running anything that belongs to the parent.
pub(crate) fn exit_now(code: i32) -> ! {
    let _ = sys!(libc::SYS_exit_group, code);
    std::process::abort()
}
