//! The promises to break, in the order of the seam: writing, what is written, claiming, settling,
//! looking.

macro_rules! faults {
    ($($(#[$doc:meta])+ $fault:ident,)+) => {
        /// The promise that a [`MutantStore`](super::MutantStore) breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($(#[$doc])+ $fault,)+ }

        impl Fault {
            /// Every fault there is.
            pub const ALL: &[Self] = &[$(Self::$fault,)+];
        }
    };
}

faults! {
    /// Events are there before their commit, and without it.
    AppendsAtOnce,
    /// A rollback commits.
    CommitsRollbacks,
    /// A transaction that is dropped is committed.
    CommitsDropped,
    /// A commit does nothing, and says that it did.
    ForgetsCommits,
    /// A commit does nothing when another transaction has begun since its own began.
    LosesToLaterTransactions,
    /// What is rolled back to a savepoint stays.
    KeepsUndoneSavepoints,
    /// What a released savepoint held is gone.
    DropsReleasedSavepoints,
    /// The last event of an append is not written.
    ForgetsTheLastEvent,
    /// Events past the thousandth of an append are not written.
    AppendsAThousand,
    /// The events of an append are written last first.
    ReversesAppends,
    /// An append commits and goes on in a transaction of its own.
    CommitsAppends,
    /// An event whose id is there is written again, under a new id.
    WritesDuplicatesAgain,
    /// An event whose id is there replaces the first one.
    ReplacesDuplicates,
    /// An event whose id is there is refused, and all others with it.
    RefusesDuplicates,
    /// Skipped events are not reported.
    HidesDuplicates,
    /// Skipped events are reported as written.
    CountsDuplicates,

    /// An event without a tenant becomes the default tenant's.
    ForgetsTheUnitsTenant,
    /// An event with a tenant becomes the unit's.
    ForgetsTheEventsTenant,
    /// The kind of the aggregate is not kept.
    DropsAggregateKind,
    /// An aggregate without a kind gets an empty one.
    InventsAggregateKind,
    /// Schema and version are not kept.
    DropsSchema,
    /// The name of the key is not kept, so nobody knows that the payload is encrypted.
    DropsKeyId,
    /// The headers are not kept.
    DropsHeaders,
    /// JSON is parsed and written again.
    ReformatsJson,
    /// A NUL in JSON is left out.
    DropsNul,
    /// Data that is JSON text becomes JSON.
    TakesDataForJson,
    /// Data of no bytes becomes JSON.
    TakesEmptyDataForJson,
    /// Data that is no text is not kept as it is.
    TakesDataForText,
    /// Times are kept in whole seconds.
    CutsTimesToSeconds,
    /// The writer's `created_at` is replaced by now.
    OverwritesCreatedAt,
    /// The writer's `available_at` is not kept.
    ForgetsAvailableAt,

    /// A claim reads all there is.
    IgnoresLimit,
    /// Records that wait use up the limit.
    CountsWaitingAgainstLimit,
    /// A claim reads everybody's records.
    IgnoresTenants,
    /// An event is read before its time.
    IgnoresAvailableAt,
    /// A failed event is read before its time.
    IgnoresRetryAt,
    /// Nothing waits for an earlier record of its key.
    Overtakes,
    /// Nothing waits for an earlier record of its key that is not yet available.
    OvertakesDelayed,
    /// Only one record waits for an earlier one of its key; those behind it go.
    HoldsOnlyTheNext,
    /// A record waits for later ones of its key too.
    WaitsForLaterOnes,
    /// The key is the aggregate's id alone, whatever its tenant.
    KeyWithoutTenant,
    /// The key is tenant and id, whatever the kind.
    KeyWithoutKind,
    /// Events without an aggregate wait for each other.
    OrdersTheUnordered,
    /// `ordered = false` is not heeded.
    AlwaysOrders,
    /// A dead letter never holds its key.
    NeverBlocks,
    /// A dead letter always holds its key.
    AlwaysBlocks,
    /// Dead letters are read again.
    ClaimsDeadLetters,
    /// Nothing is read below the highest `seq` that was sent.
    ClaimsByCursor,
    /// Records are read last first.
    ReversesClaims,
    /// A record is read once, settled or not.
    ClaimsOnce,
    /// Nothing ever waits.
    NeverWaits,
    /// Something always waits.
    AlwaysWaits,
    /// What waits is everybody's.
    WaitsForOthers,
    /// Dead letters wait.
    WaitsForTheDead,

    /// What is settled can be settled again.
    SettlesTwice,
    /// Only the first of several settlements is written.
    SettlesTheFirst,
    /// The number of rows changed is the number asked for.
    SaysAllWereSettled,
    /// A settlement of an unknown record is an error.
    RefusesUnknownIds,
    /// The reason of a failure is not kept.
    LosesReasons,
    /// The reason of a failure is kept at any length.
    KeepsLongReasons,
    /// No failure counts.
    NeverCounts,
    /// Every failure counts.
    AlwaysCounts,
    /// A dead letter is marked as sent.
    MarksTheDeadSent,
    /// A failed event is a dead letter at once.
    BuriesTheFailed,
    /// A failed event is tried again at once.
    ForgetsRetryAt,
    /// A sent event still has a time to try it again.
    KeepsRetryAt,
    /// It is not kept when an event was sent.
    ForgetsSentAt,

    /// Records are found last first.
    ReversesFinds,
    /// Only unsent records are found.
    FindsOnlyUnsent,
    /// Events that failed before are counted as new.
    CountsRetryingAsNew,
    /// The oldest event may be a sent one.
    AgesTheSent,
    /// The age is that of the newest unsent event.
    AgesTheNewest,
    /// Tenants come in no order.
    ReversesTenants,
    /// Tenants whose events are all sent are left out.
    HidesIdleTenants,
    /// The rate is that of a minute.
    OverstatesTheRate,
    /// Nobody is woken.
    NeverHints,
    /// Who waits for a hint is woken at once.
    AlwaysHints,
}
