//! The spawner without anything around it: what of a spawn is the kernel's and the spawner's, and what the actors'.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use provost::{KernelSupport, Policy};
use provost_sandbox::compile::{CompileContext, PreparedSandbox, compile};
use provost_sandbox::keeper::wire::{Notice, Request, Stdin};
use provost_sandbox::spawn::{Command, Spawner, SpawnerSource};

use crate::Result;
use crate::setting::{PROVOST, Setting};

/// A spawner, asked directly and waited for by blocking.
pub(crate) struct BareSpawner {
    spawner: Spawner,
    kernel: KernelSupport,
    policy: Policy,
    context: CompileContext,
    sandbox: PreparedSandbox,
}

impl BareSpawner {
    pub(crate) fn new(setting: &Setting, policy: Policy) -> Result<Self> {
        let spawner = Spawner::launch(&SpawnerSource::Executable(PROVOST.into()))?;
        spawner.send(&Request::Hello { thorough: false }, &[])?;
        let Notice::Hello { support, .. } = next(&spawner)? else {
            return Err("the spawner spoke out of turn".into());
        };
        let context = CompileContext {
            cwd: setting.directory().canonicalize()?,
            ..CompileContext::default()
        };
        let sandbox = compile(&policy, &support, &context)?;
        Ok(Self {
            spawner,
            kernel: *support,
            policy,
            context,
            sandbox,
        })
    }

    /// From the request to the word that the tree is empty. Nobody answers the listener: the program may do
    /// nothing that is asked about.
    pub(crate) fn run(&mut self, argv: &[&str]) -> Result<()> {
        self.run_many(argv, 1, 1)
    }

    /// So many times, so many of them at a time.
    pub(crate) fn run_many(&mut self, argv: &[&str], times: usize, at_a_time: usize) -> Result<()> {
        for _ in 0..times.min(at_a_time) {
            self.spawn(argv)?;
        }
        let (mut spawned, mut ended) = (times.min(at_a_time), 0);
        while ended < times {
            match next(&self.spawner)? {
                Notice::Ended { .. } => {
                    ended += 1;
                    if spawned < times {
                        spawned += 1;
                        self.spawn(argv)?;
                    }
                }
                Notice::Failed { step, errno, .. } => return Err(format!("{step}: {errno}").into()),
                Notice::Exited { status, .. } if status != 0 => {
                    return Err(format!("status {status}").into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn spawn(&mut self, argv: &[&str]) -> Result<()> {
        if !self.sandbox.is_current() {
            self.sandbox = compile(&self.policy, &self.kernel, &self.context)?;
        }
        let command = Command {
            process: *provost::ProcessId::new().as_uuid(),
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: Vec::new(),
            cwd: self.context.cwd.clone(),
            extras: Default::default(),
            stdin: Stdin::Null,
        };
        let request = Request::Spawn(Box::new(command.request(&self.sandbox)));
        self.spawner.send(&request, &self.sandbox.rulesets())?;
        Ok(())
    }
}

/// The next notice. What comes with it is closed.
fn next(spawner: &Spawner) -> Result<Notice> {
    loop {
        match spawner.receive() {
            Ok(Some((notice, _descriptors))) => return Ok(notice),
            Ok(None) => return Err("the spawner ended".into()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(spawner.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
