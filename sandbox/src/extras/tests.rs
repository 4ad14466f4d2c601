use std::io::Write;

use super::*;

fn made() -> File {
    File::from(place().expect("a place"))
}

fn try_report(place: &File, value: &[u8]) -> Result<(), ReportError> {
    report(place.as_raw_fd(), value)
}

#[test]
fn who_reports_twice_is_refused_and_the_first_stands() {
    let place = made();
    assert_eq!(reported(&place).expect("it"), b"");
    try_report(&place, b"{\"a\":1}").expect("the first");
    let second = try_report(&place, b"2").expect_err("the second");
    assert!(matches!(second, ReportError::Twice), "{second}");
    let by_hand = (&place).write(b"3").expect_err("it is sealed");
    assert_eq!(by_hand.raw_os_error(), Some(libc::EPERM));
    assert_eq!(reported(&place).expect("it"), b"{\"a\":1}");
}

#[test]
fn what_a_program_wrote_by_itself_is_a_first_report_too() {
    let place = made();
    (&place).write_all(b"7\n").expect("room");
    assert!(matches!(try_report(&place, b"8"), Err(ReportError::Twice)));
    assert_eq!(reported(&place).expect("it"), b"7\n");
}

#[test]
fn the_longest_result_fits_and_no_more_is_ever_kept() {
    let place = made();
    let long = vec![b'1'; REPORT_BYTES_MAX + 1];
    let refused = try_report(&place, &long);
    assert!(matches!(refused, Err(ReportError::TooLong(_))));
    try_report(&place, &long[1..]).expect("room");
    assert_eq!(reported(&place).expect("it").len(), REPORT_BYTES_MAX);

    let place = made();
    let flood = vec![b'x'; 1 << 20];
    assert!((&place).write_all(&flood).is_err());
    assert!(place.set_len(1 << 30).is_err(), "it does not grow");
    assert!(place.set_len(0).is_err(), "nor shrink");
    assert_eq!(reported(&place).expect("it").len(), FILE_BYTES);
}

#[test]
fn a_descriptor_that_is_something_else_is_left_alone() {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"precious").expect("room");
    assert!(matches!(try_report(&file, b"1"), Err(ReportError::NoPlace(_))));
    assert!(matches!(report(9999, b"1"), Err(ReportError::NoPlace(9999))));
    assert!(matches!(report(-1, b"1"), Err(ReportError::NoPlace(-1))));
    let mut read = [0; 9];
    assert_eq!(file.read_at(&mut read, 0).expect("it"), 8);
}

#[test]
fn the_environment_names_what_is_there_and_nothing_else() {
    let entry = |text: &str| text.as_bytes().to_vec();
    let mut env = vec![
        entry("PROVOST_REPORT_FD=9"),
        entry("PROVOST_READY_FD=9"),
        entry("A=1"),
    ];
    let (report, ready) = (true, ReadyBy::Nothing);
    Extras { report, ready }.tell(&mut env);
    assert_eq!(env, [entry("A=1"), entry("PROVOST_REPORT_FD=3")]);
    let (report, ready) = (false, ReadyBy::Notify);
    env.push(entry("NOTIFY_SOCKET=/run/systemd/notify"));
    Extras { report, ready }.tell(&mut env);
    assert_eq!(env, [entry("A=1"), entry("NOTIFY_SOCKET=@provost/notify")]);
}
