//! A file that Provost reports into, which the command may be able to reach.
//!
//! It is opened once, before anything runs, and written through that descriptor alone: a path that the command can
//! change leads nowhere. At the end it must still be what the path names, with the length that was written: a
//! record that somebody else put there must not be taken for ours.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file of ours.
#[derive(Debug)]
pub(super) struct ReportFile {
    path: PathBuf,
    flag: &'static str,
    file: BufWriter<File>,
    written: u64,
    /// A sum over what was written, to compare the file with. Absent for what is no regular file.
    content: Option<Content>,
}

/// What a regular file must read as in the end.
#[derive(Debug, Default)]
struct Content(std::hash::DefaultHasher);

impl Content {
    fn add(&mut self, bytes: &[u8]) {
        use std::hash::Hasher;
        for byte in bytes {
            self.0.write_u8(*byte);
        }
    }

    fn sum(&self) -> u64 {
        use std::hash::Hasher;
        self.0.finish()
    }
}

impl ReportFile {
    /// Creates or empties the file.
    pub(super) fn create(path: &Path, flag: &'static str) -> Result<Self, String> {
        let say = |error: std::io::Error| format!("{flag} {}: {error}", path.display());
        // A link in a directory that an earlier command could write would have us overwrite what it leads to. Those of
        // `/dev` and `/proc` are the machine's.
        let machine = ["/dev", "/proc"].iter().any(|fixed| path.starts_with(fixed));
        if !machine && fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
            return Err(format!(
                "{flag} {}: it is a link; name the file that it leads to",
                path.display()
            ));
        }
        let no_link = if machine { 0 } else { nix::libc::O_NOFOLLOW };
        let mut options = File::options();
        options.custom_flags(no_link);
        options.read(true).write(true).create(true).truncate(true);
        // A pipe or a terminal may be open for writing only.
        let file = options
            .open(path)
            .or_else(|_| options.read(false).open(path))
            .map_err(say)?;
        let regular = file.metadata().map_err(say)?.is_file();
        Ok(Self {
            path: path.to_owned(),
            flag,
            file: BufWriter::new(file),
            written: 0,
            content: regular.then(Content::default),
        })
    }

    /// Appends to what was written before.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let result = self.file.write_all(bytes);
        result.map_err(|error| self.say(&error.to_string()))?;
        self.written += bytes.len() as u64;
        if let Some(content) = &mut self.content {
            content.add(bytes);
        }
        Ok(())
    }

    /// Writes this in the place of whatever somebody may have written meanwhile.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> Result<(), String> {
        if let Some(content) = &mut self.content {
            *content = Content::default();
            self.written = 0;
            let emptied = self.file.get_ref().set_len(0);
            let emptied = emptied.and_then(|()| self.file.seek(SeekFrom::Start(0)));
            emptied.map_err(|error| self.say(&error.to_string()))?;
        }
        self.write(bytes)
    }

    /// Flushes, and checks that the file is whole, ours, and where it is looked for.
    pub(super) fn finish(mut self) -> Result<(), String> {
        let result = self.file.flush();
        result.map_err(|error| self.say(&error.to_string()))?;
        let Some(content) = self.content.take() else {
            return Ok(());
        };
        if self.is_intact(&content).unwrap_or(false) {
            return Ok(());
        }
        // What somebody else wrote there must not be read as our word.
        let _ = self.file.get_ref().set_len(0);
        let _ = self.file.seek(SeekFrom::Start(0));
        Err(self.say(
            "the file was changed by somebody else while the command ran; name one that the command cannot write",
        ))
    }

    fn is_intact(&self, content: &Content) -> std::io::Result<bool> {
        let file = self.file.get_ref();
        let (ours, named) = (file.metadata()?, fs::metadata(&self.path)?);
        if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) || ours.len() != self.written {
            return Ok(false);
        }
        let mut read = Content::default();
        let mut buffer = vec![0; 64 * 1024];
        let mut at = 0;
        while at < self.written {
            let count = file.read_at(&mut buffer, at)?;
            if count == 0 {
                return Ok(false);
            }
            read.add(&buffer[..count]);
            at += count as u64;
        }
        Ok(read.sum() == content.sum())
    }

    fn say(&self, why: &str) -> String {
        format!("{} {}: {why}", self.flag, self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path) -> ReportFile {
        let mut file = ReportFile::create(path, "--record").unwrap();
        file.write(b"one ").unwrap();
        file.write(b"two").unwrap();
        file
    }

    #[test]
    fn an_untouched_file_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        written(&path).finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one two");
    }

    #[test]
    fn escape_62_a_file_that_was_replaced_or_changed_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        let elsewhere = directory.path().join("victim");
        fs::write(&elsewhere, b"precious").unwrap();

        let file = written(&path);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(file.finish().unwrap_err().contains("changed by somebody else"));
        assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");

        fs::remove_file(&path).unwrap();
        let mut file = written(&path);
        file.file.flush().unwrap();
        fs::write(&path, b"ONE two").unwrap();
        assert!(file.finish().is_err());
    }

    #[test]
    fn escape_62_a_planted_link_is_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let precious = directory.path().join("precious");
        fs::write(&precious, b"precious").unwrap();
        for target in [precious.as_path(), Path::new("missing")] {
            let link = directory.path().join("r");
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert!(
                ReportFile::create(&link, "--record")
                    .unwrap_err()
                    .contains("a link")
            );
            fs::remove_file(&link).unwrap();
        }
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert!(!directory.path().join("missing").exists());
    }

    #[test]
    fn what_is_no_regular_file_is_written_as_it_is() {
        let mut file = ReportFile::create(Path::new("/dev/null"), "--record").unwrap();
        file.write(b"x").unwrap();
        file.finish().unwrap();
    }
}
