//! The library in the test's own process: a supervisor, and specs for it.

use provost::{Policy, PresetContext, ProcessSpec, Supervisor};

use crate::{World, provost};

/// A supervisor of the test's own.
pub async fn embedded() -> Supervisor {
    let builder = Supervisor::builder().spawner(provost());
    builder.start().await.expect("a supervisor")
}

/// A shell script in the preset `workspace-write`, in the world's working directory, with nothing in its environment but `PATH`.
pub fn script(world: &World, script: &str) -> ProcessSpec {
    let context = PresetContext {
        cwd: world.work(),
        ..PresetContext::here().expect("a context")
    };
    let policy = Policy::preset("workspace-write", &context).expect("the preset");
    let mut spec = ProcessSpec::new(["sh", "-c", script], world.work(), policy);
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec
}
