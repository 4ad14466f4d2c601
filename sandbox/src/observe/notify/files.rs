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
use super::paths::{Kind, Moot, Resolved, View};
use super::{Call, Decided, Decider};
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
        let judged = self.judge(call, access).open(self.setup.observe_reads);
        call.inferred(judged)
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
        Judge { call, access, masked }
    }
}

impl Call<'_> {
    fn inferred(&self, judged: Judged) -> Decided {
        let mut decided = Decided::CONTINUE;
        // Not valid: what was looked up may have been another's.
        if let Ok(Some(refused)) = judged
            && self.is_valid()
        {
            decided.observation = Some(self.denial(
                DenialClass::Filesystem,
                refused.operation,
                refused.errno,
                DenialTarget::path(refused.path.to_string_lossy()),
                refused.rule,
                Certainty::Inferred,
            ));
        }
        decided
    }
}

/// One call before the policy.
struct Judge<'a> {
    call: Call<'a>,
    access: &'a AccessMap,
    masked: &'a [PathBuf],
}

impl Judge<'_> {
    fn open(&self, observe_reads: bool) -> Judged {
        let (directory, path, flags) = match self.call.name {
            "open" => (libc::AT_FDCWD, 0, self.call.int(1)),
            "creat" => (libc::AT_FDCWD, 0, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC),
            "openat" => (self.call.int(0), 1, self.call.int(2)),
            // struct open_how begins with the flags.
            "openat2" => {
                let flags = memory::read_u64(self.call.tid(), self.call.arg(2)).map_err(|_| Moot)?;
                (self.call.int(0), 1, flags as i32)
            }
            _ => return Err(Moot),
        };
        if flags & libc::O_PATH != 0 {
            return Ok(None);
        }
        let creates = flags & libc::O_CREAT != 0;
        let exclusive = creates && flags & libc::O_EXCL != 0;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        let follow = !exclusive && flags & libc::O_NOFOLLOW == 0;
        let resolved = self.resolve(directory, path, follow)?;
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            let unnamed = resolved.path.join("#");
            return Ok(self
                .refused("create", FileAccess::Create, &unnamed)
                .map(|refused| Refused {
                    path: resolved.path,
                    ..refused
                }));
        }
        Ok(match resolved.kind {
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
        })
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
        View::open(self.call.tid()).map_err(|_| Moot)
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
