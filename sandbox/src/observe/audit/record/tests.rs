use proptest::prelude::*;

use super::super::fence::Fences;
use super::super::fuzzing::{STAMP, any_record, as_the_kernel_writes, path_forges_nothing};
use super::*;

fn denied(body: &str) -> Option<LandlockDenial> {
    match parse_record(1423, format!("{STAMP}{body}").as_bytes()) {
        Some(AuditEvent::Denied(denial)) => Some(denial),
        None => None,
        Some(other) => panic!("{other:?}"),
    }
}

fn net(address: Option<&str>, port: Option<u16>) -> LandlockTarget {
    LandlockTarget::Net {
        address: address.map(|address| address.parse().unwrap()),
        port,
    }
}

#[test]
fn a_refused_read_names_the_path() {
    let denial =
        denied("domain=1deaa615a blockers=fs.read_file path=\"/etc/passwd\" dev=\"vda\" ino=1196042")
            .unwrap();
    assert_eq!(denial.domain, 0x1_deaa_615a);
    assert_eq!(denial.blockers, ["fs.read_file"]);
    assert_eq!(
        denial.target,
        LandlockTarget::File {
            path: "/etc/passwd".into(),
            device: Some("vda".into()),
            inode: Some(1_196_042),
        }
    );
}

#[test]
fn refused_addresses_are_read_as_seen_on_a_real_kernel() {
    for (body, expected) in [
        (
            "net.connect_tcp daddr=127.0.0.1 dest=80",
            net(Some("127.0.0.1"), Some(80)),
        ),
        ("net.connect_tcp dest=80", net(None, Some(80))),
        ("net.bind_tcp src=80", net(None, Some(80))),
        (
            "net.bind_tcp saddr=10.0.0.1 src=80",
            net(Some("10.0.0.1"), Some(80)),
        ),
        ("net.connect_tcp daddr=::1 dest=80", net(Some("::1"), Some(80))),
        (
            "net.connect_tcp daddr=::ffff:1.2.3.4 dest=80",
            net(Some("::ffff:1.2.3.4"), Some(80)),
        ),
        ("net.connect_tcp", net(None, None)),
        ("net.connect_tcp laddr=1.2.3.4", LandlockTarget::Unknown),
        ("net.connect_tcp daddr=nowhere dest=80", LandlockTarget::Unknown),
    ] {
        assert_eq!(
            denied(&format!("domain=1 blockers={body}")).unwrap().target,
            expected,
            "{body}"
        );
    }
}

#[test]
fn signals_and_abstract_sockets_are_read() {
    assert_eq!(
        denied("domain=1 blockers=scope.signal opid=1 ocomm=\"process_api\"")
            .unwrap()
            .target,
        LandlockTarget::Task {
            pid: 1,
            comm: "process_api".into()
        }
    );
    assert_eq!(
        denied("domain=1 blockers=scope.abstract_unix_socket path=006162732068657265")
            .unwrap()
            .target,
        LandlockTarget::Socket {
            name: "@abs here".into()
        }
    );
}

#[test]
fn a_refusal_with_an_unreadable_target_is_still_a_refusal() {
    for body in [
        "domain=1 blockers=fs.read_file",
        "domain=1 blockers=fs.read_file path=/etc/passwd",
        "domain=1 blockers=fs.read_file path=\"/etc/pass\"wd\"",
        "domain=1 blockers=fs.read_file path=2f657463",
        "domain=1 blockers=new.kind what=ever",
    ] {
        assert_eq!(denied(body).unwrap().target, LandlockTarget::Unknown, "{body}");
    }
}

#[test]
fn what_the_kernel_would_not_write_is_no_record() {
    for text in [
        "domain=1 blockers=fs.read_file",
        "audit(1.2:3):domain=1 blockers=fs.read_file",
        "audit(1.2:): domain=1 blockers=fs.read_file",
        "audit(1.2:3): domain=+1 blockers=fs.read_file",
        "audit(1.2:3): domain=11112222333344445 blockers=fs.read_file",
        "audit(1.2:3): blockers=fs.read_file domain=1",
        "audit(1.2:3):  domain=1 blockers=fs.read_file",
        "audit(1.2:3): domain=1 blockers=",
    ] {
        assert_eq!(parse_record(1423, text.as_bytes()), None, "{text}");
    }
}

#[test]
fn a_domain_comes_and_goes() {
    let parse = |body: &str| parse_record(1424, format!("{STAMP}{body}").as_bytes());
    assert_eq!(
        parse(
            "domain=ff status=allocated mode=enforcing pid=9747 uid=1001 exe=\"/usr/bin/sh\" comm=6120623D31"
        ),
        Some(AuditEvent::DomainAllocated {
            domain: 0xff,
            pid: 9747,
            uid: 1001,
            comm: "a b=1".into(),
            exe: "/usr/bin/sh".into(),
        })
    );
    assert_eq!(
        parse("domain=ff status=deallocated denials=18"),
        Some(AuditEvent::DomainGone {
            domain: 0xff,
            denials: 18
        })
    );
    assert_eq!(parse("domain=ff status=deallocated denials=-1"), None);
    assert_eq!(parse("domain=ff status=resting"), None);
}

#[test]
fn a_fence_counts_only_from_the_process_that_it_names() {
    let mut fence = Fences::new().unwrap().next();
    fence.pid = 4711;
    let parse = |pid: u32, label: &str, message: &str| {
        let text =
            format!("{STAMP}pid={pid} uid=0 auid=4294967295 ses=4294967295 {label}msg='{message}'");
        parse_record(1005, text.as_bytes())
    };
    let message = fence.to_string();
    assert_eq!(parse(4711, "", &message), Some(AuditEvent::Fence(fence)));
    assert_eq!(
        parse(4711, "subj=unconfined ", &message),
        Some(AuditEvent::Fence(fence))
    );
    assert_eq!(parse(4712, "", &message), None);
    // Somebody who sends a whole record as the message gets it quoted behind its own pid.
    assert_eq!(parse(4712, "", &format!("' pid=4711 msg='{message}")), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(kind in prop_oneof![Just(1005u16), Just(1423), Just(1424), any::<u16>()],
                                      text in prop::collection::vec(any::<u8>(), 0..400)) {
        any_record(kind, &text);
    }

    #[test]
    fn no_damage_to_a_real_record_makes_the_parser_panic(
        at in 0usize..120, byte in any::<u8>(), cut in 0usize..120, which in 0usize..4,
    ) {
        let (kind, body) = [
            (1423, "domain=1deaa615a blockers=fs.read_file,fs.x path=2F61 dev=\"vda\" ino=1196042"),
            (1423, "domain=1 blockers=net.connect_tcp daddr=::ffff:1.2.3.4 dest=80"),
            (1424, "domain=ff status=allocated mode=enforcing pid=9747 uid=0 exe=\"/usr/bin/sh\" comm=6120"),
            (1005, "pid=1 uid=0 auid=1 ses=1 msg='provost-fence:1:1:0123456789abcdef0123456789abcdef'"),
        ][which];
        let mut record = format!("{STAMP}{body}").into_bytes();
        if let Some(place) = record.get_mut(at) {
            *place = byte;
        }
        let _ = parse_record(kind, &record);
        record.truncate(cut);
        let _ = parse_record(kind, &record);
    }

    #[test]
    fn no_path_can_forge_a_field(path in prop_oneof![
        prop::collection::vec(1u8.., 1..64),
        "/[a-z\" =]{0,12}(\" dev=\"sda\" ino=1| domain=7 blockers=fs.execute)?".prop_map(String::into_bytes),
    ]) {
        path_forges_nothing(&path);
    }

    #[test]
    fn no_name_of_a_program_can_forge_its_domain_s_pid(
        comm in prop::collection::vec(1u8.., 0..16), exe in "/[a-z\" =0-9]{0,20}( pid=1 uid=0)?",
    ) {
        let text = format!(
            "{STAMP}domain=5 status=allocated mode=enforcing pid=77 uid=0 exe={} comm={}",
            as_the_kernel_writes(exe.as_bytes()), as_the_kernel_writes(&comm)
        );
        prop_assert_eq!(parse_record(1424, text.as_bytes()), Some(AuditEvent::DomainAllocated {
            domain: 5, pid: 77, uid: 0, comm: String::from_utf8_lossy(&comm).into_owned(), exe,
        }));
    }
}
