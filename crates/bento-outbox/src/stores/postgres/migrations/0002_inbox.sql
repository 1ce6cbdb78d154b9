-- What each consumer has received: written by its own transaction, so that a message is received
-- only together with its effects. Two names are one only if they are so byte for byte.
create table "{schema}"."{table}_inbox" (
    consumer text collate "C" not null check (length(consumer) between 1 and 128),
    tenant_id text collate "C" not null default 'default' check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    message_id text collate "C" not null check (length(message_id) between 1 and 255),
    received_at timestamptz not null default now(),
    primary key (consumer, tenant_id, message_id)
);
create index "{table}_inbox_received" on "{schema}"."{table}_inbox" (received_at);

-- What each command was first asked for and answered, in the same way. A row that is committed has
-- its answer.
create table "{schema}"."{table}_commands" (
    tenant_id text collate "C" not null default 'default' check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    command_key text collate "C" not null check (length(command_key) between 1 and 255),
    fingerprint text collate "C" not null check (length(fingerprint) between 1 and 255),
    answer bytea,
    received_at timestamptz not null default now(),
    primary key (tenant_id, command_key)
);
create index "{table}_commands_received" on "{schema}"."{table}_commands" (received_at);
