//! What a child is to do, as plain data that crosses a socket.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::report::Containment;

/// Everything about the sandbox that is not a descriptor. The Landlock rulesets travel beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// Which compiled sandbox this is: two with equal plans have rulesets of their own.
    pub sandbox: Uuid,
    /// What keeps the tree together.
    pub containment: Containment,
    /// A user namespace comes first (we are not privileged).
    pub user_namespace: bool,
    /// A network namespace with only a loopback.
    pub net_namespace: bool,
    /// Mounts, in order; only with a PID namespace, which brings a mount namespace.
    pub mounts: Vec<MountStep>,
    /// Mount a fresh `/proc`.
    pub private_proc: bool,
    /// Rights to add to the rulesets for file systems mounted for this process alone: a rule for the directory that
    /// they cover does not reach into them.
    pub mounted: Vec<MountedRule>,
    /// Empty every capability set.
    pub drop_capabilities: bool,
    /// Set `no_new_privs`.
    pub no_new_privs: bool,
    /// Flags for `landlock_restrict_self`.
    pub landlock_flags: u32,
    /// The seccomp program with a listener; empty for none.
    #[serde(with = "packed")]
    pub filter: Vec<Instruction>,
    /// Limits by `setrlimit`: resource, soft and hard value.
    pub rlimits: Vec<(u32, u64)>,
    /// Limits by cgroup files.
    pub cgroups: Vec<CgroupPlan>,
}

/// Landlock rights for the root of a file system that was mounted in the process's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedRule {
    /// Where it is mounted.
    pub path: Vec<u8>,
    /// For each ruleset the rights to allow; 0 for none.
    pub access: Vec<u64>,
}

/// One BPF instruction, as the kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl From<libc::sock_filter> for Instruction {
    fn from(raw: libc::sock_filter) -> Self {
        Self {
            code: raw.code,
            jt: raw.jt,
            jf: raw.jf,
            k: raw.k,
        }
    }
}

/// Programs cross as bytes: number by number they would be the dearest part of a spawn request.
mod packed {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    use super::Instruction;

    const BYTES: usize = 8;

    pub(super) fn serialize<S: Serializer>(
        program: &[Instruction],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(program.len() * BYTES);
        for instruction in program {
            bytes.extend(instruction.code.to_le_bytes());
            bytes.extend([instruction.jt, instruction.jf]);
            bytes.extend(instruction.k.to_le_bytes());
        }
        serializer.serialize_bytes(&bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Instruction>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<Instruction>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a seccomp program, eight bytes for each instruction")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                let (instructions, rest) = bytes.as_chunks::<BYTES>();
                if !rest.is_empty() {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                let instructions = instructions.iter().map(|[a, b, jt, jf, k @ ..]| Instruction {
                    code: u16::from_le_bytes([*a, *b]),
                    jt: *jt,
                    jf: *jf,
                    k: u32::from_le_bytes(*k),
                });
                Ok(instructions.collect())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// A step in building the mount namespace. Paths are absolute, without NUL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountStep {
    /// Take hold of a tree before something covers it; [`MountStep::Restore`] puts it back. Kept trees are
    /// numbered from 0 in the order of these steps.
    Keep {
        /// The tree's root.
        path: Vec<u8>,
    },
    /// An empty file system of the process's own.
    Private {
        /// Where.
        path: Vec<u8>,
        /// Mount data: `mode=1777,size=25%`.
        data: Vec<u8>,
    },
    /// Pseudo-terminals of the process's own at `/dev/pts`: those of the machine are the user's other windows, and
    /// whoever opens one reads what is typed there.
    Terminals,
    /// Put a kept tree back at its path, below a private directory.
    Restore {
        /// Which kept tree.
        slot: u32,
        /// Its path.
        path: Vec<u8>,
        /// Directories to make first, outermost first.
        parents: Vec<Vec<u8>>,
        /// The tree is a directory, not a file.
        directory: bool,
        /// Nothing in it may be written: a rule for the private directory would allow it.
        read_only: bool,
    },
    /// Cover a path with something empty that nobody may open.
    Mask {
        /// The path.
        path: Vec<u8>,
        /// It is a directory, not a file.
        directory: bool,
    },
    /// Mount a path onto itself, so that it cannot be renamed or removed.
    Pin {
        /// The path.
        path: Vec<u8>,
    },
    /// Make a tree read-only.
    ReadOnly {
        /// The tree's root.
        path: Vec<u8>,
    },
}

/// A group to make, below a directory that we may write to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// The directory to make the group in.
    pub parent: String,
    /// It is cgroup v2: the tree is cloned into it and it contains the tree. Else v1: joined by pid.
    pub unified: bool,
    /// Files to write in the group: name and content.
    pub files: Vec<(String, String)>,
}

impl SandboxPlan {
    /// No sandbox, only containment.
    pub fn unconfined(containment: Containment) -> Self {
        Self {
            sandbox: Uuid::now_v7(),
            containment,
            user_namespace: false,
            net_namespace: false,
            mounts: Vec::new(),
            private_proc: false,
            mounted: Vec::new(),
            drop_capabilities: false,
            no_new_privs: false,
            landlock_flags: 0,
            filter: Vec::new(),
            rlimits: Vec::new(),
            cgroups: Vec::new(),
        }
    }
}
