//! What a channel has published and the server has not confirmed.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

/// What the server says of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Every queue that it was routed to has it.
    Acked,
    /// No queue takes its routing key. The server confirms such a message as well.
    Returned(String),
    /// A queue that it was routed to did not take it.
    Nacked,
    /// The server closed the channel, and with it went all confirmations that were still to come.
    Closed(Arc<Closed>),
}

/// Why the server closed a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) code: u16,
    pub(super) text: String,
}

/// A message that was published.
pub(super) struct Waiting {
    pub(super) id: Uuid,
    pub(super) bytes: usize,
    /// Its place in its batch.
    pub(super) place: usize,
    pub(super) answers: UnboundedSender<(usize, Answer)>,
    pub(super) returned: Option<String>,
}

/// The messages of one channel that wait for their confirmation. The server counts them from one.
pub(super) struct Confirms {
    /// The number of the first one that waits.
    first: u64,
    /// None where a later one was confirmed before the first.
    waiting: VecDeque<Option<Waiting>>,
}

/// A confirmation of what was never published.
#[derive(Debug)]
pub(super) struct Unfounded;

impl Default for Confirms {
    fn default() -> Self {
        Self {
            first: 1,
            waiting: VecDeque::new(),
        }
    }
}

impl Confirms {
    pub(super) fn published(&mut self, waiting: Waiting) {
        self.waiting.push_back(Some(waiting));
    }

    /// Notes that the server gave a message back. It says so before it confirms it, and names it by
    /// nothing but its properties: a confirmation alone may be of several messages.
    pub(super) fn returned(&mut self, id: Uuid, reason: &str) {
        let mut there = self.waiting.iter_mut().flatten();
        let waiting = there.find(|waiting| waiting.id == id && waiting.returned.is_none());
        if let Some(waiting) = waiting {
            waiting.returned = Some(reason.into());
        }
    }

    /// Tells those who wait for message `number`, and for all before it where `multiple`; answers
    /// the size of the largest one that was acknowledged.
    ///
    /// # Errors
    /// When no such message was published.
    pub(super) fn confirmed(
        &mut self,
        number: u64,
        multiple: bool,
        acked: bool,
    ) -> Result<usize, Unfounded> {
        let published = self.first + self.waiting.len() as u64;
        // Zero is all of them.
        let number = match (number, multiple) {
            (0, true) => published - 1,
            (number, _) => number,
        };
        if number == 0 || number >= published {
            return Err(Unfounded);
        }
        let Some(last) = number.checked_sub(self.first) else {
            return Ok(0);
        };
        let begin = if multiple { 0 } else { last };
        let mut largest = 0;
        for waiting in self.waiting.range_mut(begin as usize..=last as usize) {
            let Some(waiting) = waiting.take() else {
                continue;
            };
            if acked {
                largest = largest.max(waiting.bytes);
            }
            waiting.tell(acked);
        }
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
        Ok(largest)
    }

    /// Tells all who wait that their confirmations will not come, and begins anew.
    pub(super) fn closed(&mut self, closed: &Arc<Closed>) {
        for waiting in std::mem::take(self).waiting.into_iter().flatten() {
            let answer = match waiting.returned {
                Some(reason) => Answer::Returned(reason),
                None => Answer::Closed(Arc::clone(closed)),
            };
            waiting.answers.send((waiting.place, answer)).ok();
        }
    }
}

impl Waiting {
    /// Whoever waited too long is gone, and needs no answer.
    fn tell(self, acked: bool) {
        let answer = match (self.returned, acked) {
            (Some(reason), _) => Answer::Returned(reason),
            (None, true) => Answer::Acked,
            (None, false) => Answer::Nacked,
        };
        self.answers.send((self.place, answer)).ok();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128)
    }

    /// A channel on which `n` messages were published, with ids from zero.
    fn channel(n: usize) -> (Confirms, UnboundedReceiver<(usize, Answer)>) {
        let (answers, heard) = unbounded_channel();
        let mut confirms = Confirms::default();
        for place in 0..n {
            confirms.published(Waiting {
                id: id(place),
                bytes: 100 + place,
                place,
                answers: answers.clone(),
                returned: None,
            });
        }
        (confirms, heard)
    }

    fn heard(answers: &mut UnboundedReceiver<(usize, Answer)>) -> Vec<(usize, Answer)> {
        std::iter::from_fn(|| answers.try_recv().ok()).collect()
    }

    #[test]
    fn each_message_is_confirmed_once_in_whatever_order() {
        let (mut confirms, mut answers) = channel(5);
        confirms.confirmed(3, false, true).unwrap();
        assert_eq!(heard(&mut answers), [(2, Answer::Acked)]);
        assert_eq!(confirms.confirmed(4, true, true).unwrap(), 103);
        let expected = [0, 1, 3].map(|place| (place, Answer::Acked));
        assert_eq!(heard(&mut answers), expected);
        confirms.confirmed(4, true, true).unwrap();
        confirms.confirmed(2, false, false).unwrap();
        assert_eq!(heard(&mut answers), []);
        confirms.confirmed(0, true, false).unwrap();
        assert_eq!(heard(&mut answers), [(4, Answer::Nacked)]);
    }

    #[test]
    fn what_was_never_published_is_not_confirmed() {
        let (mut confirms, mut answers) = channel(2);
        for (number, multiple) in [(3, false), (3, true), (0, false), (u64::MAX, true)] {
            confirms.confirmed(number, multiple, true).unwrap_err();
        }
        assert_eq!(heard(&mut answers), []);
    }

    #[test]
    fn a_returned_message_is_not_taken_for_sent_in_whatever_confirmation_it_is() {
        for (number, multiple, acked) in [(2, false, true), (3, true, true), (0, true, false)] {
            let (mut confirms, mut answers) = channel(3);
            confirms.returned(id(1), "NO_ROUTE");
            confirms.confirmed(number, multiple, acked).unwrap();
            let heard = heard(&mut answers);
            for (place, answer) in &heard {
                let returned = matches!(answer, Answer::Returned(_));
                assert_eq!(returned, *place == 1, "{heard:?}");
            }
            assert!(heard.iter().any(|(place, _)| *place == 1));
        }
    }

    #[test]
    fn one_message_published_twice_is_returned_twice() {
        let (answers, mut answered) = unbounded_channel();
        let mut confirms = Confirms::default();
        for place in 0..2 {
            confirms.published(Waiting {
                id: id(7),
                bytes: 1,
                place,
                answers: answers.clone(),
                returned: None,
            });
        }
        confirms.returned(id(7), "NO_ROUTE");
        confirms.returned(id(7), "NO_ROUTE");
        confirms.confirmed(2, true, true).unwrap();
        let heard = heard(&mut answered);
        assert_eq!(heard.len(), 2);
        let returned = |(_, answer): &(usize, Answer)| matches!(answer, Answer::Returned(_));
        assert!(heard.iter().all(returned), "{heard:?}");
    }

    #[test]
    fn a_closed_channel_answers_all_and_counts_from_one_again() {
        let (mut confirms, mut answers) = channel(4);
        confirms.confirmed(1, false, true).unwrap();
        confirms.returned(id(3), "NO_ROUTE");
        heard(&mut answers);
        let closed = Arc::new(Closed {
            code: 406,
            text: "no".into(),
        });
        confirms.closed(&closed);
        let expected = [
            (1, Answer::Closed(Arc::clone(&closed))),
            (2, Answer::Closed(closed)),
            (3, Answer::Returned("NO_ROUTE".into())),
        ];
        assert_eq!(heard(&mut answers), expected);
        confirms.confirmed(1, false, true).unwrap_err();
        let (answers, mut heard) = unbounded_channel();
        confirms.published(Waiting {
            id: id(9),
            bytes: 1,
            place: 9,
            answers,
            returned: None,
        });
        confirms.confirmed(1, false, true).unwrap();
        assert_eq!(heard.try_recv().unwrap(), (9, Answer::Acked));
    }
}
