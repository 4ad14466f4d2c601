//! Builder → Supervisor.

use std::path::PathBuf;

use provost_actors::{Expected, Keeping, LaunchedSpawner, StartError, Tree};
#[cfg(feature = "cli")]
use provost_sandbox::keeper::ForkedSpawner;
use provost_sandbox::spawn::SpawnerSource;

use crate::handle::Embedded;
use crate::{ProcessSpec, Supervisor};

/// How an embedded supervisor is to be started.
#[derive(Debug, Default)]
pub struct Builder {
    spawner: SpawnerSource,
    thorough: bool,
    launched: Option<LaunchedSpawner>,
    expected: Option<Expected>,
    keeping: Option<Keeping>,
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

    /// A process that will come first: what its sandbox needs is got ready while the spawner starts.
    #[must_use]
    pub fn expect(mut self, spec: &ProcessSpec) -> Self {
        self.expected = Some(Expected::from_spec(spec));
        self
    }

    /// Processes survive this one: in this state directory, with a keeper instead of a spawner.
    pub(crate) fn keeping(mut self, keeping: Keeping) -> Self {
        self.keeping = Some(keeping);
        self
    }

    fn launch_now(&self) -> Result<LaunchedSpawner, StartError> {
        match &self.keeping {
            Some(keeping) => keeping.keeper(),
            None => LaunchedSpawner::launch(&self.spawner, self.thorough),
        }
    }

    /// Launches the spawner at once, so that it gets ready while the host does other things before
    /// [`Builder::start`]. Say first which executable it is.
    ///
    /// # Errors
    /// No executable can serve as the spawner, or it cannot be started.
    pub fn launch(mut self) -> Result<Self, StartError> {
        self.launched = Some(self.launch_now()?);
        Ok(self)
    }

    /// The same with a spawner that was forked when this program began.
    #[cfg(feature = "cli")]
    pub(crate) fn forked(mut self, forked: ForkedSpawner) -> Result<Self, StartError> {
        self.launched = Some(LaunchedSpawner::forked(forked, self.thorough)?);
        Ok(self)
    }

    /// Starts the spawner and the supervision tree.
    ///
    /// # Errors
    /// No executable can serve as the spawner, or it cannot be started.
    pub async fn start(self) -> Result<Supervisor, StartError> {
        let spawner = match self.launched {
            Some(spawner) => spawner,
            None => self.launch_now()?,
        };
        let tree = Tree::start(spawner, self.expected, self.keeping).await?;
        Ok(Supervisor::embedded(Embedded::new(tree)))
    }
}
