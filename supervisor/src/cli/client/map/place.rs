//! Where results go. The items' programs may be able to write there, so nothing that they put there leads us elsewhere: the
//! directories are opened before anything runs, and no link in them is followed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use super::gather::Gathered;
use crate::map::{Format, Plan, Row};

/// The places of a map's results.
#[derive(Debug)]
pub(super) struct Places {
    /// The file of rows.
    pub(super) out: Option<OutFile>,
    /// The directory of outputs and records.
    pub(super) results: Option<Results>,
}

impl Places {
    /// Opens them, before anything runs.
    pub(super) fn open(plan: &Plan) -> Result<Self, String> {
        Ok(Self {
            out: plan.out.as_deref().map(OutFile::open).transpose()?,
            results: plan.results.as_deref().map(Results::open).transpose()?,
        })
    }
}

/// A file that is put into its place when it is complete: whoever finds it finds all of it. Until then what is known of the
/// items is in the map's journal, which has more than a part of this file could have: it is written in the order of ends.
#[derive(Debug)]
pub(super) struct OutFile {
    path: PathBuf,
    directory: OwnedFd,
    format: Format,
}

impl OutFile {
    fn open(path: &Path) -> Result<Self, String> {
        let format = Format::of(path).map_err(|why| format!("--out {why}"))?;
        if path.is_dir() {
            return Err(format!("--out {}: it is a directory", path.display()));
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = open_directory(AT_FDCWD, parent, OFlag::empty())
            .map_err(|error| format!("--out {}: {error}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            directory,
            format,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it and puts it into its place. `write` gets the format and where to.
    pub(super) fn put(
        &self,
        id: &str,
        write: impl FnOnce(Format, &mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), String> {
        let say = |error: io::Error| format!("--out {}: {error}", self.path.display());
        let name = self.path.file_name().unwrap_or_default();
        let mut new = std::ffi::OsString::from(".");
        new.push(name);
        new.push(format!(".{id}"));
        let put = || {
            let mut file = BufWriter::new(create(&self.directory, Path::new(&new))?);
            write(self.format, &mut file)?;
            file.flush()?;
            fsync(file.get_ref())?;
            renameat(&self.directory, Path::new(&new), &self.directory, Path::new(name))?;
            Ok(())
        };
        put().map_err(say)
    }
}

/// A directory with one for each item, called by its number.
#[derive(Debug)]
pub(super) struct Results {
    path: PathBuf,
    directory: OwnedFd,
}

impl Results {
    fn open(path: &Path) -> Result<Self, String> {
        let say = |error: io::Error| format!("--results {}: {error}", path.display());
        std::fs::create_dir_all(path).map_err(say)?;
        let directory = open_directory(AT_FDCWD, path, OFlag::empty()).map_err(say)?;
        Ok(Self {
            path: path.to_owned(),
            directory,
        })
    }

    /// Writes what there is of an item; gives the path of its standard output.
    pub(super) fn put(&self, row: &Row, gathered: &Gathered) -> Result<String, String> {
        let number = row.item.to_string();
        let place = self.path.join(&number);
        let put = || -> io::Result<()> {
            match mkdirat(
                &self.directory,
                Path::new(&number),
                Mode::from_bits_truncate(0o777),
            ) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let directory = open_directory(&self.directory, Path::new(&number), OFlag::O_NOFOLLOW)?;
            let file = |name: &str, bytes: &[u8]| create(&directory, Path::new(name))?.write_all(bytes);
            file("stdout", &gathered.stdout)?;
            file("stderr", &gathered.stderr)?;
            if let Some(record) = &gathered.record {
                file("record.json", &serde_json::to_vec_pretty(record)?)?;
            }
            Ok(())
        };
        put().map_err(|error| {
            format!(
                "--results {}: {error}; the items' programs should not be able to write there",
                place.display()
            )
        })?;
        Ok(place.join("stdout").display().to_string())
    }
}

fn open_directory(at: impl AsFd, path: &Path, more: OFlag) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY | more;
    Ok(openat(at, path, flags, Mode::empty())?)
}

/// A new file instead of whatever has that name.
fn create(directory: &OwnedFd, name: &Path) -> io::Result<File> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    let file = openat(directory, name, flags, Mode::from_bits_truncate(0o666))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_a_program_put_there_is_not_written_through() {
        let world = tempfile::tempdir().unwrap();
        let path = |name: &str| world.path().join(name);
        fs::write(path("precious"), "precious").unwrap();
        fs::create_dir_all(path("elsewhere")).unwrap();
        let results = Results::open(&path("results")).unwrap();
        let row = |item| Row {
            item,
            ..Row::default()
        };
        let gathered = Gathered {
            stdout: b"out".to_vec(),
            ..Gathered::default()
        };
        // A link to a file is replaced, one to a directory refused.
        fs::create_dir(path("results/1")).unwrap();
        symlink(path("precious"), path("results/1/stdout")).unwrap();
        results.put(&row(1), &gathered).unwrap();
        assert_eq!(fs::read(path("results/1/stdout")).unwrap(), b"out");
        symlink(path("elsewhere"), path("results/2")).unwrap();
        assert!(results.put(&row(2), &gathered).is_err());
        assert_eq!(fs::read_dir(path("elsewhere")).unwrap().count(), 0);

        let out = OutFile::open(&path("out.csv")).unwrap();
        symlink(path("precious"), path("out.csv")).unwrap();
        symlink(path("precious"), path(".out.csv.ID")).unwrap();
        out.put("ID", |_, to| to.write_all(b"rows")).unwrap();
        assert_eq!(fs::read(path("out.csv")).unwrap(), b"rows");
        assert_eq!(fs::read(path("precious")).unwrap(), b"precious");
        // What cannot be written leaves what was there.
        assert!(out.put("ID", |_, _| Err(io::Error::other("full"))).is_err());
        assert_eq!(fs::read(path("out.csv")).unwrap(), b"rows");
    }
}
