//! The `provost` binary: parse, run, exit code. In the role of the spawner it is that instead.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    provost::run_spawner_if_asked();
    provost::cli::main()
}
