//! Runs one command in a sandbox and prints what became of it: `cargo run -p provost-examples --bin embed`.

use provost::{EventBody, Policy, PresetContext, ProcessSpec, Supervisor};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    // This executable can be the spawner: nothing else needs to be installed.
    provost::run_spawner_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Error> {
    let supervisor = Supervisor::builder().start().await?;
    let policy = Policy::preset("workspace-write", &PresetContext::here()?)?;
    let command = ["sh", "-c", "echo hello; echo x > /etc/provost-probe"];
    let process = supervisor
        .spawn(ProcessSpec::new(command, std::env::current_dir()?, policy))
        .await?;
    let mut events = process.events_paced();
    while let Some(event) = events.next().await? {
        match event.body {
            EventBody::Output { stream, data, .. } => {
                print!("{stream}: {}", String::from_utf8_lossy(&data));
            }
            EventBody::Denial(denial) => println!("refused: {} {:?}", denial.operation, denial.target),
            EventBody::Terminal { record } => {
                println!("{:?}, denied: {}", record.outcome, record.denied)
            }
            _ => {}
        }
    }
    Ok(())
}
