-- One row is one event. Any language may insert: only "type" and one of "payload" and "data" must
-- be given. Columns up to "available_at" are the writer's, the others the relay's.
-- The patterns are looked at in every insert and update. One with a bounded repetition, {1,255}, costs a
-- hundred times as much as a length and a pattern without.
create table "{schema}"."{table}" (
    id uuid primary key default gen_random_uuid(),
    seq bigint generated always as identity,
    tenant_id text not null default 'default'
        check (length(tenant_id) <= 64 and tenant_id ~ '^[A-Za-z0-9]' and tenant_id !~ '[^A-Za-z0-9._-]'),
    aggregate_type text check (length(aggregate_type) between 1 and 128),
    aggregate_id text check (length(aggregate_id) between 1 and 255),
    type text not null check (length(type) between 1 and 255 and type !~ '[^A-Za-z0-9._:/-]'),
    schema_id text check (length(schema_id) between 1 and 255),
    schema_ver integer not null default 1 check (schema_ver >= 0),
    payload json,
    data bytea,
    content_type text not null default 'application/json'
        check (length(content_type) between 1 and 128 and content_type !~ '[^ -~]'),
    key_id text check (length(key_id) between 1 and 128),
    headers json not null default '{}' check (json_typeof(headers) = 'object'),
    occurred_at timestamptz not null default now()
        check (occurred_at >= '0001-01-01 00:00:00+00' and occurred_at < '10000-01-01 00:00:00+00'),
    created_at timestamptz not null default now()
        check (created_at >= '0001-01-01 00:00:00+00' and created_at < '10000-01-01 00:00:00+00'),
    available_at timestamptz not null default now()
        check (available_at >= '0001-01-01 00:00:00+00' and available_at < '10000-01-01 00:00:00+00'),
    status text not null default 'NEW' check (status in ('NEW', 'SENT', 'ERR')),
    retry_cnt integer not null default 0 check (retry_cnt >= 0),
    retry_at timestamptz,
    error_message text check (length(error_message) <= 2000),
    sent_at timestamptz,
    -- By this clock and not by the writer's columns it is judged whether an event is delayed.
    written_at timestamptz not null default now(),
    -- Born leased: the process that committed it may publish it first. And the attempts of which
    -- no result is known.
    owner uuid,
    lease_until timestamptz,
    lost_attempts integer not null default 0,
    -- Events of one key are delivered in order. An event without an aggregate is a key by itself.
    -- Two keys with one hash would only wait for each other.
    ordering_key bigint not null generated always as (hashtextextended(
        case when aggregate_id is null then id::text
             else tenant_id || chr(31) || coalesce(aggregate_type, '') || chr(31) || aggregate_id end, 0)) stored,
    constraint "{table}_payload_or_data" check ((payload is null) <> (data is null))
);

-- What can go at once is found by its place: tenants take turns, each in its order. What was delayed
-- or has failed before is found by its time, so that a million of it slow nothing down.
create index "{table}_ready" on "{schema}"."{table}" (tenant_id, seq)
    where status = 'NEW' and error_message is null and available_at <= written_at;
create index "{table}_waiting" on "{schema}"."{table}" (greatest(available_at, retry_at))
    where status = 'NEW' and (error_message is not null or available_at > written_at);
-- What may hold the later events of its key; all that is unsent of a key; what failed for good; what is old;
-- what was sent, in order, for who looks through it or publishes it again.
create index "{table}_holding" on "{schema}"."{table}" (ordering_key, seq)
    where status = 'ERR' or status = 'NEW' and (error_message is not null or available_at > written_at or owner is not null);
create index "{table}_unsent" on "{schema}"."{table}" (ordering_key, seq) where status <> 'SENT';
create index "{table}_dead" on "{schema}"."{table}" (seq) where status = 'ERR';
create index "{table}_sent" on "{schema}"."{table}" (sent_at) where status = 'SENT';
create index "{table}_history" on "{schema}"."{table}" (seq) where status = 'SENT';

-- The state of delivery. The empty common table expression keeps it read-only.
create view "{schema}"."{table}_events" as
    with read_only as (select)
    select id, seq, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data,
           content_type, key_id, headers, occurred_at, created_at, available_at,
           status, retry_cnt, retry_at, error_message, sent_at
    from "{schema}"."{table}";

-- Who carries which part of the ordering keys (partition = ordering_key modulo 64). Relays of one
-- scope, the tenants that they carry, share the partitions; an epoch is one term of one holder.
create table "{schema}"."{table}_leases" (
    scope text not null,
    partition smallint not null,
    epoch bigint not null default 0,
    owner uuid,
    until timestamptz,
    primary key (scope, partition)
);

create table "{schema}"."{table}_relays" (
    id uuid primary key,
    scope text not null,
    until timestamptz not null
);
