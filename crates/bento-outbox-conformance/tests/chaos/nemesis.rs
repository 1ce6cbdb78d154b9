//! Faults by a seeded schedule. Each must be seen to bite.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use bento_outbox_conformance::servers::Signal;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{LEASE, Server, World};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    RelayKilled,
    RelayTerminated,
    RelayFrozen,
    WriterKilled,
    WriterFrozen,
    BusRestarted,
    BusAnswerSwallowed,
    ConnectionsCut,
    DatabaseRestarted,
    CommitAnswerSwallowed,
}

use Fault::*;

const EVERYWHERE: [Fault; 8] = [
    RelayFrozen,
    RelayKilled,
    WriterKilled,
    BusRestarted,
    BusAnswerSwallowed,
    WriterFrozen,
    RelayTerminated,
    ConnectionsCut,
];

/// What needs a database server.
const WITH_A_SERVER: [Fault; 2] = [DatabaseRestarted, CommitAnswerSwallowed];

pub(super) struct Nemesis {
    random: StdRng,
    /// Faults to come; each kind once before any comes again.
    deck: Vec<Fault>,
    bitten: BTreeMap<Fault, usize>,
    /// Frozen relays and writers, and until when.
    frozen: Vec<(bool, usize, Instant)>,
}

impl Nemesis {
    pub(super) fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self {
            random,
            deck: Vec::new(),
            bitten: BTreeMap::new(),
            frozen: Vec::new(),
        }
    }

    pub(super) fn bites(&self) -> usize {
        self.bitten.values().sum()
    }

    pub(super) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(500..2_500))
    }

    pub(super) async fn strike(&mut self, world: &mut World) {
        self.thaw(world, Instant::now());
        if self.deck.is_empty() {
            self.deck.extend(EVERYWHERE);
            if !matches!(world.server, Server::None) {
                self.deck.extend(WITH_A_SERVER);
            }
            self.deck.shuffle(&mut self.random);
        }
        let Some(fault) = self.deck.pop() else { return };
        let at = self.random.random_range(0..world.relays.len());
        let bit = match fault {
            RelayKilled => world.relays[at].take().is_some(),
            WriterKilled => world.writers[at].take().is_some(),
            RelayTerminated => world.relays[at].as_mut().is_some_and(|relay| {
                relay.signal(Signal::CONT);
                relay.signal(Signal::TERM);
                relay.wait(Duration::from_secs(35))
            }),
            RelayFrozen | WriterFrozen => {
                let is_relay = fault == RelayFrozen;
                let processes = if is_relay {
                    &world.relays
                } else {
                    &world.writers
                };
                processes[at]
                    .iter()
                    .for_each(|process| process.signal(Signal::STOP));
                self.frozen.push((is_relay, at, Instant::now() + 3 * LEASE));
                processes[at].is_some()
            }
            BusRestarted => {
                world.nats.kill();
                tokio::time::sleep(Duration::from_millis(700)).await;
                world.nats.restart().await;
                true
            }
            BusAnswerSwallowed => swallow(&world.to_bus, b"Nats-Msg-Id").await,
            ConnectionsCut => {
                world.to_bus.cut();
                world.to_database.iter().for_each(|proxy| proxy.cut());
                true
            }
            DatabaseRestarted => {
                world.server.crash(Duration::from_millis(500)).await;
                true
            }
            CommitAnswerSwallowed => match &world.to_database {
                Some(proxy) => swallow(proxy, world.kind.commit()).await,
                None => false,
            },
        };
        *self.bitten.entry(fault).or_default() += usize::from(bit);
    }

    /// Ends every fault.
    pub(super) async fn heal(&mut self, world: &mut World) {
        self.thaw(world, Instant::now() + Duration::from_secs(3_600));
        for proxy in [Some(&world.to_bus), world.to_database.as_ref()]
            .into_iter()
            .flatten()
        {
            proxy.heal();
            proxy.cut();
        }
    }

    fn thaw(&mut self, world: &World, now: Instant) {
        self.frozen.retain(|(is_relay, at, until)| {
            if *until <= now {
                let processes = if *is_relay {
                    &world.relays
                } else {
                    &world.writers
                };
                processes[*at]
                    .iter()
                    .for_each(|process| process.signal(Signal::CONT));
            }
            *until > now
        });
    }
}

/// Lets a request through and swallows its answer; then the silent connection is cut.
async fn swallow(proxy: &bento_outbox_conformance::faults::Proxy, pattern: &[u8]) -> bool {
    let before = proxy.bites().unanswered;
    proxy.swallow_reply(pattern, 1);
    let patience = Instant::now() + Duration::from_secs(3);
    while proxy.bites().unanswered == before && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.heal();
    proxy.cut();
    proxy.bites().unanswered > before
}

impl fmt::Display for Nemesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faults that bit: {:?}", self.bitten)
    }
}
