//! What must hold of the packets between host and spawner, whatever is in them.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::program;
use super::wire::{self, Notice, Request};

/// Any bytes as a packet to the spawner or from it, whole or in a memory file; with the right version or any.
pub fn spawner_message(bytes: &[u8]) {
    let Some((&choice, body)) = bytes.split_first() else {
        return;
    };
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
