//! What must hold of the packets between host and spawner or keeper, and of a keeper's exits file, whatever is in them.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{self, Notice, Request};
use super::{exits, program};

/// Any bytes as a packet to the spawner or keeper or from it, whole or in a memory file, with the right version or any;
/// or as an exits file.
pub fn spawner_message(bytes: &[u8]) {
    let Some((&choice, body)) = bytes.split_first() else {
        return;
    };
    if choice & 8 != 0 {
        return exits::any_file_is_read(body);
    }
    let mut packet = body.to_vec();
    if choice & 1 == 0 {
        packet.splice(..0, wire::VERSION.to_le_bytes());
    }
    let in_file = choice & 2 != 0;
    if choice & 4 == 0 {
        if let Some(Request::Spawn(request)) = received::<Request>(&packet, in_file) {
            program::reads_as_it_was_written(&request);
        }
    } else {
        received::<Notice>(&packet, in_file);
    }
}

/// The message in a packet. What was understood is sent again and understood as the same.
fn received<M: Serialize + DeserializeOwned>(packet: &[u8], in_file: bool) -> Option<M> {
    let (one, other) = pair();
    let mut file = None;
    let (first, rights) = if in_file {
        let mut written =
            File::from(memfd_create(c"message", MFdFlags::MFD_CLOEXEC).expect("a memory file"));
        written.write_all(packet).expect("room");
        let file = file.insert(written);
        (&wire::VERSION.to_le_bytes()[..], vec![file.as_raw_fd()])
    } else {
        (packet, vec![])
    };
    let rights = [ControlMessage::ScmRights(&rights)];
    let control = if in_file { &rights[..] } else { &[] };
    let sent = sendmsg::<()>(
        one.as_raw_fd(),
        &[IoSlice::new(first)],
        control,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    );
    // The kernel takes packets of some length only.
    sent.ok()?;
    let (message, fds) = wire::receive::<M>(other.as_fd()).ok()??;
    assert!(
        fds.is_empty(),
        "the message's own descriptor is none of its descriptors"
    );
    wire::send(one.as_fd(), &message, &[]).expect("what fitted once fits again");
    let (again, _) = wire::receive::<M>(other.as_fd())
        .expect("our own")
        .expect("a message");
    let bytes = |message: &M| postcard::to_allocvec(message).expect("memory");
    assert_eq!(bytes(&message), bytes(&again));
    Some(message)
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("a socket pair")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::super::Step;
    use super::super::exits::{ExitRecord, ExitsFile};
    use super::super::held::{Held, HeldState, HeldTree, Kept, TreeEnd};
    use super::super::wire::{LimitHits, Started, Usage};
    use super::*;
    use crate::extras::{Extras, ReadyBy};

    const PROCESS: Uuid = Uuid::from_u128(0x0192_d3c4_0000_7000_8000_0000_0000_0001);

    fn seed<M: Serialize>(choice: u8, message: &M) -> Vec<u8> {
        let mut bytes = vec![choice];
        bytes.extend(postcard::to_allocvec(message).expect("memory"));
        bytes
    }

    /// What only a keeper hears or says, as the fuzz target takes it.
    fn keepers() -> Vec<(&'static str, Vec<u8>)> {
        let process = PROCESS;
        let name = "listener".to_owned();
        let end = TreeEnd {
            killed: 2,
            usage: Some(Usage {
                user_us: 1000,
                system_us: 300,
                max_rss_bytes: 1 << 20,
            }),
            hits: LimitHits::default(),
        };
        let tree = HeldTree {
            started: Started {
                process,
                pid: 300,
                init_pid: 299,
                pid_namespace: 4_026_532_000,
                terminal: false,
                relay: false,
                stdin_pipe: true,
                listener: true,
                extras: Extras {
                    report: true,
                    ready: ReadyBy::Fd,
                },
            },
            output: true,
            exited: Some(256),
            end: Some(end),
        };
        let failed = HeldState::Failed {
            step: Step::Exec,
            errno: 2,
            detail: 0,
        };
        let held = |state| seed(4, &Notice::Held(Held { process, state }));
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut exits = ExitsFile::new(File::options().append(true).open(file.path()).expect("it"));
        for end in [None, Some(end)] {
            let record = ExitRecord {
                process,
                status: Some(9),
                end,
            };
            exits.append(&record).expect("room");
        }
        let exits = [&[8], &std::fs::read(file.path()).expect("it")[..]].concat();
        let what = Kept::Listener;
        let pid_namespace = tree.started.pid_namespace;
        vec![
            ("forget", seed(0, &Request::Forget { process })),
            ("release", seed(0, &Request::Release { process, what })),
            ("hold", seed(0, &Request::Hold { name: name.clone() })),
            ("exits_file", seed(0, &Request::ExitsFile)),
            ("errands", seed(0, &Request::Errands { pid_namespace })),
            ("stop", seed(0, &Request::Stop)),
            ("welcome", seed(4, &Notice::Welcome { pid: 200 })),
            ("held_starting", held(HeldState::Starting)),
            ("held_failed", held(failed)),
            ("held_started", held(HeldState::Started(tree))),
            ("held_named", seed(4, &Notice::HeldNamed { name: name.clone() })),
            ("held_all", seed(4, &Notice::HeldAll { trees: 2, named: 1 })),
            ("not_held", seed(4, &Notice::NotHeld { name, errno: 24 })),
            ("exits", exits),
        ]
    }

    #[test]
    fn what_a_keeper_hears_and_says_is_among_the_seeds() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/spawner_message");
        for (name, bytes) in keepers() {
            spawner_message(&bytes);
            let path = directory.join(name);
            if std::env::var_os("WRITE_SEEDS").is_some() {
                std::fs::write(&path, &bytes).expect("ours");
            }
            assert_eq!(
                std::fs::read(path).ok().as_ref(),
                Some(&bytes),
                "{name}: WRITE_SEEDS=1 writes it"
            );
        }
    }

    proptest! {
        #[test]
        fn any_packet_is_taken_or_refused(
            which in any::<prop::sample::Index>(),
            place in any::<prop::sample::Index>(),
            changes in prop::collection::vec(any::<u8>(), 0..4),
            cut in 0usize..80,
        ) {
            let mut seeds = keepers();
            let mut bytes = seeds.swap_remove(which.index(seeds.len())).1;
            let at = place.index(bytes.len());
            bytes.splice(at..(at + changes.len()).min(bytes.len()), changes);
            bytes.truncate(bytes.len().saturating_sub(cut).max(1));
            spawner_message(&bytes);
        }
    }
}
