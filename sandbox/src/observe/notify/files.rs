//! Opens and directory changes: observed, and judged by the policy for the record. Landlock enforces, so the
//! answer is always to continue.
//!
//! A denial from here is *inferred*: the paths are read while the target may change them, and a call that
//! plain file permissions refuse anyway is recorded as well if the policy refuses it. What fails because
//! something does not exist, or exists already, is no denial.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::address::{SocketAddress, UnixName};
use super::memory;
use super::opening::HeldOpen;
use super::paths::{Kind, Moot, Resolved, View};
use super::{Answer, Call, Decided, Decider, Observation, Question, ask};
use crate::compile::access::{AccessMap, FileAccess};
use crate::denial::{Certainty, DenialClass, DenialTarget};
use crate::syscalls::Entry;

const RENAME_NOREPLACE: i32 = 1;
const RENAME_EXCHANGE: i32 = 2;

/// What the policy refuses.
struct Refused {
    operation: &'static str,
    path: PathBuf,
    rule: String,
    errno: Errno,
}

/// A refusal, nothing to say, or a call that will fail anyway.
type Judged = Result<Option<Refused>, Moot>;

impl Decider {
    pub(super) fn open(&self, call: Call<'_>) -> Decided {
        let Some(access) = &self.setup.access else {
            return Decided::CONTINUE;
        };
        let judge = self.judge(call, access);
        let Ok(opening) = judge.opening() else {
            return Decided::CONTINUE;
        };
        let refused = judge.open(&opening, self.setup.observe_reads);
        if let (Some(refused), true) = (&refused, self.setup.ask.files)
            && let Some(decided) = self.ask_to_open(&judge, &opening, refused)
        {
            return decided;
        }
        call.inferred(Ok(refused))
    }

    /// What no rule speaks about is asked about, where it can be opened on the target's behalf.
    fn ask_to_open(&self, judge: &Judge<'_>, opening: &Opening, refused: &Refused) -> Option<Decided> {
        let (kind, access) = match refused.operation {
            "create" if opening.flags & libc::O_TMPFILE != libc::O_TMPFILE => {
                (Kind::Absent, FileAccess::Create)
            }
            "write" => (Kind::Other, FileAccess::Write),
            "open" => (Kind::Other, FileAccess::Read),
            _ => return None,
        };
        let askable = opening.resolved.kind == kind
            && opening.resolve == 0
            && judge.access.is_asked(&refused.path, access);
        if !askable {
            return None;
        }
        let view = judge.view().ok()?;
        let exists = kind == Kind::Other;
        let held = HeldOpen::hold(&view, &refused.path, exists, opening.flags, opening.mode)?;
        let call = judge.call;
        if !call.is_valid() {
            return None;
        }
        let grant = ask::file_grant(&refused.path, access != FileAccess::Read);
        if self.is_granted(&grant) {
            return Some(Decided {
                answer: Answer::Open(held),
                observation: None,
            });
        }
        let denial = call.denial(
            DenialClass::Filesystem,
            refused.operation,
            refused.errno,
            DenialTarget::path(refused.path.to_string_lossy()),
            refused.rule.clone(),
            Certainty::Observed,
        );
        Some(Decided::ask(Question::open(
            denial,
            refused.errno as i32,
            grant,
            held,
        )))
    }

    /// A bind that may make a socket's file: observed as any new name is.
    pub(super) fn socket_file(&self, call: Call<'_>) -> Decided {
        let Some(access) = &self.setup.access else {
            return Decided::CONTINUE;
        };
        let copied = SocketAddress::copy(call.tid(), call.arg(1), call.int(2));
        let Ok(Ok(UnixName::Path(path))) = copied.map(|address| address.unix()) else {
            return Decided::CONTINUE;
        };
        let judged = self.judge(call, access).create_at("bind", libc::AT_FDCWD, &path);
        call.inferred(judged)
    }

    pub(super) fn directory_change(&self, call: Call<'_>, entry: &Entry) -> Decided {
        if entry.makes_device(&call.notification.args) {
            return call.refuse_syscall(Errno::EPERM, &format!("{}(device)", call.name), entry.reason);
        }
        let Some(access) = &self.setup.access else {
            return Decided::CONTINUE;
        };
        let judged = self.judge(call, access).directory_change();
        call.inferred(judged)
    }
}

impl Decider {
    fn judge<'a>(&'a self, call: Call<'a>, access: &'a AccessMap) -> Judge<'a> {
        let masked = &self.setup.masked;
        Judge {
            decider: self,
            call,
            access,
            masked,
        }
    }
}

impl Call<'_> {
    fn inferred(&self, judged: Judged) -> Decided {
        let mut decided = Decided::CONTINUE;
        // Not valid: what was looked up may have been another's.
        if let Ok(Some(refused)) = judged
            && self.is_valid()
        {
            decided.observation = Some(Observation::Denial(self.denial(
                DenialClass::Filesystem,
                refused.operation,
                refused.errno,
                DenialTarget::path(refused.path.to_string_lossy()),
                refused.rule,
                Certainty::Inferred,
            )));
        }
        decided
    }
}

/// One call before the policy.
struct Judge<'a> {
    decider: &'a Decider,
    call: Call<'a>,
    access: &'a AccessMap,
    masked: &'a [PathBuf],
}

/// An open, copied out of the target once, and what its path leads to.
struct Opening {
    flags: i32,
    mode: u32,
    /// `RESOLVE_*` of openat2(2).
    resolve: u64,
    resolved: Resolved,
}

impl Opening {
    fn creates(&self) -> bool {
        self.flags & libc::O_CREAT != 0
    }

    fn is_exclusive(&self) -> bool {
        self.creates() && self.flags & libc::O_EXCL != 0
    }
}

/// `struct open_how`: flags, mode, resolve.
const OPEN_HOW_WORDS: usize = 3;

impl Judge<'_> {
    fn opening(&self) -> Result<Opening, Moot> {
        let call = self.call;
        let (directory, path, flags, mode, resolve) = match call.name {
            "open" => (libc::AT_FDCWD, 0, call.int(1), call.int(2), 0),
            "creat" => {
                let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
                (libc::AT_FDCWD, 0, flags, call.int(1), 0)
            }
            "openat" => (call.int(0), 1, call.int(2), call.int(3), 0),
            "openat2" => {
                let mut bytes = [0; OPEN_HOW_WORDS * 8];
                memory::read_exact(call.tid(), call.arg(2), &mut bytes).map_err(|_| Moot)?;
                let (words, _) = bytes.as_chunks();
                let [flags, mode, resolve] = [0, 1, 2].map(|at| u64::from_ne_bytes(words[at]));
                (call.int(0), 1, flags as i32, mode as i32, resolve)
            }
            _ => return Err(Moot),
        };
        if flags & libc::O_PATH != 0 {
            return Err(Moot);
        }
        let exclusive = flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0;
        let follow = !exclusive && flags & libc::O_NOFOLLOW == 0;
        Ok(Opening {
            flags,
            mode: mode.cast_unsigned(),
            resolve,
            resolved: self.resolve(directory, path, follow)?,
        })
    }

    fn open(&self, opening: &Opening, observe_reads: bool) -> Option<Refused> {
        let Opening { flags, resolved, .. } = opening;
        let (creates, exclusive) = (opening.creates(), opening.is_exclusive());
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            let unnamed = resolved.path.join("#");
            return self
                .refused("create", FileAccess::Create, &unnamed)
                .map(|refused| Refused {
                    path: resolved.path.clone(),
                    ..refused
                });
        }
        match resolved.kind {
            Kind::Absent if creates => self.refused("create", FileAccess::Create, &resolved.path),
            Kind::Absent | Kind::Symlink => None,
            Kind::Directory => None,
            Kind::Other | Kind::Unknown if exclusive => None,
            Kind::Other | Kind::Unknown if writes => {
                self.refused("write", FileAccess::Write, &resolved.path)
            }
            Kind::Other | Kind::Unknown if observe_reads => {
                self.refused("open", FileAccess::Read, &resolved.path)
            }
            Kind::Other | Kind::Unknown => None,
        }
    }

    fn directory_change(&self) -> Judged {
        const HERE: i32 = libc::AT_FDCWD;
        let call = self.call;
        match call.name {
            "mkdir" => self.create("mkdir", HERE, 0),
            "mkdirat" => self.create("mkdir", call.int(0), 1),
            "mknod" => self.create("mknod", HERE, 0),
            "mknodat" => self.create("mknod", call.int(0), 1),
            "symlink" => self.create("symlink", HERE, 1),
            "symlinkat" => self.create("symlink", call.int(1), 2),
            "unlink" => self.remove("unlink", HERE, 0),
            "unlinkat" if call.int(2) & libc::AT_REMOVEDIR != 0 => self.remove("rmdir", call.int(0), 1),
            "unlinkat" => self.remove("unlink", call.int(0), 1),
            "rmdir" => self.remove("rmdir", HERE, 0),
            "truncate" => self.truncate(),
            "rename" => self.rename((HERE, 0), (HERE, 1), 0),
            "renameat" => self.rename((call.int(0), 1), (call.int(2), 3), 0),
            "renameat2" => self.rename((call.int(0), 1), (call.int(2), 3), call.int(4)),
            "link" => self.link((HERE, 0), (HERE, 1), 0),
            "linkat" => self.link((call.int(0), 1), (call.int(2), 3), call.int(4)),
            _ => Ok(None),
        }
    }

    fn create(&self, operation: &'static str, directory: i32, path: usize) -> Judged {
        let path = memory::read_path(self.call.tid(), self.call.arg(path)).map_err(|_| Moot)?;
        self.create_at(operation, directory, &path)
    }

    fn create_at(&self, operation: &'static str, directory: i32, path: &[u8]) -> Judged {
        let resolved = self.resolve_path(directory, path, false)?;
        Ok(match resolved.kind {
            // EEXIST, before anybody asks for rights.
            Kind::Directory | Kind::Symlink | Kind::Other => None,
            Kind::Absent | Kind::Unknown => self.refused(operation, FileAccess::Create, &resolved.path),
        })
    }

    fn remove(&self, operation: &'static str, directory: i32, path: usize) -> Judged {
        let resolved = self.resolve(directory, path, false)?;
        Ok(match (resolved.kind, operation) {
            (Kind::Absent, _) | (Kind::Directory, "unlink") | (Kind::Other | Kind::Symlink, "rmdir") => {
                None
            }
            _ => self.refused(operation, FileAccess::Remove, &resolved.path),
        })
    }

    fn truncate(&self) -> Judged {
        let resolved = self.resolve(libc::AT_FDCWD, 0, true)?;
        Ok(match resolved.kind {
            Kind::Absent | Kind::Directory => None,
            _ => self.refused("truncate", FileAccess::Write, &resolved.path),
        })
    }

    fn rename(&self, old: (i32, usize), new: (i32, usize), flags: i32) -> Judged {
        let old = self.resolve(old.0, old.1, false)?;
        let new = self.resolve(new.0, new.1, false)?;
        let exists = !matches!(new.kind, Kind::Absent | Kind::Unknown);
        if old.kind == Kind::Absent
            || old.path == new.path
            || flags & RENAME_NOREPLACE != 0 && exists
            || flags & RENAME_EXCHANGE != 0 && new.kind == Kind::Absent
        {
            return Ok(None);
        }
        Ok(self
            .refused("rename", FileAccess::Remove, &old.path)
            .or_else(|| self.refused("rename", FileAccess::Create, &new.path)))
    }

    fn link(&self, old: (i32, usize), new: (i32, usize), flags: i32) -> Judged {
        let old = match flags & libc::AT_EMPTY_PATH {
            0 => self.resolve(old.0, old.1, flags & libc::AT_SYMLINK_FOLLOW != 0)?,
            _ => self.resolve_or_descriptor(old)?,
        };
        let new = self.resolve(new.0, new.1, false)?;
        if matches!(old.kind, Kind::Absent | Kind::Directory)
            || !matches!(new.kind, Kind::Absent | Kind::Unknown)
        {
            return Ok(None);
        }
        if let Some(refused) = self.refused("link", FileAccess::Create, &new.path) {
            return Ok(Some(refused));
        }
        // Into another directory: Landlock takes it for a move out of one it does not let change.
        let moved = old.path.parent() != new.path.parent();
        Ok(moved
            .then(|| self.refused("link", FileAccess::Remove, &old.path))
            .flatten()
            .map(|refused| Refused {
                errno: Errno::EXDEV,
                ..refused
            }))
    }

    fn resolve(&self, directory: i32, path: usize, follow_last: bool) -> Result<Resolved, Moot> {
        let path = memory::read_path(self.call.tid(), self.call.arg(path)).map_err(|_| Moot)?;
        self.resolve_path(directory, &path, follow_last)
    }

    fn resolve_path(&self, directory: i32, path: &[u8], follow_last: bool) -> Result<Resolved, Moot> {
        let view = self.view()?;
        match view.resolve(directory, path, follow_last) {
            // What is behind a mask is hidden from the lookup; the target is refused before it can be missing.
            Ok(found) if found.kind == Kind::Absent && self.is_masked(&found.path) => Ok(Resolved {
                kind: Kind::Unknown,
                ..found
            }),
            Err(Moot) => {
                let path = view.plain(directory, path).ok_or(Moot)?;
                let kind = Kind::Unknown;
                self.is_masked(&path)
                    .then_some(Resolved { path, kind })
                    .ok_or(Moot)
            }
            found => found,
        }
    }

    /// Below a directory that a mount covers.
    fn is_masked(&self, path: &Path) -> bool {
        self.masked
            .iter()
            .any(|mask| path.starts_with(mask) && path != mask)
    }

    fn resolve_or_descriptor(&self, (directory, path): (i32, usize)) -> Result<Resolved, Moot> {
        let text = memory::read_path(self.call.tid(), self.call.arg(path)).map_err(|_| Moot)?;
        let view = self.view()?;
        if !text.is_empty() {
            return view.resolve(directory, &text, false);
        }
        let path = view.descriptor(directory).map_err(|_| Moot)?;
        if !path.is_absolute() {
            return Err(Moot);
        }
        Ok(Resolved {
            path,
            kind: Kind::Unknown,
        })
    }

    fn view(&self) -> Result<View, Moot> {
        self.decider.view(self.call).map_err(|_| Moot)
    }

    fn refused(&self, operation: &'static str, access: FileAccess, path: &Path) -> Option<Refused> {
        let verdict = self.access.decide(path, access);
        (!verdict.allowed).then(|| Refused {
            operation,
            path: path.to_owned(),
            rule: verdict.rule,
            errno: Errno::EACCES,
        })
    }
}
