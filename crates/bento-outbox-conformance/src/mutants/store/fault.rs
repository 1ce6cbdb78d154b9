//! The promises to break, in the order of the seam: writing, what is written, leasing, claiming,
//! settling, births, looking, the operator's verbs, receiving.

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
    /// The kind of an aggregate without an id is not kept.
    DropsKindWithoutId,
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

    /// A partition is taken although a live relay holds it.
    TakesWhatIsHeld,
    /// A lease never runs out.
    LeasesForEver,
    /// The epoch stays when a partition is taken from the dead.
    KeepsEpochsOfTheDead,
    /// The epoch stays when a partition that was given back is taken.
    KeepsEpochsOfTheReleased,
    /// Renewing raises the epoch.
    RaisesEpochsAtRenewal,
    /// It is never said that a partition was taken from the dead.
    NeverFromTheDead,
    /// Every partition is said to be taken from the dead.
    AlwaysFromTheDead,
    /// It is said at every renewal that a partition was taken from the dead.
    TellsTheDeadAgain,
    /// Giving back does nothing.
    ReleasesNothing,
    /// Giving back takes everybody's partitions away.
    ReleasesEverybodys,
    /// A relay that gave its partitions back still has a share.
    CountsTheReleased,
    /// Who came first gives nothing back.
    FirstKeepsAll,
    /// Who comes takes more than its share.
    TakesAllThatIsFree,
    /// Relays that have died still have a share.
    SharesWithTheDead,
    /// Relays of other tenants have a share as well.
    SharesWithOtherScopes,
    /// Relays of different tenants lease the same partitions.
    ScopesShareLeases,
    /// The same tenants in another order are others.
    ScopesByTheOrderOfTenants,
    /// Relays whose tenants overlap are not refused.
    IgnoresCollisions,
    /// A relay that is refused counts as running, so that the others are refused as well.
    RefusedRelaysStay,

    /// A claim reads all there is.
    IgnoresLimit,
    /// Records that wait use up the limit.
    CountsWaitingAgainstLimit,
    /// What is sent is counted among what waits.
    BacklogCountsTheSent,
    /// Dead letters are not counted among what is not sent.
    BacklogForgetsTheDead,
    /// What is delayed counts as due.
    BacklogAgesTheDelayed,
    /// What is paused counts as due.
    BacklogAgesThePaused,
    /// What comes after it in its key counts as due.
    BacklogAgesWhatThePausedHold,
    /// What was claimed and is not settled is read again.
    ClaimsWhatIsInFlight,
    /// What was claimed and is not settled holds its key.
    HoldsBehindWhatIsInFlight,
    /// What comes after a record that has waited is read together with it.
    FollowsWhatHasWaited,
    /// Tenants take no turns: who has the oldest records is served first.
    ServesTheFloodFirst,
    /// What has waited takes all the room there is.
    ServesTheFailedFirst,
    /// A record that has waited goes past an earlier one of its key for which there is no room.
    OvertakesWhatFindsNoRoom,
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
    /// A claim reads what is in others' partitions.
    ClaimsBeyondItsPartitions,
    /// Nothing is ever due elsewhere.
    NeverElsewhere,
    /// Something is always due elsewhere.
    AlwaysElsewhere,
    /// What waits in others' partitions is due there.
    WhatWaitsIsElsewhere,
    /// A claim does not tell how many attempts left no result.
    HidesLostAttempts,

    /// Anybody settles anything that is new.
    SettlesUnfenced,
    /// A relay settles under an epoch that is over.
    SettlesUnderAnyEpoch,
    /// A relay settles in the partitions of another.
    SettlesForAnyRelay,
    /// Who holds a partition settles in all of them.
    SettlesBeyondItsPartitions,
    /// Anybody counts attempts of anything that is new.
    AttemptsUnfenced,
    /// Attempts of what is settled are counted.
    AttemptsTheSettled,
    /// An attempt is not counted.
    ForgetsAttempts,
    /// The number of attempts is that before this one.
    CountsAttemptsFromZero,
    /// A known result leaves the attempts without one as they are.
    ResultsKeepLostAttempts,
    /// What is handed over keeps the attempt that was none.
    HandOverKeepsTheLostAttempt,
    /// What is handed over loses the attempts of others as well.
    HandOverForgetsLostAttempts,
    /// Handing over is a failure.
    CountsHandOvers,
    /// Handing over does nothing, and says that it did.
    LosesHandOvers,
    /// What is sent is deleted, although it is to be kept.
    DeletesTheSent,
    /// What is sent is kept, although it is to be deleted.
    KeepsTheSent,
    /// Where the sent are deleted, the dead are as well.
    DeletesTheDead,
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

    /// Born leased although a new one of its key is there.
    BornThoughNewWaits,
    /// Born leased although a dead one of its key is there.
    BornThoughDeadWaits,
    /// Born leased although its transaction wrote one of its key before.
    BornThoughItsTransactionHasMore,
    /// Born leased before its time.
    BornThoughDelayed,
    /// Not born leased when one of its key was sent.
    NotBornAfterTheSent,
    /// Nothing is born leased.
    NeverBorn,
    /// What is born leased waits for others' events.
    BirthKeyWithoutTenant,
    /// What is born leased waits for another kind of aggregate.
    BirthKeyWithoutKind,
    /// One event without an aggregate is born leased.
    OrdersTheUnorderedBorn,
    /// Events that are there already are said to be born leased.
    LeasesDuplicates,
    /// The leased records are told last first.
    LeasesLastFirst,
    /// The leased records are told to be the unit's tenant's.
    LeasesForTheUnitsTenant,
    /// Later events of its key do not wait for the one that is born leased.
    OvertakesTheBorn,
    /// Relays read what is born leased.
    ClaimsTheBorn,
    /// A birth lease never ends.
    NeverTakesBirthsOver,
    /// A relay that lost its partitions takes over.
    TakesBirthsOverUnfenced,
    /// Taking over costs no attempt.
    CountsNoTakeOver,
    /// Each claim takes over once more.
    TakesOverAgainAndAgain,
    /// From whom an event was taken may settle it.
    KeepsTheOwnerAtTakeOver,
    /// Anybody settles what is born leased.
    SettlesForeignBirths,
    /// What failed stays its owner's.
    RetriesKeepTheOwner,

    /// Records are found last first.
    ReversesFinds,
    /// Only unsent records are found.
    FindsOnlyUnsent,
    /// Events that failed before are counted as new.
    CountsRetryingAsNew,
    /// Events that were put aside are counted as retrying.
    CountsThePausedAsRetrying,
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

    /// Keys held by a delayed event are not told.
    HidesDelayedKeys,
    /// Keys held by a failed event are not told.
    HidesRetryingKeys,
    /// Keys held by a dead letter are not told.
    HidesDeadKeys,
    /// Every key that is held is held by a delayed event.
    CallsEverythingDelayed,
    /// It is not told until when a key is held.
    HidesUntilWhen,
    /// It is not told of what kind the aggregate is.
    HidesTheKindOfHeldKeys,
    /// Keys are told of which nothing waits.
    TellsOfWhatHoldsNothing,
    /// Keys are told that nothing holds.
    TellsOfWhatGoesOn,
    /// All keys are told, however many.
    TellsAllHeldKeys,
    /// What holds the key waits as well.
    CountsTheHolderAsWaiting,
    /// What is sent waits.
    CountsTheSentAsWaiting,
    /// What is dead waits.
    CountsTheDeadAsWaiting,
    /// Others' events of an aggregate with the same name wait.
    HeldKeysWithoutTenant,

    /// What is found is everybody's.
    FiltersByNoTenant,
    /// What is found is of any type.
    FiltersByNoType,
    /// What is found is of any aggregate.
    FiltersByNoAggregate,
    /// What is found is of any time before.
    FiltersByNoSince,
    /// What is found is of any time after.
    FiltersByNoUntil,
    /// What is found was sent at any time.
    FiltersByNoSentSince,
    /// What is found has any id.
    FiltersByNoIds,
    /// What is found is in any state.
    FiltersByNoStatus,
    /// An empty list of ids is none.
    TakesNoIdsForAny,
    /// What was written at the first moment is left out.
    SinceIsExclusive,
    /// What was written at the last moment is there.
    UntilIsInclusive,
    /// Every page is the first one.
    PagesFromTheFirst,
    /// A page begins with the last record of the one before.
    PagesRepeatTheLast,
    /// A page leaves its first record out.
    PagesSkipOne,
    /// A page goes on upwards, whatever its direction.
    PagesGoOnUpwards,
    /// A page has all records, up to its bound.
    IgnoresThePageLimit,
    /// A page has as many records as are asked for, without bound.
    ForgetsThePageMax,
    /// The last record comes first.
    ReversesPages,
    /// The first record comes first, also where the last one should.
    IgnoresTheDirection,
    /// Pages always have payloads.
    ReadsPayloadsUnasked,
    /// Pages never have payloads.
    KeepsPayloadsBack,
    /// What has no payload read is no JSON.
    TakesUnreadJsonForData,

    /// Ahead is the last unsent one before, and not the first.
    StandsBehindTheLast,
    /// Ahead is what was sent.
    StandsBehindTheSent,
    /// Ahead is a dead letter, also where they are skipped.
    StandsBehindTheSkipped,
    /// Ahead is no dead letter, also where they block.
    StandsBehindNoneThatBlocks,
    /// Ahead is what comes later.
    StandsBehindTheLater,
    /// Ahead is another tenant's.
    StandsBehindOtherTenants,
    /// Ahead is of another kind of aggregate.
    StandsBehindOtherKinds,
    /// Ahead of an event without an aggregate is another one.
    StandsBehindTheUnordered,
    /// What is sent or dead stands behind something.
    SettledStandsBehind,
    /// Every id stands somewhere.
    UnknownStandsSomewhere,
    /// It is not told to whom an event is born leased.
    HidesBirths,
    /// It is not told who holds the partition.
    HidesTheHolder,
    /// Who held the partition before it died holds it.
    TheDeadHold,
    /// Relays that died carry something.
    TheDeadCarry,
    /// Relays of other tenants carry it.
    AllCarryAll,
    /// The partition is another one.
    StandsElsewhere,

    /// A retry makes sent events new.
    RetriesTheSent,
    /// A retry ends the wait of failed events.
    RetriesTheWaiting,
    /// A retry is of all dead letters.
    RetriesAll,
    /// A retry keeps the count of attempts.
    RetriesKeepTheCount,
    /// A retry gives another id.
    RetriesUnderANewId,
    /// A retry does nothing, and says that it did.
    RetriesNothing,
    /// What is retried waits.
    RetriesLater,
    /// A retry says that it changed all that was asked for.
    SaysAllWereRetried,

    /// A discard does nothing.
    DiscardsNothing,
    /// A discard deletes new events.
    DiscardsTheNew,
    /// A discard deletes sent events.
    DiscardsTheSent,
    /// A discard is of all dead letters.
    DiscardsAll,

    /// Nothing is purged.
    PurgesNothing,
    /// The age is that of the event.
    PurgesByCreation,
    /// Old new events are purged.
    PurgesTheNew,
    /// Old dead letters are purged.
    PurgesTheDead,
    /// All old events are purged at once.
    PurgesWithoutLimit,
    /// Sent events of any age are purged.
    PurgesAtAnyAge,

    /// Each time is the first.
    ReceivesEachTime,
    /// Each time in one unit of work is the first.
    ReceivesTwiceInOneUnit,
    /// No time is the first.
    NeverReceives,
    /// What one consumer receives, all do.
    ReceivesForAllConsumers,
    /// What one tenant receives, all do.
    ReceivesForAllTenants,
    /// A message is received before its unit of work is committed.
    ReceivesAtOnce,
    /// What is rolled back stays received.
    ReceivesThoughRolledBack,
    /// What is rolled back to a savepoint stays received.
    KeepsUndoneReceipts,
    /// Two receive the same message at the same time.
    WaitsForNobody,
    /// Who comes while the first has not ended is told that it is not the first.
    SecondAtOnce,
    /// Names are the same in capitals.
    FoldsCase,
    /// The last character of the longest names is not seen.
    CutsNames,
    /// Names that are numbers are compared as such.
    ComparesNamesAsNumbers,
    /// A command runs each time.
    RunsEachTime,
    /// A command of one tenant is everybody's.
    CommandsOfAllTenants,
    /// Any request is the first one's.
    ForgetsFingerprints,
    /// A request that begins like the first one's is that.
    ComparesFingerprintsBriefly,
    /// An answer is not kept.
    ForgetsAnswers,
    /// An answer is parsed and written again.
    ReformatsAnswers,
    /// An answer is cut off.
    CutsAnswers,
    /// Received messages are never forgotten.
    ForgetsNoMessages,
    /// Messages of any age are forgotten.
    ForgetsNewMessages,
    /// Commands are never forgotten.
    ForgetsNoCommands,
    /// Commands of any age are forgotten.
    ForgetsNewCommands,
    /// All that is old is forgotten at once.
    ForgetsAllAtOnce,
    /// Messages and commands are forgotten together.
    ForgetsBoth,
    /// A claim reads what is paused.
    ClaimsThePaused,
    /// A claim reads what has failed before of a paused tenant.
    ClaimsTheFailedOfThePaused,
    /// What comes due of a paused tenant is put off, and stays so.
    PutsThePausedOffForEver,
    /// What is paused uses up the limit.
    ThePausedTakeRoom,
    /// A relay is told that something waits, where all of it is paused.
    ThePausedWait,
    /// Born leased although its tenant is paused.
    BornThoughItsTenantIsPaused,
    /// Born leased although a destination is paused.
    BornThoughADestinationIsPaused,
    /// Nothing is born leased while any tenant is paused.
    OnePauseLeavesNobodyBorn,
    /// Names are paused that nothing can have.
    PausesAnyName,
    /// What is paused already is paused anew.
    PausesAgain,
    /// It is said that all were paused that were asked for.
    SaysAllWerePaused,
    /// The reason of a pause is not kept.
    ForgetsWhyItIsPaused,
    /// It is not told what is paused.
    HidesPauses,
    /// What is paused is told last first.
    ReversesPauses,
    /// A resume does nothing, and says that it did.
    ResumesNothing,
    /// A resume is of tenants and destinations of that name.
    ResumesEveryKind,
    /// A resume is of all that is paused.
    ResumesEverything,
    /// What was put aside stays so when its destination is resumed.
    ResumesLeaveAsleep,
    /// What was put aside is never woken.
    WakesNothing,
    /// What was put aside is woken although its destination is paused.
    WakesThePaused,
    /// What waits for another attempt is woken.
    WakesWhatFailed,
    /// All that was put aside is woken at once.
    WakesWithoutLimit,
    /// The status does not tell what is paused.
    StatusHidesPauses,
    /// The status leaves paused tenants out that have no events.
    StatusHidesThePausedWithoutEvents,
    /// It is not told that a key is held by a pause of its tenant.
    HeldKeysHidePausedTenants,
    /// It is not told that a key is held by a pause of its destination.
    HeldKeysHidePausedDestinations,
    /// A dead letter of a paused tenant holds its key for the pause.
    HeldKeysCallTheDeadPaused,

    /// No change leaves an act.
    AuditsNoChanges,
    /// What changes nothing leaves an act.
    AuditsWhatChangedNothing,
    /// The act of a change comes after it.
    AuditsLater,
    /// An act names what was asked for, changed or not.
    AuditsWhatWasAsked,
    /// It is not kept who acted.
    ForgetsWhoActed,
    /// What was said about an act is not kept.
    ForgetsNotes,
    /// It is not kept what was changed.
    ForgetsWhatWasChanged,
    /// Acts that are handed over are not kept.
    LosesHandedActs,
    /// Acts are told oldest first.
    ActsOldestFirst,
    /// All acts are told, however many.
    ActsWithoutLimit,
    /// Every page begins with the newest act.
    ActsFromTheNewest,
}
