//! What is got ready while the spawner starts: the audit feed, and the sandbox of the process that comes first.
//!
//! The sandbox is compiled for a guess at what the spawner will find. A guess that does not come true costs time and
//! nothing else: the sandbox is compiled again.

use std::sync::Arc;

use provost_sandbox::compile::{CompileContext, CompileError, PreparedSandbox, compile};
use provost_sandbox::kernel::{KernelSupport, Probe};
use provost_sandbox::observe::audit::{AuditSource, AuditUnavailable};
use provost_sandbox::policy::{Limits, Policy};
use provost_sandbox::tempfile::TempDir;

use crate::spec::ProcessSpec;

/// The process that will come first, as far as its sandbox is concerned.
#[derive(Debug, Clone)]
pub struct Expected {
    pub(crate) policy: Arc<Policy>,
    pub(crate) context: CompileContext,
}

impl Expected {
    /// Expects a process with this spec.
    pub fn from_spec(spec: &ProcessSpec) -> Self {
        Self {
            policy: spec.policy.clone(),
            context: compile_context(spec),
        }
    }
}

/// What its policy is compiled for.
pub(crate) fn compile_context(spec: &ProcessSpec) -> CompileContext {
    let value = |name: &str| {
        let found = spec.env.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.into())
    };
    let program = spec.argv.first().map(std::path::Path::new);
    CompileContext {
        cwd: spec.cwd.clone(),
        home: value("HOME"),
        program: program
            .filter(|program| program.components().count() > 1)
            .map(|program| spec.cwd.join(program)),
        observe_reads: spec.observe_reads,
    }
}

/// A compiled sandbox and what it was compiled from.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) policy: Arc<Policy>,
    pub(crate) context: CompileContext,
    pub(crate) sandbox: Arc<PreparedSandbox>,
    /// Removed when this is dropped: with the tree, or when another sandbox takes its place.
    _temp: Option<TempDir>,
}

impl Prepared {
    pub(crate) fn compile(
        policy: Arc<Policy>,
        context: CompileContext,
        kernel: &KernelSupport,
    ) -> Result<Self, CompileError> {
        let mut sandbox = compile(&policy, kernel, &context)?;
        let temp = sandbox.take_temp_directory();
        Ok(Self {
            policy,
            context,
            sandbox: Arc::new(sandbox),
            _temp: temp,
        })
    }
}

/// A sandbox for a kernel that was guessed at.
#[derive(Debug)]
pub(crate) struct Guessed {
    guess: KernelSupport,
    sandbox: Prepared,
}

impl Guessed {
    /// The sandbox, if the guess came true.
    pub(crate) fn sandbox_for(self, kernel: &KernelSupport) -> Option<Prepared> {
        self.guess.decides_like(kernel).then_some(self.sandbox)
    }
}

/// What is ready already.
#[derive(Debug)]
pub(crate) struct HeadStart {
    audit: Result<AuditSource, AuditUnavailable>,
    guessed: Option<Guessed>,
}

impl HeadStart {
    /// Gets ready what a confined process will need; nothing for another one. Blocks, as compiling does.
    pub(crate) fn take(expected: Expected) -> Option<Self> {
        if !expected.policy.confined {
            return None;
        }
        let audit = AuditSource::open(None);
        let guessed = guess(expected, audit.is_ok());
        Some(Self { audit, guessed })
    }

    /// The feed, or why there is none, and the sandbox.
    pub(crate) fn split(self) -> (Result<AuditSource, AuditUnavailable>, Option<Guessed>) {
        (self.audit, self.guessed)
    }
}

fn guess(Expected { policy, context }: Expected, audit: bool) -> Option<Guessed> {
    if policy.limits != Limits::default() {
        return None; // what these become depends on more than is guessed
    }
    let mut guess = KernelSupport::usual();
    if audit {
        guess.audit = Probe::Yes;
    }
    // An error will be told when it is no guess any more.
    let sandbox = Prepared::compile(policy, context, &guess).ok()?;
    Some(Guessed { guess, sandbox })
}
