//! Builder → Supervisor.

use std::path::PathBuf;
use std::sync::Arc;

use provost_actors::{StartError, Tree};
use provost_sandbox::spawn::SpawnerSource;

use crate::Supervisor;

/// How a supervisor is to be started.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    spawner: SpawnerSource,
    thorough: bool,
}

impl Builder {
    /// The executable that serves as the spawner: a `provost`, or a program whose `main` begins with
    /// [`crate::run_spawner_if_asked`]. By default this program itself if it has that line, else `provost`
    /// beside it, else `provost` in PATH.
    #[must_use]
    pub fn spawner(mut self, executable: impl Into<PathBuf>) -> Self {
        self.spawner = SpawnerSource::Executable(executable.into());
        self
    }

    /// Probe also what is slow to probe, for a report about the machine.
    #[must_use]
    pub fn thorough_probes(mut self, thorough: bool) -> Self {
        self.thorough = thorough;
        self
    }

    /// Starts the spawner and the supervision tree.
    ///
    /// # Errors
    /// No executable can serve as the spawner, or it cannot be started.
    pub async fn start(self) -> Result<Supervisor, StartError> {
        let tree = Tree::start(&self.spawner, self.thorough).await?;
        Ok(Supervisor { tree: Arc::new(tree) })
    }
}
