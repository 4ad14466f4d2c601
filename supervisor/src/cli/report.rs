//! `provost report`: what a supervised program says as its result.

use std::io::Read;
use std::os::fd::RawFd;

use provost_actors::reported;
use provost_sandbox::extras::{REPORT_BYTES_MAX, REPORT_VARIABLE, ReportError, report};

use super::CliResult;
use super::args::ReportArgs;

pub(super) fn run(args: &ReportArgs) -> CliResult {
    let Some(number) = std::env::var_os(REPORT_VARIABLE) else {
        return Err(format!(
            "nobody asked this process for a result: {REPORT_VARIABLE} is not set; start it with `--report`, or by `provost map`"
        ));
    };
    let number = number.to_str().and_then(|number| number.parse::<RawFd>().ok());
    let number = number.ok_or_else(|| format!("{REPORT_VARIABLE} is not the number of a descriptor"))?;
    let bytes = match args.value.as_str() {
        "-" => {
            let mut bytes = Vec::new();
            // White space does not count, and more of it than this is no result.
            let most = 2 * REPORT_BYTES_MAX as u64;
            let read = std::io::stdin().take(most).read_to_end(&mut bytes);
            read.map_err(|error| format!("standard input: {error}"))?;
            bytes
        }
        value => value.as_bytes().to_vec(),
    };
    let value = bytes.trim_ascii();
    if value.len() > REPORT_BYTES_MAX {
        return Err(ReportError::TooLong(value.len()).to_string());
    }
    let judged = reported::judge(value).map_err(|why| format!("not reported: {why}"))?;
    judged.ok_or("not reported: there is no value; want one JSON value, `null` for none")?;
    report(number, value).map_err(|error| error.to_string())?;
    Ok(0)
}
