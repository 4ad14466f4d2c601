//! One supervised tree, as the spawner sees it.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use uuid::Uuid;

use super::Step;
use super::cgroup::Group;
use super::image::{Descriptors, Image};
use super::init::{self, InitMessage, MESSAGE_WORDS, ORDER_WORDS};
use super::oom::OomScore;
use super::packet;
use super::program::{Program, Unwritten};
use super::sys::{self, CloneArgs};
use super::warm;
use super::wire::{LimitHits, SignalScope, SpawnRequest, Stdin, Usage};
use crate::extras::{self, Extras, READY_FD, REPORT_FD, ReadyBy};
use crate::report::Containment;

/// Room in each output pipe; the kernel gives less to users who hold many.
const PIPE_BYTES: i32 = 256 * 1024;

/// A tree from the fork of its init until nothing of it lives.
pub(super) struct Tree {
    pub(super) process: Uuid,
    pub(super) init_pid: i32,
    pub(super) control: OwnedFd,
    /// It was made ahead and waits for an order: where to write what it is to execute.
    pub(super) waiting: Option<Program>,
    /// The supervisor's ends, until there is an account of it.
    pub(super) ours: Option<SupervisorEnds>,
    /// The command's pid, once it runs.
    pub(super) command: Option<i32>,
    /// How the command ended is known.
    pub(super) exited: bool,
    /// The spawner waits for what comes over `control`.
    pub(super) watched: bool,
    pub(super) empty: Option<(u64, Usage)>,
    pub(super) init_reaped: bool,
    /// It could not be started.
    pub(super) failed: bool,
    /// Why it could not go on; told when nothing of it lives.
    pub(super) refused: Option<Failure>,
    /// How many had to be killed, as far as that was seen without its init: at least this many.
    pub(super) killed: Killed,
    pub(super) containment: Containment,
    pub(super) groups: Vec<Group>,
}

/// Two ways of counting the same.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Killed {
    /// Members of its group when that was killed.
    pub(super) in_group: u64,
    /// Members that became our children and that we reaped.
    pub(super) reaped: u64,
}

/// The ends of pipes that the supervisor gets.
pub(super) struct SupervisorEnds {
    /// stdout and stderr; none where the command has a terminal, whose master comes from its init.
    pub(super) output: Vec<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
    /// The place for its result.
    pub(super) report: Option<OwnedFd>,
    /// Where it is heard that it is ready.
    pub(super) ready: Option<OwnedFd>,
    /// What it says that with, where it does not have it from the beginning.
    pub(super) ready_sender: Option<OwnedFd>,
}

/// What every spawn uses.
pub(super) struct Fixed {
    /// `/dev/null`, open for reading and writing.
    pub(super) null: File,
    /// `/proc` as the spawner sees it.
    pub(super) proc: File,
    /// The highest capability that the kernel knows.
    pub(super) last_capability: u32,
    /// The host's own soft limit on descriptors.
    pub(super) descriptors_soft: Option<u64>,
    /// The spawner's own place in line when memory runs out.
    pub(super) oom: OomScore,
}

/// Why a tree was not started.
pub(super) type Failure = (Step, i32, u32);

impl Tree {
    /// Starts a command. What its init then says comes over `control`.
    pub(super) fn start(
        request: SpawnRequest,
        fds: Vec<OwnedFd>,
        fixed: &Fixed,
    ) -> Result<Self, Failure> {
        let mut program = room(Program::bytes(&request))?;
        program
            .write(&request)
            .map_err(|_| (Step::Exec, libc::EINVAL, 0))?;
        Self::fork(request, (program, false), fds, fixed)
    }

    /// Makes a tree that waits for [`Self::go`] before it executes anything.
    pub(super) fn make_ahead(
        request: SpawnRequest,
        fds: Vec<OwnedFd>,
        fixed: &Fixed,
    ) -> Result<Self, Failure> {
        let program = room(warm::PROGRAM_BYTES)?;
        Self::fork(request, (program, true), fds, fixed)
    }

    /// Lets a tree that was made ahead execute this request's program. Otherwise it goes on waiting.
    pub(super) fn go(&mut self, request: &SpawnRequest) -> Result<(), Unwritten> {
        if let Some(program) = &mut self.waiting {
            program.write(request)?;
            self.waiting = None;
            self.process = request.process;
            // An init that hears nothing is dead, which is noticed elsewhere.
            self.order(init::GO, 0);
        }
        Ok(())
    }

    fn fork(
        request: SpawnRequest,
        (program, waits): (Program, bool),
        mut fds: Vec<OwnedFd>,
        fixed: &Fixed,
    ) -> Result<Self, Failure> {
        let no_pipe =
            |error: io::Error| (Step::Descriptors, error.raw_os_error().unwrap_or(libc::EMFILE), 0);
        let rulesets = request.rulesets as usize;
        let wanted = rulesets + usize::from(request.stdin == Stdin::Given);
        if fds.len() != wanted {
            // The kernel leaves out those for which there is no room.
            let errno = if fds.len() < wanted {
                libc::EMFILE
            } else {
                libc::EBADF
            };
            return Err((Step::Descriptors, errno, fds.len() as u32));
        }
        let given = fds.split_off(rulesets).pop();
        let (stdin, stdin_writer) = match (request.stdin, given) {
            (Stdin::Given, Some(fd)) => (Some(fd), None),
            (Stdin::Pipe, _) => {
                let (reader, writer) = pipe().map_err(no_pipe)?;
                set_nonblocking(&writer).map_err(no_pipe)?;
                (Some(reader), Some(writer))
            }
            _ => (None, None),
        };
        let (mut output, mut writers) = (Vec::new(), Vec::new());
        if !matches!(request.stdin, Stdin::Terminal(_)) {
            for _ in ["stdout", "stderr"] {
                let (reader, writer) = output_pipe().map_err(no_pipe)?;
                output.push(reader);
                writers.push(writer);
            }
        }
        let (control, init_control) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|errno| no_pipe(errno.into()))?;
        let (mut report, mut ready, mut ready_writer, mut ready_sender) = (None, None, None, None);
        let mut init_control = init_control;
        if request.extras != Extras::default() {
            // The command still needs it when the numbers below are taken.
            init_control = extras::above(init_control).map_err(no_pipe)?;
        }
        if request.extras.report {
            let place = extras::place().and_then(extras::above);
            report = Some(place.map_err(no_pipe)?);
        }
        match request.extras.ready {
            ReadyBy::Nothing => {}
            ReadyBy::Fd => {
                let (reader, writer) = pipe().map_err(no_pipe)?;
                set_nonblocking(&reader).map_err(no_pipe)?;
                ready = Some(reader);
                ready_writer = Some(extras::above(writer).map_err(no_pipe)?);
            }
            ReadyBy::Notify => {
                let (receiver, sender) = extras::ready_sockets().map_err(no_pipe)?;
                (ready, ready_sender) = (Some(receiver), Some(sender));
            }
        }
        let handed = [(&report, REPORT_FD), (&ready_writer, READY_FD)];
        let handed = handed
            .into_iter()
            .filter_map(|(fd, to)| Some((fd.as_ref()?.as_raw_fd(), to)));
        let handed = handed.collect();
        let plan = &request.plan;
        let groups = plan
            .cgroups
            .iter()
            .map(|group| Group::create(group, request.process))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| (Step::Cgroup, error.raw_os_error().unwrap_or(libc::EIO), 0))?;
        let (process, flags) = (request.process, clone_flags(&request));
        let containment = plan.containment;
        let or_null = |fd: Option<&OwnedFd>| fd.map_or(fixed.null.as_raw_fd(), AsRawFd::as_raw_fd);
        let descriptors = Descriptors {
            stdio: [stdin.as_ref(), writers.first(), writers.get(1)].map(or_null),
            control: init_control.as_raw_fd(),
            proc: fixed.proc.as_raw_fd(),
            rulesets: fds.iter().map(AsRawFd::as_raw_fd).collect(),
            extras: handed,
        };
        let mut image = Image::new(request, (program, waits), descriptors, fixed).ok_or((
            Step::Exec,
            libc::EINVAL,
            0,
        ))?;
        let (init_pid, in_group) = fork_init(&mut image, flags, &groups, &fixed.oom)?;
        let tree = Self {
            process,
            init_pid,
            control,
            waiting: waits.then_some(image.program),
            ours: Some(SupervisorEnds {
                output,
                stdin: stdin_writer,
                report,
                ready,
                ready_sender,
            }),
            command: None,
            exited: false,
            watched: true,
            empty: None,
            init_reaped: false,
            failed: false,
            refused: None,
            killed: Killed::default(),
            containment,
            groups,
        };
        tree.join_groups(in_group)?;
        Ok(tree)
    }

    /// How often its limits held it back.
    pub(super) fn limit_hits(&self) -> LimitHits {
        let mut all = LimitHits::default();
        for hits in self.groups.iter().map(Group::hits) {
            all.out_of_memory += hits.out_of_memory;
            all.tasks += hits.tasks;
            all.unknown |= hits.unknown;
        }
        all
    }

    /// Groups that the init is not in from the start are joined by pid while it waits: v1 groups always.
    fn join_groups(&self, in_unified: bool) -> Result<(), Failure> {
        let mut waiting = false;
        for group in self.groups.iter().filter(|group| !(group.unified && in_unified)) {
            waiting = true;
            if let Err(error) = group.join(self.init_pid) {
                let _ = sys::kill(self.init_pid, libc::SIGKILL);
                let _ = sys::wait(self.init_pid, 0);
                return Err((Step::Cgroup, error.raw_os_error().unwrap_or(libc::EIO), 1));
            }
        }
        if waiting && !self.order(init::GO, 0) {
            self.kill_init();
        }
        Ok(())
    }

    /// Reads what the init says. `None` when there is nothing (any more).
    pub(super) fn hear(&self) -> Option<(InitMessage, Vec<OwnedFd>)> {
        let mut bytes = [const { MaybeUninit::uninit() }; MESSAGE_WORDS * 8];
        let packet = packet::receive(self.control.as_raw_fd(), &mut bytes, libc::MSG_DONTWAIT).ok()?;
        if packet.bytes.len() != MESSAGE_WORDS * 8 {
            return None;
        }
        let mut words = [0u64; MESSAGE_WORDS];
        for (word, chunk) in words.iter_mut().zip(packet.bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().ok()?);
        }
        Some((
            InitMessage::decode(words)?,
            packet.fds.into_iter().flatten().collect(),
        ))
    }

    /// Sends a signal; to a tree that is gone it goes nowhere.
    pub(super) fn signal(&self, signal: i32, scope: SignalScope) {
        let whom = match scope {
            SignalScope::Leader => init::TO_LEADER,
            SignalScope::Group => init::TO_GROUP,
            SignalScope::Tree => init::TO_TREE,
        };
        let _ = self.order(whom, signal);
    }

    /// Kills everything in it, by the strongest means there are.
    pub(super) fn kill(&mut self) {
        if self.kill_group() {
            return;
        }
        // Before the command runs its init may hang where the kernel waits for a file system, and hears nothing.
        if self.command.is_none() || !self.order(init::KILL_TREE, 0) {
            self.kill_init();
        }
    }

    /// Kills the init, and with a PID namespace everything else. Without one the rest become our children.
    pub(super) fn kill_init(&self) {
        if !self.init_reaped {
            let _ = sys::kill(self.init_pid, libc::SIGKILL);
        }
    }

    /// Kills everything without asking the init.
    pub(super) fn destroy(&mut self) {
        self.kill_group();
        self.kill_init();
    }

    fn kill_group(&mut self) -> bool {
        let Some(group) = self.groups.iter().find(|group| group.unified) else {
            return false;
        };
        let members = group.members();
        let killed = group.kill().is_ok();
        if killed {
            let members = members.saturating_sub(u64::from(!self.init_reaped));
            self.killed.in_group = self.killed.in_group.max(members);
        }
        killed
    }

    /// False when the init does not hear it.
    fn order(&self, whom: u32, signal: i32) -> bool {
        let mut bytes = [0u8; ORDER_WORDS * 4];
        bytes[..4].copy_from_slice(&whom.to_ne_bytes());
        bytes[4..].copy_from_slice(&signal.to_ne_bytes());
        // An init that was stopped does not read, and must not make us wait.
        packet::send(self.control.as_raw_fd(), &bytes, &[], libc::MSG_DONTWAIT).is_ok()
    }

    /// Whether members of it may have become our children when its init ended.
    pub(super) fn may_have_orphans(&self) -> bool {
        self.containment != Containment::PidNamespace && self.empty.is_none()
    }

    /// Its init has said that it has no child left, and that is proof enough: it is PID 1 or a subreaper, so whatever
    /// was forked in the tree was or became its child. Where there is a group, it says the same: nobody but the init is in it.
    /// Nobody need wait for the end of the init and its namespaces.
    pub(super) fn is_surely_empty(&self) -> bool {
        self.refused.is_none()
            && self.command.is_some()
            && self.exited
            && self.empty.is_some()
            && self.groups.iter().all(Group::has_init_alone)
    }

    /// Whether something of it may live although the init is gone.
    pub(super) fn is_populated(&mut self) -> bool {
        self.groups.iter_mut().any(Group::is_populated)
    }

    /// The cgroup events file, to be watched once the init is gone.
    pub(super) fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.groups.iter().find_map(Group::events).map(AsFd::as_fd)
    }
}

fn clone_flags(request: &SpawnRequest) -> u64 {
    let plan = &request.plan;
    let mut flags = libc::CLONE_PIDFD;
    if plan.containment == Containment::PidNamespace {
        flags |= libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;
    }
    if plan.user_namespace {
        flags |= libc::CLONE_NEWUSER;
    }
    if plan.net_namespace {
        flags |= libc::CLONE_NEWNET;
    }
    flags as u64
}

/// The init's pid, and whether it is in the unified group already.
fn fork_init(
    image: &mut Image,
    flags: u64,
    groups: &[Group],
    oom: &OomScore,
) -> Result<(i32, bool), Failure> {
    // A pidfd is made on the way.
    let failed = |errno| match errno {
        libc::EMFILE | libc::ENFILE => (Step::Descriptors, errno, 1),
        _ => (Step::Clone, errno, 0),
    };
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let directory = match groups.iter().find(|group| group.unified) {
        Some(group) => Some(
            group
                .open()
                .map_err(|error| (Step::Cgroup, error.raw_os_error().unwrap_or(libc::EIO), 2))?,
        ),
        None => None,
    };
    if let Some(directory) = &directory {
        args.flags |= sys::CLONE_INTO_CGROUP;
        args.cgroup = directory.as_raw_fd() as u64;
    }
    let fork = |image: &mut Image, args: &CloneArgs| {
        oom.ordinary(|| match sys::clone3(args) {
            Ok(0) => init::run(image),
            forked => forked,
        })
    };
    let mut forked = fork(image, &args);
    let mut in_group = true;
    if forked == Err(libc::ENOSYS) && directory.is_some() {
        // Then it joins as the others do, while it waits.
        image.wait_for_go = true;
        args.flags &= !sys::CLONE_INTO_CGROUP;
        args.cgroup = 0;
        in_group = false;
        forked = fork(image, &args);
    }
    let pid = forked.map_err(failed)?;
    sys::close(pidfd);
    Ok((pid, in_group))
}

fn room(bytes: usize) -> Result<Program, Failure> {
    Program::with_room(bytes).map_err(|errno| (Step::Exec, errno, 1))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe()?;
    // More room means fewer switches between writer and reader; less is no error.
    let _ = nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    set_nonblocking(&reader)?;
    Ok((reader, writer))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(())
}
