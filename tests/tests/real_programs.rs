//! Real programs work under the default policy, and what they try in passing is no denial.

use provost_tests::{World, both_users, needs, require};

/// Runs a command that must succeed without a denial, if its program is here and works without a sandbox.
fn harmless(world: &World, words: &[&str]) {
    require!(needs::command(words[0]), "{}", words[0]);
    require!(
        needs::succeeds(world, words[0], &words[1..]),
        "a `{}` that works without a sandbox",
        words.join(" ")
    );
    world.run(words.iter().copied()).finish().assert_harmless();
}

fn i4_everyday_programs_are_refused_nothing(world: &World) {
    harmless(world, &["ls", "-l", "/"]);
    harmless(world, &["id"]);
    harmless(
        world,
        &["sh", "-c", "true | cat && echo $(date) > f && cat f && rm f"],
    );
    harmless(world, &["find", "/usr/bin", "-maxdepth", "1", "-name", "a*"]);
    harmless(world, &["tar", "-cf", "archive.tar", "/etc/hostname"]);
    harmless(world, &["sort", "-o", "sorted", "/etc/passwd"]);
    harmless(world, &["mktemp"]);
    harmless(world, &["bash", "-c", "diff <(echo a) <(echo a)"]);
}

fn i4_interpreters_are_refused_nothing(world: &World) {
    harmless(world, &["/usr/bin/python3", "-c", "pass"]);
    harmless(world, &["perl", "-e", "1"]);
}

fn i4_node_is_refused_nothing(world: &World) {
    harmless(world, &["node", "-e", "0"]);
    let script = "const {spawnSync} = require('child_process'); \
                  process.stdout.write(spawnSync('echo', ['from node']).stdout)";
    harmless(world, &["node", "-e", script]);
    // npm looks at the network interfaces whatever it is asked for: that is refused, and it goes on.
    require!(needs::command("npm"), "npm");
    let done = world.run(["npm", "--version"]).finish();
    assert_eq!(done.code, Some(0), "\n{done}");
}

fn asyncio_runs_a_subprocess(world: &World) {
    require!(needs::command("python3"), "python3");
    let script = "import asyncio\n\
        async def main():\n\
        \x20   p = await asyncio.create_subprocess_exec('echo', 'from asyncio', stdout=asyncio.subprocess.PIPE)\n\
        \x20   print((await p.communicate())[0].decode().strip())\n\
        asyncio.run(main())\n";
    let done = world.run(["python3", "-c", script]).finish();
    assert_eq!(done.text(), "from asyncio\n", "\n{done}");
    done.assert_harmless();
}

fn multiprocessing_finds_its_semaphores_and_shared_memory(world: &World) {
    require!(needs::pid_namespaces(world), "namespaces, for a private /dev/shm");
    require!(needs::command("python3"), "python3");
    let script = "import multiprocessing as m\n\
        from multiprocessing import shared_memory as s\n\
        l = m.Lock()\n\
        with l: b = s.SharedMemory(create=True, size=16)\n\
        b.buf[0] = 7; print(b.buf[0]); b.close(); b.unlink()\n";
    let done = world.run(["python3", "-c", script]).finish();
    assert_eq!(done.text(), "7\n", "\n{done}");
}

fn git_works_in_the_workspace(world: &World) {
    require!(needs::command("git"), "git");
    let script = "set -e; git init -q . ; git config user.email a@example.invalid; git config user.name a; \
                  echo x > f; git add f; git commit -q -m one";
    // Before: `git config` writes to a file that is read-only under the policy.
    require!(
        needs::succeeds(
            world,
            "env",
            &[&format!("HOME={}", world.text("home")), "sh", "-c", script]
        ),
        "git"
    );
    for command in ["git status", "git log --oneline", "git diff"] {
        world.shell(command).finish().assert_harmless();
    }
    let script = "set -e; echo y >> f; git add f; git commit -q -m two; git stash list; git checkout -q -b other; \
                  git log --oneline | wc -l";
    let done = world.shell(script).finish();
    assert_eq!(done.text().trim(), "2", "\n{done}");
    let done = world
        .shell("mkdir new && cd new && git init -q . && git status -s")
        .finish();
    assert_eq!(done.code, Some(0), "\n{done}");
}

fn archives_keep_modes_times_and_links(world: &World) {
    require!(needs::command("tar"), "tar");
    let script = "set -e; mkdir -p src/d; echo a > src/a; echo b > src/d/b; ln -s a src/link; ln src/a src/hard; \
                  chmod 751 src/d; chmod 640 src/a; touch -d @1000000000 src/a src/d; touch -h -d @1000000001 src/link; \
                  tar cf src.tar src; mkdir out; tar xpf src.tar -C out; cp -a src copy; \
                  for d in out/src copy; do stat -c '%a %Y %h' $d/a; stat -c '%a %Y' $d/d; stat -c %Y $d/link; done";
    let done = world.shell(script).finish();
    let expected = "640 1000000000 2\n751 1000000000\n1000000001\n";
    assert_eq!(done.text(), expected.repeat(2), "\n{done}");
    done.assert_harmless();
}

fn make_runs_jobs_in_parallel(world: &World) {
    require!(needs::command("make"), "make");
    world.file("work/Makefile", "all: a b c d\na b c d:\n\t@echo $@ > $@\n");
    let done = world.run(["make", "-j4"]).finish();
    done.assert_harmless();
    for name in ["a", "b", "c", "d"] {
        assert_eq!(world.content(&format!("work/{name}")).trim(), name);
    }
}

fn a_compiler_builds_a_program_that_runs(world: &World) {
    require!(needs::command("cc"), "cc");
    world.file(
        "work/main.c",
        "#include <stdio.h>\nint main(void) { puts(\"built\"); return 0; }\n",
    );
    let done = world.shell("cc -o main main.c && ./main").finish();
    assert_eq!(done.text(), "built\n", "\n{done}");
    done.assert_harmless();
}

/// As the tests' own user only: the toolchain lies in that user's home.
#[test]
fn cargo_builds_a_crate() {
    let user = match nix::unistd::geteuid().is_root() {
        true => provost_tests::User::Root,
        false => provost_tests::User::Ordinary,
    };
    let Some(world) = World::try_new(user) else { return };
    let (Some(cargo), Some(home)) = (std::env::var_os("CARGO"), std::env::var_os("HOME")) else {
        return provost_tests::needs::missing("a cargo that runs this test");
    };
    let directory = std::path::Path::new(&cargo)
        .parent()
        .map(|d| d.display().to_string())
        .unwrap_or_default();
    world.file(
        "work/Cargo.toml",
        "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
    );
    world.file("work/src/main.rs", "fn main() { println!(\"built\"); }\n");
    world.file("work/src/lib.rs", "#[test]\nfn passes() {}\n");
    let script =
        format!("PATH={directory}:$PATH; cargo run -q --offline && cargo test -q --offline >/dev/null");
    let run = world.shell(&script).env("HOME", &home.to_string_lossy());
    let done = run.with(["--env", "CARGO_HOME=cargo-home"]).finish();
    assert_eq!(done.text(), "built\n", "\n{done}");
    done.assert_harmless();
}

both_users!(
    i4_everyday_programs_are_refused_nothing,
    i4_interpreters_are_refused_nothing,
    i4_node_is_refused_nothing,
    asyncio_runs_a_subprocess,
    multiprocessing_finds_its_semaphores_and_shared_memory,
    git_works_in_the_workspace,
    archives_keep_modes_times_and_links,
    make_runs_jobs_in_parallel,
    a_compiler_builds_a_program_that_runs,
);
