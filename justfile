# Shorthands; each line is what CONTRIBUTING.md says to run by hand.

# What must hold before a change is taken.
check: fmt clippy test doc deny

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets -- -D warnings

test:
    cargo test --workspace

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

deny:
    cargo deny --offline check bans licenses sources

# The same with everything installed that is missing, and every feature of the machine required.
ci:
    .ci/run
