//! `provost serve`: the daemon in the foreground.

use std::os::fd::AsFd;
use std::path::PathBuf;

use provost_sandbox::keeper::settle_in_leaf;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use super::CliResult;
use super::args::ServeArgs;
use crate::Supervisor;
use crate::daemon::{Broker, Daemon, Settings, become_instance};

pub(super) fn run(args: ServeArgs) -> CliResult {
    if let Some(uid) = args.instance_of {
        return Err(format!("cannot become uid {uid}: {}", become_instance(uid)));
    }
    settle_in_leaf();
    // Before there are threads: the spawner is a fork of this program.
    let supervisor = Supervisor::builder()
        .launch()
        .map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(async {
        let supervisor = supervisor.start().await.map_err(|error| error.to_string())?;
        let daemon = Daemon::new(&supervisor, Settings::default()).map_err(|error| error.to_string())?;
        if args.instance {
            let control = std::io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .map_err(|error| error.to_string())?;
            daemon.serve_instance(control).await;
            return Ok(0);
        }
        if args.stdio {
            daemon
                .serve_streams(tokio::io::stdin(), tokio::io::stdout())
                .await;
            daemon.stop_now().await;
            return Ok(0);
        }
        let path = match args.socket {
            Some(path) => path,
            None => default_socket()?,
        };
        let listener = UnixListener::bind(&path)
            .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
        super::output::note(&format!("listening on {}", path.display()));
        let stopper = daemon.clone();
        let mut term = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let mut int = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            stopper.stop();
        });
        if nix::unistd::geteuid().is_root() {
            let executable = std::env::current_exe().map_err(|error| error.to_string())?;
            Broker::new(daemon, executable).serve(listener).await;
        } else {
            daemon.serve(listener).await;
        }
        let _ = std::fs::remove_file(&path);
        Ok(0)
    })
}

/// Where the daemon of this user listens.
pub(super) fn default_socket() -> Result<PathBuf, String> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/run/provost/provost.sock".into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|path| path.is_absolute());
    runtime
        .map(|path| path.join("provost/provost.sock"))
        .ok_or_else(|| {
            "XDG_RUNTIME_DIR is not set; say where with --socket PATH or PROVOST_SOCKET".to_owned()
        })
}
