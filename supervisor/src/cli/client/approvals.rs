//! `provost approvals`, `approve` and `deny`.

use std::pin::pin;

use clap::{Args as ClapArgs, ValueEnum};
use jiff::Timestamp;
use provost_actors::session::SessionId;
use provost_sandbox::denial::Decision;

use super::table::{Cell, ago, show};
use super::{Connection, Reader, line, print, reader_gone, said, write};
use crate::ApprovalScope;
use crate::cli::{CliResult, EXIT_PROVOST, output, summary};
use crate::client::{Client, ClientError};
use crate::protocol::{
    ApprovalDecide, ApprovalFollow, ApprovalList, ApprovalsWaiting, ErrorKind, RpcError, Told,
    WaitingApproval,
};
use crate::{Event, EventBody};

/// List what processes ask and what waits for an answer
///
/// Each line is a call of a process that waits: its id is what `provost approve` and `provost deny` take. What nobody answers
/// until the deadline is denied.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost approvals
  provost approvals -f --session dev
  provost approvals --json | jq -r '[.process, .approval, .attempt.allow.value] | @tsv'
  provost approve web/3")]
pub(crate) struct ApprovalsArgs {
    #[command(flatten)]
    connection: Connection,
    /// Only what processes of this session and its parts ask
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
    /// Go on with what is asked and decided, until the connection ends
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one object on each line; with --follow, events are marked with their session
    #[arg(long)]
    json: bool,
    /// Only what this process asks: its id, a beginning or end of it, or its name
    #[arg(value_name = "PROCESS", conflicts_with_all = ["session", "follow"])]
    process: Option<String>,
}

/// Allow what processes ask
///
/// The call is performed as it was asked. Who is too late is told what was decided and by whom.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Exit codes:
  0 all were allowed; 125 one was decided already, or is not there, or its session is attached
  elsewhere

Examples:
  provost approve web/3
  provost approve web                      # if it asks one thing only
  provost approve --scope process web/3    # and the same again, until it ends")]
pub(crate) struct ApproveArgs {
    /// How far the permission reaches
    #[arg(long, value_enum, default_value_t = ScopeArg::Once)]
    scope: ScopeArg,
    #[command(flatten)]
    common: Common,
}

/// Deny what processes ask
///
/// The call fails, and is a denial in the record. Who is too late is told what was decided and by whom.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  provost deny web/3
  provost approvals --json --session dev | jq -r '\"\\(.process)/\\(.approval)\"' |
    xargs -r provost deny")]
pub(crate) struct DenyArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
struct Common {
    #[command(flatten)]
    connection: Connection,
    /// Also where the session is attached elsewhere, which it stays
    #[arg(long)]
    steal: bool,
    /// Who decides, for the record [default: cli]
    #[arg(long, value_name = "WORD")]
    by: Option<String>,
    /// What to decide: a process (its id, a beginning or end of it, or its name), / and the number of the request; the process
    /// alone if it asks one thing only
    #[arg(required = true, value_name = "ID")]
    requests: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScopeArg {
    /// This call
    Once,
    /// The same act of this process and its descendants, until they end
    Process,
    /// The same act of every process of the session
    Session,
}

impl From<ScopeArg> for ApprovalScope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Once => Self::Once,
            ScopeArg::Process => Self::Process,
            ScopeArg::Session => Self::Session,
        }
    }
}

pub(super) async fn approvals(args: ApprovalsArgs) -> CliResult {
    let client = args.connection.open().await?;
    if args.follow {
        return follow(&client, args.session, args.json).await;
    }
    let asked = ApprovalList {
        process: args.process,
        session: args.session,
    };
    let waiting: ApprovalsWaiting = client.call("approval/list", &asked).await.map_err(said)?;
    if waiting.more > 0 {
        output::note(&format!("and {} that wait besides", waiting.more));
    }
    if args.json {
        let lines: Result<String, String> = waiting.approvals.iter().map(line).collect();
        return print(&lines?);
    }
    let rows: Vec<_> = waiting.approvals.iter().map(row).collect();
    show(["REQUEST", "NAME", "SINCE", "LEFT", "ALLOWED BY", "ASKS"], &rows)
}

fn row(request: &WaitingApproval) -> [Cell; 6] {
    let flag = summary::allowing_flag(&request.attempt);
    [
        Cell::new(format!("{}/{}", request.process, request.approval)),
        Cell::new(request.name.as_deref().unwrap_or_default()),
        ago(&request.requested_at),
        Cell::new(left(&request.deadline)),
        Cell::new(flag.unwrap_or_default()),
        Cell::new(summary::line(&request.attempt)),
    ]
}

/// How long until then, in whole seconds.
fn left(deadline: &str) -> String {
    let Ok(deadline) = deadline.parse::<Timestamp>() else {
        return String::new();
    };
    let seconds = deadline.duration_since(Timestamp::now()).as_secs().max(0);
    let seconds = u64::try_from(seconds).unwrap_or_default();
    humantime::format_duration(std::time::Duration::from_secs(seconds))
        .to_string()
        .replace(' ', "")
}

async fn follow(client: &Client, session: Option<String>, json: bool) -> CliResult {
    let asked = ApprovalFollow {
        session,
        window: None,
    };
    let mut events = client.follow("approval/follow", &asked).await.map_err(said)?;
    let mut stdout = std::io::stdout().lock();
    let mut gone = pin!(reader_gone());
    loop {
        let next = tokio::select! {
            biased;
            next = events.next_tagged() => next,
            () = &mut gone => return Ok(0),
        };
        let Some((session, event)) = next else { break };
        let text = match json {
            true => line(&Marked { session, event })?,
            false => words(&event),
        };
        if write(&mut stdout, text.as_bytes())? == Reader::Gone {
            return Ok(0);
        }
    }
    Err("nothing more comes: the connection is lost, or the session is closed".to_owned())
}

/// An event with the session of its process.
#[derive(serde::Serialize)]
struct Marked {
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    #[serde(flatten)]
    event: Event,
}

fn words(event: &Event) -> String {
    let process = event.process;
    match &event.body {
        EventBody::ApprovalRequested {
            approval, attempt, ..
        } => {
            let asks = summary::line(attempt);
            match summary::allowing_flag(attempt) {
                Some(flag) => format!("{process}/{approval} asks: {asks}; allowed by: {flag}\n"),
                None => format!("{process}/{approval} asks: {asks}\n"),
            }
        }
        EventBody::ApprovalDecided {
            approval,
            decision,
            by,
            ..
        } => {
            let word = match decision {
                Decision::Allow => "allowed",
                Decision::Deny => "denied",
            };
            format!("{process}/{approval} {word}: {}\n", summary::visible(by))
        }
        _ => String::new(),
    }
}

pub(super) async fn approve(args: ApproveArgs) -> CliResult {
    decide(args.common, Some(args.scope.into())).await
}

pub(super) async fn deny(args: DenyArgs) -> CliResult {
    decide(args.common, None).await
}

/// Allows so far, or denies.
async fn decide(args: Common, scope: Option<ApprovalScope>) -> CliResult {
    let client = args.connection.open().await?;
    let mut code = 0;
    for request in &args.requests {
        let decided = async {
            let (process, approval) = find(&client, request).await?;
            let asked = ApprovalDecide {
                process,
                approval,
                allow: scope.is_some(),
                scope,
                by: Some(args.by.clone().unwrap_or_else(|| "cli".to_owned())),
                steal: args.steal,
            };
            client.call::<Told>("approval/decide", &asked).await
        };
        match decided.await {
            Ok(_) => {}
            Err(error) => {
                output::error(&said(error));
                code = EXIT_PROVOST;
            }
        }
    }
    Ok(code)
}

/// The process and the number that are meant.
async fn find(client: &Client, request: &str) -> Result<(String, u64), ClientError> {
    // A name has no slash in it.
    if let Some((process, number)) = request.rsplit_once('/') {
        return match number.parse() {
            Ok(number) => Ok((process.to_owned(), number)),
            Err(_) => Err(refused(ErrorKind::InvalidParams, request, "want PROCESS/NUMBER")),
        };
    }
    let asked = ApprovalList {
        process: Some(request.to_owned()),
        session: None,
    };
    let waiting: ApprovalsWaiting = client.call("approval/list", &asked).await?;
    match waiting.approvals.as_slice() {
        [one] => Ok((one.process.to_string(), one.approval)),
        [] => Err(refused(ErrorKind::NotFound, request, "it asks nothing now")),
        several => {
            let numbers = several.iter().map(|one| format!("{request}/{}", one.approval));
            let hint = format!("give one: {}", numbers.collect::<Vec<_>>().join(" "));
            Err(
                match refused(ErrorKind::Ambiguous, request, "it asks several things") {
                    ClientError::Refused(error) => ClientError::Refused(Box::new(error.hint(hint))),
                    other => other,
                },
            )
        }
    }
}

fn refused(kind: ErrorKind, request: &str, why: &str) -> ClientError {
    let error = RpcError::new(kind, format!("decide `{request}`"), why);
    ClientError::Refused(Box::new(error))
}
