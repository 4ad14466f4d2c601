//! A daemon's processes at terminals.

use provost_tests::{Service, World, both_users};

fn a_terminal_is_attached_left_and_attached_again(world: &World) {
    let service = Service::start(world);
    let script =
        "stty -echo; echo ready; while read -r line; do stty size; echo \"got $line\"; done; exit 5";
    let id = service.say(&["start", "--tty", "--", "sh", "-c", script]);
    let mut first = service.at_terminal(&["attach", &id], 30, 100);
    first.wait_for("ready\r\n");
    first.type_in("one\r");
    first.wait_for("30 100\r\ngot one\r\n");
    first.type_in("half\x10\x11");
    let left = first.finish();
    assert_eq!(left.code, Some(0), "\n{left}");
    assert_eq!(service.say(&["ps", "-q"]), id);

    let mut second = service.at_terminal(&["attach", &id], 31, 101);
    second.wait_for("got one\r\n");
    second.type_in(" whole\r");
    second.wait_for("31 101\r\ngot half whole\r\n");
    second.type_in("\x04");
    let ended = second.finish();
    assert_eq!(ended.code, Some(5), "\n{ended}");
    let late = service.ask(&["attach", &id]);
    assert_eq!(late.code, Some(5), "\n{late}");
    assert!(late.text().ends_with("got half whole\r\n"), "\n{late}");
}

fn ctrl_c_in_an_attached_terminal_is_the_processs_and_the_clients_end_is_not(world: &World) {
    let service = Service::start(world);
    let script = "trap 'echo interrupted' INT; echo ready; while :; do read -r line; done";
    let id = service.say(&["start", "--tty", "--", "sh", "-c", script]);
    let mut client = service.at_terminal(&["attach", &id], 24, 80);
    client.wait_for("ready");
    client.type_in("\x03");
    client.wait_for("interrupted");
    client.signal(nix::sys::signal::Signal::SIGTERM);
    let done = client.finish();
    assert_eq!(done.code, Some(143), "\n{done}");
    assert_eq!(service.say(&["ps", "-q"]), id);
}

fn a_process_without_a_terminal_is_attached_by_its_streams(world: &World) {
    let service = Service::start(world);
    let id = service.say(&["start", "--stdin", "--", "sh", "-c", "cat; echo end >&2; exit 3"]);
    let mut watching = service.live(&["attach", &id]);
    service.say(&["send", &id, "one"]);
    watching.wait_for("one\n");
    service.say(&["send", "--eof", &id, "two"]);
    let done = watching.finish();
    assert_eq!(done.code, Some(3), "\n{done}");
    assert_eq!(done.text(), "one\ntwo\n", "\n{done}");
    assert_eq!(done.stderr, "end\n", "\n{done}");
    let unknown = service.ask(&["attach", "no-such-process"]);
    assert_eq!(unknown.code, Some(125), "\n{unknown}");
}

fn a_run_through_the_daemon_can_have_a_terminal(world: &World) {
    let service = Service::start(world);
    let words = [
        "run",
        "--daemon",
        "--tty",
        "--",
        "sh",
        "-c",
        "stty size; read -r line; echo \"got $line\"; exit 4",
    ];
    let mut client = service.at_terminal(&words, 30, 100);
    client.wait_for("30 100\r\n");
    client.type_in("typed\r");
    client.wait_for("got typed\r\n");
    let done = client.finish();
    assert_eq!(done.code, Some(4), "\n{done}");
}

fn i10_an_attached_terminal_is_put_back_when_the_daemon_dies(world: &World) {
    let mut service = Service::start(world);
    let id = service.say(&["start", "--tty", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut client = service.at_terminal(&["attach", "--reconnect", "0", &id], 24, 80);
    client.wait_for("ready");
    service.die();
    let done = client.finish();
    assert_eq!(done.code, Some(125), "\n{done}");
}

both_users!(
    a_terminal_is_attached_left_and_attached_again,
    ctrl_c_in_an_attached_terminal_is_the_processs_and_the_clients_end_is_not,
    a_process_without_a_terminal_is_attached_by_its_streams,
    a_run_through_the_daemon_can_have_a_terminal,
    i10_an_attached_terminal_is_put_back_when_the_daemon_dies,
);
