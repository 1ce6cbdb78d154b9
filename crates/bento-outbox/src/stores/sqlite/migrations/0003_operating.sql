-- What operators keep back. Relays read it with every claim, and writers with every insert that may
-- be leased at birth, so it stays small.
create table "{table}_pauses" (
    kind text not null check (kind in ('tenant', 'destination')),
    name text not null check (length(name) between 1 and 512),
    since text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    paused_by text not null check (length(paused_by) <= 255),
    reason text check (length(reason) <= 2000),
    primary key (kind, name)
) strict, without rowid;

-- What operators did. Rows are only added, and kept for ever.
create table "{table}_audit" (
    number integer primary key autoincrement,
    done_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    done_by text not null check (length(done_by) <= 255),
    verb text not null check (length(verb) <= 32),
    what text not null check (json_valid(what)),
    changed integer not null check (changed >= 0),
    note text check (length(note) <= 2000)
) strict;
