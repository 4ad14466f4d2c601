//! Policy and kernel in, prepared sandbox out. Runs before any fork; allocates whatever it likes.

pub mod access;
pub mod landlock;
pub mod seccomp;
