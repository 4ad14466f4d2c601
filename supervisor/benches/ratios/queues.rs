//! What else runs many commands: `xargs -P`, by itself and with bubblewrap around each command, GNU parallel, and pueue.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::Result;
use crate::jobs::AT_A_TIME;
use crate::measure::Side;
use crate::setting::{Setting, bubblewrap, plain, run_plain};

const XARGS: &str = "/usr/bin/xargs";
const PARALLEL: &str = "/usr/bin/parallel";
/// With the same kind of policy as `workspace-write`.
pub(crate) const XARGS_BWRAP: &str = "xargs -P 8 bwrap";
/// So many tasks of pueue's: it takes its time.
pub(crate) const FEW: usize = 200;

/// The command alone.
pub(crate) fn xargs<'a>(setting: &'a Setting, argv: &[&str], times: usize) -> Result<Side<'a>> {
    fed(setting, "xargs -P 8", xargs_words(argv.iter().copied()), times)
}

pub(crate) fn xargs_of_bubblewrap<'a>(
    setting: &'a Setting,
    argv: &[&str],
    times: usize,
) -> Option<Side<'a>> {
    let command = match bubblewrap(setting.directory(), argv) {
        Some(Ok(command)) => command,
        _ => {
            eprintln!("ratios: no bwrap here");
            return None;
        }
    };
    let program = command.get_program().to_string_lossy().into_owned();
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = std::iter::once(program).chain(words).collect();
    let words = xargs_words(words.iter().map(String::as_str));
    fed(setting, XARGS_BWRAP, words, times).ok()
}

pub(crate) fn parallel<'a>(setting: &'a Setting, argv: &[&str], times: usize) -> Option<Side<'a>> {
    if !Path::new(PARALLEL).exists() {
        eprintln!("ratios: no GNU parallel here");
        return None;
    }
    let own = [PARALLEL, "--will-cite", "-j", &AT_A_TIME.to_string()].map(str::to_owned);
    let words = own.into_iter().chain(argv.iter().map(|&word| word.to_owned()));
    fed(setting, "GNU parallel -j 8", words.collect(), times).ok()
}

fn xargs_words<'a>(argv: impl Iterator<Item = &'a str>) -> Vec<String> {
    let own = [XARGS, "-P", &AT_A_TIME.to_string(), "-n", "1"].map(str::to_owned);
    own.into_iter().chain(argv.map(str::to_owned)).collect()
}

/// A command that runs another one for each line of its input.
fn fed<'a>(setting: &'a Setting, name: &str, words: Vec<String>, times: usize) -> Result<Side<'a>> {
    let words_of = move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = plain(&words, setting.directory())?;
        // GNU parallel is a program of Perl's, and wants somewhere to keep its settings.
        command
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", setting.directory());
        Ok::<_, Box<dyn std::error::Error>>(command)
    };
    words_of()?;
    Ok(Side::timed(name, move || {
        let mut child = words_of()?.stdin(Stdio::piped()).spawn()?;
        let mut items = child.stdin.take().ok_or("no pipe")?;
        items.write_all("x\n".repeat(times).as_bytes())?;
        drop(items);
        match child.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("{status}").into()),
        }
    }))
}

/// A queue of pueue's: [`FEW`] tasks, one `pueue add` each, until `pueue wait` says that all have ended.
pub(crate) fn pueue<'a>(setting: &'a Setting, argv: &'a [&str]) -> Result<Option<Side<'a>>> {
    let Some(pueue) = Pueue::start(setting)? else {
        eprintln!("ratios: no pueue here (it is looked for in PATH)");
        return Ok(None);
    };
    Ok(Some(Side::timed("pueue parallel 8", move || {
        for _ in 0..FEW {
            pueue.ask(&[&["add", "--"], argv, &["x"]].concat())?;
        }
        pueue.ask(&["wait", "--quiet"])
    })))
}

struct Pueue<'a> {
    setting: &'a Setting,
    client: PathBuf,
    settings: String,
    daemon: Child,
}

impl<'a> Pueue<'a> {
    fn start(setting: &'a Setting) -> Result<Option<Self>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let find = |name: &str| {
            std::env::split_paths(&path)
                .map(|directory| directory.join(name))
                .find(|file| file.is_file())
        };
        let (Some(client), Some(daemon)) = (find("pueue"), find("pueued")) else {
            return Ok(None);
        };
        let place = setting.directory().join("pueue");
        fs::create_dir_all(&place)?;
        let place = place.to_string_lossy().into_owned();
        let settings = format!("{place}/pueue.yml");
        fs::write(
            &settings,
            format!(
                "shared:\n  pueue_directory: {place}\n  runtime_directory: {place}\n  use_unix_socket: true\n  \
                 unix_socket_path: {place}/socket\nclient: {{}}\ndaemon:\n  default_parallel_tasks: 1\n"
            ),
        )?;
        let mut command = plain(&[&daemon.to_string_lossy(), "-c", &settings], setting.directory())?;
        command.env("PATH", "/usr/bin:/bin").stderr(Stdio::null());
        let pueue = Self {
            setting,
            client,
            settings,
            daemon: command.spawn()?,
        };
        let mut tries = 0;
        // It does not say when it listens.
        while let Err(error) = pueue.ask(&["parallel", &AT_A_TIME.to_string()]) {
            tries += 1;
            if tries > 100 {
                return Err(error);
            }
            #[allow(clippy::disallowed_methods, reason = "there is no event")]
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(Some(pueue))
    }

    fn ask(&self, words: &[&str]) -> Result<()> {
        let client = self.client.to_string_lossy();
        let words = [&[&*client, "-c", &self.settings], words].concat();
        let mut command = plain(&words, self.setting.directory())?;
        run_plain(command.stderr(Stdio::null()))
    }
}

impl Drop for Pueue<'_> {
    fn drop(&mut self) {
        if self.ask(&["shutdown"]).is_err() {
            let _ = self.daemon.kill();
        }
        let _ = self.daemon.wait();
    }
}
