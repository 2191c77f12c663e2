-- Work that no plan can give out twice, that says why it is still open, and whose workers are known by their sessions.

-- +goose Up

alter table work
    add column not_before timestamptz not null default '-infinity', -- it is not given out earlier
    add column attended   boolean     not null default false,       -- its owner has a session: when that ends, the lease is lost
    add column pauses     integer     not null default 0,           -- times that it was put off in a row: the pauses grow
    add column failures   integer     not null default 0,           -- of those, the ones that were nobody's outage
    add column causes     jsonb       not null default '[]';        -- what became of each attempt, the latest last

-- Whatever index the planner takes for a row's key, it leads to that row alone.
drop index work_subject;
create index work_subject on work (subject, kind, index);

-- The order of a claim, for every kind and requirement, and for a subject.
create index work_free on work (kind, requirement, opened) where owner is null;
create index work_free_of on work (subject, opened) where owner is null;
create index work_held on work (kind, subject, index) where owner is not null;
create index work_tried on work (opened) where owner is null and attempts > 0;
create index work_put_off on work (subject) where causes <> '[]';

-- add_cause keeps the last twenty.
-- +goose StatementBegin
create function add_cause(causes jsonb, who text, attempt integer, outcome text, detail text) returns jsonb language sql volatile as $$
    select case when jsonb_array_length(causes) >= 20 then causes - 0 else causes end
        || jsonb_build_object('at', clock_timestamp(), 'owner', who, 'attempt', attempt, 'outcome', outcome, 'detail', left(detail, 1000))
$$;
-- +goose StatementEnd

-- attends says whether a worker's session is there: it holds the lock of its name. Whoever looks holds it for a
-- moment, in a way that only the worker's own next session would notice.
-- +goose StatementBegin
create function attends(who text) returns boolean language sql volatile as $$
    select not pg_try_advisory_xact_lock_shared(hashtextextended(who, 8))
$$;
-- +goose StatementEnd

-- since_when a worker has its session; null = it has none.
-- +goose StatementBegin
create function since_when(who text) returns timestamptz language sql volatile as $$
    select max(a.backend_start) from pg_locks l join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted and l.mode = 'ExclusiveLock' and l.objsubid = 1
      and l.database = (select oid from pg_database where datname = current_database())
      and (l.classid::bigint << 32) | l.objid::bigint = hashtextextended(who, 8)
$$;
-- +goose StatementEnd

-- free_lost takes leases away and tells, in the row, what became of them:
--   gone: names of workers whose sessions have ended, and have not come back;
--   a lease that ran out. Of a worker that has just lost its session nobody knows yet: the row waits until it is back, or
--   gone. One that has just come back has a lease's life to renew it;
--   a lease whose batch counter stood still for stall seconds and for ten batches, although it is renewed: while the
--   database is away, or the machine sleeps, nobody can tell.
-- What is lost has used up an attempt, until its worker speaks again. Until the work is given out anew its worker can
-- take it back, but not where it got nowhere.
-- Each row is locked by its key before it is judged, so no plan takes more than was chosen.
-- +goose StatementBegin
create function free_lost(gone text[], stall double precision, lease_seconds double precision) returns bigint language plpgsql volatile
set enable_sort = off set enable_incremental_sort = off set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on as $$
declare
    c record;
    held work;
    ran_out boolean;
    stood double precision;
    stalled boolean;
    why text;
    freed bigint := 0;
begin
    for c in
        select w.kind, w.subject, w.index from work w
        where w.owner is not null and (w.expires_at < clock_timestamp() or w.attended and w.owner = any(gone)
            or stall > 0 and w.advanced_at < clock_timestamp() - greatest(stall, 10 * w.batch_seconds) * interval '1 second')
        order by w.kind, w.subject, w.index
    loop
        select * into held from work w where w.kind = c.kind and w.subject = c.subject and w.index = c.index for update skip locked;
        continue when not found or held.owner is null;
        ran_out := held.expires_at < clock_timestamp();
        stood := extract(epoch from clock_timestamp() - held.advanced_at);
        stalled := stall > 0 and not ran_out and stood > greatest(stall, 10 * held.batch_seconds);
        why := case
            when held.attended and held.owner = any(gone) then 'its process ended'
            when stalled then 'it got nowhere for ' || round(stood) || ' s'
            when ran_out and (not held.attended or since_when(held.owner) < clock_timestamp() - lease_seconds * interval '1 second')
                then 'its process gave no sign of life until its lease had run out'
        end;
        continue when why is null; -- it was renewed meanwhile, or nobody knows yet
        update work w set owner = null, expires_at = null, attended = false, causes = add_cause(w.causes, held.owner, held.attempts, 'lost', why),
            fence = case when stalled then nextval('work_fence') else w.fence end
        where w.kind = c.kind and w.subject = c.subject and w.index = c.index;
        freed := freed + 1;
    end loop;
    return freed;
end
$$;
-- +goose StatementEnd

-- lost_by are the attempts that were lost with a worker, as their causes tell; where it got nowhere it had them.
-- +goose StatementBegin
create function lost_by(who text, cause jsonb) returns boolean language sql immutable as $$
    select cause ->> 'owner' = who and cause ->> 'outcome' = 'lost' and cause ->> 'detail' not like 'it got nowhere%'
$$;
-- +goose StatementEnd

-- speaks is called while a worker is heard of, for leases that it has lost, whoever has had the work since: its process was
-- cut off, and did not end. So it has used up no attempt.
-- +goose StatementBegin
create function speaks(who text) returns void language sql volatile as $$
    update work w set
        attempts = greatest(w.attempts - (select count(*)::integer from jsonb_array_elements(w.causes) c where lost_by(who, c)), 0),
        causes = (select jsonb_agg(case when lost_by(who, c) then
                c || '{"outcome": "cut off", "detail": "its process was cut off from the database, and came back"}' else c end order by n)
            from jsonb_array_elements(w.causes) with ordinality x (c, n))
    where w.causes <> '[]' and exists (select from jsonb_array_elements(w.causes) c where lost_by(who, c))
$$;
-- +goose StatementEnd

-- take_work gives one row to a worker, if it is still free: locked by its primary key, looked at again, and updated by that key.
-- +goose StatementBegin
create function take_work(
    of_kind text, of_subject text, at_index integer, who text, here boolean, lease_seconds double precision, most_attempts integer
) returns setof work language plpgsql volatile as $$
declare
    free work;
    n bigint;
begin
    -- Only the key stands in the condition: with more, the planner might walk the index of free rows.
    select * into free from work w where w.kind = of_kind and w.subject = of_subject and w.index = at_index for update skip locked;
    if not found or free.owner is not null or free.not_before > clock_timestamp() or free.attempts >= most_attempts then
        return;
    end if;
    return query update work w
    set owner = who, attended = here, fence = nextval('work_fence'), attempts = w.attempts + 1,
        expires_at = clock_timestamp() + lease_seconds * interval '1 second',
        progress = null, batches = 0, batch_seconds = 0, advanced_at = clock_timestamp()
    where w.kind = of_kind and w.subject = of_subject and w.index = at_index
    returning w.*;
    get diagnostics n = row_count;
    if n <> 1 then
        raise exception 'a claim of % %/% would have taken % rows', of_kind, of_subject, at_index, n using errcode = 'FM005';
    end if;
end
$$;
-- +goose StatementEnd

-- claim_work gives out the first piece of work that fits: of the preferred subjects, then the oldest; kinds in
-- last_kinds after all others. Candidates are read without locks and in small numbers; then one after the other is
-- asked for by its key, so one call takes one row, whatever plan the statistics suggest. Where others were faster
-- with all of them, it looks again.
--
-- The settings make the planner walk the indexes that have the order, also where statistics say that the table is empty.
-- +goose StatementBegin
create function claim_work(
    who text, kinds text[], last_kinds text[], prefer text[], only_subjects text[], capabilities text[],
    lease_seconds double precision, most_attempts integer
) returns setof work language plpgsql volatile
set enable_sort = off set enable_incremental_sort = off set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on as $$
declare
    c record;
    tier_kinds text[];
    subjects text[];
    fits constant text[] := capabilities || '{""}'::text[];
    here constant boolean := attends(who);
    seen boolean;
begin
    perform free_lost('{}', 0, lease_seconds);
    for tier in 1 .. 4 loop
        tier_kinds := array(select k from unnest(kinds) k where (k = any(last_kinds)) = (tier > 2));
        subjects := only_subjects;
        if tier in (1, 3) then
            subjects := case when only_subjects is null then prefer else array(select s from unnest(prefer) s where s = any(only_subjects)) end;
        end if;
        continue when tier_kinds = '{}' or subjects = '{}';
        for round in 1 .. 8 loop
            seen := false;
            if subjects is null then
                for c in
                    select x.* from unnest(tier_kinds) k cross join unnest(fits) r cross join lateral (
                        select w.kind, w.subject, w.index, w.opened from work w
                        where w.kind = k and w.requirement = r and w.owner is null and w.not_before <= clock_timestamp() and w.attempts < most_attempts
                        order by w.opened limit 32
                    ) x order by x.opened
                loop
                    seen := true;
                    return query select * from take_work(c.kind, c.subject, c.index, who, here, lease_seconds, most_attempts);
                    if found then
                        return;
                    end if;
                end loop;
            else
                for c in
                    select x.* from unnest(subjects) s cross join lateral (
                        select w.kind, w.subject, w.index, w.opened from work w
                        where w.subject = s and w.kind = any(tier_kinds) and w.requirement = any(fits)
                          and w.owner is null and w.not_before <= clock_timestamp() and w.attempts < most_attempts
                        order by w.opened limit 32
                    ) x order by x.opened
                loop
                    seen := true;
                    return query select * from take_work(c.kind, c.subject, c.index, who, here, lease_seconds, most_attempts);
                    if found then
                        return;
                    end if;
                end loop;
            end if;
            exit when not seen;
        end loop;
    end loop;
end
$$;
-- +goose StatementEnd

-- As before, and: 'open' opens the rows from index to until - 1, and 'unheld' refuses unless the row was given up and is
-- nobody's, with this fence. A run of 65,536 segments is one effect.
-- +goose StatementBegin
create or replace function apply_effects(effects jsonb) returns void language plpgsql as $$
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
            as x (op text, key text, holder text, shared boolean, kind text, subject text, index integer, until integer, fence bigint, requirement text)
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
            insert into work (kind, subject, index, requirement)
            select e.kind, e.subject, i, coalesce(e.requirement, '') from generate_series(e.index, coalesce(e.until, e.index + 1) - 1) i
            on conflict (kind, subject, index) do nothing;
        when 'close' then
            delete from work w where w.kind = e.kind and w.subject = e.subject and w.index = e.index;
        when 'close_all' then
            delete from work w where w.subject = e.subject;
        when 'unheld' then
            perform from work w
            where w.kind = e.kind and w.subject = e.subject and w.index = e.index and w.owner is null and w.fence = e.fence for update;
            if not found then
                raise exception 'the work was given out again, or is done' using errcode = 'FM003';
            end if;
        end case;
    end loop;
end
$$;
-- +goose StatementEnd

-- What has ended has tables to be folded, and they are work from now on.
insert into work (kind, subject, index)
select distinct 'fold', substr(e.stream_id, length('extraction-') + 1), 0 from events e
where e.type in ('SegmentRecorded', 'ExtractionCompleted', 'ExtractionFailed', 'ExtractionCancelled') and e.stream_id like 'extraction-%'
  and not exists (select from events d where d.stream_id = e.stream_id and d.type = 'ExtractionDeleted')
on conflict do nothing;

-- +goose Down
delete from work where kind = 'fold';
drop function claim_work, take_work, free_lost, since_when, speaks, lost_by, attends, add_cause;
drop index work_free, work_free_of, work_held, work_tried, work_put_off, work_subject;
create index work_subject on work (subject);
alter table work drop column not_before, drop column attended, drop column pauses, drop column failures, drop column causes;

-- apply_effects changes reservations and work in the order of the list. Locks on keys are taken
-- first and in one order, so that two appends cannot wait for each other.
-- +goose StatementBegin
create or replace function apply_effects(effects jsonb) returns void language plpgsql as $$
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
