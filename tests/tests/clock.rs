//! A wall clock that is set while the daemon runs. The daemon alone sees it: its C library's clock is shifted by a file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use provost_tests::{DEADLINE, LineClient, Served, World, both_users, needs, require};
use serde_json::{Value, json};

/// `clock_gettime(2)` with the seconds in `CLOCK_SHIFT` added to the clock on the wall, and to no other.
const SHIFTED: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *shift;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_SHIFT");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    shift = map == MAP_FAILED ? 0 : map;
    if (fd >= 0) close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *shift;
    return failed;
}
"#;

/// A clock that can be set.
struct Clock {
    shift: File,
    wrapper: [String; 3],
}

impl Clock {
    fn new(world: &World) -> Self {
        let library = world.preloaded("shifted", SHIFTED);
        let path = world.path("work/shift");
        let shift = File::create(&path).expect("a file of the test's own");
        let clock = Self {
            shift,
            wrapper: [
                "env".to_owned(),
                library,
                format!("CLOCK_SHIFT={}", path.display()),
            ],
        };
        clock.set(0);
        clock
    }

    /// So many seconds away from the right time.
    fn set(&self, seconds: i64) {
        self.shift
            .write_all_at(&seconds.to_ne_bytes(), 0)
            .expect("a file of the test's own");
    }

    fn serve(&self, world: &World) -> Served {
        let wrapper = self.wrapper.each_ref().map(String::as_str);
        Served::start_by(world, &wrapper, &[])
    }
}

fn submit(client: &mut LineClient, script: &str, more: Value) -> String {
    let mut asked = json!({
        "spec": { "argv": ["sh", "-c", script], "cwd": "/", "policy": "unconfined" }, "jobs": [{}],
    });
    let fields = more.as_object().expect("an object").clone();
    asked.as_object_mut().expect("an object").extend(fields);
    let submitted = client.call("job/submit", asked).expect("there is room");
    submitted["jobs"][0]["job"].as_str().expect("an id").to_owned()
}

fn end(client: &mut LineClient, job: &str) -> Value {
    let asked = json!({ "jobs": [job], "timeout_ms": DEADLINE.as_millis() as u64 });
    let waited = client.call("job/wait", asked).expect("it is known");
    waited["jobs"][0]["end"].clone()
}

fn i11_setting_the_wall_clock_ends_nothing_early_and_keeps_nothing_waiting(world: &World) {
    const DAY: i64 = 24 * 60 * 60;
    const DELAY: Duration = Duration::from_millis(1500);
    require!(needs::command("cc"), "cc");
    let clock = Clock::new(world);
    let served = clock.serve(world);
    let mut client = LineClient::connect(served.socket());
    let limited = json!({
        "argv": ["sh", "-c", "echo before; read line; echo after; exit 7"], "cwd": "/", "policy": "unconfined", "stdin": true,
        "timeout_ms": 3_600_000,
    });
    let limited = client.call("process/start", limited).expect("there is room");
    let limited = limited["process"].as_str().expect("an id").to_owned();
    client.read_until(&limited, "before\n".len());
    let go = world.text("work/go");
    let begun = Instant::now();
    let delayed = submit(
        &mut client,
        "exit 0",
        json!({ "delay_ms": DELAY.as_millis() as u64 }),
    );
    let in_time = submit(
        &mut client,
        &format!("while ! test -e {go}; do sleep 0.02; done"),
        json!({ "deadline_ms": 3_600_000 }),
    );

    clock.set(DAY);
    let ended = end(&mut client, &delayed);
    assert_eq!(ended["outcome"], "exited", "{ended}");
    assert!(
        begun.elapsed() >= DELAY,
        "it was to wait for {DELAY:?}: {:?}",
        begun.elapsed()
    );

    clock.set(-DAY);
    let delayed = submit(&mut client, "exit 0", json!({ "delay_ms": 100 }));
    assert_eq!(end(&mut client, &delayed)["outcome"], "exited");
    world.file("work/go", "");
    assert_eq!(end(&mut client, &in_time)["outcome"], "exited");
    let line = base64_simd::STANDARD.encode_to_string(b"go\n");
    client
        .call("process/write", json!({ "process": limited, "data": line }))
        .expect("it reads");
    let record = client.wait(&limited);
    assert_eq!(
        (&record["outcome"], &record["exit_code"]),
        (&json!("exited"), &json!(7)),
        "{record}"
    );
    let lasted = record["duration_ms"].as_u64().expect("a number");
    assert!(lasted < begun.elapsed().as_millis() as u64 + 60_000, "{record}");
    let (output, events) = client.read_all(&limited);
    assert_eq!(output, b"before\nafter\n");
    let times: Vec<&str> = events.iter().filter_map(|event| event["time"].as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");

    // That is so for whoever comes after, too.
    served.crash();
    clock.set(DAY);
    let served = clock.serve(world);
    let mut client = LineClient::connect(served.socket());
    assert_eq!(client.wait(&limited), record);
    let id = client.start("exit 3");
    let shifted = client.wait(&id);
    assert_eq!(shifted["exit_code"], 3);
    // The clock was set, or all of this shows nothing.
    assert!(
        shifted["queued_at"].as_str() > record["ended_at"].as_str(),
        "{shifted}"
    );
    let days = |record: &Value| record["queued_at"].as_str().expect("a time")[..10].to_owned();
    assert_ne!(days(&shifted), days(&record));
}

both_users!(i11_setting_the_wall_clock_ends_nothing_early_and_keeps_nothing_waiting);
