//! `provost session`.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use provost_actors::session::{OnDisconnect, SessionId};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::table::{Cell, id, show};
use super::{Connection, Reconnect, line, millis, print, said};
use crate::cli::{CliResult, output};
use crate::client::{Client, ClientError, Lasting};
use crate::protocol::{
    ErrorKind, SessionAttach, SessionClose, SessionEvent, SessionInfo, SessionOpen, SessionRef,
    SessionsMoved,
};
use crate::units::{bytes, duration};

/// Open, list, attach, detach and close sessions
///
/// A session holds processes together. It is attached to the connection that opened or attached it, and while it is, no other
/// connection may change what is in it. A lease ends with its connection: what a command of this program attaches is
/// detached when the command ends, so `open` leaves a session that any client may use.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  dev=$(provost session open --name dev)
  provost start --session dev -- ./server
  provost session list
  provost session close dev")]
pub(crate) struct SessionArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: SessionVerb,
}

#[derive(Debug, Subcommand)]
enum SessionVerb {
    /// Open one and print its id
    ///
    /// It is detached at once, for a lease ends with its connection; with --hold it stays attached to this command.
    Open {
        /// A name for it
        #[arg(long)]
        name: Option<String>,
        /// The session that it is to be part of
        #[arg(long, value_name = "SESSION")]
        parent: Option<String>,
        /// What becomes of it when a connection ends that has it attached
        #[arg(long, value_enum, default_value = "detach")]
        on_disconnect: OnDisconnectArg,
        /// Stop everything in it when nobody has attached it for this time
        #[arg(long, value_name = "TIME", value_parser = duration)]
        ttl: Option<Duration>,
        /// Of the output of everything in it keep at most so much, up to the daemon's max_session_bytes
        #[arg(long, value_name = "BYTES", value_parser = bytes)]
        max_kept: Option<u64>,
        /// Hold it until this command ends, over the death of a daemon and its replacement; ends as `attach` does
        #[arg(long)]
        hold: bool,
        #[command(flatten)]
        again: Reconnect,
    },
    /// List them
    List {
        /// Print JSON, one object on each line
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
        /// Print ids only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Attach sessions, print their ids, and hold them until this command ends
    ///
    /// When the daemon dies or is replaced they are attached again. Ends by itself when they are closed (exit code 0), attached
    /// elsewhere, or gone with the daemon that had them (125).
    Attach {
        /// Also what is attached elsewhere
        #[arg(long)]
        steal: bool,
        /// Which, by id or name [default: all that nobody has attached]
        #[arg(value_name = "SESSION")]
        sessions: Vec<String>,
        #[command(flatten)]
        again: Reconnect,
    },
    /// Detach one; what is in it goes on
    Detach {
        /// Also if it is attached elsewhere
        #[arg(long)]
        steal: bool,
        /// Which, by id or name
        session: String,
    },
    /// Stop everything in one and close it
    Close {
        /// Kill instead of stopping by each process's stop rule
        #[arg(long)]
        kill: bool,
        /// Also if it is attached elsewhere
        #[arg(long)]
        steal: bool,
        /// Which, by id or name
        session: String,
    },
    /// Close what nobody has attached and print the ids
    Clean {
        /// Kill instead of stopping by each process's stop rule
        #[arg(long)]
        kill: bool,
        /// Only this one, by id or name
        session: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnDisconnectArg {
    /// It goes on, and anybody may attach it
    Detach,
    /// Everything in it is stopped
    Stop,
}

pub(super) async fn run(args: SessionArgs) -> CliResult {
    let connection = args.connection;
    match args.verb {
        SessionVerb::Open {
            name,
            parent,
            on_disconnect,
            ttl,
            max_kept,
            hold,
            again,
        } => {
            let client = connection.open_lasting(again.reconnect).await?;
            let request = SessionOpen {
                name,
                parent,
                on_disconnect: match on_disconnect {
                    OnDisconnectArg::Detach => OnDisconnect::Detach,
                    OnDisconnectArg::Stop => OnDisconnect::Stop,
                },
                ttl_ms: ttl.map(millis),
                max_session_bytes: max_kept,
            };
            open(&client, &request, hold).await
        }
        SessionVerb::List { json, quiet } => list(&connection.open().await?, json, quiet).await,
        SessionVerb::Attach {
            steal,
            sessions,
            again,
        } => {
            let client = connection.open_lasting(again.reconnect).await?;
            let named = !sessions.is_empty();
            attach_and_hold(&client, named.then_some(sessions), steal).await
        }
        SessionVerb::Detach { steal, session } => {
            let client = connection.open().await?;
            if steal {
                take_over(&client, &session).await?;
            }
            // The daemon has nothing against detaching what is not there; who says which wants to hear of it.
            find(&client, &session).await?;
            let asked = SessionRef { session };
            call(&client, "session/detach", &asked).await.map(|_| 0)
        }
        SessionVerb::Close { kill, steal, session } => {
            let client = connection.open().await?;
            if steal {
                take_over(&client, &session).await?;
            }
            let asked = SessionClose {
                session: Some(session),
                kill,
            };
            call(&client, "session/close", &asked).await.map(|_| 0)
        }
        SessionVerb::Clean { kill, session } => {
            let client = connection.open().await?;
            let moved = call(&client, "session/clean", &SessionClose { session, kill }).await?;
            skipped(&moved);
            print_ids(&moved)
        }
    }
}

async fn open(client: &Lasting, request: &SessionOpen, hold: bool) -> CliResult {
    #[derive(Deserialize)]
    struct Opened {
        session: SessionId,
    }
    let events = client.session_events();
    // Asked once: of a second one nobody would know.
    let opened: Opened = client.call_once("session/open", request).await.map_err(said)?;
    let id = opened.session;
    if !hold {
        let session = id.to_string();
        let detached: Result<SessionsMoved, _> =
            client.call("session/detach", &SessionRef { session }).await;
        detached.map_err(said)?;
        return print(&format!("{id}\n"));
    }
    client.holds(id);
    print(&format!("{id}\n"))?;
    held(client, events, 1).await
}

async fn list(client: &Client, json: bool, quiet: bool) -> CliResult {
    let sessions = sessions(client).await?;
    if quiet {
        let ids = sessions.iter().map(|session| format!("{}\n", session.session));
        return print(&ids.collect::<String>());
    }
    if json {
        let lines: Result<String, String> = sessions.iter().map(line).collect();
        return print(&lines?);
    }
    let rows: Vec<_> = sessions.iter().map(row).collect();
    let head = [
        "SESSION",
        "NAME",
        "PARENT",
        "ATTACHED",
        "ON-DISCONNECT",
        "LIVE",
        "PROCESSES",
    ];
    show(head, &rows)
}

fn row(session: &SessionInfo) -> [Cell; 7] {
    [
        id(session.session),
        Cell::new(session.name.as_deref().unwrap_or_default()),
        session.parent.map_or_else(|| Cell::new(""), id),
        match session.attached {
            true => Cell::good("yes"),
            false => Cell::new("no"),
        },
        Cell::new(match session.on_disconnect {
            OnDisconnect::Detach => "detach",
            OnDisconnect::Stop => "stop",
        }),
        Cell::new(session.live.to_string()),
        Cell::new(session.processes.to_string()),
    ]
}

async fn sessions(client: &Client) -> Result<Vec<SessionInfo>, String> {
    client.call("session/list", &json!({})).await.map_err(said)
}

/// That it is there, by id, a part of one, or name.
async fn find(client: &Client, text: &str) -> Result<(), String> {
    let there = |session: &SessionInfo| {
        let id = session.session.to_string();
        session.name.as_deref() == Some(text) || id.starts_with(text) || id.ends_with(text)
    };
    match sessions(client).await?.iter().any(there) {
        true => Ok(()),
        false => Err(format!(
            "session `{text}`: there is none of that id or name; `provost session list` lists them"
        )),
    }
}

async fn attach_and_hold(client: &Lasting, sessions: Option<Vec<String>>, steal: bool) -> CliResult {
    let named = sessions.is_some();
    let events = client.session_events();
    let asked = SessionAttach { sessions, steal };
    let moved: SessionsMoved = client.call("session/attach", &asked).await.map_err(said)?;
    skipped(&moved);
    if named && !moved.skipped.is_empty() {
        return Err("not everything could be attached, so nothing is held".to_owned());
    }
    if moved.moved.is_empty() {
        output::note("there is nothing to attach");
        return Ok(0);
    }
    for session in &moved.moved {
        client.holds(*session);
    }
    print_ids(&moved)?;
    held(client, events, moved.moved.len()).await
}

/// Takes a session from whoever has it.
async fn take_over(client: &Client, session: &str) -> Result<(), String> {
    let asked = SessionAttach {
        sessions: Some(vec![session.to_owned()]),
        steal: true,
    };
    let moved = call(client, "session/attach", &asked).await?;
    match moved.skipped.first() {
        Some(skipped) => Err(format!("session `{session}`: {}", skipped.why)),
        None => Ok(()),
    }
}

/// Holds what is attached until it is gone, over one connection after another.
async fn held(
    client: &Lasting,
    mut events: mpsc::UnboundedReceiver<SessionEvent>,
    mut count: usize,
) -> CliResult {
    let mut lost = Vec::new();
    while count > 0 {
        let connection = client.client();
        tokio::select! {
            // What was told before the connection ended comes first.
            biased;
            Some(event) = events.recv() => {
                output::note(&format!("session {}: {}", event.session, event.event));
                if event.event == "lost" {
                    lost.push("attached elsewhere now".to_owned());
                }
                count -= 1;
            }
            () = connection.lost() => {
                client.renew(&connection, ClientError::Lost).await.map_err(said)?;
                let skipped = client.not_taken_back();
                count -= skipped.len().min(count);
                let why = skipped.into_iter().map(|one| match one.kind {
                    Some(ErrorKind::NotFound) => {
                        format!("session {} is gone: the daemon does not know it any more", one.session)
                    }
                    _ => format!("session {}: {}", one.session, one.why),
                });
                let why: Vec<String> = why.collect();
                if count > 0 {
                    why.iter().for_each(|why| output::note(why));
                    output::note(&format!("the connection to the daemon was lost; attached again: {count}"));
                }
                lost.extend(why);
            }
        }
    }
    match lost.is_empty() {
        true => Ok(0),
        false => Err(lost.join("; ")),
    }
}

async fn call(
    client: &Client,
    method: &str,
    asked: &impl serde::Serialize,
) -> Result<SessionsMoved, String> {
    client.call(method, asked).await.map_err(said)
}

fn skipped(moved: &SessionsMoved) {
    for skipped in &moved.skipped {
        output::note(&format!("session {}: {}", skipped.session, skipped.why));
    }
}

fn print_ids(moved: &SessionsMoved) -> CliResult {
    let ids = moved.moved.iter().map(|id| format!("{id}\n"));
    print(&ids.collect::<String>())
}
