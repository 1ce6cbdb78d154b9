-- What each consumer has received: written by its own transaction, so that a message is received
-- only together with its effects. Two names are one only if they are so byte for byte.
create table "{table}_inbox" (
    consumer text not null check (length(consumer) between 1 and 128 and instr(consumer, char(0)) = 0),
    tenant_id text not null default 'default'
        check (length(tenant_id) between 1 and 64 and tenant_id glob '[A-Za-z0-9]*'
               and tenant_id not glob '*[^A-Za-z0-9._-]*' and instr(tenant_id, char(0)) = 0),
    message_id text not null check (length(message_id) between 1 and 255 and instr(message_id, char(0)) = 0),
    received_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    primary key (consumer, tenant_id, message_id)
) strict, without rowid;
create index "{table}_inbox_received" on "{table}_inbox" (received_at);

-- What each command was first asked for and answered, in the same way. A row that is committed has
-- its answer.
create table "{table}_commands" (
    tenant_id text not null default 'default'
        check (length(tenant_id) between 1 and 64 and tenant_id glob '[A-Za-z0-9]*'
               and tenant_id not glob '*[^A-Za-z0-9._-]*' and instr(tenant_id, char(0)) = 0),
    command_key text not null check (length(command_key) between 1 and 255 and instr(command_key, char(0)) = 0),
    fingerprint text not null check (length(fingerprint) between 1 and 255 and instr(fingerprint, char(0)) = 0),
    answer blob,
    received_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    primary key (tenant_id, command_key)
) strict;
create index "{table}_commands_received" on "{table}_commands" (received_at);
