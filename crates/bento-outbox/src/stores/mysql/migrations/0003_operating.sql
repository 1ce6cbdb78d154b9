-- What operators keep back. Relays read it with every claim, and writers with every insert that may
-- be leased at birth, so it stays small.
create table if not exists `{table}_pauses` (
    kind varchar(16) character set ascii collate ascii_bin not null,
    name varchar(512) not null,
    since datetime(6) not null default (utc_timestamp(6)),
    paused_by varchar(255) not null,
    reason varchar(2000),
    primary key (kind, name),
    check (kind in ('tenant', 'destination'))
) engine = InnoDB row_format = dynamic default character set utf8mb4 collate utf8mb4_bin;

-- What operators did. Rows are only added, and kept for ever.
create table if not exists `{table}_audit` (
    number bigint not null auto_increment primary key,
    done_at datetime(6) not null default (utc_timestamp(6)),
    done_by varchar(255) not null,
    verb varchar(32) not null,
    what mediumtext not null,
    changed bigint not null,
    note varchar(2000),
    check (json_valid(what)),
    check (changed >= 0)
) engine = InnoDB row_format = dynamic default character set utf8mb4 collate utf8mb4_bin;
