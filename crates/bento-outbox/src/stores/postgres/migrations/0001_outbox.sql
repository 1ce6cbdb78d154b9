-- What is wrong with a row, for who writes it. One function, since a session keeps it as it was parsed:
-- PostgreSQL parses the text of a constraint anew in each statement, which made an insert twice as dear. And a
-- pattern with a bounded repetition, {1,255}, costs a hundred times as much as a length and a pattern without.
create or replace function "{schema}"."{table}_admits"(
    tenant_id text, aggregate_type text, aggregate_id text, type text, schema_id text, schema_ver integer,
    payload json, data bytea, content_type text, key_id text, headers json,
    occurred_at timestamptz, created_at timestamptz, available_at timestamptz,
    status text, retry_cnt integer, error_message text
) returns boolean language plpgsql immutable parallel safe as $$
declare
    wrong text := case
        when length(tenant_id) > 64 or tenant_id !~ '^[A-Za-z0-9]' or tenant_id ~ '[^A-Za-z0-9._-]'
            then 'tenant_id must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit'
        when length(aggregate_type) not between 1 and 128
            then 'aggregate_type must have 1 to 128 characters, or be null'
        when length(aggregate_id) not between 1 and 255
            then 'aggregate_id must have 1 to 255 characters, or be null'
        when length(type) not between 1 and 255 or type ~ '[^A-Za-z0-9._:/-]'
            then 'type must be 1 to 255 of A-Z a-z 0-9 . _ - : /'
        when length(schema_id) not between 1 and 255
            then 'schema_id must have 1 to 255 characters, or be null'
        when schema_ver < 0
            then 'schema_ver must be 0 or more'
        when (payload is null) = (data is null)
            then 'payload or data must be given, and not both'
        when length(content_type) not between 1 and 128 or content_type ~ '[^ -~]'
            then 'content_type must have 1 to 128 characters, all of ASCII'
        when length(key_id) not between 1 and 128
            then 'key_id must have 1 to 128 characters, or be null'
        when json_typeof(headers) <> 'object'
            then 'headers must be a JSON object'
        when occurred_at < '0001-01-01 00:00:00+00' or occurred_at >= '10000-01-01 00:00:00+00'
            then 'occurred_at must be in the years 1 to 9999'
        when created_at < '0001-01-01 00:00:00+00' or created_at >= '10000-01-01 00:00:00+00'
            then 'created_at must be in the years 1 to 9999'
        when available_at < '0001-01-01 00:00:00+00' or available_at >= '10000-01-01 00:00:00+00'
            then 'available_at must be in the years 1 to 9999'
        when status not in ('NEW', 'SENT', 'ERR')
            then 'status must be NEW, SENT or ERR'
        when retry_cnt < 0
            then 'retry_cnt must be 0 or more'
        when length(error_message) > 2000
            then 'error_message must have 2000 characters at most'
    end;
begin
    if wrong is not null then
        raise check_violation using
            message = '{table}: ' || wrong, schema = '{schema}', table = '{table}', constraint = '{table}_admits',
            column = split_part(wrong, ' ', 1);
    end if;
    return true;
end $$;

-- One row is one event. Any language may insert: only "type" and one of "payload" and "data" must
-- be given. Columns up to "available_at" are the writer's, the others the relay's.
create table "{schema}"."{table}" (
    id uuid primary key default gen_random_uuid(),
    seq bigint generated always as identity,
    tenant_id text not null default 'default',
    aggregate_type text,
    aggregate_id text,
    type text not null,
    schema_id text,
    schema_ver integer not null default 1,
    payload json,
    data bytea,
    content_type text not null default 'application/json',
    key_id text,
    headers json not null default '{}',
    occurred_at timestamptz not null default now(),
    created_at timestamptz not null default now(),
    available_at timestamptz not null default now(),
    status text not null default 'NEW',
    retry_cnt integer not null default 0,
    retry_at timestamptz,
    error_message text,
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
    constraint "{table}_admits" check ("{schema}"."{table}_admits"(
        tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data, content_type, key_id,
        headers, occurred_at, created_at, available_at, status, retry_cnt, error_message))
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
