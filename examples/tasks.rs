//! Runs async work with a process of its own, and replaces it by newer work in the same slot:
//! `cargo run -p provost-examples --bin tasks`.

use provost::{
    AbortReason, Policy, PresetContext, ProcessSpec, Supervisor, TaskContext, TaskSpec, Tasks,
};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    // This executable can be the spawner: nothing else needs to be installed.
    provost::run_spawner_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Error> {
    let tasks = Tasks::new(Supervisor::builder().start().await?);
    let search = || TaskSpec {
        slot: Some("search".to_owned()),
        ..TaskSpec::new("search")
    };
    let (first, _) = tasks
        .start(search(), |context| look(context, "sleep 60; echo old"))
        .await?;
    // Somebody goes on typing: the first search makes room before the second begins.
    let (second, _) = tasks.start(search(), |context| look(context, "echo new")).await?;
    println!("first: {:?}", first.end().await);
    println!("second: {:?}", second.end().await);
    tasks.abort_all(AbortReason::Shutdown).await;
    Ok(())
}

async fn look(context: TaskContext, script: &'static str) -> Result<String, String> {
    context.on_abort(async |reason| println!("the search is over: {reason:?}"));
    let preset = PresetContext::here().map_err(|error| error.to_string())?;
    let policy = Policy::preset("read-only", &preset).map_err(|error| error.to_string())?;
    let mut spec = ProcessSpec::new(["sh", "-c", script], preset.cwd.clone(), policy);
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    // It ends with the task at the latest.
    let process = context.spawn(spec).await.map_err(|error| error.to_string())?;
    let record = process.record().await.map_err(|error| error.to_string())?;
    Ok(format!("{:?}", record.outcome))
}
