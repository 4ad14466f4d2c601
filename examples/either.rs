//! The same function with a supervisor of this program's own, and with a daemon's:
//! `cargo build && cargo run -p provost-examples --bin either [SOCKET]`. Without a socket it starts a daemon of its own.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use provost::{
    Error, EventBody, Policy, PresetContext, ProcessHandle, ProcessSpec, StdinSpec, StreamName,
    Supervisor,
};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    provost::run_spawner_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), AnyError> {
    let embedded = Supervisor::builder().start().await?;
    println!("embedded: {}", count(&embedded, spec()?).await?);
    match std::env::args_os().nth(1) {
        Some(socket) => through(Path::new(&socket)).await,
        None => {
            let place = std::env::temp_dir().join(format!("provost-either-{}", std::process::id()));
            std::fs::DirBuilder::new().mode(0o700).create(&place)?;
            let daemon = serve(&embedded, &place.join("socket")).await;
            let done = match &daemon {
                Ok(_) => through(&place.join("socket")).await,
                Err(why) => Err(why.to_string().into()),
            };
            if let Ok(daemon) = daemon {
                daemon.stop("the example is over").await?;
                daemon.record().await?;
            }
            std::fs::remove_dir_all(&place)?;
            done
        }
    }
}

async fn through(socket: &Path) -> Result<(), AnyError> {
    let daemon = Supervisor::connect(socket).await?;
    println!("daemon:   {}", count(&daemon, spec()?).await?);
    Ok(())
}

/// What is written once for both: gives a command something to read, follows what it writes, and says how it ended.
async fn count(supervisor: &Supervisor, spec: ProcessSpec) -> Result<String, Error> {
    let process = supervisor.spawn(spec).await?;
    process.write_stdin(b"one two three\n").await?;
    process.close_stdin().await?;
    let mut said = String::new();
    let mut events = process.events();
    while let Some(event) = events.next().await? {
        match event.body {
            EventBody::Output {
                stream: StreamName::Stdout,
                data,
                ..
            } => {
                said.push_str(String::from_utf8_lossy(&data).trim());
            }
            EventBody::Denial(denial) => said.push_str(&format!(", {} refused", denial.operation)),
            _ => {}
        }
    }
    let record = process.record().await?;
    Ok(format!(
        "{said} -> {:?} {:?}, denied: {}",
        record.outcome, record.exit_code, record.denied
    ))
}

fn spec() -> Result<ProcessSpec, AnyError> {
    let policy = Policy::preset("workspace-write", &PresetContext::here()?)?;
    let command = [
        "sh",
        "-c",
        "wc -w; echo x 2>/dev/null >/etc/provost-probe; exit 3",
    ];
    let mut spec = ProcessSpec::new(command, std::env::current_dir()?, policy);
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec.stdin = StdinSpec::Pipe;
    Ok(spec)
}

/// A daemon, which is a process like any other: up when it says so.
async fn serve(supervisor: &Supervisor, socket: &Path) -> Result<ProcessHandle, AnyError> {
    let beside: PathBuf = std::env::current_exe()?.with_file_name("provost");
    let program = if beside.is_file() {
        beside
    } else {
        "provost".into()
    };
    let words = [
        program.as_os_str(),
        "serve".as_ref(),
        "--socket".as_ref(),
        socket.as_os_str(),
    ];
    let mut spec = ProcessSpec::new(words, std::env::current_dir()?, Policy::unconfined());
    spec.env = std::env::vars_os().collect();
    let daemon = supervisor.spawn(spec).await?;
    let mut events = daemon.events();
    let mut said = String::new();
    while let Some(event) = events.next().await? {
        if let EventBody::Output { data, .. } = event.body {
            said.push_str(&String::from_utf8_lossy(&data));
            if said.contains("listening on") {
                return Ok(daemon);
            }
        }
    }
    Err(format!("no daemon could be started:\n{said}").into())
}
