//! The runner: performs what the group decides.

use std::sync::Arc;
use std::time::Duration;

use provost_actors::restart::{Action, Ending, Fact, Finish, Group, GroupRule, MemberRule, Why};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{
    GroupCause, GroupEnd, GroupEvent, GroupSpec, MemberSpec, Readiness, ending, readiness, words,
};
use crate::{
    Error, EventBody, EventStream, ProcessHandle, ProcessId, ProcessSpec, ReadyBy, Supervisor,
    TerminalRecord,
};

/// What whoever holds the group wants.
#[derive(Debug, Clone)]
pub(super) enum End {
    Stop(String),
    Kill(String),
}

/// What an incarnation says.
enum Said {
    /// It was accepted.
    Accepted {
        member: usize,
        handle: ProcessHandle,
    },
    Fact(Fact),
    /// It has this record, or was not even accepted.
    Ended {
        member: usize,
        incarnation: u64,
        record: Result<Arc<TerminalRecord>, String>,
    },
    /// Nobody can say what becomes of it.
    Lost(String),
}

pub(super) struct Runner {
    session: Supervisor,
    spec: GroupSpec,
    group: Group,
    members: Vec<Member>,
    begin: Instant,
    say: mpsc::UnboundedSender<Said>,
    events: mpsc::UnboundedSender<GroupEvent>,
    /// Why it is stopped.
    reason: String,
}

#[derive(Default)]
struct Member {
    handle: Option<ProcessHandle>,
    incarnation: u64,
    previous: Option<ProcessId>,
    /// What it was told, or will be as soon as it is accepted.
    told: Option<End>,
    /// How it ended last.
    last: String,
    /// By itself, and not well.
    failed: bool,
}

impl Runner {
    pub(super) fn start(
        session: Supervisor,
        spec: GroupSpec,
        asked: mpsc::UnboundedReceiver<End>,
        events: mpsc::UnboundedSender<GroupEvent>,
        ended: watch::Sender<Option<GroupEnd>>,
    ) {
        let member = |member: &MemberSpec| MemberRule {
            restart: member.restart,
            ready_within: (member.ready != Readiness::Started).then_some(member.ready_within),
        };
        let rule = GroupRule {
            strategy: spec.strategy,
            intensity: spec.intensity,
            backoff: spec.backoff,
            members: spec.members.iter().map(member).collect(),
        };
        // Ids are random enough for delays.
        let (_, chance) = ProcessId::new().as_uuid().as_u64_pair();
        let (say, said) = mpsc::unbounded_channel();
        let runner = Self {
            session,
            members: spec.members.iter().map(|_| Member::default()).collect(),
            spec,
            group: Group::new(rule, chance),
            begin: Instant::now(),
            say,
            events,
            reason: String::new(),
        };
        tokio::spawn(runner.run(asked, said, ended));
    }

    async fn run(
        mut self,
        mut asked: mpsc::UnboundedReceiver<End>,
        mut said: mpsc::UnboundedReceiver<Said>,
        ended: watch::Sender<Option<GroupEnd>>,
    ) {
        let mut is_held = true;
        let mut end = self.take(Fact::Tick);
        while end.is_none() {
            let due = self.group.wake_at(self.begin.elapsed()).map(|at| self.begin + at);
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            end = tokio::select! {
                asked = asked.recv(), if is_held => {
                    is_held = asked.is_some();
                    self.end(asked.unwrap_or(End::Stop("nobody holds the group any more".to_owned())))
                }
                // One sender is ours.
                Some(said) = said.recv() => self.hear(said),
                () = due => self.take(Fact::Tick),
            };
        }
        // Nothing lives in it; where that is not known, it is ended now.
        let _ = self.session.shutdown(Duration::ZERO).await;
        if let Some(end) = end {
            self.tell(GroupEvent::GroupEnded { end: end.clone() });
            let _ = ended.send(Some(end));
        }
    }

    fn end(&mut self, how: End) -> Option<GroupEnd> {
        let (reason, fact) = match how {
            End::Stop(reason) => (reason, Fact::Stop),
            End::Kill(reason) => (reason, Fact::Kill),
        };
        if self.reason.is_empty() || fact == Fact::Kill {
            self.reason = reason;
        }
        self.take(fact)
    }

    fn hear(&mut self, said: Said) -> Option<GroupEnd> {
        match said {
            Said::Accepted { member, handle } => {
                self.accepted(member, handle);
                None
            }
            Said::Fact(fact) => self.take(fact),
            Said::Ended {
                member,
                incarnation,
                record,
            } => self.ended(member, incarnation, record),
            Said::Lost(why) => Some(self.end_of(GroupCause::Lost, why)),
        }
    }

    fn accepted(&mut self, member: usize, handle: ProcessHandle) {
        let found = &mut self.members[member];
        found.previous = Some(handle.id());
        found.handle = Some(handle.clone());
        let (incarnation, told) = (found.incarnation, found.told.clone());
        self.tell(GroupEvent::MemberStarting {
            member: self.name(member),
            incarnation,
            process: handle.id(),
            handle,
        });
        if let Some(told) = told {
            self.tell_process(member, told);
        }
    }

    fn ended(
        &mut self,
        member: usize,
        incarnation: u64,
        record: Result<Arc<TerminalRecord>, String>,
    ) -> Option<GroupEnd> {
        let name = self.name(member);
        let found = &mut self.members[member];
        let record = record.as_deref();
        found.handle = None;
        let ending = record.map_or(Ending::Abnormal, ending);
        found.failed = ending == Ending::Abnormal && found.told.is_none();
        found.last = record.map_or_else(|why| why.clone(), words);
        let event = GroupEvent::MemberEnded {
            member: name,
            incarnation,
            process: record.ok().map(|record| record.process),
            outcome: record.ok().map(|record| record.outcome),
            reason: found.last.clone(),
        };
        self.tell(event);
        self.take(Fact::Ended {
            member,
            incarnation,
            ending,
        })
    }

    /// Has the group decide, and does what it says.
    fn take(&mut self, fact: Fact) -> Option<GroupEnd> {
        let mut end = None;
        for action in self.group.take(self.begin.elapsed(), fact) {
            match action {
                Action::Start { member, incarnation } => self.start_member(member, incarnation),
                Action::Stop {
                    member,
                    incarnation,
                    why,
                } => {
                    let reason = self.why(why);
                    self.tell(GroupEvent::MemberStopping {
                        member: self.name(member),
                        incarnation,
                        reason: reason.clone(),
                    });
                    self.tell_process(member, End::Stop(reason));
                }
                Action::Kill { member, .. } => self.tell_process(member, End::Kill(self.reason.clone())),
                Action::Ready { member, incarnation } => self.tell(GroupEvent::MemberReady {
                    member: self.name(member),
                    incarnation,
                }),
                Action::Again {
                    member,
                    incarnation,
                    delay,
                    restarts,
                } => self.tell(GroupEvent::MemberRestarting {
                    member: self.name(member),
                    incarnation,
                    delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                    restarts,
                }),
                Action::Finish(finish) => end = Some(self.finished(finish)),
            }
        }
        end
    }

    fn start_member(&mut self, member: usize, incarnation: u64) {
        let (found, asked) = (&mut self.members[member], &self.spec.members[member]);
        found.incarnation = incarnation;
        found.told = None;
        found.failed = false;
        let mut spec = (asked.spec)();
        spec.ready = match asked.ready {
            Readiness::Descriptor => ReadyBy::Fd,
            Readiness::Notify => ReadyBy::Notify,
            _ => ReadyBy::Nothing,
        };
        let labels = [
            ("group", self.spec.name.clone()),
            ("member", asked.name.clone()),
            ("incarnation", incarnation.to_string()),
        ];
        let previous = found.previous.map(|id| ("previous", id.to_string()));
        let labels = labels.into_iter().chain(previous);
        spec.labels
            .extend(labels.map(|(label, value)| (label.to_owned(), value)));
        let life = Life {
            session: self.session.clone(),
            member,
            incarnation,
            ready: asked.ready.clone(),
            say: self.say.clone(),
        };
        tokio::spawn(life.live(spec));
    }

    /// Tells a member's process, now or when there is one.
    fn tell_process(&mut self, member: usize, how: End) {
        let found = &mut self.members[member];
        found.told = Some(how.clone());
        let Some(handle) = found.handle.clone() else {
            return;
        };
        let say = self.say.clone();
        tokio::spawn(async move {
            let told = match how {
                End::Stop(reason) => handle.stop(reason).await,
                End::Kill(reason) => handle.kill(reason).await,
            };
            if let Err(error) = told {
                let _ = say.send(Said::Lost(error.to_string()));
            }
        });
    }

    fn why(&self, why: Why) -> String {
        match why {
            Why::RestartedWith(member) => format!("restarted with `{}`", self.name(member)),
            Why::NotReady => "it was not ready in time".to_owned(),
            Why::GroupEnds if self.reason.is_empty() => "its group ends".to_owned(),
            Why::GroupEnds => self.reason.clone(),
        }
    }

    fn finished(&self, finish: Finish) -> GroupEnd {
        let last = |member: usize| (self.name(member), &self.members[member].last);
        match finish {
            Finish::Complete => self.end_of(GroupCause::Complete, "every member has ended".to_owned()),
            Finish::Stopped => self.end_of(GroupCause::Stopped, self.reason.clone()),
            Finish::TooOften { member } => {
                let (name, last) = last(member);
                let intensity = self.spec.intensity;
                let period = humantime::format_duration(intensity.period);
                let why = format!(
                    "`{name}` ended ({last}), which would be more than {} restarts in {period}",
                    intensity.restarts
                );
                self.end_of(GroupCause::TooOften, why)
            }
            Finish::NeverReady { member } => {
                let (name, last) = last(member);
                let why = format!("`{name}` ended before it was ready ({last}), and is not restarted");
                self.end_of(GroupCause::NeverReady, why)
            }
        }
    }

    fn end_of(&self, cause: GroupCause, reason: String) -> GroupEnd {
        let failed = self.members.iter().enumerate().filter(|(_, found)| found.failed);
        GroupEnd {
            cause,
            reason,
            failed: failed.map(|(member, _)| self.name(member)).collect(),
        }
    }

    fn name(&self, member: usize) -> String {
        self.spec.members[member].name.clone()
    }

    fn tell(&self, event: GroupEvent) {
        let _ = self.events.send(event);
    }
}

/// One incarnation, from its start to its record.
struct Life {
    session: Supervisor,
    member: usize,
    incarnation: u64,
    ready: Readiness,
    say: mpsc::UnboundedSender<Said>,
}

impl Life {
    async fn live(self, spec: ProcessSpec) {
        let said = match self.session.spawn(spec).await {
            Ok(handle) => match self.watch(handle).await {
                Ok(record) => self.ended(Ok(record)),
                Err(error) => Said::Lost(error.to_string()),
            },
            // It was not started, and another try may do better.
            Err(
                error @ (Error::Refused(_)
                | Error::Unsupported(_)
                | Error::EmbeddedOnly(_)
                | Error::Limit(_)),
            ) => self.ended(Err(error.to_string())),
            Err(error) => Said::Lost(error.to_string()),
        };
        let _ = self.say.send(said);
    }

    fn ended(&self, record: Result<Arc<TerminalRecord>, String>) -> Said {
        Said::Ended {
            member: self.member,
            incarnation: self.incarnation,
            record,
        }
    }

    async fn watch(&self, handle: ProcessHandle) -> Result<Arc<TerminalRecord>, Error> {
        let (member, incarnation) = (self.member, self.incarnation);
        let _ = self.say.send(Said::Accepted {
            member,
            handle: handle.clone(),
        });
        let mut events = handle.events();
        if !comes(&mut events, |body| matches!(body, EventBody::Started { .. })).await? {
            return handle.record().await;
        }
        let _ = self.say.send(Said::Fact(Fact::Started { member, incarnation }));
        if matches!(self.ready, Readiness::Descriptor | Readiness::Notify) {
            // In the order of its events: it may have ended right after saying so.
            if comes(&mut events, |body| matches!(body, EventBody::Ready {})).await? {
                let _ = self.say.send(Said::Fact(Fact::Ready { member, incarnation }));
            }
            return handle.record().await;
        }
        drop(events);
        tokio::select! {
            biased;
            record = handle.record() => return record,
            () = readiness::ready(&self.ready) => {
                let _ = self.say.send(Said::Fact(Fact::Ready { member, incarnation }));
            }
        }
        handle.record().await
    }
}

/// Waits for an event; false if the process has ended without.
async fn comes(events: &mut EventStream, is: impl Fn(&EventBody) -> bool) -> Result<bool, Error> {
    while let Some(event) = events.next().await? {
        match event.body {
            body if is(&body) => return Ok(true),
            EventBody::Terminal { .. } => break,
            _ => {}
        }
    }
    Ok(false)
}
