//! `provost inspect`.

use clap::Args as ClapArgs;
use serde_json::Value;

use super::{Connection, print_pretty, said};
use crate::cli::CliResult;
use crate::protocol::ProcessRef;

/// Show everything that is known of a process, as JSON
///
/// `record` is its terminal record, and null while it lives.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost inspect web
  provost inspect 3f2a | jq .record.denials")]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    connection: Connection,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID")]
    process: String,
}

pub(super) async fn run(args: InspectArgs) -> CliResult {
    let client = args.connection.open().await?;
    let request = ProcessRef {
        process: args.process,
    };
    let found: Value = client.call("process/inspect", &request).await.map_err(said)?;
    print_pretty(&found)
}
