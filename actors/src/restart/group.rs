//! Group: facts in, actions out.

use std::time::Duration;

use super::backoff::chance;
use super::intensity::Restarts;
use super::{Action, Ending, Fact, Finish, GroupRule, MemberRule, Restart, Strategy, Why};

/// The state of a group.
#[derive(Debug, Clone)]
pub struct Group {
    rule: GroupRule,
    members: Vec<Member>,
    restarts: Restarts,
    phase: Phase,
    chance: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Ending(Finish),
    Finished,
}

#[derive(Debug, Clone)]
struct Member {
    rule: MemberRule,
    state: State,
    /// The present or last one; 0 before the first.
    incarnation: u64,
    /// Restarts since it was last healthy.
    restarts: u32,
    /// It does not start earlier.
    not_before: Duration,
    /// It is to be stopped, to be started again together with this one.
    with: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It does not live, and will.
    Idle,
    Starting {
        ready_by: Option<Duration>,
    },
    Ready {
        since: Duration,
    },
    Stopping {
        /// Because of that, which is an end of its own.
        not_ready: bool,
    },
    /// It does not live, and will not.
    Over,
}

impl Member {
    fn lives(&self) -> bool {
        matches!(
            self.state,
            State::Starting { .. } | State::Ready { .. } | State::Stopping { .. }
        )
    }

    /// When it is too late to get ready; what is to be stopped anyway has no such time.
    fn ready_by(&self) -> Option<Duration> {
        match self.state {
            State::Starting { ready_by } if self.with.is_none() => ready_by,
            _ => None,
        }
    }

    /// Nothing of it lives, and that was our wish.
    fn stopped(&mut self) {
        self.state = match self.rule.restart {
            Restart::Temporary => State::Over,
            Restart::Permanent | Restart::Transient => State::Idle,
        };
    }
}

impl Group {
    /// A group of which nothing lives. [`Fact::Tick`] begins it. `chance` shortens delays.
    pub fn new(rule: GroupRule, chance: u64) -> Self {
        let member = |rule: &MemberRule| Member {
            rule: *rule,
            state: State::Idle,
            incarnation: 0,
            restarts: 0,
            not_before: Duration::ZERO,
            with: None,
        };
        Self {
            members: rule.members.iter().map(member).collect(),
            rule,
            restarts: Restarts::default(),
            phase: Phase::Running,
            chance,
        }
    }

    /// Takes a fact; says what is to be done, in this order.
    pub fn take(&mut self, now: Duration, fact: Fact) -> Vec<Action> {
        let mut out = Vec::new();
        match fact {
            Fact::Started { member, incarnation } => {
                if let Some(found) = self.present(member, incarnation)
                    && found.rule.ready_within.is_none()
                {
                    self.ready(now, member, &mut out);
                }
            }
            Fact::Ready { member, incarnation } => {
                if self.present(member, incarnation).is_some() {
                    self.ready(now, member, &mut out);
                }
            }
            Fact::Ended {
                member,
                incarnation,
                ending,
            } => {
                if self.present(member, incarnation).is_some() {
                    self.ended(now, member, ending, &mut out);
                }
            }
            Fact::Stop => self.end(Finish::Stopped),
            Fact::Kill => {
                self.end(Finish::Stopped);
                self.kill(&mut out);
            }
            Fact::Tick => {}
        }
        match self.phase {
            Phase::Running => self.go_on(now, &mut out),
            Phase::Ending(finish) => self.go_down(finish, &mut out),
            Phase::Finished => {}
        }
        out
    }

    /// When [`Fact::Tick`] is due, if time alone can change anything.
    pub fn wake_at(&self, now: Duration) -> Option<Duration> {
        if self.phase != Phase::Running {
            return None;
        }
        let due = |member: &Member| match member.state {
            State::Starting { .. } => member.ready_by(),
            State::Idle => Some(member.not_before).filter(|then| *then > now),
            _ => None,
        };
        self.members.iter().filter_map(due).min()
    }

    /// The member, if this is its incarnation and lives.
    fn present(&self, member: usize, incarnation: u64) -> Option<&Member> {
        let found = self.members.get(member)?;
        (found.incarnation == incarnation && found.lives()).then_some(found)
    }

    fn ready(&mut self, now: Duration, member: usize, out: &mut Vec<Action>) {
        let found = &mut self.members[member];
        if matches!(found.state, State::Starting { .. }) {
            found.state = State::Ready { since: now };
            let incarnation = found.incarnation;
            out.push(Action::Ready { member, incarnation });
        }
    }

    fn ended(&mut self, now: Duration, member: usize, ending: Ending, out: &mut Vec<Action>) {
        let found = &mut self.members[member];
        let wished = match found.state {
            State::Stopping { not_ready } => !not_ready,
            _ => false,
        };
        if wished || found.with.is_some() || self.phase != Phase::Running {
            found.stopped();
            return;
        }
        let (was_ready, ending) = match found.state {
            State::Ready { since } => {
                if now.saturating_sub(since) >= self.rule.backoff.healthy_after {
                    found.restarts = 0;
                }
                (true, ending)
            }
            State::Stopping { .. } => (false, Ending::Abnormal),
            _ => (false, ending),
        };
        let again = match found.rule.restart {
            Restart::Permanent => true,
            Restart::Transient => ending == Ending::Abnormal,
            Restart::Temporary => false,
        };
        match again {
            true => self.restart(now, member, out),
            false => {
                found.state = State::Over;
                if !was_ready {
                    // What stands behind it could never start.
                    self.end(Finish::NeverReady { member });
                }
            }
        }
    }

    fn restart(&mut self, now: Duration, member: usize, out: &mut Vec<Action>) {
        let found = &mut self.members[member];
        found.state = State::Idle;
        let Ok(restarts) = self.restarts.count(now, self.rule.intensity) else {
            self.end(Finish::TooOften { member });
            return;
        };
        let delay = self.rule.backoff.delay(found.restarts, chance(&mut self.chance));
        found.restarts = found.restarts.saturating_add(1);
        let incarnation = found.incarnation;
        out.push(Action::Again {
            member,
            incarnation,
            delay,
            restarts,
        });
        let together = match self.rule.strategy {
            Strategy::OneForOne => member..member + 1,
            Strategy::RestForOne => member..self.members.len(),
            Strategy::OneForAll => 0..self.members.len(),
        };
        for other in &mut self.members[together] {
            other.not_before = other.not_before.max(now + delay);
            if other.lives() {
                other.with = Some(member);
            } else if other.rule.restart != Restart::Temporary {
                // In OTP, too, one that had ended for good comes back with its siblings.
                other.state = State::Idle;
            }
        }
    }

    fn end(&mut self, finish: Finish) {
        if self.phase == Phase::Running {
            self.phase = Phase::Ending(finish);
        }
    }

    fn kill(&mut self, out: &mut Vec<Action>) {
        for (member, found) in self.members.iter_mut().enumerate().rev() {
            if found.lives() {
                found.state = State::Stopping { not_ready: false };
                let incarnation = found.incarnation;
                out.push(Action::Kill { member, incarnation });
            }
        }
    }

    /// Stops what lives, from behind, one after the other.
    fn go_down(&mut self, finish: Finish, out: &mut Vec<Action>) {
        match self.members.iter().rposition(Member::lives) {
            Some(last) => self.stop(last, Why::GroupEnds, out),
            None => {
                self.phase = Phase::Finished;
                out.push(Action::Finish(finish));
            }
        }
    }

    fn stop(&mut self, member: usize, why: Why, out: &mut Vec<Action>) {
        let found = &mut self.members[member];
        if !matches!(found.state, State::Stopping { .. }) {
            let not_ready = why == Why::NotReady;
            found.state = State::Stopping { not_ready };
            let incarnation = found.incarnation;
            out.push(Action::Stop {
                member,
                incarnation,
                why,
            });
        }
    }

    fn go_on(&mut self, now: Duration, out: &mut Vec<Action>) {
        for member in 0..self.members.len() {
            if self.members[member].ready_by().is_some_and(|by| by <= now) {
                self.stop(member, Why::NotReady, out);
            }
        }
        let down = |member: &Member| member.with.is_some() && member.lives();
        if let Some(last) = self.members.iter().rposition(down) {
            if let Some(with) = self.members[last].with {
                self.stop(last, Why::RestartedWith(with), out);
            }
            // Nothing starts while something is on its way down.
            return;
        }
        for member in &mut self.members {
            member.with = None;
        }
        self.go_up(now, out);
        if self.members.iter().all(|member| member.state == State::Over) {
            self.phase = Phase::Finished;
            out.push(Action::Finish(Finish::Complete));
        }
    }

    /// Starts what is due, in order.
    fn go_up(&mut self, now: Duration, out: &mut Vec<Action>) {
        let alone = self.rule.strategy == Strategy::OneForOne;
        let mut all_ready = true;
        for (member, found) in self.members.iter_mut().enumerate() {
            let turn = all_ready || (alone && found.incarnation > 0);
            if found.state == State::Idle && turn && found.not_before <= now {
                found.incarnation += 1;
                let ready_by = found.rule.ready_within.map(|time| now + time);
                found.state = State::Starting { ready_by };
                let incarnation = found.incarnation;
                out.push(Action::Start { member, incarnation });
            }
            all_ready &= matches!(found.state, State::Ready { .. } | State::Over);
        }
    }
}
