-- One row is one event. Any language may insert: only "type" and one of "payload" and "data" must
-- be given. Columns up to "available_at" are the writer's, the others the relay's. Most functions
-- of SQLite take char(0) for the end of a text, so that is asked for by itself.
create table "{table}" (
    seq integer primary key autoincrement,
    id text not null unique default (lower(
            hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
            substr('89ab', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))
        check (id glob '????????-????-????-????-????????????' and replace(id, '-', '') not glob '*[^0-9a-f]*'
               and length(replace(id, '-', '')) = 32 and instr(id, char(0)) = 0),
    tenant_id text not null default 'default'
        check (length(tenant_id) between 1 and 64 and tenant_id glob '[A-Za-z0-9]*'
               and tenant_id not glob '*[^A-Za-z0-9._-]*' and instr(tenant_id, char(0)) = 0),
    aggregate_type text check (length(aggregate_type) between 1 and 128),
    aggregate_id text check (length(aggregate_id) between 1 and 255),
    type text not null
        check (length(type) between 1 and 255 and type not glob '*[^A-Za-z0-9._:/-]*' and instr(type, char(0)) = 0),
    schema_id text check (length(schema_id) between 1 and 255),
    schema_ver integer not null default 1 check (schema_ver between 0 and 2147483647),
    payload text check (payload is null or json_valid(payload)), -- before 3.42, json_valid(null) is 0
    data blob,
    content_type text not null default 'application/json'
        check (length(content_type) between 1 and 128 and content_type not glob '*[^ -~]*'
               and instr(content_type, char(0)) = 0),
    key_id text check (length(key_id) between 1 and 128),
    headers text not null default '{}' check (json_valid(headers) and json_type(headers) = 'object'),
    occurred_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        check (occurred_at glob '[0-9][0-9][0-9][0-9]-*' and occurred_at >= '0001' and julianday(occurred_at) is not null),
    created_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        check (created_at glob '[0-9][0-9][0-9][0-9]-*' and created_at >= '0001' and julianday(created_at) is not null),
    available_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        check (available_at glob '[0-9][0-9][0-9][0-9]-*' and available_at >= '0001' and julianday(available_at) is not null),
    status text not null default 'NEW' check (status in ('NEW', 'SENT', 'ERR')),
    retry_cnt integer not null default 0 check (retry_cnt >= 0),
    retry_at text,
    error_message text check (length(error_message) <= 2000),
    sent_at text,
    -- By this clock and not by the writer's columns it is judged whether an event is delayed.
    written_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- Born leased: the process that committed it may publish it first. And the attempts of which
    -- no result is known.
    owner text,
    lease_until text,
    lost_attempts integer not null default 0,
    -- Events of one key are delivered in order. An event without an aggregate is a key by itself.
    ordering_key text not null generated always as (
        case when aggregate_id is null then id
             else tenant_id || char(31) || coalesce(aggregate_type, '') || char(31) || aggregate_id end) virtual,
    -- SQLite has no hash: the end of a key, where keys differ, will do.
    partition integer not null generated always as (
        (unicode(substr(ordering_key, -1)) + 10 * unicode(substr(ordering_key, -2)) + 7 * length(ordering_key)) % 64
    ) virtual,
    constraint "{table}_payload_or_data" check ((payload is null) <> (data is null))
) strict;

-- What can go at once is found by its place: tenants take turns, each in its order. What was delayed
-- or has failed before is found by its time, so that a million of it slow nothing down.
create index "{table}_ready" on "{table}" (tenant_id, seq)
    where status = 'NEW' and error_message is null and julianday(available_at) <= julianday(written_at);
create index "{table}_waiting" on "{table}" (max(julianday(available_at), coalesce(julianday(retry_at), 0)))
    where status = 'NEW' and (error_message is not null or julianday(available_at) > julianday(written_at));
-- What may hold the later events of its key; all that is unsent of a key; what failed for good; what is old.
create index "{table}_holding" on "{table}" (ordering_key, seq)
    where status = 'ERR' or status = 'NEW' and (error_message is not null
        or julianday(available_at) > julianday(written_at) or owner is not null);
create index "{table}_unsent" on "{table}" (ordering_key, seq) where status <> 'SENT';
create index "{table}_dead" on "{table}" (seq) where status = 'ERR';
create index "{table}_sent" on "{table}" (sent_at) where status = 'SENT';

-- The state of delivery.
create view "{table}_events" as
    select id, seq, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data,
           content_type, key_id, headers, occurred_at, created_at, available_at,
           status, retry_cnt, retry_at, error_message, sent_at
    from "{table}";

-- Who carries which part of the ordering keys. Relays of one scope, the tenants that they carry,
-- share the partitions; an epoch is one term of one holder.
create table "{table}_leases" (
    scope text not null,
    partition integer not null,
    epoch integer not null default 0,
    owner text,
    until text,
    primary key (scope, partition)
) strict, without rowid;

create table "{table}_relays" (
    id text primary key,
    scope text not null,
    until text not null
) strict, without rowid;
