//! A process as its journal tells it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use nix::fcntl::OFlag;
use provost_sandbox::denial::{Decision, Denial};
use provost_sandbox::observe::notify::{Grant, Response};

use super::calls::{self, Left};
use super::checkpoint::COMPACTED;
use super::journal::{self, Entry, Journal, StdinProgress};
use super::segments::{Segment, Segments, StreamFiles};
use super::standing::Standing;
use super::{Accepted, LIVE, ProcessSpool, SEALED, Spool, SpoolError, journal_name};
use crate::approval::{ApprovalScope, GrantRecord};
use crate::event::{ProcessId, StreamName};
use crate::ledger::{Effect, Fact, Ledger};
use crate::log::{KeptLog, Log};
use crate::process::ledger_spec;
use crate::record::TerminalRecord;
use crate::spawner::lock;

/// A process as it was when its journal was last written.
#[derive(Debug)]
pub struct Loaded {
    /// What was accepted.
    pub accepted: Accepted,
    /// Its events and output.
    pub log: Arc<Log>,
    /// Its record, if it has one.
    pub record: Option<Arc<TerminalRecord>>,
    /// How far its standard input was written.
    pub stdin: StdinProgress,
    pub(crate) ledger: Ledger,
    /// For going on.
    pub(crate) journal: Arc<ProcessSpool>,
    /// What was observed, and output, that the ledger has not taken yet; the number where it was written down.
    pub(crate) untold: Vec<(Option<u64>, Fact)>,
}

impl Loaded {
    /// It has this record, whatever its journal says: somebody was told. Written down there, too. Blocks.
    pub fn believe(&mut self, record: TerminalRecord) {
        let (time, record) = (record.ended_at, Arc::new(record));
        self.journal.seal(time, &record);
        self.record = Some(self.log.seal_as_was(time, record));
    }
}

/// What an earlier daemon was in the middle of.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Unfinished {
    /// Calls that it had received. Nothing if it never received one.
    pub(crate) calls: Option<Left>,
    /// What it was about to answer to some of them, and had written down.
    pub(crate) answers: BTreeMap<u64, Response>,
    /// What had been allowed beyond one call.
    pub(crate) grants: Vec<(ApprovalScope, Grant)>,
    /// The number of the last request for an approval.
    pub(crate) asked: u64,
    /// The Landlock domains that are known to be the process's, and how many denials of each were told.
    pub(crate) domains: BTreeMap<u64, u64>,
    /// Nobody watched it for a while.
    pub(crate) interrupted: bool,
}

/// Why a journal tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read now, or not by this program. At another time, or by another one, it may be.
    #[error(transparent)]
    Unread(SpoolError),
    /// It ends within its first entry. What is written into it before anything is started was not written to its end, or it
    /// was cut off later.
    #[error(transparent)]
    Short(SpoolError),
    /// It does not begin as a journal does: nobody will ever read it.
    #[error(transparent)]
    Damaged(SpoolError),
}

impl Spool {
    /// Reads what there is of a process. Output that came last and that nobody was told of is not in its log yet.
    ///
    /// # Errors
    /// There is no journal of it, or its beginning cannot be read.
    pub fn load(self: &Arc<Self>, process: ProcessId) -> Result<Loaded, LoadError> {
        let mut name = journal_name(process, LIVE);
        let mut opened = self.directory.open(&name, OFlag::O_RDWR);
        if opened
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        {
            name = journal_name(process, SEALED);
            opened = self.directory.open(&name, OFlag::O_RDWR);
        }
        let path = || self.directory.path.join(&name).display().to_string();
        let error = |why: String| SpoolError { path: path(), why };
        let unread = |why: io::Error| LoadError::Unread(error(why.to_string()));
        let mut file = opened.map_err(unread)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(unread)?;
        let mut replay = Replay {
            process,
            files: self.stream_files(process),
            known: Default::default(),
            begun: None,
            kept: None,
            record: None,
            standing: Standing::default(),
            calls: calls::read(&self.directory, process).map_err(unread)?,
        };
        let damaged = |why: String| LoadError::Damaged(error(why));
        let length = journal::read(&bytes, |time, entry| replay.take(time, entry)).map_err(damaged)?;
        let rest = bytes.get(usize::try_from(length).unwrap_or(usize::MAX)..);
        if rest.and_then(journal::first_frame).is_some() {
            let why = "it was written by a newer provost; use that, or a later one";
            return Err(LoadError::Unread(error(why.to_owned())));
        }
        if length == 0 {
            return Err(match journal::is_short(&bytes) {
                true => LoadError::Short(error("it ends within its first entry".to_owned())),
                false => damaged("its first entry is damaged".to_owned()),
            });
        }
        // Of a journal that was being made short when we died.
        self.directory.remove(&journal_name(process, COMPACTED));
        if length < bytes.len() as u64 {
            tracing::warn!(%process, cut = bytes.len() as u64 - length, "the end of a journal was torn");
        }
        drop(bytes);
        replay.finish(self, file, length).map_err(unread)
    }
}

struct Replay {
    process: ProcessId,
    files: [StreamFiles; 3],
    known: [Vec<Segment>; 3],
    begun: Option<(Accepted, Ledger, Vec<Effect>)>,
    /// The log before these effects.
    kept: Option<KeptLog>,
    record: Option<(Timestamp, Arc<TerminalRecord>)>,
    standing: Standing,
    calls: Option<Left>,
}

impl Replay {
    fn take(&mut self, time: Timestamp, entry: Entry) -> Result<(), String> {
        match (&mut self.begun, entry) {
            (None, Entry::Accepted(accepted)) if accepted.process != self.process => {
                return Err(format!("it is of another process, {}", accepted.process));
            }
            (None, Entry::Accepted(accepted)) => {
                let (session, spec) = (accepted.session.clone(), accepted.spec.restore());
                let spec = ledger_spec(accepted.process, session, &spec, accepted.queued_at);
                let ledger = Ledger::new(spec);
                self.begun = Some((*accepted, ledger, Vec::new()));
            }
            (None, _) => return Err("it does not begin as a journal does".to_owned()),
            (Some(_), Entry::Accepted(_)) => return Err("it begins twice".to_owned()),
            (Some((_, ledger, effects)), Entry::Checkpoint(checkpoint)) => {
                for stream in StreamName::ALL {
                    let known = &mut self.known[stream.index()];
                    known.clear();
                    for &start in checkpoint.log.files(stream) {
                        look_for(&self.files[stream.index()], known, start);
                    }
                }
                self.standing = checkpoint.standing;
                *ledger = checkpoint.ledger;
                effects.clear();
                self.kept = Some(checkpoint.log);
            }
            (Some(_), Entry::Sealed(record)) => self.record = Some((time, record)),
            (Some(_), entry) => {
                if let Some(fact) = self.standing.take(entry) {
                    self.fact(time, fact);
                }
            }
        }
        Ok(())
    }

    fn fact(&mut self, time: Timestamp, fact: Fact) {
        let Some((_, ledger, effects)) = &mut self.begun else {
            return;
        };
        if let Fact::Output { stream, offset, .. } = fact {
            look_for(
                &self.files[stream.index()],
                &mut self.known[stream.index()],
                offset,
            );
        }
        let told = ledger.apply(fact, time).into_iter();
        effects.extend(told.filter(Effect::is_of_the_log));
    }

    fn finish(mut self, spool: &Arc<Spool>, file: File, length: u64) -> io::Result<Loaded> {
        let begun = self.begun.take().ok_or(io::ErrorKind::UnexpectedEof);
        let (accepted, ledger, effects) = begun?;
        let process = accepted.process;
        let calls = self.calls.take();
        self.standing.keep_answers(calls.as_ref());
        let standing = self.standing;
        let observed = standing.untaken.into_iter();
        let mut untold: Vec<_> = observed.map(|(number, fact)| (Some(number), fact)).collect();
        let asking = standing.asking.into_iter();
        untold.extend(asking.map(|(approval, attempt)| (None, asked_again(approval, &attempt))));
        for stream in StreamName::ALL {
            let (files, known) = (&self.files[stream.index()], &mut self.known[stream.index()]);
            let stated = ledger.stated(stream);
            look_behind(files, known, stated);
            untold.extend(
                known
                    .iter()
                    .filter(|segment| segment.end > stated)
                    .map(|segment| {
                        let offset = segment.start.max(stated);
                        let length = segment.end - offset;
                        let fact = Fact::Output {
                            stream,
                            offset,
                            length,
                        };
                        (None, fact)
                    }),
            );
        }
        let [stdout, stderr, pty] = self.files;
        let [in_stdout, in_stderr, in_pty] = self.known;
        let segments = [
            Segments::new(stdout, in_stdout),
            Segments::new(stderr, in_stderr),
            Segments::new(pty, in_pty),
        ];
        let limits = accepted.spec.restore().retention;
        let mut journal = Journal::new(file, length)?;
        journal.observed_from(standing.next);
        let log = Arc::new(match self.kept.take() {
            Some(kept) => Log::restored(process, limits, segments, kept),
            None => Log::in_files(process, limits, segments),
        });
        let journal = ProcessSpool::new(spool, process, journal);
        journal.has_calls.store(calls.is_some(), Ordering::Relaxed);
        *lock(&journal.unfinished) = Unfinished {
            calls,
            answers: standing.answers,
            grants: standing.grants,
            asked: standing.asked,
            domains: standing.domains,
            interrupted: true,
        };
        let was = self.record.take();
        let mut record = None;
        for effect in effects {
            match (effect, &was) {
                (Effect::Append(draft), _) => log.append_event(draft),
                // Its numbers may be higher: events of which the disk had no room for the facts.
                (Effect::Seal { record: made, .. }, Some((time, was)))
                    if was.process == process && was.last_seq >= made.last_seq =>
                {
                    record = Some(log.seal_as_was(*time, was.clone()));
                    journal.is_kept();
                }
                // Everything was known, and there was no time to say so; or what was said is not of these facts.
                (Effect::Seal { time, record: made }, _) => {
                    let seal = |made: &Arc<TerminalRecord>| journal.seal(time, made);
                    record = Some(log.seal_after(time, *made, seal));
                }
                _ => {}
            }
        }
        // Not all its facts were written: it ended all the same, and somebody may have been told.
        if let (None, Some((time, was))) = (&record, was)
            && was.process == process
            && was.last_seq > log.last_seq()
        {
            record = Some(log.seal_as_was(time, was));
            journal.is_kept();
        }
        Ok(Loaded {
            accepted,
            log,
            record,
            stdin: standing.stdin,
            ledger,
            journal,
            untold,
        })
    }
}

/// A request that nobody can answer any more: its call is decided afresh, and if it still waits it is asked about again.
fn asked_again(approval: u64, attempt: &Denial) -> Fact {
    let grant = GrantRecord {
        approval,
        scope: ApprovalScope::Once,
        operation: attempt.operation.clone(),
        target: attempt.target.clone(),
        by: "restarted".to_owned(),
    };
    Fact::ApprovalDecided {
        grant: Box::new(grant),
        decision: Decision::Deny,
    }
}

/// Takes the file that begins at this offset into account, if there is one and it is not known.
fn look_for(files: &StreamFiles, known: &mut Vec<Segment>, offset: u64) -> bool {
    if known.last().is_some_and(|last| offset < last.end) {
        return false;
    }
    let length = files.open(offset).and_then(|file| Ok(file.metadata()?.len()));
    match length {
        Ok(length @ 1..) => {
            known.push(Segment {
                start: offset,
                end: offset + length,
            });
            true
        }
        // Retention dropped it, or it lies in one that was dropped.
        _ => false,
    }
}

/// Files that were begun after the last fact.
fn look_behind(files: &StreamFiles, known: &mut Vec<Segment>, stated: u64) {
    let mut end = known.last().map_or(0, |last| last.end).max(stated);
    while look_for(files, known, end) {
        end = known.last().map_or(end, |last| last.end);
    }
}
