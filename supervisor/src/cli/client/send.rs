//! `provost send`.

use clap::Args as ClapArgs;
use tokio::io::AsyncReadExt;

use super::{Connection, said};
use crate::cli::target::close;
use crate::cli::{CliResult, output};
use crate::client::{ClientError, Lasting, RECONNECT};
use crate::protocol::ErrorKind;

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Write to the standard input of a process
///
/// It must have been started with `--stdin` or `--tty`. Returns when the process can read it. While another client has attached
/// its input (`provost attach`), this is refused.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost send repl 'print(1)'
  provost send --eof repl
  provost send --eof sort - < names.txt")]
pub(crate) struct SendArgs {
    #[command(flatten)]
    connection: Connection,
    /// Then end its standard input
    #[arg(long)]
    eof: bool,
    /// Also if another client has attached its input
    #[arg(long)]
    force: bool,
    /// No newline behind TEXT
    #[arg(long, short)]
    no_newline: bool,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID")]
    process: String,
    /// What to write, with a newline; - for everything that comes on standard input, as it is
    #[arg(required_unless_present = "eof", allow_hyphen_values = true)]
    text: Option<String>,
}

pub(super) async fn run(args: SendArgs) -> CliResult {
    let client = args.connection.open_lasting(RECONNECT).await?;
    let mut place = None;
    let process = args.process.as_str();
    match args.text.as_deref() {
        None => {}
        Some("-") => copy(&client, process, &mut place, args.force).await?,
        Some(text) => {
            let newline = if args.no_newline { "" } else { "\n" };
            let text = format!("{text}{newline}");
            let written = client
                .write(process, &mut place, text.as_bytes(), args.force)
                .await;
            written.map_err(said)?;
        }
    }
    if args.eof {
        close(&client, process, args.force).await.map_err(said)?;
    }
    Ok(0)
}

/// Writes everything that comes on our standard input, until its end.
pub(super) async fn copy(
    client: &Lasting,
    process: &str,
    place: &mut Option<u64>,
    force: bool,
) -> Result<(), String> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; PIECE];
    loop {
        let count = stdin.read(&mut buffer).await;
        match count.map_err(|error| format!("standard input: {error}"))? {
            0 => return Ok(()),
            count => {
                let written = client.write(process, place, &buffer[..count], force).await;
                written.map_err(|error| {
                    if let ClientError::Refused(error) = &error
                        && error.data.kind == ErrorKind::Uncertain
                    {
                        output::error(&format!("its input ends here: {error}"));
                    }
                    said(error)
                })?;
            }
        }
    }
}
