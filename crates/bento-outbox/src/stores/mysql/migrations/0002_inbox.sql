-- What each consumer has received: written by its own transaction, so that a message is received
-- only together with its effects. Blanks at an end are refused, because this collation does not
-- see them, and then two messages would be one.
create table if not exists `{table}_inbox` (
    consumer varchar(128) not null,
    tenant_id varchar(64) not null default 'default',
    message_id varchar(255) not null,
    received_at datetime(6) not null default (utc_timestamp(6)),
    primary key (consumer, tenant_id, message_id),
    key `{table}_inbox_received` (received_at),
    check (char_length(consumer) between 1 and 128 and consumer not regexp '^ | $'),
    check (char_length(tenant_id) between 1 and 64 and tenant_id regexp '^[A-Za-z0-9]'
           and tenant_id not regexp '[^A-Za-z0-9._-]'),
    check (char_length(message_id) between 1 and 255 and message_id not regexp '^ | $')
) engine = InnoDB row_format = dynamic default character set utf8mb4 collate utf8mb4_bin;

-- What each command was first asked for and answered, in the same way. A row that is committed has
-- its answer.
create table if not exists `{table}_commands` (
    tenant_id varchar(64) not null default 'default',
    command_key varchar(255) not null,
    fingerprint varchar(255) not null,
    answer longblob,
    received_at datetime(6) not null default (utc_timestamp(6)),
    primary key (tenant_id, command_key),
    key `{table}_commands_received` (received_at),
    check (char_length(tenant_id) between 1 and 64 and tenant_id regexp '^[A-Za-z0-9]'
           and tenant_id not regexp '[^A-Za-z0-9._-]'),
    check (char_length(command_key) between 1 and 255 and command_key not regexp '^ | $'),
    check (char_length(fingerprint) between 1 and 255 and fingerprint not regexp '^ | $')
) engine = InnoDB row_format = dynamic default character set utf8mb4 collate utf8mb4_bin;
