//! A disk that fails under the state directory, so that the kernel makes it read-only.

use std::fs;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use provost_tests::{
    FailingDisk, LineClient, Served, World, both_users, end_keeper, needs, program, require,
    until_it_is_there,
};
use serde_json::json;

fn i3_under_a_disk_that_becomes_read_only_what_runs_goes_on_and_is_told(world: &World) {
    require!(
        nix::unistd::geteuid().is_root() && needs::command("mkfs.ext4"),
        "root, who mounts, and mkfs.ext4"
    );
    let disk = FailingDisk::mount(world, "state");
    let [first, second, third] = ["work/first", "work/second", "work/third"].map(|name| {
        let path = world.path(name);
        mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
        world.give_away(&path, 0o600);
        path
    });
    let served = Served::start(world);
    let mut client = LineClient::connect(served.socket());
    let mut start = |fifo: &Path, end: &Path| {
        let script = format!(
            "echo kept; read line < {}; echo lost; : > {}; exit 3",
            fifo.display(),
            end.display()
        );
        let id = client.start(&script);
        client.read_until(&id, 5);
        id
    };
    let ends = start(&first, Path::new("/dev/null"));
    let stays = world.path("work/stays");
    start(&second, &stays);
    // Calls are received into a file, which takes no more of them then.
    let connect = format!("{} tcp-connect 192.0.2.1 80", program("escape"));
    let script = format!("{connect}; read line < third; {connect}; exit 3");
    let start =
        json!({ "argv": ["sh", "-c", script], "cwd": world.work(), "policy": "workspace-write" });
    let started = client.call("process/start", start).expect("it starts");
    let refused = started["process"].as_str().expect("an id");
    client.read_until(refused, "result: EACCES\n".len());

    disk.fail();
    fs::write(&third, "go\n").expect("it reads");
    let record = client.wait(refused);
    assert_eq!(
        (
            &record["outcome"],
            &record["exit_code"],
            &record["denials"]["total"]
        ),
        (&json!("exited"), &json!(3), &json!(2)),
        "{record}"
    );
    fs::write(&first, "go\n").expect("it reads");
    let record = client.wait(&ends);
    assert_eq!(
        (&record["outcome"], &record["exit_code"]),
        (&json!("exited"), &json!(3)),
        "{record}"
    );
    let output = &record["output"]["stdout"];
    assert_eq!(
        (&output["bytes"], &output["dropped"]),
        (&json!(10), &json!(5)),
        "{record}"
    );
    assert_eq!(client.read_all(&ends).0, b"kept\n");
    let status = client.call("daemon/status", json!({})).expect("a status");
    let degraded = status["degraded"].to_string();
    assert!(degraded.contains("Read-only file system"), "{status}");
    let start = json!({ "argv": ["true"], "cwd": "/", "policy": "unconfined" });
    let refused = client
        .call("process/start", start)
        .expect_err("it cannot be written down");
    assert_eq!(refused["data"]["kind"], "limit", "{refused}");

    // A new daemon cannot keep what it promises, so there is none; what the keeper has goes on.
    served.crash();
    let said = Served::start_to_fail(world, &[]);
    assert!(
        said.contains("Read-only file system") && said.contains("state"),
        "{said}"
    );
    fs::write(&second, "go\n").expect("it reads");
    until_it_is_there(&stays);
    end_keeper(&world.path("state"));
}

both_users! {
    i3_under_a_disk_that_becomes_read_only_what_runs_goes_on_and_is_told,
}
