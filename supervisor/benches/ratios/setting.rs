//! Where it is measured: the supervisor, the working directory, the machine, and who we are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use provost::{Policy, PresetContext, ProcessHandle, ProcessSpec, Supervisor, TerminalRecord};
use tokio::runtime::Runtime;

use crate::Result;
use crate::options::Options;

/// The executable under measurement, which is also the spawner.
pub(crate) const PROVOST: &str = env!("CARGO_BIN_EXE_provost");

/// What all measurements share.
pub(crate) struct Setting {
    pub(crate) runtime: Runtime,
    pub(crate) supervisor: Supervisor,
    /// An empty working directory of our own.
    pub(crate) cwd: tempfile::TempDir,
}

impl Setting {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.workers)
            .enable_all()
            .build()?;
        let supervisor = runtime.block_on(Supervisor::builder().spawner(PROVOST).start())?;
        Ok(Self {
            runtime,
            supervisor,
            cwd: tempfile::tempdir()?,
        })
    }

    /// Who measures, on what, and how busy it is with other things.
    pub(crate) fn describe(&self) -> String {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let namespaces = self.runtime.block_on(self.supervisor.kernel());
        format!(
            "uid {}, {processors} processors, {} worker thread(s), Linux {}, namespaces: {}, load before: {}",
            nix::unistd::getuid(),
            self.runtime.metrics().num_workers(),
            read("/proc/sys/kernel/osrelease").trim(),
            if namespaces.is_ok_and(|kernel| kernel.pid_namespace.is_yes()) {
                "yes"
            } else {
                "no"
            },
            read("/proc/loadavg").trim(),
        )
    }

    pub(crate) fn directory(&self) -> &Path {
        self.cwd.path()
    }

    /// A preset as it would be for this user in the working directory.
    pub(crate) fn policy(&self, preset: &str) -> Result<Policy> {
        let context = PresetContext {
            cwd: self.directory().canonicalize()?,
            ..PresetContext::here()?
        };
        Ok(Policy::preset(preset, &context)?)
    }

    /// A process to be, with an environment as poor as the plain side's.
    pub(crate) fn spec(&self, argv: &[&str], policy: Policy) -> ProcessSpec {
        ProcessSpec::new(argv, self.directory(), policy)
    }

    /// Runs a process to its record, which must tell of success.
    pub(crate) fn run(&self, spec: ProcessSpec) -> Result<std::sync::Arc<TerminalRecord>> {
        let process = self.start(spec)?;
        let record = self.runtime.block_on(process.record())?;
        expect_success(&record)?;
        Ok(record)
    }

    pub(crate) fn start(&self, spec: ProcessSpec) -> Result<ProcessHandle> {
        Ok(self.runtime.block_on(self.supervisor.spawn(spec))?)
    }
}

/// A measurement of something that failed would be worthless.
pub(crate) fn expect_success(record: &TerminalRecord) -> Result<()> {
    if record.succeeded {
        return Ok(());
    }
    Err(format!("{:?}: {:?}", record.outcome, record.reason).into())
}

/// A command without any supervision, in the same working directory, silent.
pub(crate) fn plain(argv: &[&str], directory: &Path) -> Result<Command> {
    let (program, arguments) = argv.split_first().ok_or("no program")?;
    #[allow(clippy::disallowed_methods)] // the other side of the comparison
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// Runs a plain command to its end.
pub(crate) fn run_plain(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {status}").into())
    }
}

/// Bubblewrap with the same kind of policy; nothing where it is not installed.
pub(crate) fn bubblewrap(directory: &Path, argv: &[&str]) -> Option<Result<Command>> {
    let bwrap = ["/usr/bin/bwrap", "/bin/bwrap"]
        .into_iter()
        .find(|path| Path::new(path).exists())?;
    let directory_words = directory.to_string_lossy();
    let flags = [
        bwrap,
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--tmpfs",
        "/tmp",
        "--bind",
        &directory_words,
        &directory_words,
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-net",
        "--die-with-parent",
        "--new-session",
    ];
    let words: Vec<&str> = flags.into_iter().chain(argv.iter().copied()).collect();
    Some(plain(&words, directory))
}

/// Measures everything again: without namespaces, and as another user.
pub(crate) fn again_as_other_users(options: &Options) -> Result<()> {
    if options.repetition {
        return Ok(());
    }
    let mut same: Vec<String> = vec![
        "--repetition".into(),
        "--workers".into(),
        options.workers.to_string(),
    ];
    same.extend(options.quick.then(|| "--quick".into()));
    same.extend(options.json.then(|| "--json".into()));
    let families = |only: Option<&String>| only.map(|only| ["--only".to_owned(), only.clone()]);
    let own = std::env::current_exe()?;
    if options.wants("spawn") {
        let only = families(Some(&"spawn".to_owned()));
        again(without_namespaces(&own), &same, only);
    }
    if let Some(user) = &options.as_user {
        let only = families(options.only.as_ref());
        again(as_user(&own, user), &same, only);
        if options.wants("spawn") {
            let only = families(Some(&"spawn".to_owned()));
            again(as_user_without_namespaces(&own, user), &same, only);
        }
    }
    Ok(())
}

fn again(words: Vec<String>, same: &[String], only: Option<[String; 2]>) {
    println!();
    let mut words = words.into_iter();
    let Some(program) = words.next() else { return };
    #[allow(clippy::disallowed_methods)] // not a supervised command but this bench once more
    let mut command = Command::new(program);
    command.args(words).args(same).args(only.into_iter().flatten());
    match command.current_dir("/").status() {
        Ok(status) if status.success() => {}
        other => eprintln!("ratios: {command:?} did not work: {other:?}"),
    }
}

/// A user namespace in which no further namespace can be made: what is left is Landlock and seccomp.
const NO_MORE_NAMESPACES: &str = "echo 0 > /proc/sys/user/max_user_namespaces && \
    exec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all \"$@\"";

fn without_namespaces(own: &Path) -> Vec<String> {
    let words = [
        "unshare",
        "-U",
        "-c",
        "--keep-caps",
        "sh",
        "-c",
        NO_MORE_NAMESPACES,
        "sh",
    ];
    words
        .into_iter()
        .map(str::to_owned)
        .chain([path_words(own)])
        .collect()
}

fn as_user(own: &Path, user: &str) -> Vec<String> {
    ["runuser", "-u", user, "--"]
        .into_iter()
        .map(str::to_owned)
        .chain([path_words(own)])
        .collect()
}

fn as_user_without_namespaces(own: &Path, user: &str) -> Vec<String> {
    let mut words = as_user(&PathBuf::new(), user);
    words.pop();
    words.extend(without_namespaces(own));
    words
}

fn path_words(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
