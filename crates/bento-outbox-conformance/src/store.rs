//! What every store must do: one list of cases, one line a store.
//!
//! ```ignore
//! store_suite!(memory, fresh_memory_store);
//! ```
//!
//! makes one test of every case in [`store_cases!`](crate::store_cases). `fresh_memory_store` is an
//! `async fn() -> Fresh<S>`: a migrated, empty store of its own for each case. There are no
//! capability flags: several databases, one contract.

use std::any::Any;
use std::time::Duration;

use bento_outbox::{
    Aggregate, Birth, Claim, Claimed, Event, Fence, Headers, Lease, Outbox, OutboxRecord, Payload,
    Relay, Settle, Settlement, Status, Store, Tenant, Timestamp, TransactionalStore, Verdict,
};
use uuid::Uuid;

pub mod auditing;
pub mod births;
pub mod carrying;
pub mod commanding;
pub mod leasing;
pub mod operating;
pub mod pausing;
pub mod reading;
pub mod receiving;
pub mod replaying;
pub mod settling;
pub mod suffering;
pub mod units;

/// An empty store, and what must live as long as it (a temporary folder, a server).
pub struct Fresh<S> {
    /// The store.
    pub store: S,
    /// Dropped with it.
    pub keep: Box<dyn Any + Send>,
}

impl<S> Fresh<S> {
    /// A store that needs nothing else.
    pub fn new(store: S) -> Self {
        Self {
            store,
            keep: Box::new(()),
        }
    }
}

/// Hands the list of cases, as `module::case`, to a macro.
#[macro_export]
macro_rules! store_cases {
    ($run:path { $($arguments:tt)* }) => {
        $run! {
            { $($arguments)* }
            units::committed_events_are_there_with_all_their_fields,
            units::rolled_back_events_are_never_seen,
            units::a_dropped_unit_of_work_is_rolled_back,
            units::a_panic_rolls_back,
            units::an_open_transaction_shows_nothing,
            units::a_nested_unit_takes_its_events_with_it,
            units::a_nested_unit_dropped_half_way_rolls_everything_back,
            units::an_event_raised_in_a_spawned_task_belongs_to_its_unit,
            units::two_units_joined_in_one_task_never_mix,
            units::a_unit_inside_a_unit_is_refused,
            units::the_callers_own_transaction_stays_the_callers,
            units::each_event_belongs_to_its_tenant,
            units::ids_already_there_are_skipped_and_reported,
            units::events_keep_the_order_in_which_they_were_raised,
            units::an_append_may_be_large,
            units::concurrent_units_lose_nothing,
            units::hostile_payloads_come_back_byte_for_byte,
            units::a_cancelled_unit_is_there_as_a_whole_or_not_at_all,
            settling::a_claim_is_bounded_ordered_and_of_the_asked_tenants,
            settling::what_is_in_flight_is_not_read_again,
            settling::what_has_waited_goes_first,
            settling::tenants_take_turns,
            settling::what_has_failed_leaves_room,
            settling::nothing_goes_past_what_found_no_room,
            settling::a_late_commit_is_not_passed_over,
            settling::a_later_event_waits_for_its_time_and_holds_its_key,
            settling::a_failed_event_waits_and_holds_its_key,
            settling::keys_differ_by_tenant_kind_and_id,
            settling::a_dead_letter_is_left_alone_and_its_key_goes_on,
            settling::a_dead_letter_can_hold_its_key,
            settling::without_order_nothing_is_held,
            settling::a_settled_record_is_not_changed_again,
            settling::a_stored_reason_is_bounded,
            settling::the_status_counts_each_event_once,
            settling::records_are_found_in_order,
            settling::a_hint_wakes_who_waits,
            leasing::partitions_are_shared_fairly,
            leasing::a_lease_runs_out_by_the_databases_clock,
            leasing::a_stale_relay_changes_nothing,
            leasing::what_is_given_back_is_taken_at_once,
            leasing::relays_whose_tenants_overlap_are_refused,
            leasing::a_claim_reads_only_what_is_held,
            leasing::an_attempt_is_counted_before_it_is_made,
            births::an_event_is_born_leased_when_nothing_earlier_waits,
            births::an_event_is_born_once_and_in_its_transaction,
            births::a_birth_lease_holds_its_key_until_it_is_settled,
            births::a_birth_lease_that_runs_out_is_taken_over,
            births::a_stale_relay_takes_nothing_over,
            births::only_its_owner_settles_a_birth,
            births::what_is_sent_can_be_deleted_at_once,
            operating::a_retried_letter_keeps_its_id_and_bytes,
            operating::only_dead_letters_are_discarded,
            operating::only_old_sent_events_are_purged,
            operating::the_backlog_is_what_is_not_sent,
            operating::keys_that_wait_say_why,
            receiving::only_the_first_time_is_the_first,
            receiving::each_consumer_receives_for_itself,
            receiving::each_tenant_receives_for_itself,
            receiving::deliveries_at_the_same_time_have_their_effects_once,
            receiving::a_second_delivery_waits_for_the_first,
            receiving::of_those_that_wait_one_goes_on,
            receiving::a_failed_effect_leaves_the_message_unreceived,
            receiving::a_nested_unit_takes_what_it_received_with_it,
            receiving::a_cancelled_delivery_has_its_effects_once,
            receiving::a_receipt_that_did_not_end_rolls_back,
            receiving::names_are_told_apart_byte_for_byte,
            receiving::names_out_of_bounds_are_refused,
            receiving::what_a_message_raises_says_so,
            receiving::only_what_is_old_is_forgotten,
            receiving::a_relay_forgets_what_is_old,
            reading::events_are_found_by_every_filter,
            reading::pages_have_no_gaps_and_no_doubles,
            reading::a_page_is_bounded,
            reading::payloads_are_read_if_they_are_asked_for,
            reading::an_event_stands_behind_the_first_unsent_one,
            reading::an_event_says_who_may_publish_it,
            reading::an_event_says_what_it_waits_for,
            replaying::a_replay_publishes_what_was_sent_in_order,
            replaying::a_replay_publishes_nothing_that_is_paused,
            replaying::a_replay_goes_on_where_it_ended,
            replaying::a_replay_waits_for_its_bus_and_stops_when_told_to,
            auditing::each_change_leaves_one_act,
            auditing::acts_are_read_in_pages,
            auditing::a_change_and_its_act_are_seen_together,
            pausing::a_paused_tenant_is_left_alone_and_others_go_on,
            pausing::paused_tenants_take_no_room,
            pausing::what_has_failed_of_a_paused_tenant_keeps_its_time,
            pausing::a_pause_is_there_once_until_it_ends,
            pausing::nothing_that_is_paused_is_born_leased,
            pausing::what_is_paused_is_told_everywhere,
            pausing::what_was_put_aside_is_due_when_its_destination_goes_on,
            pausing::a_paused_destination_is_left_alone_and_others_go_on,
            commanding::a_command_runs_once_and_answers_the_same,
            commanding::a_key_of_another_request_is_refused,
            commanding::each_tenant_has_its_own_commands,
            commanding::a_second_call_waits_for_the_first,
            commanding::a_failed_command_runs_again,
            commanding::a_cancelled_command_runs_once,
            commanding::an_answer_comes_back_byte_for_byte,
            carrying::every_event_is_carried_once_in_order,
            carrying::a_refused_event_delays_only_its_own_key,
            carrying::an_event_ends_as_a_dead_letter_after_its_attempts,
            carrying::a_bus_that_is_away_costs_no_attempt,
            carrying::a_failure_holds_its_key_in_batches_claimed_meanwhile,
            carrying::run_carries_until_it_is_told_to_stop,
            carrying::a_cancelled_round_goes_on_to_its_end,
            carrying::at_once_and_by_a_relay_each_event_comes_once,
            carrying::what_fails_at_once_is_the_relays,
            carrying::an_event_that_kills_the_relay_ends_as_a_dead_letter,
            suffering::many_relays_and_writers_under_faults_lose_and_invert_nothing,
        }
    };
}

/// Makes one test of every case for one store: `store_suite!(name, async_fn_that_makes_it_fresh)`.
#[macro_export]
macro_rules! store_suite {
    ($name:ident, $fresh:path) => {
        mod $name {
            $crate::store_cases!($crate::__store_tests { $fresh });
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __store_tests {
    ({ $fresh:path } $($group:ident::$case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                #[allow(unused_imports)]
                use super::*;
                let fresh = $fresh().await;
                $crate::store::$group::$case(fresh.store.clone()).await;
            }
        )*
    };
}

tokio::task_local! {
    static PATIENCE: Duration;
}

/// So long a case waits for what must come: far more than it takes, however busy the machine is.
fn patience() -> Duration {
    PATIENCE
        .try_with(|patience| *patience)
        .unwrap_or(Duration::from_secs(60))
}

/// Runs a case that waits for nothing longer than this: a store that is known to be broken is not to be
/// waited for.
pub async fn impatient<T>(patience: Duration, case: impl Future<Output = T>) -> T {
    PATIENCE.scope(patience, case).await
}

/// Why a case fails: said in one sentence by a panic.
fn ok<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the store answered an error: {error:?}"),
    }
}

/// An event of the aggregate `order/KEY`, with a number by which cases tell it from others.
fn event(key: &str, number: u32) -> Event {
    Event {
        aggregate: Aggregate::new("order", key),
        ..Event::new(
            "order.changed",
            ok(Payload::json(format!("{{\"n\":{number}}}"))),
        )
    }
}

/// An event of no aggregate.
fn unordered(number: u32) -> Event {
    Event {
        aggregate: Aggregate::default(),
        ..event("", number)
    }
}

/// Commits events, each a unit of work of its own.
async fn commit<S: TransactionalStore>(
    store: &S,
    events: impl IntoIterator<Item = Event>,
) -> Vec<Uuid> {
    let outbox = Outbox::new(store.clone());
    let mut ids = Vec::new();
    for event in events {
        ids.push(event.id);
        let tenant = event
            .tenant
            .as_ref()
            .map_or("default".into(), ToString::to_string);
        let outbox = outbox.tenant(tenant);
        let mut uow = ok(outbox.begin().await);
        ok(uow.raise(event));
        ok(uow.commit().await);
    }
    ids
}

/// What a relay asks for in these cases.
#[derive(Clone)]
struct Ask {
    limit: u32,
    in_flight: Vec<i64>,
    tenants: Option<Vec<Tenant>>,
    ordered: bool,
    dead_letters_block: bool,
}

fn everything() -> Ask {
    Ask {
        limit: 100_000,
        in_flight: Vec::new(),
        tenants: None,
        ordered: true,
        dead_letters_block: false,
    }
}

/// A relay that holds all it can get for a minute.
async fn relay(store: &dyn Store, tenants: Option<Vec<Tenant>>) -> (Relay, Vec<Lease>) {
    let relay = Relay::new(tenants);
    let leases = ok(store.lease(&relay, Duration::from_secs(60)).await);
    (relay, leases)
}

async fn ask(store: &dyn Store, relay: &Relay, leases: &[Lease], ask: &Ask) -> Claimed {
    let claim = Claim {
        relay,
        leases,
        limit: ask.limit,
        in_flight: &ask.in_flight,
        ordered: ask.ordered,
        dead_letters_block: ask.dead_letters_block,
    };
    ok(store.claim(&claim).await)
}

/// What a relay that comes and goes reads.
async fn claimed(store: &dyn Store, question: &Ask) -> Claimed {
    let (relay, leases) = relay(store, question.tenants.clone()).await;
    let claimed = ask(store, &relay, &leases, question).await;
    ok(store.release(&relay).await);
    claimed
}

async fn claim(store: &dyn Store) -> Vec<OutboxRecord> {
    claimed(store, &everything()).await.records
}

async fn claimed_ids(store: &dyn Store, question: &Ask) -> Vec<Uuid> {
    claimed(store, question)
        .await
        .records
        .iter()
        .map(|record| record.id)
        .collect()
}

/// What a relay reads in one claim after the other while nothing is settled. What has waited may be
/// one claim ahead of what comes after it in its key.
async fn claimed_in_turn(store: &dyn Store) -> Vec<Uuid> {
    let (mut question, mut ids) = (everything(), Vec::new());
    for _ in 0..100 {
        let records = claimed(store, &question).await.records;
        if records.is_empty() {
            return ids;
        }
        question
            .in_flight
            .extend(records.iter().map(|record| record.seq));
        ids.extend(records.iter().map(|record| record.id));
    }
    panic!("the same records are read again and again");
}

/// Settles as a relay that comes and goes; answers how many rows were changed.
async fn settle_all(store: &dyn Store, settlements: &[Settlement]) -> u64 {
    let (relay, leases) = relay(store, None).await;
    let fence = Fence::Leases {
        relay: &relay,
        leases: &leases,
    };
    let changed = ok(store
        .settle(&Settle {
            fence,
            keep_sent: true,
            settlements,
        })
        .await);
    ok(store.release(&relay).await);
    changed
}

async fn settle(store: &dyn Store, id: Uuid, verdict: Verdict) -> u64 {
    settle_all(store, &[Settlement { id, verdict }]).await
}

async fn the(store: &dyn Store, id: Uuid) -> OutboxRecord {
    match ok(store.find(&[id]).await).pop() {
        Some(record) => record,
        None => panic!("event {id} is not there"),
    }
}

fn retry(after: Duration) -> Verdict {
    Verdict::Retry {
        after,
        counts: true,
        reason: "refused".into(),
    }
}

fn dead() -> Verdict {
    Verdict::Dead {
        counts: true,
        reason: "refused for good".into(),
    }
}
