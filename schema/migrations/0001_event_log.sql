-- The event log and what is changed together with it. adapters/postgres is the only writer.

-- +goose Up

-- One row is one fact. data and metadata are json, not jsonb: the bytes are kept as they came,
-- because they are hashed and the same bytes go to Kafka. There is no table of streams and no row
-- for the head: the two unique indexes answer both from their last entry, and an append leaves no
-- dead row behind that somebody's old snapshot could keep alive.
create table events (
    position       bigint      not null primary key check (position > 0),
    event_id       uuid        not null unique,
    stream_id      text        not null,
    stream_version bigint      not null check (stream_version > 0),
    type           text        not null,
    schema_version integer     not null check (schema_version > 0),
    data           json, -- null once archived; data_sha256 stays
    metadata       json        not null,
    recorded_at    timestamptz not null,
    data_sha256    bytea       not null,
    prev_hash      bytea       not null,
    hash           bytea       not null,
    unique (stream_id, stream_version)
);

-- +goose StatementBegin
create function refuse_event_change() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        -- The one permitted change: archive_event() forgets the data and touches nothing else.
        if current_setting('featuremill.archiving', true) = old.event_id::text and new.data is null
            and row (new.position, new.event_id, new.stream_id, new.stream_version, new.type, new.schema_version,
                     new.metadata::text, new.recorded_at, new.data_sha256, new.prev_hash, new.hash)
              = row (old.position, old.event_id, old.stream_id, old.stream_version, old.type, old.schema_version,
                     old.metadata::text, old.recorded_at, old.data_sha256, old.prev_hash, old.hash)
        then
            return new;
        end if;
    end if;
    raise exception '% on events is refused: a recorded fact is never changed', tg_op using errcode = 'FM000';
end
$$;
-- +goose StatementEnd

create trigger events_are_facts before update or delete on events for each row execute function refuse_event_change();
create trigger events_are_kept before truncate on events for each statement execute function refuse_event_change();

-- archive_event forgets the data of one event; false if it is unknown or archived already. It is
-- called by append_events, together with the fact that says so.
-- +goose StatementBegin
create function archive_event(id uuid) returns boolean language plpgsql as $$
declare
    changed boolean;
begin
    perform set_config('featuremill.archiving', id::text, true);
    update events set data = null where event_id = id and data is not null;
    changed := found;
    perform set_config('featuremill.archiving', '', true);
    return changed;
end
$$;
-- +goose StatementEnd

-- Who uses what. An exclusive key has one holder; a shared one any number.
create table reservations (
    key    text    not null,
    holder text    not null,
    shared boolean not null,
    primary key (key, holder)
);
create unique index reservations_exclusive on reservations (key) where not shared;
create index reservations_holder on reservations (holder);

-- What is to be done, and who does it. A row is there while the work is wanted. Fences come from a
-- sequence, so a fence of an earlier life of the same row never fits again.
create sequence work_fence;
create table work (
    kind          text             not null,
    subject       text             not null,
    index         integer          not null,
    requirement   text             not null default '', -- the compute profile that a worker must have; '' = any
    opened        bigint           generated always as identity, -- the order in which work came
    owner         text,
    fence         bigint           not null default 0,
    attempts      integer          not null default 0,
    expires_at    timestamptz,
    progress      json,
    batches       bigint           not null default 0, -- the counter that must not stand still
    batch_seconds double precision not null default 0,
    advanced_at   timestamptz,                         -- when the counter last moved
    primary key (kind, subject, index)
) with (fillfactor = 50);
create index work_subject on work (subject);

create table idempotency_keys (
    key            text        not null primary key,
    fingerprint    bytea       not null,
    status         integer     not null,
    resource       text        not null,
    first_position bigint      not null,
    position       bigint      not null,
    recorded_at    timestamptz not null
);

create table relay_checkpoint (
    name     text   primary key,
    position bigint not null
);

-- frame writes a value with its length before it, so that no two lists of values read alike.
-- +goose StatementBegin
create function frame(value bytea) returns bytea language sql immutable strict parallel safe as $$
    select int4send(octet_length(value)) || value
$$;
-- +goose StatementEnd

-- apply_effects changes reservations and work in the order of the list. Locks on keys are taken
-- first and in one order, so that two appends cannot wait for each other.
-- +goose StatementBegin
create function apply_effects(effects jsonb) returns void language plpgsql as $$
declare
    e record;
    taken_by text;
begin
    for e in
        select x.key as key, bool_or(x.op = 'refuse' or not coalesce(x.shared, false)) as alone
        from jsonb_to_recordset(effects) as x (op text, key text, shared boolean)
        where x.op in ('reserve', 'refuse')
        group by x.key order by x.key
    loop
        if e.alone then
            perform pg_advisory_xact_lock(hashtextextended(e.key, 2));
        else
            perform pg_advisory_xact_lock_shared(hashtextextended(e.key, 2));
        end if;
    end loop;

    for e in
        select * from jsonb_to_recordset(effects)
            as x (op text, key text, holder text, shared boolean, kind text, subject text, index integer, requirement text)
    loop
        case e.op
        when 'reserve' then
            select r.holder into taken_by from reservations r
            where r.key = e.key and r.holder <> e.holder and not (e.shared and r.shared)
            order by r.shared, r.holder limit 1;
            if found then
                raise exception '% is in use by %', e.key, taken_by
                    using errcode = 'FM002', detail = json_build_object('key', e.key, 'holder', taken_by)::text;
            end if;
            insert into reservations as r (key, holder, shared) values (e.key, e.holder, e.shared)
            on conflict (key, holder) do update set shared = excluded.shared where r.shared is distinct from excluded.shared;
        when 'refuse' then
            select r.holder into taken_by from reservations r where r.key = e.key order by r.shared, r.holder limit 1;
            if found then
                raise exception '% is in use by %', e.key, taken_by
                    using errcode = 'FM002', detail = json_build_object('key', e.key, 'holder', taken_by)::text;
            end if;
        when 'release' then
            delete from reservations r where r.holder = e.holder;
        when 'open' then
            insert into work (kind, subject, index, requirement) values (e.kind, e.subject, e.index, coalesce(e.requirement, ''))
            on conflict (kind, subject, index) do nothing;
        when 'close' then
            delete from work w where w.kind = e.kind and w.subject = e.subject and w.index = e.index;
        when 'close_all' then
            delete from work w where w.subject = e.subject;
        end case;
    end loop;
end
$$;
-- +goose StatementEnd

-- append_events is the only writer of events. One call is one transaction, so nothing is awaited
-- from a client while a lock is held. Its order is fixed: idempotency key, streams, side tables, and
-- last the lock on the tail, which is held until the commit and makes positions gapless.
--
-- VOLATILE matters: each statement gets a snapshot of its own, so what is read after a lock was
-- granted includes what the lock's last owner committed.
--
-- streams, expected, written: one entry a stream, sorted by id; not written = must only be unchanged.
-- The event arrays have one entry an event. side: {"idempotency", "fence", "effects", "archive"}, or null.
-- Errors: FM001 conflict, FM002 reserved, FM003 fenced, FM004 idempotency key, each with its facts as JSON in DETAIL.
-- +goose StatementBegin
create function append_events(
    streams text[], expected bigint[], written boolean[],
    ids uuid[], event_streams text[], versions bigint[], types text[], schemas integer[], datas text[], metadatas text[],
    side jsonb,
    out first_position bigint, out recorded timestamptz, out previous bytea, out last_hash bytea, out replayed boolean
) language plpgsql volatile as $$
declare
    n constant integer := cardinality(ids);
    actual bigint;
    tail record;
    key_row record;
    chain bytea;
    hashes bytea[] := '{}';
    prevs bytea[] := '{}';
    digests bytea[] := '{}';
    identity bytea[] := '{}';
    content bytea[] := '{}';
    digest bytea;
    recorded_frame bytea;
begin
    replayed := false;

    if side ? 'idempotency' then
        if not pg_try_advisory_xact_lock(hashtextextended(side #>> '{idempotency,key}', 3)) then
            raise exception 'the request with this idempotency key is still running'
                using errcode = 'FM004', detail = '{"running": true}';
        end if;
        select * into key_row from idempotency_keys k where k.key = side #>> '{idempotency,key}';
        if found then
            if encode(key_row.fingerprint, 'hex') <> side #>> '{idempotency,fingerprint}' then
                raise exception 'the idempotency key was used for another request'
                    using errcode = 'FM004', detail = '{"running": false}';
            end if;
            first_position := key_row.first_position;
            replayed := true;
            return;
        end if;
    end if;

    for i in 1 .. cardinality(streams) loop
        if written[i] then
            perform pg_advisory_xact_lock(hashtextextended(streams[i], 1));
        else
            perform pg_advisory_xact_lock_shared(hashtextextended(streams[i], 1));
        end if;
        select e.stream_version into actual from events e where e.stream_id = streams[i] order by e.stream_version desc limit 1;
        if coalesce(actual, 0) <> expected[i] then
            -- An earlier attempt of this very append may have been committed while its answer was lost.
            select e.position into first_position from events e where e.event_id = ids[1];
            if found then
                replayed := true;
                return;
            end if;
            raise exception 'stream % is at version %, not %', streams[i], coalesce(actual, 0), expected[i]
                using errcode = 'FM001',
                      detail = json_build_object('stream', streams[i], 'expected', expected[i], 'actual', coalesce(actual, 0))::text;
        end if;
    end loop;

    if side ? 'fence' then
        perform from work w
        where w.kind = side #>> '{fence,kind}' and w.subject = side #>> '{fence,subject}' and w.index = (side #>> '{fence,index}')::integer
          and w.owner = side #>> '{fence,owner}' and w.fence = (side #>> '{fence,fence}')::bigint
        for update;
        if not found then
            raise exception 'the lease was lost' using errcode = 'FM003';
        end if;
    end if;
    if side ? 'effects' then
        perform apply_effects(side -> 'effects');
    end if;

    -- Everything about an event that does not depend on its position, before the lock.
    for i in 1 .. n loop
        digest := sha256(convert_to(datas[i], 'UTF8'));
        digests[i] := digest;
        identity[i] := '\x00000010'::bytea || uuid_send(ids[i]) || frame(convert_to(event_streams[i], 'UTF8'))
            || '\x00000008'::bytea || int8send(versions[i]) || frame(convert_to(types[i], 'UTF8'))
            || '\x00000008'::bytea || int8send(schemas[i]);
        content[i] := '\x00000020'::bytea || digest || '\x00000020'::bytea || sha256(convert_to(metadatas[i], 'UTF8'));
    end loop;

    perform pg_notify('featuremill_events', ''); -- sent by the commit
    perform pg_advisory_xact_lock(1179471180, 1); -- released by the commit
    select e.position, e.hash, e.recorded_at into tail from events e order by e.position desc limit 1;
    first_position := coalesce(tail.position, 0) + 1;
    previous := coalesce(tail.hash, '\x0000000000000000000000000000000000000000000000000000000000000000'::bytea);
    recorded := greatest(clock_timestamp(), tail.recorded_at);
    recorded_frame := '\x00000008'::bytea || int8send((extract(epoch from recorded) * 1000000)::bigint);

    chain := previous;
    for i in 1 .. n loop
        prevs[i] := chain;
        chain := sha256(chain || '\x00000008'::bytea || int8send(first_position + i - 1) || identity[i] || recorded_frame || content[i]);
        hashes[i] := chain;
    end loop;
    last_hash := chain;

    insert into events (position, event_id, stream_id, stream_version, type, schema_version, data, metadata, recorded_at, data_sha256, prev_hash, hash)
    select first_position + x.i - 1, x.id, x.stream, x.version, x.type, x.schema, x.data::json, x.metadata::json, recorded, x.digest, x.prev, x.hash
    from unnest(ids, event_streams, versions, types, schemas, datas, metadatas, digests, prevs, hashes)
        with ordinality as x (id, stream, version, type, schema, data, metadata, digest, prev, hash, i);

    if side ? 'archive' then
        perform archive_event(id::uuid) from jsonb_array_elements_text(side -> 'archive') as id;
    end if;
    if side ? 'idempotency' then
        insert into idempotency_keys (key, fingerprint, status, resource, first_position, position, recorded_at)
        values (side #>> '{idempotency,key}', decode(side #>> '{idempotency,fingerprint}', 'hex'), (side #>> '{idempotency,status}')::integer,
                side #>> '{idempotency,resource}', first_position, first_position + n - 1, recorded);
    end if;
end
$$;
-- +goose StatementEnd

-- +goose Down
drop function append_events;
drop function apply_effects;
drop function frame;
drop table relay_checkpoint, idempotency_keys, work, reservations;
drop sequence work_fence;
drop table events;
drop function archive_event;
drop function refuse_event_change;
