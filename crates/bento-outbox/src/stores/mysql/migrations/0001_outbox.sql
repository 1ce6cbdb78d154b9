-- One row is one event. Any language may insert: only "type" and one of "payload" and "data" must
-- be given. Columns up to "available_at" are the writer's, the others the relay's. Times are in UTC
-- whatever the time zone of a session.
create table if not exists `{table}` (
    id char(36) character set ascii collate ascii_bin not null default (uuid()),
    seq bigint not null auto_increment,
    tenant_id varchar(64) not null default 'default',
    aggregate_type varchar(128),
    aggregate_id varchar(255),
    type varchar(255) not null,
    schema_id varchar(255),
    schema_ver int not null default 1,
    payload longtext,
    data longblob,
    content_type varchar(128) not null default 'application/json',
    key_id varchar(128),
    headers longtext not null default ('{}'),
    occurred_at datetime(6) not null default (utc_timestamp(6)),
    created_at datetime(6) not null default (utc_timestamp(6)),
    available_at datetime(6) not null default (utc_timestamp(6)),
    status varchar(8) character set ascii collate ascii_bin not null default 'NEW',
    retry_cnt int not null default 0,
    retry_at datetime(6),
    error_message text,
    sent_at datetime(6),
    -- By this clock and not by the writer's columns it is judged whether an event is delayed.
    written_at datetime(6) not null default (utc_timestamp(6)),
    -- Born leased: the process that committed it may publish it first. And the attempts of which
    -- no result is known.
    owner char(36) character set ascii collate ascii_bin,
    lease_until datetime(6),
    lost_attempts int not null default 0,
    -- The library has checked the payload itself: json_valid() of MariaDB follows 31 levels, that of
    -- MySQL 100 levels and no number beyond a double.
    json_checked boolean not null default false,
    -- Events of one key are delivered in order. An event without an aggregate is a key by itself.
    -- Two keys with one hash would only wait for each other.
    ordering_key bigint generated always as (cast(conv(left(sha1(
        case when aggregate_id is null then rtrim(id)
             else concat_ws(char(31), tenant_id, coalesce(aggregate_type, ''), aggregate_id) end
        ), 15), 16, 10) as signed)) stored,
    part tinyint generated always as (ordering_key & 63) stored,
    -- What the indexes below leave out is null: neither MySQL nor MariaDB has partial indexes.
    ready_tenant varchar(64) generated always as (
        case when status = 'NEW' and error_message is null and available_at <= written_at then tenant_id end) stored,
    waiting_at datetime(6) generated always as (
        case when status = 'NEW' and (error_message is not null or available_at > written_at)
             then greatest(available_at, coalesce(retry_at, available_at)) end) stored,
    holding_key bigint generated always as (
        case when aggregate_id is not null and (status = 'ERR' or status = 'NEW'
                  and (error_message is not null or available_at > written_at or owner is not null))
             then ordering_key end) stored,
    unsent_key bigint generated always as (
        case when aggregate_id is not null and status <> 'SENT' then ordering_key end) stored,
    dead boolean generated always as (case when status = 'ERR' then true end) stored,
    primary key (seq),
    unique key `{table}_id` (id),
    -- What can go at once is found by its place: tenants take turns, each in its order. What was
    -- delayed or has failed before is found by its time, so that a million of it slow nothing down.
    key `{table}_ready` (ready_tenant, seq, part),
    key `{table}_waiting` (waiting_at, part),
    -- What may hold the later events of its key; all that is unsent of a key; what failed for good;
    -- what is old.
    key `{table}_holding` (holding_key, seq, dead),
    key `{table}_unsent` (unsent_key, seq, dead),
    key `{table}_dead` (dead, seq),
    key `{table}_sent` (sent_at),
    check (length(replace(id, '-', '')) = 32 and id like '________-____-____-____-____________'
           and id not regexp '[^0-9a-f-]'),
    check (char_length(tenant_id) between 1 and 64 and tenant_id regexp '^[A-Za-z0-9]'
           and tenant_id not regexp '[^A-Za-z0-9._-]'),
    check (char_length(aggregate_type) between 1 and 128),
    check (char_length(aggregate_id) between 1 and 255),
    check (char_length(type) between 1 and 255 and type not regexp '[^A-Za-z0-9._:/-]'),
    check (char_length(schema_id) between 1 and 255),
    check (schema_ver >= 0),
    check (payload is null or json_checked or json_valid(payload)),
    check ((payload is null) <> (data is null)),
    check (char_length(content_type) between 1 and 128 and content_type not regexp '[^ -~]'),
    check (char_length(key_id) between 1 and 128),
    check (json_valid(headers) and json_type(headers) = 'OBJECT'),
    check (occurred_at >= '0001-01-01' and created_at >= '0001-01-01' and available_at >= '0001-01-01'),
    -- Where sql_mode lets them in, MySQL keeps days like 2026-00-10, and can do nothing with them.
    check (occurred_at + interval 0 second is not null and created_at + interval 0 second is not null
           and available_at + interval 0 second is not null
           and (retry_at is null or retry_at + interval 0 second is not null)
           and (sent_at is null or sent_at + interval 0 second is not null)),
    -- Not "in", to which trailing blanks are nothing.
    check (status like 'NEW' or status like 'SENT' or status like 'ERR'),
    check (retry_cnt >= 0),
    check (char_length(error_message) <= 2000)
) engine = InnoDB row_format = dynamic default character set utf8mb4 collate utf8mb4_bin;

-- The state of delivery. A subselect from the same table keeps the view read-only, and costs nothing
-- where its column is not asked for.
create or replace view `{table}_events` as
    select o.id, o.seq, o.tenant_id, o.aggregate_type, o.aggregate_id, o.type,
           (select s.schema_id from `{table}` s where s.seq = o.seq) as schema_id,
           o.schema_ver, o.payload, o.data, o.content_type, o.key_id, o.headers,
           o.occurred_at, o.created_at, o.available_at,
           o.status, o.retry_cnt, o.retry_at, o.error_message, o.sent_at
    from `{table}` o;

-- Who carries which part of the ordering keys. Relays of one scope, the tenants that they carry,
-- share the parts; an epoch is one term of one holder. A scope may be long, so here is its SHA-1.
create table if not exists `{table}_leases` (
    scope char(40) character set ascii collate ascii_bin not null,
    part tinyint not null,
    epoch bigint not null default 0,
    owner char(36) character set ascii collate ascii_bin,
    until datetime(6),
    from_the_dead boolean not null default false,
    primary key (scope, part)
) engine = InnoDB;

create table if not exists `{table}_relays` (
    id char(36) character set ascii collate ascii_bin not null primary key,
    scope longtext not null,
    until datetime(6) not null
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin;
