//! Threads for calls that may block, kept for the next one: a new thread costs a connect more than the connect.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use crate::spawner::lock;

/// What a thread is to do.
type Job = Box<dyn FnOnce() + Send>;

/// The threads of one process. Whoever hands out jobs bounds their number, and with it that of the threads.
/// Dropping this ends those that wait, and the others when their job is done.
pub(crate) struct Workers {
    /// Where each waiting thread takes its next job; `None` when there will be none.
    waiting: Arc<Mutex<Option<Vec<Sender<Job>>>>>,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            waiting: Arc::new(Mutex::new(Some(Vec::new()))),
        }
    }
}

impl Workers {
    /// Has a job done on a thread that waits, or else on a new one. False where there can be none.
    pub(crate) fn run(&self, job: Job) -> bool {
        let worker = lock(&self.waiting).as_mut().and_then(Vec::pop);
        let job = match worker {
            None => job,
            Some(worker) => match worker.send(job) {
                Ok(()) => return true,
                Err(mpsc::SendError(job)) => job,
            },
        };
        let waiting = self.waiting.clone();
        std::thread::Builder::new()
            .name("provost-connect".to_owned())
            .spawn(move || {
                let mut job = job;
                loop {
                    job();
                    let Some(next) = wait_in(&waiting).and_then(|next| next.recv().ok()) else {
                        return;
                    };
                    job = next;
                }
            })
            .is_ok()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        *lock(&self.waiting) = None;
    }
}

/// Takes a place among those that wait.
fn wait_in(waiting: &Mutex<Option<Vec<Sender<Job>>>>) -> Option<Receiver<Job>> {
    let (sender, receiver) = mpsc::channel();
    lock(waiting).as_mut()?.push(sender);
    Some(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_done_its_job_does_the_next_and_ends_with_its_owner() {
        let workers = Workers::default();
        let (said, heard) = mpsc::channel();
        let mut threads = std::collections::HashSet::new();
        for _ in 0..50 {
            let said = said.clone();
            assert!(workers.run(Box::new(move || said.send(std::thread::current().id()).unwrap())));
            threads.insert(heard.recv().unwrap());
        }
        // It may be asked for again before it waits again: then there is another one.
        assert!(threads.len() < 50, "{} threads", threads.len());
        let waiting = Arc::downgrade(&workers.waiting);
        drop(workers);
        while waiting.strong_count() > 0 {
            std::thread::yield_now();
        }
    }
}
