//! Words to people, on stderr; colours only on a terminal that wants them.

use anstyle::{AnsiColor, Style};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const NAME: Style = Style::new().bold();

/// An error of Provost's own.
pub(super) fn error(text: &str) {
    anstream::eprintln!("{NAME}provost:{NAME:#} {ERROR}error:{ERROR:#} {text}");
}

/// A line of Provost's own on a terminal that is raw, where line feeds begin no lines.
pub(super) fn note_raw(text: &str) {
    anstream::eprint!("\r\n{NAME}provost:{NAME:#} {text}\r\n");
}

/// A line of Provost's own.
pub(super) fn note(text: &str) {
    anstream::eprintln!("{NAME}provost:{NAME:#} {text}");
}
