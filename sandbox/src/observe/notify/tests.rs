//! Against the real kernel: a thread puts itself under a small filter, and a decider answers it.

mod ask;
mod calls;
mod files;
mod harness;
mod metadata;
mod network;
mod race;
mod unix;
