//! Fence before each push: asks the control plane whether the lease is still valid.
//!
//! A grant is valid only for a short time after the question: a process that was stopped meanwhile
//! asks again. Without a response nothing is pushed, however long that takes.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use acrtask_executor::Fence;
use tokio::sync::{mpsc, oneshot};

use crate::{clock, id::AttemptId, run::Notice};

/// The fence of one attempt.
#[derive(Debug)]
pub(crate) struct RunFence {
    id: AttemptId,
    notices: mpsc::UnboundedSender<Notice>,
}

/// Response of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The attempt may push until this time of [`clock::now`].
    Granted(Duration),
    /// The attempt may not push.
    Refused,
}

impl RunFence {
    pub(crate) fn new(id: AttemptId, notices: mpsc::UnboundedSender<Notice>) -> Self {
        Self { id, notices }
    }
}

#[tonic::async_trait]
impl Fence for RunFence {
    async fn may_push(&self) -> Result<(), String> {
        loop {
            let (answer, answered) = oneshot::channel();
            let asked = self.notices.send(Notice::Fence(self.id.clone(), answer));
            let answer = match asked {
                Ok(()) => answered.await.ok(),
                Err(_) => None,
            };
            match answer {
                Some(Answer::Granted(until)) if clock::now() < until => return Ok(()),
                // The grant has expired.
                Some(Answer::Granted(_)) => {}
                Some(Answer::Refused) => {
                    return Err(
                        "the run was canceled or given to another runner, so nothing is pushed from here"
                            .into(),
                    );
                }
                None => return Err("the run was stopped before it could push".into()),
            }
        }
    }
}

/// Unanswered questions.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    next: u64,
    open: HashMap<u64, OpenQuestion>,
}

#[derive(Debug)]
struct OpenQuestion {
    id: AttemptId,
    /// Time of the question.
    at: Duration,
    answer: oneshot::Sender<Answer>,
}

impl Fences {
    /// Adds a question and returns its number.
    pub(crate) fn ask(
        &mut self,
        id: AttemptId,
        answer: oneshot::Sender<Answer>,
        now: Duration,
    ) -> u64 {
        self.next += 1;
        let asked = OpenQuestion {
            id,
            at: now,
            answer,
        };
        self.open.insert(self.next, asked);
        self.next
    }

    /// Renumbers and returns the questions that have been open for `ago`, so that they are
    /// repeated.
    ///
    /// Each gets a new number, because a late response to the old one is outdated.
    pub(crate) fn take_overdue(&mut self, now: Duration, ago: Duration) -> Vec<(u64, AttemptId)> {
        // The other questions have no receiver any more.
        self.open.retain(|_, asked| !asked.answer.is_closed());
        let due: BTreeMap<u64, OpenQuestion> = self
            .open
            .extract_if(|_, asked| now.saturating_sub(asked.at) >= ago)
            .collect();
        due.into_values()
            .map(|asked| {
                let id = asked.id;
                (self.ask(id.clone(), asked.answer, now), id)
            })
            .collect()
    }

    /// Forwards a response. A grant is valid for half of the lease time, counted from the question.
    ///
    /// The control plane renewed the lease after the question.
    pub(crate) fn answer(&mut self, nonce: u64, granted: bool, lease: Duration) {
        if let Some(asked) = self.open.remove(&nonce) {
            let answer = if granted {
                Answer::Granted(asked.at + lease / 2)
            } else {
                Answer::Refused
            };
            // The step may have been stopped.
            let _ = asked.answer.send(answer);
        }
    }

    /// Drops the questions of an attempt without a lease. Its pushes fail.
    pub(crate) fn forget(&mut self, id: &AttemptId) {
        self.open.retain(|_, asked| asked.id != *id);
    }
}

#[cfg(test)]
mod tests {
    use acrtask_model::RunId;

    use super::*;

    fn id() -> AttemptId {
        AttemptId {
            run: RunId::new("r1").unwrap(),
            attempt: 1,
        }
    }

    const LEASE: Duration = Duration::from_secs(30);

    /// Responds to the questions with `answers` in turn. Returns the number of questions.
    async fn run_push(answers: Vec<Option<Answer>>) -> (Result<(), String>, usize) {
        let (notices, mut asked) = mpsc::unbounded_channel();
        let fence = RunFence::new(id(), notices);
        let mut count = 0;
        let answering = async {
            for answer in answers {
                let Some(Notice::Fence(_, sender)) = asked.recv().await else {
                    panic!("no question");
                };
                count += 1;
                if let Some(answer) = answer {
                    sender.send(answer).unwrap();
                }
            }
        };
        let (result, ()) = tokio::join!(fence.may_push(), answering);
        (result, count)
    }

    #[tokio::test]
    async fn only_a_fresh_grant_permits_a_push() {
        let fresh = Answer::Granted(clock::now() + LEASE);
        let stale = Answer::Granted(clock::now().saturating_sub(Duration::from_millis(1)));
        assert_eq!(run_push(vec![Some(fresh)]).await, (Ok(()), 1));
        assert_eq!(
            run_push(vec![Some(stale), Some(stale), Some(fresh)]).await,
            (Ok(()), 3)
        );
        let (refused, count) = run_push(vec![Some(stale), Some(Answer::Refused)]).await;
        assert!(refused.unwrap_err().contains("another runner"));
        assert_eq!(count, 2);
        let (stopped, _) = run_push(vec![None]).await;
        assert!(stopped.unwrap_err().contains("stopped"));
    }

    #[test]
    fn overdue_questions_get_another_number() {
        let at = Duration::from_secs;
        let mut fences = Fences::default();
        let (sender, mut answer) = oneshot::channel();
        let first = fences.ask(id(), sender, at(1));
        let (sender, given_up) = oneshot::channel();
        fences.ask(id(), sender, at(1));
        drop(given_up);
        assert_eq!(fences.take_overdue(at(3), at(5)), []);
        let again = fences.take_overdue(at(100), Duration::ZERO);
        let [(second, _)] = again[..] else {
            panic!("{again:?}");
        };
        // The response to the first question arrives later than a lease may last.
        fences.answer(first, true, LEASE);
        assert!(answer.try_recv().is_err());
        fences.answer(second, true, LEASE);
        assert_eq!(answer.try_recv().unwrap(), Answer::Granted(at(115)));
        assert_eq!(fences.take_overdue(at(200), Duration::ZERO), []);
    }
}
