//! The run of a map: items become jobs, and what becomes of those is written down.
//!
//! One way leads in, at the beginning, with `--resume`, and after each lost connection: follow the map's group, list what it
//! has, submit what it does not have. A job is of the map if the map has submitted it; whatever else ends is nobody's business here.

mod jobs;
mod printing;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use signal_hook_tokio::Signals;

use self::jobs::is_given_up;
use super::gather::{Gathered, as_text, gather};
use super::place::Places;
use super::tally::Tally;
use crate::ProcessId;
use crate::cli::client::{Reader, said};
use crate::cli::{CliResult, output};
use crate::client::{ClientError, Lasting, Pushed};
use crate::map::{CommandTemplate, Items, Journal, Plan, Row, Writer, exit_code};
use crate::protocol::{JobEnd, JobId};

/// Items whose outputs are read at the same time: fewer than the daemon works on.
const GATHERED_AT_A_TIME: usize = 16;
/// Between attempts to follow, where the daemon ended it and the connection is still there: it is about to leave, or has no room
/// for one who follows, and tells nobody when that is over. So often one after another that it takes five seconds.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSES_MAX: u32 = 250;

/// What a run is about.
pub(super) struct Map<'a> {
    pub(super) client: Lasting,
    pub(super) plan: &'a Plan,
    pub(super) items: &'a Items,
    pub(super) template: &'a CommandTemplate,
    pub(super) journal: &'a Path,
    pub(super) places: Places,
    pub(super) quiet: bool,
}

/// Heard from before the first item is submitted.
pub(super) fn signals() -> Result<Signals, String> {
    Signals::new([SIGINT, SIGTERM, SIGQUIT]).map_err(|error| format!("signal handlers: {error}"))
}

impl Map<'_> {
    pub(super) async fn run(self, mut signals: Signals) -> CliResult {
        let mut tally = Tally::new(self.items.list.len(), self.quiet);
        let journal = Journal::open(self.journal, self.items.list.len(), |row| tally.add(row));
        let journal = journal.map_err(|error| error.to_string())?;
        let (id, group) = (self.plan.id.clone(), self.plan.group());
        if !self.quiet {
            let before = match tally.ended() {
                0 => String::new(),
                ended => format!(", {ended} of them ended before"),
            };
            let (items, at_a_time) = (self.items.list.len(), self.plan.at_a_time);
            output::note(&format!("map {id}: {items} items{before}; {at_a_time} at a time"));
        }
        tally.begin();
        let quiet = self.quiet;
        let mut run = Run::new(self, journal, tally);
        let ended = tokio::select! {
            biased;
            signal = signals.next() => Ok(End::Signal(signal.unwrap_or(SIGINT))),
            ended = run.go_on() => ended,
        };
        run.tally.clear();
        let left = match ended {
            Ok(End::All) => return run.finish(quiet),
            Ok(End::Signal(signal)) => Ok(u8::try_from(128 + signal).unwrap_or(130)),
            Ok(End::NobodyReads) => Ok(141),
            Err(why) => Err(why),
        };
        let hint = format!(
            "the items go on: `provost map --resume {id}` waits for them again, `provost job cancel --group {group}` ends them"
        );
        match left {
            Ok(code) => {
                output::note(&hint);
                Ok(code)
            }
            Err(why) => Err(format!("{why}; {hint}")),
        }
    }
}

/// How a run ended.
enum End {
    /// What there was to be known of all items is known.
    All,
    /// Somebody wants us to end.
    Signal(i32),
    /// Nobody reads what is printed.
    NobodyReads,
}

/// The end of an item's job.
struct Ended {
    job: JobId,
    process: Option<ProcessId>,
    attempt: u32,
    end: JobEnd,
}

type Read = BoxFuture<'static, Result<(Row, Gathered), ClientError>>;

struct Run<'m> {
    map: Map<'m>,
    journal: Journal,
    tally: Tally,
    /// Which item a job of ours is for.
    jobs: HashMap<JobId, usize>,
    /// Items that have a job.
    known: HashSet<usize>,
    /// Items whose end was seen: their rows are written down, or will be.
    seen: HashSet<usize>,
    /// Items that are to have another job, and how many they had.
    again: VecDeque<(usize, usize)>,
    /// All before this one were submitted, or were known.
    next: usize,
    /// Failures of earlier runs, which are no reason to give up this one.
    failed_before: usize,
    halted: bool,
    halting: Option<BoxFuture<'static, Result<(), ClientError>>>,
    /// Rows of items that were given up.
    given_up: BTreeMap<usize, Row>,
    /// Ends whose outputs are still to be read.
    ends: VecDeque<Row>,
    reading: FuturesUnordered<Read>,
    /// With `--keep-order`: the item that is read to be printed next.
    printing: Option<Read>,
}

impl<'m> Run<'m> {
    fn new(map: Map<'m>, journal: Journal, tally: Tally) -> Self {
        Self {
            failed_before: tally.failed(),
            map,
            journal,
            tally,
            jobs: HashMap::new(),
            known: HashSet::new(),
            seen: HashSet::new(),
            again: VecDeque::new(),
            next: 1,
            halted: false,
            halting: None,
            given_up: BTreeMap::new(),
            ends: VecDeque::new(),
            reading: FuturesUnordered::new(),
            printing: None,
        }
    }

    /// How many items there are.
    fn all(&self) -> usize {
        self.map.items.list.len()
    }

    fn is_done(&self) -> bool {
        self.tally.ended() + self.given_up.len() == self.all()
            && self.halting.is_none()
            && self.printing.is_none()
    }

    async fn go_on(&mut self) -> Result<End, String> {
        let mut pauses = 0;
        self.print_next()?;
        while !self.is_done() {
            let mut events = self.begin().await?;
            loop {
                self.submit().await?;
                self.read_more();
                if self.is_done() {
                    return Ok(End::All);
                }
                tokio::select! {
                    read = self.reading.next(), if !self.reading.is_empty() => {
                        if let Some(read) = read
                            && self.take(read.map_err(said)?).await? == Reader::Gone
                        {
                            return Ok(End::NobodyReads);
                        }
                    }
                    read = poll(&mut self.printing) => {
                        if self.print_in_order(read.map_err(said)?).await? == Reader::Gone {
                            return Ok(End::NobodyReads);
                        }
                    }
                    halted = poll(&mut self.halting) => halted.map_err(said)?,
                    pushed = events.next_pushed() => match pushed {
                        Some(Pushed::Job(event)) => {
                            pauses = 0;
                            if let (Some(item), Some(end)) = (self.jobs.get(&event.job).copied(), event.end) {
                                let (job, process, attempt) = (event.job, event.process, event.attempt);
                                self.ended(item, Ended { job, process, attempt, end });
                            }
                        }
                        Some(_) => {}
                        None => break,
                    }
                }
            }
            if !self.map.client.lasts() || pauses > PAUSES_MAX {
                return Err("the connection to the daemon is lost".to_owned());
            }
            if !events.is_lost() {
                pauses += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(End::All)
    }

    /// An item's job has ended.
    fn ended(&mut self, item: usize, ended: Ended) {
        if !self.seen.insert(item) {
            return;
        }
        let row = row(item, &ended);
        if is_given_up(Some(&ended.end)) {
            self.given_up.insert(item, row);
        } else {
            self.ends.push_back(row);
        }
    }

    /// Begins to read what those have written that have ended.
    fn read_more(&mut self) {
        let places = &self.map.places;
        let wanted = places.out.is_some() || places.results.is_some() || self.prints_at_once();
        while self.reading.len() < GATHERED_AT_A_TIME
            && let Some(row) = self.ends.pop_front()
        {
            self.reading.push(read(&self.map.client, row, wanted));
        }
    }

    fn prints(&self) -> bool {
        self.map.places.out.is_none() && self.map.places.results.is_none()
    }

    fn prints_at_once(&self) -> bool {
        self.prints() && !self.map.plan.keep_order
    }

    /// All is known of an item.
    async fn take(&mut self, (mut row, gathered): (Row, Gathered)) -> Result<Reader, String> {
        row.output_bytes = gathered.output_bytes();
        if let Some(results) = &self.map.places.results {
            row.output = Some(results.put(&row, &gathered)?);
        } else if self.map.places.out.is_some() && gathered.record.is_some() {
            row.output = Some(as_text(&gathered.stdout));
        }
        let mut reader = Reader::There;
        if self.prints_at_once() {
            reader = self.print(gathered).await?;
        }
        self.tally.add(&row);
        self.journal.set_ended(row).map_err(|error| error.to_string())?;
        self.print_next()?;
        let failed = self.tally.failed() - self.failed_before;
        if let Some(halt) = self.map.plan.halt
            && !self.halted
            && halt.is_met(failed, self.all())
        {
            self.give_up(halt.when);
        }
        Ok(reader)
    }

    /// Puts the rows into their place, says what became of the items, and counts.
    fn finish(self, quiet: bool) -> CliResult {
        let Self {
            map,
            journal,
            tally,
            given_up,
            ..
        } = self;
        if let Some(out) = &map.places.out {
            out.put(&map.plan.id, |format, to| {
                let mut writer = Writer::new(to, format, &map.items.columns)?;
                for (number, item) in (1..).zip(&map.items.list) {
                    let known = journal.row(number).map_err(std::io::Error::other)?;
                    if let Some(row) = known.as_ref().or(given_up.get(&number)) {
                        writer.row(item, row)?;
                    }
                }
                writer.finish()?;
                Ok(())
            })?;
        }
        if !quiet {
            tally.summarise(given_up.len());
            if !given_up.is_empty() {
                output::note(&format!(
                    "`provost map --resume {}` goes on with what was given up",
                    map.plan.id
                ));
            }
            if let Some(out) = &map.places.out {
                output::note(&format!("the rows are in {}", out.path().display()));
            }
        }
        Ok(exit_code(tally.failed()).max(u8::from(!given_up.is_empty())))
    }
}

/// What is under way, if anything is; it is no more once it is done.
async fn poll<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(under_way) => {
            let done = under_way.await;
            *future = None;
            done
        }
        None => std::future::pending().await,
    }
}

/// Reads what a process has written, if that is wanted.
fn read(client: &Lasting, row: Row, wanted: bool) -> Read {
    let client = client.clone();
    Box::pin(async move {
        let gathered = match &row.process {
            Some(process) if wanted => gather(&client, process).await?,
            _ => Gathered::default(),
        };
        Ok((row, gathered))
    })
}

fn row(item: usize, ended: &Ended) -> Row {
    let end = &ended.end;
    let outcome = serde_json::to_value(end.outcome).unwrap_or_default();
    Row {
        item,
        outcome: outcome.as_str().unwrap_or_default().to_owned(),
        reason: end.reason.clone(),
        exit_code: end.exit_code,
        signal: end.signal.clone(),
        succeeded: end.succeeded,
        denied: end.denied,
        attempts: ended.attempt,
        duration_ms: end.duration_ms,
        result: end.result.clone(),
        result_error: end.result_error.clone(),
        job: Some(ended.job.to_string()),
        process: ended.process.map(|process| process.to_string()),
        ..Row::default()
    }
}
