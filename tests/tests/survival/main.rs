//! Nothing is lost when the daemon dies, or its keeper (I8): real ones, killed at any moment, and tests that know the truth.

mod cost;
mod input;
mod keepers;
mod load;
mod starts;
mod stops;
