//! Files. Landlock and mounts hold them; these entries observe, and close what neither of the two sees.

use super::condition::{bits, either, int};
use super::{Handling, Row, Rules};

/// An open that can change nothing: no write access (`O_ACCMODE`), no `O_CREAT`, no `O_TRUNC`.
const READ_ONLY_BITS: u32 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u32;

const S_IFMT: u32 = libc::S_IFMT;
const S_IFCHR: u32 = libc::S_IFCHR;
const S_IFBLK: u32 = libc::S_IFBLK;

/// Commands that type into a terminal as if its user did.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541C;

/// Commands that change a file or directory through a descriptor opened for reading. Landlock has no right for
/// them.
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC32_SETFLAGS: u32 = 0x4004_6602;
const FS_IOC_FSSETXATTR: u32 = 0x401C_5820;
const FS_IOC_SETVERSION: u32 = 0x4008_7602;
const EXT4_IOC_SETVERSION: u32 = 0x4008_6604;
const FS_IOC_ENABLE_VERITY: u32 = 0x4080_6685;
const FS_IOC_SET_ENCRYPTION_POLICY: u32 = 0x800C_6613;
const FAT_IOCTL_SET_ATTRIBUTES: u32 = 0x4004_7211;

/// Btrfs makes and removes whole subvolumes by ioctl on a directory, without the hooks of `mkdir` and `rmdir`.
const BTRFS_IOC_SNAP_CREATE: u32 = 0x5000_9401;
const BTRFS_IOC_SUBVOL_CREATE: u32 = 0x5000_940E;
const BTRFS_IOC_SNAP_DESTROY: u32 = 0x5000_940F;
const BTRFS_IOC_SNAP_CREATE_V2: u32 = 0x5000_9417;
const BTRFS_IOC_SUBVOL_CREATE_V2: u32 = 0x5000_9418;
const BTRFS_IOC_SUBVOL_SETFLAGS: u32 = 0x4008_941A;
const BTRFS_IOC_SNAP_DESTROY_V2: u32 = 0x5000_943F;

const REFUSED_IOCTLS: Rules = &[
    &[int(1, TIOCSTI)],
    &[int(1, TIOCLINUX)],
    &[int(1, FS_IOC_SETFLAGS)],
    &[int(1, FS_IOC32_SETFLAGS)],
    &[int(1, FS_IOC_FSSETXATTR)],
    &[int(1, FS_IOC_SETVERSION)],
    &[int(1, EXT4_IOC_SETVERSION)],
    &[int(1, FS_IOC_ENABLE_VERITY)],
    &[int(1, FS_IOC_SET_ENCRYPTION_POLICY)],
    &[int(1, FAT_IOCTL_SET_ATTRIBUTES)],
    &[int(1, BTRFS_IOC_SNAP_CREATE)],
    &[int(1, BTRFS_IOC_SUBVOL_CREATE)],
    &[int(1, BTRFS_IOC_SNAP_DESTROY)],
    &[int(1, BTRFS_IOC_SNAP_CREATE_V2)],
    &[int(1, BTRFS_IOC_SUBVOL_CREATE_V2)],
    &[int(1, BTRFS_IOC_SUBVOL_SETFLAGS)],
    &[int(1, BTRFS_IOC_SNAP_DESTROY_V2)],
];

const OPENS: &str = "opened for writing, where the policy may refuse it";
const CHANGES: &str = "changes a directory, which the policy may refuse";
const NODES: &str = "changes a directory; device nodes are refused everywhere";

const METADATA: &str =
    "changes a file's mode, owner, times or attributes, for which Landlock has no right";
const METADATA_NEW: &str = "as setxattr and removexattr, which programs fall back on";

/// A change of metadata.
const fn metadata(name: &'static str) -> Row {
    Row::new(name, Handling::Metadata, METADATA)
}

/// A newer form of one, which is answered as a kernel would that does not have it.
const fn metadata_probe(name: &'static str) -> Row {
    Row::new(name, Handling::Probe { errno: libc::ENOSYS }, METADATA_NEW)
}

/// A directory change, observed where opens are.
const fn change(name: &'static str) -> Row {
    Row::new(name, Handling::DirectoryChange, CHANGES)
}

pub(super) const ROWS: &[Row] = &[
    Row::new("open", Handling::Open, OPENS).except(&[&[bits(1, READ_ONLY_BITS, 0)]]),
    Row::new("openat", Handling::Open, OPENS).except(&[&[bits(2, READ_ONLY_BITS, 0)]]),
    // The flags are in memory.
    Row::new("openat2", Handling::Open, OPENS),
    Row::new("creat", Handling::Open, OPENS),
    change("truncate"),
    change("mkdir"),
    change("mkdirat"),
    change("rmdir"),
    change("unlink"),
    change("unlinkat"),
    change("rename"),
    change("renameat"),
    change("renameat2"),
    change("link"),
    change("linkat"),
    change("symlink"),
    change("symlinkat"),
    Row::new("mknod", Handling::DirectoryChange, NODES).only(&[&[either(1, S_IFMT, S_IFCHR, S_IFBLK)]]),
    Row::new("mknodat", Handling::DirectoryChange, NODES)
        .only(&[&[either(2, S_IFMT, S_IFCHR, S_IFBLK)]]),
    metadata("chmod"),
    metadata("fchmod"),
    metadata("fchmodat"),
    metadata("fchmodat2"),
    metadata("chown"),
    metadata("fchown"),
    metadata("lchown"),
    metadata("fchownat"),
    metadata("utime"),
    metadata("utimes"),
    metadata("futimesat"),
    metadata("utimensat"),
    metadata("setxattr"),
    metadata("lsetxattr"),
    metadata("fsetxattr"),
    metadata("removexattr"),
    metadata("lremovexattr"),
    metadata("fremovexattr"),
    Row::new(
        "inotify_add_watch",
        Handling::Watch,
        "tells who opens what in directories whose files may not be read",
    ),
    metadata_probe("setxattrat"),
    metadata_probe("removexattrat"),
    Row::refuse(
        "file_setattr",
        "sets the flags of a file (immutable, append-only) that the policy lets it only read",
    ),
    Row::new(
        "ioctl",
        Handling::Ioctl,
        "types into a terminal, or changes a file through a descriptor opened for reading",
    )
    .only(REFUSED_IOCTLS),
];
