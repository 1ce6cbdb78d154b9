//! What is promised, as properties of every state, and what must be seen to happen for them to mean anything.

use stateright::{Model, Property};

use super::database::{Birth, Row, Status};
use super::relay::Relay;
use super::rules::Delivery;
use super::world::World;
use super::writer::Stage;

pub(super) const NO_PHANTOM: &str = "nothing arrives that was not committed";
pub(super) const IN_ORDER: &str = "events of a key arrive first in their order";
pub(super) const SENT_IS_SOUND: &str = "what is SENT has arrived";
pub(super) const FENCED: &str = "who lost a lease changes nothing";
pub(super) const ONCE: &str = "nothing arrives twice without a fault";
pub(super) const NOTHING_LOST: &str = "in the end what was committed has arrived or is ERR";

pub(super) fn all() -> Vec<Property<Delivery>> {
    vec![
        Property::<Delivery>::always(NO_PHANTOM, |_, world| {
            rows(world).all(|(row, delivered)| row.is_visible() || delivered == 0)
        }),
        Property::<Delivery>::always(IN_ORDER, |_, world| !world.bus.inverted),
        Property::<Delivery>::always(SENT_IS_SOUND, |_, world| {
            rows(world).all(|(row, delivered)| row.status != Status::Sent || delivered > 0)
        }),
        Property::<Delivery>::always(FENCED, |_, world| !world.stale_write),
        Property::<Delivery>::always(ONCE, |model, world| {
            world.faults_left < model.faults || rows(world).all(|(_, delivered)| delivered < 2)
        }),
        // Stateright's own `eventually` misses runs that join or go in circles. Here every step makes progress
        // (`World::progress`), so every run ends, and it is enough to look at the states where nothing is left that
        // has to happen.
        Property::<Delivery>::always(NOTHING_LOST, |model, world| {
            rows(world).all(|(row, delivered)| is_done(row, delivered))
                || has_more_to_do(model, world)
        }),
        Property::<Delivery>::sometimes(
            "a relay's lease is taken over while it believes in it",
            |_, world| stale_relays(world).count() > 0,
        ),
        Property::<Delivery>::sometimes("a relay's settlement is refused", |_, world| {
            stale_relays(world).any(|relay| relay.would_be_refused(&world.database))
        }),
        Property::<Delivery>::sometimes("a birth lease is taken over", |_, world| {
            rows(world).any(|(row, _)| row.birth == Birth::TakenOver)
        }),
        Property::<Delivery>::sometimes("a writer's settlement is refused", |_, world| {
            (world.writers.iter().filter_map(|writer| writer.slot)).any(|slot| {
                let row = world.database.rows[slot.seq];
                slot.stage == Stage::Acked
                    && row.birth == Birth::TakenOver
                    && row.status == Status::New
            })
        }),
        Property::<Delivery>::sometimes("a row is handed over", |_, world| {
            rows(world).any(|(row, _)| row.birth == Birth::HandedOver)
        }),
        Property::<Delivery>::sometimes("an event arrives twice after a fault", |_, world| {
            rows(world).any(|(_, delivered)| delivered > 1)
        }),
        Property::<Delivery>::sometimes("an event ends as a dead letter", |_, world| {
            rows(world).any(|(row, _)| row.status == Status::Err)
        }),
    ]
}

fn rows(world: &World) -> impl Iterator<Item = (&Row, u8)> {
    world.database.rows.iter().zip(world.bus.delivered)
}

fn is_done(row: &Row, delivered: u8) -> bool {
    match row.status {
        Status::New => !row.is_visible(),
        Status::Sent => delivered > 0,
        Status::Err => true,
    }
}

fn has_more_to_do(model: &Delivery, world: &World) -> bool {
    let mut steps = Vec::new();
    model.actions(world, &mut steps);
    !steps.iter().all(|step| step.is_optional())
}

fn stale_relays(world: &World) -> impl Iterator<Item = &Relay> {
    (world.relays.iter())
        .filter(|relay| relay.epoch != 0 && relay.epoch != world.database.lease.epoch)
}
