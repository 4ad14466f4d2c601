//! Walks the policy's tree over the real file system and adds the rules.
//!
//! The walk goes from descriptor to descriptor and never follows a link, so that nobody who may rename
//! directories along the way can make it name the contents of another one. What cannot be opened is left
//! out, which refuses it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use landlock::{AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::LandlockError;
use super::rights::Rights;
use super::tree::{Hold, Node};
use crate::keeper::sys;
use crate::witness::Witness;

/// Rules in both layers together, at most.
pub(super) const RULES_MAX: usize = 20_000;

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const LISTING: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// The two layers, being filled.
pub(super) struct Builder {
    rights: Rights,
    reading: OwnedFd,
    writing: OwnedFd,
    rules: usize,
    rules_max: usize,
    pub(super) witnesses: Vec<Witness>,
}

/// What a directory further up already gave to everything below it.
#[derive(Debug, Default, Clone, Copy)]
struct Given {
    list: bool,
    read: bool,
    write: bool,
}

/// An opened path and what kind of thing it is.
struct Place {
    fd: OwnedFd,
    kind: SFlag,
    /// The kind is that of the opened file, not what its directory said before.
    is_certain: bool,
}

impl Place {
    fn is_directory(&self) -> bool {
        self.kind == SFlag::S_IFDIR
    }

    fn is_device(&self) -> bool {
        self.kind == SFlag::S_IFCHR || self.kind == SFlag::S_IFBLK
    }
}

impl Builder {
    /// Creates the two rulesets, still without rules.
    pub(super) fn new(rights: Rights, deny_tcp: bool, rules_max: usize) -> Result<Self, LandlockError> {
        let strict = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let failed = |error| LandlockError::kernel("creating a ruleset", &error);
        let created = |ruleset: Ruleset| {
            let created = ruleset.create().map_err(failed)?;
            Option::<OwnedFd>::from(created)
                .ok_or_else(|| LandlockError::kernel("creating a ruleset", &"no descriptor"))
        };
        let reading = strict().handle_access(rights.reading).map_err(failed)?;
        let mut writing = strict().handle_access(rights.writing).map_err(failed)?;
        if deny_tcp && rights.abi >= 4 {
            let tcp = AccessNet::BindTcp | AccessNet::ConnectTcp;
            writing = writing.handle_access(tcp).map_err(failed)?;
        }
        if rights.abi >= 6 {
            let scopes = Scope::AbstractUnixSocket | Scope::Signal;
            writing = writing.scope(scopes).map_err(failed)?;
        }
        Ok(Self {
            rights,
            reading: created(reading)?,
            writing: created(writing)?,
            rules: 0,
            rules_max,
            witnesses: Vec::new(),
        })
    }

    /// Adds the rules of the whole tree.
    pub(super) fn add_tree(&mut self, root: &Node) -> Result<(), LandlockError> {
        let fd = open("/", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())
            .map_err(|errno| LandlockError::open(Path::new("/"), "the root directory", errno))?;
        let place = Place {
            fd,
            kind: SFlag::S_IFDIR,
            is_certain: true,
        };
        self.visit(&place, &mut PathBuf::from("/"), root, Given::default())
    }

    /// Adds the rule that something, with everything below, may be executed. Reading it takes a rule of its own, and what
    /// cannot be read is not executed (execve(2) opens it for reading).
    pub(super) fn add_executable(&mut self, path: &Path) -> Result<(), LandlockError> {
        self.witnesses.push(Witness::identity(path));
        let fd = match open(path, PATH_ONLY, Mode::empty()) {
            Ok(fd) => fd,
            // It grants nothing that is not there.
            Err(errno) => return LandlockError::unless_exhausted(path, errno),
        };
        let found: FileStat =
            fstat(&fd).map_err(|errno| LandlockError::open(path, "executable", errno))?;
        let place = Place {
            fd,
            kind: SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()),
            is_certain: true,
        };
        let execute = self.rights.execute();
        self.add(&place, path, execute, BitFlags::EMPTY).map(drop)
    }

    /// The finished rulesets: writing, then reading. Each layer is copied again by the next, so the one
    /// with many rules comes last.
    pub(super) fn finish(self) -> Vec<OwnedFd> {
        vec![self.writing, self.reading]
    }

    fn visit(
        &mut self,
        place: &Place,
        path: &mut PathBuf,
        node: &Node,
        given: Given,
    ) -> Result<(), LandlockError> {
        let mut given = given;
        let whole = |hold: Hold, given: bool| !given && hold.granted && !hold.holed;
        let siblings = |hold: Hold, given: bool| !given && hold.granted && hold.holed;
        let rest = Rest {
            read: siblings(node.read, given.read),
            write: siblings(node.write, given.write),
        };
        let (read, write) = (whole(node.read, given.read), whole(node.write, given.write));
        let list = node.read.granted && !given.list;
        self.grant(place, path, node, list, read, write)?;
        given = Given {
            list: given.list || list,
            read: given.read || read,
            write: given.write || write,
        };
        if node.named {
            self.witnesses.push(Witness::identity(&*path));
        }
        if !place.is_directory() {
            return Ok(());
        }
        if rest.any() {
            self.name_siblings(place, path, node, rest)?;
        }
        for (name, child) in &node.children {
            path.push(name);
            match look_at(place.fd.as_fd(), name) {
                Ok(found) if found.kind != SFlag::S_IFLNK => self.visit(&found, path, child, given)?,
                Ok(_) => self.missing(path, child, Errno::ELOOP)?,
                Err(errno) => self.missing(path, child, errno)?,
            }
            path.pop();
        }
        Ok(())
    }

    /// The rules for exactly this place.
    fn grant(
        &mut self,
        place: &Place,
        path: &Path,
        node: &Node,
        list: bool,
        read: bool,
        write: bool,
    ) -> Result<(), LandlockError> {
        let rights = self.rights;
        let (mut reading, mut writing) = (BitFlags::EMPTY, BitFlags::EMPTY);
        if list {
            reading |= AccessFs::ReadDir;
        }
        if read {
            reading |= rights.read_tree();
            if node.named && place.is_device() {
                writing |= rights.ioctl();
            }
        }
        if write && (node.device || place.is_device()) {
            writing |= rights.write_device();
        } else if write {
            writing |= rights.write_tree();
            reading |= rights.refer();
        }
        let added = self.add(place, path, reading, writing)?;
        match &node.required_by {
            Some(source) if !added => Err(LandlockError::open(path, source, Errno::EBADFD)),
            _ => Ok(()),
        }
    }

    /// Grants every entry of a directory that the policy has nothing to say about. Device nodes outside of
    /// `/dev` are left out: no policy names them in passing.
    fn name_siblings(
        &mut self,
        place: &Place,
        path: &Path,
        node: &Node,
        rest: Rest,
    ) -> Result<(), LandlockError> {
        self.witnesses.push(Witness::entries(path));
        // A directory that we may not list is refused to the process by its own permissions.
        let mut listing = match Dir::openat(&place.fd, ".", LISTING, Mode::empty()) {
            Ok(listing) => listing,
            Err(errno) => return LandlockError::unless_exhausted(path, errno),
        };
        for entry in listing.iter() {
            let Ok(entry) = entry else { break };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." || node.children.contains_key(name) {
                continue;
            }
            let found = match look_at_entry(place.fd.as_fd(), name, entry.file_type()) {
                Ok(found) => found,
                Err(errno) => {
                    LandlockError::unless_exhausted(path, errno)?;
                    continue;
                }
            };
            if found.kind == SFlag::S_IFLNK || found.is_device() {
                continue;
            }
            let rights = self.rights;
            let (mut reading, mut writing) = (BitFlags::EMPTY, BitFlags::EMPTY);
            if rest.read {
                reading |= rights.read_tree();
            }
            if rest.write {
                writing |= rights.write_tree();
                reading |= rights.refer();
            }
            self.add(&found, path, reading, writing)?;
        }
        Ok(())
    }

    /// A path of the policy that is not there (any more). Grants by the user must be there.
    fn missing(&mut self, path: &Path, node: &Node, errno: Errno) -> Result<(), LandlockError> {
        LandlockError::unless_exhausted(path, errno)?;
        self.witnesses.push(Witness::identity(path));
        match first_required(node, &mut path.to_owned()) {
            Some((path, source)) => Err(LandlockError::open(&path, &source, errno)),
            None => Ok(()),
        }
    }

    /// Adds one rule to each layer that gets any right. False: the kernel has no rules for such files.
    fn add(
        &mut self,
        place: &Place,
        path: &Path,
        reading: BitFlags<AccessFs>,
        writing: BitFlags<AccessFs>,
    ) -> Result<bool, LandlockError> {
        for (layer, rights) in [(&mut self.reading, reading), (&mut self.writing, writing)] {
            let rights = if place.is_directory() {
                rights
            } else {
                Rights::on_file(rights)
            };
            if rights.is_empty() {
                continue;
            }
            if self.rules == self.rules_max {
                return Err(LandlockError::TooManyRules {
                    directory: path.to_owned(),
                    rules_max: self.rules_max,
                });
            }
            self.rules += 1;
            // The crate would ask the kernel for the type once more, for each of hundreds of rules.
            match sys::landlock_allow_below(layer.as_raw_fd(), rights.bits(), place.fd.as_raw_fd()) {
                Ok(()) => {}
                // Files of the kernel's own, invisible file systems take no rules (and are never refused).
                Err(libc::EBADFD) => return Ok(false),
                // A directory that was replaced by a file since it was listed.
                Err(libc::EINVAL) if !place.is_certain => return Ok(false),
                Err(errno) => {
                    return Err(LandlockError::kernel("adding a rule", &Errno::from_raw(errno)));
                }
            }
        }
        Ok(true)
    }
}

/// Which layers have their siblings named in a directory.
#[derive(Debug, Clone, Copy)]
struct Rest {
    read: bool,
    write: bool,
}

impl Rest {
    fn any(self) -> bool {
        self.read || self.write
    }
}

fn look_at(dir: impl AsFd, name: &OsStr) -> Result<Place, Errno> {
    let fd = openat(dir, name, PATH_ONLY, Mode::empty())?;
    let found: FileStat = fstat(&fd)?;
    Ok(Place {
        fd,
        kind: SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()),
        is_certain: true,
    })
}

/// The same for a directory's entry whose kind the listing tells. Where another file has taken its name since,
/// that one gets the rights which the name has, as it would had it come earlier.
fn look_at_entry(dir: impl AsFd, name: &OsStr, listed: Option<Type>) -> Result<Place, Errno> {
    let kind = match listed {
        Some(Type::Directory) => SFlag::S_IFDIR,
        Some(Type::File) => SFlag::S_IFREG,
        _ => return look_at(dir, name),
    };
    Ok(Place {
        fd: openat(dir, name, PATH_ONLY, Mode::empty())?,
        kind,
        is_certain: false,
    })
}

fn first_required(node: &Node, path: &mut PathBuf) -> Option<(PathBuf, String)> {
    if let Some(source) = &node.required_by {
        return Some((path.clone(), source.clone()));
    }
    for (name, child) in &node.children {
        path.push(name);
        if let Some(found) = first_required(child, path) {
            return Some(found);
        }
        path.pop();
    }
    None
}
