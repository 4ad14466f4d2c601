//! Modes, owners, times and extended attributes. Landlock has no right for them and a mount would take the audit records away,
//! so every such call is decided here and, where the policy lets the file be written, performed on behalf of the target: on the
//! very file that was judged, by a descriptor, without capabilities. Nothing is ever continued.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::attributes::{Change, Held, WithoutCapabilities, change};
use super::memory::{self, Unread};
use super::{Call, Decided, Decider, Unavailable, errands};
use crate::denial::{DenialClass, DenialTarget};

/// The kernel's limits for a name and a value (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const NAME_BYTES_MAX: usize = 255;
const VALUE_BYTES_MAX: usize = 65536;

/// What a call names.
enum Named {
    /// A path, below a directory; followed at its end or not.
    Path {
        directory: i32,
        path: Vec<u8>,
        follow: bool,
    },
    /// A descriptor.
    Descriptor(i32),
}

/// The file that a call is about.
pub(super) struct Subject {
    pub(super) file: OwnedFd,
    held: Held,
    /// Where it is, unless it is nowhere (a pipe, a socket, memory).
    path: Option<std::path::PathBuf>,
}

impl Decider {
    pub(super) fn metadata(&self, call: Call<'_>) -> Decided {
        let (named, wanted) = match call.metadata() {
            Ok(wanted) => wanted,
            Err(unavailable) => return call.fail(unavailable),
        };
        let subject = match self.subject(call, &named) {
            Ok(subject) => subject,
            Err(decided) => return *decided,
        };
        if !call.is_valid() {
            return Decided::error(Errno::ESRCH);
        }
        match &subject.path {
            Some(path) if !self.setup.metadata.decide_metadata(path).allowed => {
                self.refuse_metadata(call, &subject, path, &wanted)
            }
            _ => Decided::performed(change(subject.file.as_fd(), subject.held, &wanted)),
        }
    }

    fn refuse_metadata(
        &self,
        call: Call<'_>,
        subject: &Subject,
        path: &Path,
        wanted: &Change,
    ) -> Decided {
        // These take the owner; the others take write access.
        let owners_only = matches!(
            wanted,
            Change::Mode(_) | Change::Owner { .. } | Change::Times(Some(_))
        );
        let user = nix::unistd::geteuid().as_raw();
        if owners_only && !fstat(&subject.file).is_ok_and(|stat| stat.st_uid == user) {
            // Plain permissions refuse it as well, so it is no denial.
            return Decided::error(Errno::EPERM);
        }
        self.deny_metadata(call, path)
    }

    fn deny_metadata(&self, call: Call<'_>, path: &Path) -> Decided {
        let target = DenialTarget::path(path.to_string_lossy());
        let rule = self.setup.metadata.decide_metadata(path).rule;
        call.deny(DenialClass::Filesystem, Errno::EPERM, target, rule)
    }

    /// The file behind a descriptor of the target's.
    pub(super) fn descriptor(&self, call: Call<'_>, fd: i32) -> Result<Subject, Box<Decided>> {
        if fd < 0 {
            return Err(Box::new(Decided::error(Errno::EBADF)));
        }
        let duplicated = errands::descriptor_of_thread(call.tid(), fd);
        let file = match duplicated {
            Ok(file) => file,
            Err(Errno::EBADF) => return Err(Box::new(Decided::error(Errno::EBADF))),
            Err(_) => return Err(Box::new(call.deny_unreadable())),
        };
        let view = self.view(call).map_err(|_| Box::new(call.deny_unreadable()))?;
        let path = view
            .path_of(&file)
            .map_err(|errno| Box::new(Decided::error(errno)))?;
        Ok(Subject {
            file,
            held: Held::Open,
            path,
        })
    }

    fn subject(&self, call: Call<'_>, named: &Named) -> Result<Subject, Box<Decided>> {
        match named {
            Named::Descriptor(fd) => self.descriptor(call, *fd),
            Named::Path {
                directory,
                path,
                follow,
            } => {
                let view = self.view(call).map_err(|_| Box::new(call.deny_unreadable()))?;
                // The directories on the way are asked for the command's rights, not for ours.
                let found = view.absolute(*directory, path).and_then(|path| {
                    let _plain = WithoutCapabilities::new()?;
                    view.lookup(&path, *follow)
                });
                match found {
                    Ok(found) => {
                        let mode = fstat(&found.file).map_or(0, |stat| stat.st_mode);
                        let is_symlink = mode & libc::S_IFMT == libc::S_IFLNK;
                        Ok(Subject {
                            held: Held::Path { is_symlink },
                            path: Some(found.path),
                            file: found.file,
                        })
                    }
                    Err(errno) => {
                        // What a mount covers looks missing from here, and is refused to the target.
                        let plain = view.plain(*directory, path);
                        match plain
                            .filter(|path| self.setup.masked.iter().any(|mask| path.starts_with(mask)))
                        {
                            Some(path) => Err(Box::new(self.deny_metadata(call, &path))),
                            None => Err(Box::new(Decided::error(errno))),
                        }
                    }
                }
            }
        }
    }
}

impl Call<'_> {
    /// What the call wants, with everything that it points to copied.
    fn metadata(&self) -> Result<(Named, Change), Unavailable> {
        const HERE: i32 = libc::AT_FDCWD;
        let mode = |index| Change::Mode(self.int(index).cast_unsigned() & 0o7777);
        let owner = |index| Change::Owner {
            user: self.int(index).cast_unsigned(),
            group: self.int(index + 1).cast_unsigned(),
        };
        let descriptor = || Named::Descriptor(self.int(0));
        Ok(match self.name {
            "chmod" => (self.path_at(HERE, 0, 0)?, mode(1)),
            "fchmod" => (descriptor(), mode(1)),
            "fchmodat" => (self.path_at(self.int(0), 1, 0)?, mode(2)),
            "fchmodat2" => (self.path_at(self.int(0), 1, self.int(3))?, mode(2)),
            "chown" => (self.path_at(HERE, 0, 0)?, owner(1)),
            "lchown" => (self.path_at(HERE, 0, libc::AT_SYMLINK_NOFOLLOW)?, owner(1)),
            "fchown" => (descriptor(), owner(1)),
            "fchownat" => (self.path_at(self.int(0), 1, self.int(4))?, owner(2)),
            "utime" => (self.path_at(HERE, 0, 0)?, self.times(1, Unit::Seconds)?),
            "utimes" => (self.path_at(HERE, 0, 0)?, self.times(1, Unit::Microseconds)?),
            "futimesat" | "utimensat" if self.arg(1) == 0 => (descriptor(), self.times_at()?),
            "futimesat" => (self.path_at(self.int(0), 1, 0)?, self.times_at()?),
            "utimensat" => (self.path_at(self.int(0), 1, self.int(3))?, self.times_at()?),
            "setxattr" => (self.path_at(HERE, 0, 0)?, self.attribute()?),
            "lsetxattr" => (
                self.path_at(HERE, 0, libc::AT_SYMLINK_NOFOLLOW)?,
                self.attribute()?,
            ),
            "fsetxattr" => (descriptor(), self.attribute()?),
            "removexattr" => (self.path_at(HERE, 0, 0)?, self.removed_attribute()?),
            "lremovexattr" => (
                self.path_at(HERE, 0, libc::AT_SYMLINK_NOFOLLOW)?,
                self.removed_attribute()?,
            ),
            "fremovexattr" => (descriptor(), self.removed_attribute()?),
            _ => return Err(Unavailable::Errno(Errno::ENOSYS)),
        })
    }

    fn path_at(&self, directory: i32, index: usize, flags: i32) -> Result<Named, Unavailable> {
        if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Err(Unavailable::Errno(Errno::EINVAL));
        }
        let path = memory::read_path(self.tid(), self.arg(index)).map_err(unread)?;
        if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            return Ok(match directory {
                libc::AT_FDCWD => Named::Path {
                    directory,
                    path: b".".to_vec(),
                    follow: true,
                },
                descriptor => Named::Descriptor(descriptor),
            });
        }
        Ok(Named::Path {
            directory,
            path,
            follow: flags & libc::AT_SYMLINK_NOFOLLOW == 0,
        })
    }

    fn times_at(&self) -> Result<Change, Unavailable> {
        match self.name {
            "futimesat" => self.times(2, Unit::Microseconds),
            _ => self.times(2, Unit::Nanoseconds),
        }
    }

    /// Two times; the present ones if the pointer is null.
    fn times(&self, index: usize, unit: Unit) -> Result<Change, Unavailable> {
        let address = self.arg(index);
        if address == 0 {
            return Ok(Change::Times(None));
        }
        let mut bytes = [0; 32];
        let length = if unit == Unit::Seconds { 16 } else { 32 };
        memory::read_exact(self.tid(), address, &mut bytes[..length]).map_err(unread)?;
        let (words, _) = bytes.as_chunks();
        let word = |at: usize| i64::from_ne_bytes(words[at]);
        let time = |seconds, fraction: i64| libc::timespec {
            tv_sec: seconds,
            tv_nsec: fraction,
        };
        Ok(Change::Times(Some(match unit {
            Unit::Seconds => [time(word(0), 0), time(word(1), 0)],
            Unit::Nanoseconds => [time(word(0), word(1)), time(word(2), word(3))],
            Unit::Microseconds => {
                let micros = |at| match word(at) {
                    micros @ 0..1_000_000 => Ok(micros * 1000),
                    _ => Err(Unavailable::Errno(Errno::EINVAL)),
                };
                [time(word(0), micros(1)?), time(word(2), micros(3)?)]
            }
        })))
    }

    fn attribute(&self) -> Result<Change, Unavailable> {
        let length = usize::try_from(self.arg(3)).unwrap_or(usize::MAX);
        if length > VALUE_BYTES_MAX {
            return Err(Unavailable::Errno(Errno::E2BIG));
        }
        let name = self.attribute_name()?;
        let mut value = vec![0; length];
        memory::read_exact(self.tid(), self.arg(2), &mut value).map_err(unread)?;
        Ok(Change::SetAttribute {
            name,
            value,
            flags: self.int(4),
        })
    }

    fn removed_attribute(&self) -> Result<Change, Unavailable> {
        Ok(Change::RemoveAttribute {
            name: self.attribute_name()?,
        })
    }

    fn attribute_name(&self) -> Result<CString, Unavailable> {
        let name = memory::read_path(self.tid(), self.arg(1)).map_err(unread)?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Unavailable::Errno(Errno::ERANGE));
        }
        CString::new(name).map_err(|_| Unavailable::Errno(Errno::EINVAL))
    }
}

/// Whether the arguments of a call like `chmod` can be read.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn can_be_read(call: Call<'_>) -> bool {
    call.metadata().is_ok()
}

/// How a call counts the fractions of seconds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// `struct utimbuf`: none.
    Seconds,
    /// `struct timeval`.
    Microseconds,
    /// `struct timespec`.
    Nanoseconds,
}

pub(super) fn unread(unread: Unread) -> Unavailable {
    match unread {
        Unread::Forbidden => Unavailable::Forbidden,
        Unread::Fault => Unavailable::Errno(Errno::EFAULT),
        Unread::TooLong => Unavailable::Errno(Errno::ENAMETOOLONG),
    }
}
