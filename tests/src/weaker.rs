//! Machines that offer less, simulated: `provost run` behind a command that takes something away first.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::{Finished, Live, World, provost};

/// Words that run what follows them where no further namespace can be made and no capability is left.
pub fn no_user_namespaces() -> Vec<String> {
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && \
        exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs \"$@\"";
    ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
        .map(str::to_owned)
        .to_vec()
}

/// Runs `sh -c SCRIPT` with `$1`, `$2` … under `provost run` with these options, behind those words.
pub fn run_within(
    world: &World,
    words: &[String],
    options: &[&str],
    script: &str,
    given: &[&str],
) -> Finished {
    let record = world.text("records/weak.json");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(provost());
    command.args(["run", "--record", &record]).args(options);
    command.args(["--", "sh", "-c", script, "sh"]).args(given);
    command
        .current_dir(world.work())
        .env("HOME", world.path("home"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    if world.changes_uid() {
        command.uid(world.uid()).gid(world.uid());
    }
    Live::from_command(command, Some(record.into())).finish()
}
