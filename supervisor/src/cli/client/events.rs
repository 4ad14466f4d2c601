//! `provost events`.

use clap::Args as ClapArgs;

use super::history::{Ended, Since, follow, read};
use super::{Connection, Reader, Reconnect, line, reader_gone, said, write};
use crate::Event;
use crate::cli::CliResult;
use crate::client::{Lasting, Pushed};
use crate::protocol::JobFollow;

/// Print the events of a process as JSON lines
///
/// The last one is the terminal event with the record. Without --follow: what is there now.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost events web
  provost events -f web | jq -r 'select(.type == \"denial\").rule'
  provost events --since 120 web      # what came behind event 120
  provost events --jobs --group build | jq -r 'select(.state == \"ended\").job'

With --follow the exit code is 0 once the terminal event is there, and 125 if the connection ends before and the daemon does not come back (--reconnect).")]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    again: Reconnect,
    /// Instead: every change of the state of every job that this session sees, from now on, or from behind --since SEQ; it does
    /// not end by itself
    #[arg(long, conflicts_with = "process")]
    jobs: bool,
    /// Those of this group
    #[arg(long, value_name = "GROUP", requires = "jobs")]
    group: Option<String>,
    /// Those of this session and its parts
    #[arg(long, value_name = "SESSION", requires = "jobs")]
    session: Option<String>,
    /// Go on with what comes, until the process has ended
    #[arg(long, short)]
    follow: bool,
    /// Only what came behind the event of this number, or since a time (RFC 3339, or 5m for five minutes ago)
    #[arg(long, value_name = "SEQ|TIME", value_parser = Since::parse)]
    since: Option<Since>,
    /// The process: its id, a beginning or end of it, or its name
    #[arg(value_name = "ID", required_unless_present = "jobs")]
    process: Option<String>,
}

pub(super) async fn run(args: EventsArgs) -> CliResult {
    let client = args.connection.open_lasting(args.again.reconnect).await?;
    let mut stdout = std::io::stdout().lock();
    let Some(process) = &args.process else {
        let after_seq = match args.since {
            None => None,
            Some(Since::Seq(seq)) => Some(seq),
            Some(_) => return Err("with --jobs, --since takes the number of an event".to_owned()),
        };
        let asked = JobFollow {
            after_seq,
            session: args.session,
            group: args.group,
            ..JobFollow::default()
        };
        return jobs(&client, asked, &mut stdout).await;
    };
    let mut take = |event: Event| write(&mut stdout, line(&event)?.as_bytes());
    let since = args.since.unwrap_or(Since::Seq(0));
    let ended = read(&client, process, since, &mut take).await?;
    if let (Ended::SoFar(seq), true) = (ended, args.follow) {
        follow(&client, process, seq, &mut take).await?;
    }
    Ok(0)
}

/// Prints changes of jobs until nobody reads them, over one connection after another.
async fn jobs(client: &Lasting, mut asked: JobFollow, stdout: &mut impl std::io::Write) -> CliResult {
    loop {
        let (begun, mut events) = client.follow_jobs(&asked).await.map_err(said)?;
        asked.after_seq.get_or_insert(begun);
        loop {
            let pushed = tokio::select! {
                pushed = events.next_pushed() => pushed,
                () = reader_gone() => return Ok(0),
            };
            match pushed {
                Some(Pushed::Job(event)) => {
                    if write(stdout, line(&event)?.as_bytes())? == Reader::Gone {
                        return Ok(0);
                    }
                    asked.after_seq = Some(event.seq);
                }
                Some(_) => {}
                None if events.is_lost() && client.lasts() => break,
                None => return Err("the connection to the daemon is lost".to_owned()),
            }
        }
    }
}
