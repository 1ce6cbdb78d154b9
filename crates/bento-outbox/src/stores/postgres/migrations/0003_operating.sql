-- What operators keep back. Relays read it with every claim, and writers with every insert that may
-- be leased at birth, so it stays small.
create table "{schema}"."{table}_pauses" (
    kind text not null check (kind in ('tenant', 'destination')),
    name text not null check (length(name) between 1 and 512),
    since timestamptz not null default clock_timestamp(),
    paused_by text not null check (length(paused_by) <= 255),
    reason text check (length(reason) <= 2000),
    primary key (kind, name)
);

-- What operators did. Rows are only added, and kept for ever.
create table "{schema}"."{table}_audit" (
    number bigint generated always as identity primary key,
    done_at timestamptz not null default clock_timestamp(),
    done_by text not null check (length(done_by) <= 255),
    verb text not null check (length(verb) <= 32),
    what json not null,
    changed bigint not null check (changed >= 0),
    note text check (length(note) <= 2000)
);
