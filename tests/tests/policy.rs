//! Policy files and `provost policy`: what a file says is what the kernel then does.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use provost_tests::host::TcpServer;
use provost_tests::{World, both_users, filesystem, network, provost};
use serde_json::Value;

/// `provost policy …` as the world's user, in its working directory.
fn policy(world: &World, words: &[&str]) -> Output {
    let mut command = Command::new(provost());
    command.arg("policy").args(words).current_dir(world.work());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", world.path("home"));
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    command.output().expect("provost runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn a_mistake_names_file_line_and_key_and_nothing_runs(world: &World) {
    let file = world.file("work/bad.toml", "version = 1\n\n[files]\nwirte = [\"x\"]\n");
    let checked = policy(world, &["check", &file]);
    assert_eq!(checked.status.code(), Some(1));
    let place = format!("{file}:4:1: files.wirte: unknown key `wirte`; did you mean `write`?");
    assert!(errors(&checked).contains(&place), "{}", errors(&checked));
    let done = world.shell("echo ran").with(["--policy", &file]).finish();
    assert_eq!((done.code, done.text().as_str()), (Some(125), ""), "\n{done}");
    assert!(done.stderr.contains(&place), "\n{done}");
    let json = policy(world, &["check", "--json", &file]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(
        (&json[0]["line"], &json[0]["key"]),
        (&4.into(), &"files.wirte".into()),
        "{json}"
    );
}

fn a_policy_file_holds_and_denials_quote_its_lines(world: &World) {
    let server = TcpServer::start();
    world.file("outside/readable", "text");
    world.file("work/secrets/key.pem", "secret");
    let outside = world.text("outside");
    let file = world.file(
        "work/job.toml",
        &format!(
            "version = 1\nextends = \"workspace-write\"\n[files]\nwrite = [\"{outside}\"]\n\
             deny = [\"secrets/*.pem\"]\n[net]\nmode = \"off\"\n[env]\npass = [\"SOME_*\"]\nset = {{ MODE = \"test\" }}\n"
        ),
    );
    let script = format!(
        "echo new > {outside}/made; echo $MODE $SOME_NAME $SOME_TOKEN; cat secrets/key.pem; \
         {} tcp-connect 127.0.0.1 {}",
        provost_tests::program("escape"),
        server.port()
    );
    let done = world
        .shell(&script)
        .with(["--policy", &file])
        .env("SOME_NAME", "passed")
        .env("SOME_TOKEN", "hidden")
        .finish();
    assert_eq!(world.content("outside/made"), "new\n", "\n{done}");
    assert!(done.text().starts_with("test passed\n"), "\n{done}");
    let denial = done.denial(&network("connect").port(server.port()));
    assert_eq!(
        denial["rule"],
        format!("net = off ({file}:7: net.mode)"),
        "\n{done}"
    );
    if world.is_root() {
        let denial = done.denial(&filesystem().path(world.text("work/secrets/key.pem")));
        assert_eq!(
            denial["rule"],
            format!("{file}:5: files.deny `secrets/*.pem`"),
            "\n{done}"
        );
    }
    assert!(!done.text().contains("secret"), "\n{done}");
    assert_eq!(done.record()["sandbox"]["policy"], "job", "\n{done}");
}

fn a_policy_is_found_by_its_name_and_limits_time(world: &World) {
    let written = policy(world, &["new", "short"]);
    let file = text(&written).trim().to_owned();
    assert_eq!(
        file,
        world.text("home/.config/provost/policies/short.toml"),
        "{}",
        errors(&written)
    );
    let again = policy(world, &["new", "short"]);
    assert_eq!(again.status.code(), Some(125));
    assert!(errors(&again).contains("exists already"), "{}", errors(&again));
    let starter = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, starter + "timeout = \"300ms\"\n").expect("it is ours");
    assert!(
        text(&policy(world, &["list"])).contains("short  /"),
        "it is listed"
    );
    let done = world.shell("exec sleep 1000").with(["-p", "short"]).finish();
    assert_eq!(done.outcome(), "timed_out", "\n{done}");
    // A flag has the last word.
    let done = world
        .shell("sleep 1; echo through")
        .with(["-p", "short", "--timeout", "50s"])
        .finish();
    assert_eq!(done.text(), "through\n", "\n{done}");
}

fn what_is_shown_is_the_same_policy(world: &World) {
    let shown = text(&policy(world, &["show", "workspace-write"]));
    let file = world.file("work/shown.toml", &shown);
    let compared = policy(world, &["diff", "workspace-write", &file]);
    assert_eq!((text(&compared).as_str(), compared.status.code()), ("", Some(0)));
    let compared = policy(world, &["diff", "workspace-write", "read-only"]);
    assert_eq!(compared.status.code(), Some(1));
    let expected = format!(
        "- files.write \"{}\"\n",
        world.work().canonicalize().expect("it is there").display()
    );
    assert!(text(&compared).contains(&expected), "{}", text(&compared));
    let json = policy(world, &["show", "--json", &file]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["policy"]["net"]["mode"], "off", "{json}");
}

fn the_published_schema_is_that_of_this_build(world: &World) {
    let published = include_str!("../../docs/policy.schema.json");
    let printed = text(&policy(world, &["schema"]));
    assert_eq!(
        printed.trim(),
        published.trim(),
        "run `provost policy schema > docs/policy.schema.json`"
    );
}

fn learning_writes_a_policy_under_which_the_same_works(world: &World) {
    let server = TcpServer::start();
    let connect = format!(
        "{} tcp-connect 127.0.0.1 {}",
        provost_tests::program("escape"),
        server.port()
    );
    let (made, secret) = (world.text("outside/made"), world.file("home/.ssh/id", "secret"));
    let script = format!("echo x > {made}; {connect}; cat {secret} 2>/dev/null; true");
    let learned = policy(world, &["learn", "-o", "learned.toml", "--", "sh", "-c", &script]);
    let written = world.content("work/learned.toml");
    assert_eq!(learned.status.code(), Some(0), "{}\n{written}", errors(&learned));
    assert!(!text(&learned).contains("secret"), "what is denied stays denied");
    assert!(written.starts_with("# REVIEW THIS"), "{written}");
    assert_eq!(server.connections(), 1);
    std::fs::remove_file(world.path("outside/made")).expect("it was made");
    let done = world.shell(&script).with(["-p", "./learned.toml"]).finish();
    assert_eq!(server.connections(), 1, "{written}\n{done}");
    assert_eq!(world.content("outside/made"), "x\n", "{written}\n{done}");
    // Learned for this and nothing else.
    let done = world
        .shell(&format!("echo x > {}", world.text("home/other")))
        .with(["-p", "./learned.toml"])
        .finish();
    assert_eq!(done.record()["denied"], true, "\n{done}");
    let again = policy(world, &["learn", "-o", "learned.toml", "--", "true"]);
    assert!(errors(&again).contains("exists already"), "{}", errors(&again));
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % end
    }
}

const DIRECTORIES: [&str; 7] = ["", "a", "a/b", "a/b/c", "d", "d/e", "f"];

fn explain_agrees_with_the_kernel(world: &World) {
    for directory in DIRECTORIES {
        world.make_directory(&world.path("outside/tree").join(directory));
        world.file(&format!("outside/tree/{directory}/file"), "text");
    }
    let tree = world.text("outside/tree");
    let mut numbers = Numbers(7);
    let mut compared = 0;
    for round in 0..25 {
        let mut lists = vec![Vec::new(); 4];
        for directory in DIRECTORIES {
            for suffix in ["", "/file"] {
                if numbers.below(4) == 0 {
                    lists[numbers.below(4)].push(format!("{tree}/{directory}{suffix}"));
                }
            }
        }
        // What a mount protects must lie below what is writable to be protected by anything.
        let [read, write, deny, protect] = &lists[..] else {
            unreachable!()
        };
        let list = |paths: &Vec<String>| format!("{paths:?}");
        let file = world.file(
            "work/generated.toml",
            &format!(
                "version = 1\nextends = \"workspace-write\"\n[files]\nread = {}\nwrite = {}\ndeny = {}\nprotect = {}\n",
                list(read), list(write), list(deny), list(protect)
            ),
        );
        // Read, open for writing, and make a name; each leaves everything as it was.
        let script = "for d in \"$@\"; do for p in $d/file $d/new; do \
             r=-; w=-; c=-; \
             if [ ${p##*/} = file ]; then \
               (cat $p) >/dev/null 2>&1 && r=read; (: >> $p) 2>/dev/null && w=write; \
             else (: > $p) 2>/dev/null && c=create && rm $p; fi; \
             echo $p $r $w $c; done; done";
        let directories: Vec<String> = DIRECTORIES
            .iter()
            .map(|d| format!("{tree}/{d}").trim_end_matches('/').to_owned())
            .collect();
        let mut words = vec!["sh", "-c", script, "sh"];
        words.extend(directories.iter().map(String::as_str));
        let done = world.run(words).with(["-p", &file]).finish();
        let paths: Vec<String> = directories
            .iter()
            .flat_map(|d| [format!("{d}/file"), format!("{d}/new")])
            .collect();
        let mut explain = vec!["explain", "--json", "-p", &file];
        explain.extend(paths.iter().map(String::as_str));
        let explained = policy(world, &explain);
        let answers: Vec<Value> = serde_json::from_slice(&explained.stdout).unwrap_or_else(|error| {
            panic!(
                "{error}: {}\n{}",
                errors(&explained),
                world.content("work/generated.toml")
            )
        });
        let output = done.text();
        for line in output.lines() {
            let mut words = line.split(' ');
            let path = words.next().expect("a path");
            let done: Vec<&str> = words.filter(|word| *word != "-").collect();
            let acts: &[&str] = if path.ends_with("/new") {
                &["create"]
            } else {
                &["read", "write"]
            };
            for act in acts {
                let answer = answers
                    .iter()
                    .find(|answer| answer["subject"] == path && answer["act"] == *act)
                    .unwrap_or_else(|| panic!("{path} {act} is not explained"));
                assert_eq!(
                    answer["allowed"],
                    done.contains(act),
                    "round {round}: {act} {path}: {answer}\n{}",
                    world.content("work/generated.toml")
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 400, "{compared}");
}

fn explain_agrees_with_the_kernel_about_addresses(world: &World) {
    let servers: Vec<TcpServer> = (0..3).map(|_| TcpServer::start()).collect();
    let file = world.file(
        "work/net.toml",
        &format!(
            "version = 1\nextends = \"workspace-write\"\n[net]\nallow = [\"127.0.0.1:{}\", \"127.0.0.0/8:{}\"]\n",
            servers[0].port(),
            servers[1].port()
        ),
    );
    let mut reached_in_all = 0;
    for server in &servers {
        let address = server.address().to_string();
        let done = world
            .escape(&["tcp-connect", "127.0.0.1", &server.port_text()])
            .with(["-p", &file])
            .finish();
        let explained = policy(world, &["explain", "--json", "-p", &file, &address]);
        let answers: Value = serde_json::from_slice(&explained.stdout).expect("JSON");
        let reached = server.connections();
        assert_eq!(answers[0]["allowed"], reached == 1, "{answers}\n{done}");
        reached_in_all += reached;
    }
    assert_eq!(reached_in_all, 2);
}

/// Connecting, serving and sending, over rules that were drawn from a hat: no server is needed to tell a refusal of the
/// sandbox (EACCES) from one of the host.
fn explain_agrees_with_the_kernel_about_generated_network_rules(world: &World) {
    provost_tests::require!(provost_tests::needs::command("python3"), "python3");
    const ADDRESSES: [&str; 4] = ["127.0.0.1", "127.0.0.2", "127.1.0.1", "[::1]"];
    const PORTS: [&str; 3] = ["40001", "40002", "40003"];
    let rules: Vec<String> = [
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.0/24",
        "127.0.0.0/8",
        "[::1]",
        "[::/0]",
    ]
    .iter()
    .flat_map(|net| ["40001", "40002", "*"].map(|port| format!("{net}:{port}")))
    .collect();
    let script = "import socket, sys, errno\n\
        def act(what, address, port):\n\
        \x20   host = address.strip('[]'); family = socket.AF_INET6 if ':' in host else socket.AF_INET\n\
        \x20   s = socket.socket(family, socket.SOCK_DGRAM if what == 'send' else socket.SOCK_STREAM)\n\
        \x20   try:\n\
        \x20       if what == 'listen': s.bind((host, port)); s.listen()\n\
        \x20       else: s.connect((host, port))\n\
        \x20   except OSError as e: return e.errno not in (errno.EACCES, errno.ENETUNREACH)\n\
        \x20   return True\n\
        for target in sys.argv[1:]:\n\
        \x20   address, port = target.rsplit(':', 1)\n\
        \x20   print(target, *(int(act(what, address, int(port))) for what in ('connect', 'listen', 'send')))\n";
    let targets: Vec<String> = ADDRESSES
        .iter()
        .flat_map(|address| PORTS.map(|port| format!("{address}:{port}")))
        .collect();
    let mut numbers = Numbers(11);
    let mut seen = [0; 2];
    for _ in 0..8 {
        let mut lists = vec![Vec::new(); 2];
        for rule in &rules {
            match numbers.below(8) {
                0 => lists[0].push(rule.clone()),
                1 => lists[0].push(format!("{rule}/udp")),
                2 => lists[1].push(rule.clone()),
                _ => {}
            }
        }
        let file = world.file(
            "work/generated.toml",
            &format!(
                "version = 1\nextends = \"workspace-write\"\n[net]\nallow = {:?}\nlisten = {:?}\n",
                lists[0], lists[1]
            ),
        );
        let mut words = vec!["python3", "-c", script];
        words.extend(targets.iter().map(String::as_str));
        let done = world.run(words).with(["-p", &file]).finish();
        let udp: Vec<String> = targets.iter().map(|target| format!("{target}/udp")).collect();
        let mut explain = vec!["explain", "--json", "-p", &file];
        explain.extend(targets.iter().chain(&udp).map(String::as_str));
        let answers: Vec<Value> =
            serde_json::from_slice(&policy(world, &explain).stdout).expect("answers");
        let allowed = |subject: String, act: &str| {
            let answer = answers
                .iter()
                .find(|answer| answer["subject"] == *subject && answer["act"] == act);
            answer.unwrap_or_else(|| panic!("{subject} {act}: {answers:?}"))["allowed"] == true
        };
        for line in done.text().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let (target, did) = (words[0], &words[1..]);
            let said = [
                allowed(format!("{target}/tcp"), "connect"),
                allowed(format!("{target}/tcp"), "listen"),
                allowed(format!("{target}/udp"), "connect"),
            ];
            for (said, did) in said.iter().zip(did) {
                assert_eq!(
                    *said,
                    *did == "1",
                    "{target} {line} {}\n{done}",
                    world.content("work/generated.toml")
                );
                seen[usize::from(*said)] += 1;
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}

both_users!(
    a_mistake_names_file_line_and_key_and_nothing_runs,
    a_policy_file_holds_and_denials_quote_its_lines,
    a_policy_is_found_by_its_name_and_limits_time,
    what_is_shown_is_the_same_policy,
    the_published_schema_is_that_of_this_build,
    learning_writes_a_policy_under_which_the_same_works,
    explain_agrees_with_the_kernel,
    explain_agrees_with_the_kernel_about_addresses,
    explain_agrees_with_the_kernel_about_generated_network_rules,
);
