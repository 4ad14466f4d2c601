//! Which Landlock rights each kind of permission is made of, for each version of the kernel's interface.

use landlock::{ABI, AccessFs, BitFlags, make_bitflags};

/// The newest interface that this build knows.
pub(super) const ABI_MAX: u32 = 9;

/// Valid on rules for things that are not directories.
const ON_FILES: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | WriteFile | Execute | Truncate | IoctlDev});

/// The rights of both layers under one version of the interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rights {
    pub(super) abi: u32,
    /// What may be executed has rules of its own.
    pub(super) lists_executables: bool,
    /// Refused by the reading layer unless granted.
    pub(super) reading: BitFlags<AccessFs>,
    /// Refused by the writing layer unless granted.
    pub(super) writing: BitFlags<AccessFs>,
}

impl Rights {
    pub(super) fn of(abi: u32) -> Self {
        let abi = abi.min(ABI_MAX);
        // At most 9, so the conversion holds.
        let known = ABI::from(abi as i32);
        let writing = AccessFs::from_write(known);
        Self {
            abi,
            lists_executables: false,
            // Every layer that does not handle REFER refuses it, so the reading layer must handle it too.
            reading: AccessFs::from_read(known) | (writing & AccessFs::Refer),
            writing,
        }
    }

    /// Reading and executing everything below a directory; only reading, where what may be executed is listed.
    pub(super) fn read_tree(self) -> BitFlags<AccessFs> {
        match self.lists_executables {
            true => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            false => make_bitflags!(AccessFs::{ReadFile | ReadDir | Execute}),
        }
    }

    /// Executing everything below a directory that may be read.
    pub(super) fn execute(self) -> BitFlags<AccessFs> {
        AccessFs::Execute.into()
    }

    /// Reading a `/proc` of the process's own, which holds nothing to execute.
    pub(super) fn read_proc(self) -> BitFlags<AccessFs> {
        make_bitflags!(AccessFs::{ReadFile | ReadDir})
    }

    /// What writing below a directory needs in the reading layer.
    pub(super) fn refer(self) -> BitFlags<AccessFs> {
        self.reading & AccessFs::Refer
    }

    /// Writing everything below a directory. Not among it: making device nodes, ioctls on devices that
    /// happen to be there, and connecting to sockets of programs outside of the sandbox.
    pub(super) fn write_tree(self) -> BitFlags<AccessFs> {
        let never = make_bitflags!(AccessFs::{MakeChar | MakeBlock | IoctlDev | ResolveUnix});
        self.writing & !never
    }

    /// Writing a device, or a directory of devices.
    pub(super) fn write_device(self) -> BitFlags<AccessFs> {
        self.writing & make_bitflags!(AccessFs::{WriteFile | Truncate | IoctlDev})
    }

    /// Ioctls on a device that is only read: a program that asks whether it reads a terminal is harmless.
    pub(super) fn ioctl(self) -> BitFlags<AccessFs> {
        self.writing & AccessFs::IoctlDev
    }

    /// The part of `rights` that a rule for a non-directory may carry.
    pub(super) fn on_file(rights: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
        rights & ON_FILES
    }

    /// What is held, in the words of the sandbox report.
    pub(super) fn held(self, tcp: bool) -> Vec<String> {
        let since = [
            (1, "files", true),
            (3, "truncate", true),
            (5, "ioctl_dev", true),
            (4, "tcp", tcp),
            (6, "abstract_sockets", true),
            (6, "signals", true),
            (9, "unix_sockets", true),
        ];
        since
            .iter()
            .filter(|(abi, _, asked)| *asked && self.abi >= *abi)
            .map(|(_, name, _)| (*name).to_owned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use landlock::Access;

    #[test]
    fn every_version_handles_all_rights_it_knows_and_grants_no_unhandled_one() {
        for abi in 1..=ABI_MAX {
            let rights = Rights::of(abi);
            let all = AccessFs::from_all(ABI::from(abi as i32));
            assert_eq!(rights.reading | rights.writing, all, "abi {abi}");
            assert!(rights.reading.contains(rights.read_tree() | rights.refer()));
            for granted in [rights.write_tree(), rights.write_device(), rights.ioctl()] {
                assert!(rights.writing.contains(granted), "abi {abi}");
                assert!(
                    !granted.intersects(make_bitflags!(AccessFs::{MakeBlock | MakeChar | ResolveUnix}))
                );
            }
        }
        assert_eq!(Rights::of(u32::MAX).abi, ABI_MAX);
    }

    #[test]
    fn what_is_held_grows_with_the_version() {
        assert_eq!(Rights::of(1).held(true), ["files"]);
        assert_eq!(Rights::of(3).held(true), ["files", "truncate"]);
        let seven = [
            "files",
            "truncate",
            "ioctl_dev",
            "tcp",
            "abstract_sockets",
            "signals",
        ];
        assert_eq!(Rights::of(7).held(true), seven);
        assert!(!Rights::of(7).held(false).contains(&"tcp".to_owned()));
    }
}
