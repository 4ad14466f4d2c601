//! Floods of output and of denials: exact, and in bounded memory.

use provost_tests::{World, both_users, check_pattern, network, peak_memory, program};

const MIB: u64 = 1024 * 1024;

fn escape_58_i3_every_byte_arrives_at_a_slow_reader_in_bounded_memory(world: &World) {
    let total = 192 * MIB;
    let run = world
        .run([program("flood"), total.to_string()])
        .small_output_pipe();
    let mut live = run.start();
    let pid = live.pid();
    let (mut offset, mut peak) = (0, 0);
    live.each_piece(|piece| {
        check_pattern(piece, offset);
        offset += piece.len() as u64;
        // Now and then, and at the last moment at which it surely lives.
        if offset % (8 * MIB) == 0 || offset == total {
            peak = peak_memory(pid).unwrap_or(peak);
        }
    });
    let done = live.finish();
    assert_eq!(done.code, Some(0), "\n{done}");
    assert_eq!(offset, total, "\n{done}");
    assert_eq!(done.record()["output"]["stdout"]["bytes"], total, "\n{done}");
    assert!(peak > 0 && peak < 64 * MIB, "peak memory was {} MiB", peak / MIB);
}

fn escape_58_i3_a_flood_of_both_streams_keeps_each_in_order(world: &World) {
    let script = format!("{0} 20000000 & {0} 10000000 stderr; wait", program("flood"));
    let done = world.shell(&script).finish();
    assert_eq!(done.code, Some(0));
    assert_eq!(done.stdout.len(), 20_000_000);
    check_pattern(&done.stdout, 0);
    assert_eq!(done.record()["output"]["stderr"]["bytes"], 10_000_000);
}

fn i3_events_cover_every_byte_or_count_it(world: &World) {
    let total = 40 * MIB + 13;
    let done = world.run([program("flood"), total.to_string()]).json().finish();
    let mut covered = 0;
    for event in done.events().iter().filter(|event| event["stream"] == "stdout") {
        match event["type"].as_str() {
            Some("output") => {
                let text = event["data"].as_str().unwrap_or("");
                let data = base64_simd::STANDARD.decode_to_vec(text).expect("base64");
                assert_eq!(event["offset"], covered, "a piece is missing or doubled");
                check_pattern(&data, covered);
                covered += data.len() as u64;
            }
            Some("gap") => {
                assert_eq!(event["from"], covered, "a gap is in the wrong place");
                covered = event["to"].as_u64().expect("the gap's end");
            }
            _ => {}
        }
    }
    assert_eq!(covered, total);
    assert_eq!(done.record()["output"]["stdout"]["bytes"], total);
}

fn i3_single_bytes_are_as_exact_as_blocks(world: &World) {
    let script = "i=0; while [ $i -lt 20000 ]; do printf x; i=$((i+1)); done";
    let done = world.shell(script).json().finish();
    let (bytes, dropped) = done.stream("stdout");
    assert_eq!(bytes.len() as u64 + dropped, 20_000, "\n{done}");
    assert!(bytes.iter().all(|byte| *byte == b'x'));
}

fn a_reader_that_goes_away_ends_the_command(world: &World) {
    // Like `provost run -- yes | head`: the pipe breaks, and nothing runs on for ever.
    let provost = provost_tests::provost();
    let script = format!("{} run -- yes | head -c 5; echo; echo done", provost.display());
    let done = world
        .run(["sh", "-c", &script])
        .with(["--policy", "unconfined"])
        .finish();
    assert_eq!(done.text(), "y\ny\ny\ndone\n", "\n{done}");
}

fn escape_60_a_flood_of_refused_connects_is_counted_exactly(world: &World) {
    let mixed = format!(
        "{0} connect 10000; {1} tcp-connect 192.0.2.77 4444; {0} connect 10000",
        program("denials"),
        program("escape")
    );
    let done = world.shell(&mixed).finish();
    assert_eq!(done.denials_total(), 20_001, "\n{done}");
    assert!(done.denials().len() < 1_000, "the list is not bounded");
    // The one that matters is not lost among them.
    done.denial(&network("connect").address("192.0.2.77").port(4444));
}

fn escape_60_a_flood_of_refused_writes_is_counted_exactly(world: &World) {
    let probe = world.text("outside/probe");
    let done = world
        .run([&program("denials"), "write", "50000", &probe])
        .finish();
    assert_eq!(done.text(), "refused: 50000\n", "\n{done}");
    assert_eq!(
        done.record()["denials"]["by_class"]["filesystem"],
        50_000,
        "\n{done}"
    );
    let certainty = if world.is_root() { "observed" } else { "inferred" };
    assert!(
        done.denials()
            .iter()
            .all(|denial| denial["certainty"] == certainty),
        "\n{done}"
    );
}

fn escape_60_a_flood_of_refused_reads_delays_no_time_limit_and_fills_no_memory(world: &World) {
    let secret = world.file("home/.ssh/id_x", "secret");
    let command = [&program("denials"), "read", "4000000", &secret];
    let live = world
        .run(command)
        .with(["--timeout", "2s", "--grace", "200ms"])
        .start();
    let pid = live.pid();
    let mut peak = 0;
    while let Some(memory) = peak_memory(pid) {
        peak = peak.max(memory);
        std::thread::yield_now();
    }
    let done = live.finish();
    assert_eq!(done.outcome(), "timed_out", "\n{done}");
    assert!(done.record()["duration_ms"].as_u64() < Some(6_000), "\n{done}");
    assert!(peak > 0 && peak < 96 * MIB, "peak memory was {} MiB", peak / MIB);
}

both_users!(
    escape_60_a_flood_of_refused_reads_delays_no_time_limit_and_fills_no_memory,
    escape_58_i3_every_byte_arrives_at_a_slow_reader_in_bounded_memory,
    escape_58_i3_a_flood_of_both_streams_keeps_each_in_order,
    i3_events_cover_every_byte_or_count_it,
    i3_single_bytes_are_as_exact_as_blocks,
    a_reader_that_goes_away_ends_the_command,
    escape_60_a_flood_of_refused_connects_is_counted_exactly,
    escape_60_a_flood_of_refused_writes_is_counted_exactly,
);
