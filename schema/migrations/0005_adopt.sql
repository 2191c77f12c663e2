-- What extractions show in an installation of the time when a projection held the tables moves to the store of folds, and
-- goes on being shown until it is folded again. Each generation is a transaction: one could not lock them all. Whatever
-- ends this in between, the next start goes on.

-- +goose NO TRANSACTION
-- +goose Up
-- +goose StatementBegin
create or replace procedure generations.adopt() language plpgsql as $$
declare
    f record;
    t text;
begin
    if to_regclass('features_v1.folds') is null then
        return;
    end if;
    for f in
        select d.extraction_id, d.folded_version, d.terminal, d.generation, d.features, d.statistics, d.folded_at, d.running_since, d.fold_seconds
        from features_v1.folds d join features_v1.extractions e using (extraction_id)
        where d.generation is not null and not e.deleted order by e.requested desc
    loop
        continue when to_regclass(format('features_v1.features_g%s', f.generation)) is null; -- it has moved
        foreach t in array array['features', 'feature_distributions', 'feature_tokens', 'feature_activations', 'token_features'] loop
            execute format('alter table features_v1.%s detach partition features_v1.%s_g%s', t, t, f.generation);
            execute format('alter table features_v1.%s_g%s set schema generations', t, f.generation);
            execute format('alter table generations.%s attach partition generations.%s_g%s for values in (%s)', t, t, f.generation, f.generation);
        end loop;
        insert into generations.generations (generation, extraction_id, key, state) values (f.generation, f.extraction_id, 'of an older version', 'ready');
        insert into generations.current values (f.extraction_id, f.folded_version, f.terminal, 0, f.generation, f.features, f.statistics, coalesce(f.folded_at, now()), f.running_since, f.fold_seconds);
        commit;
    end loop;
    -- What nobody shows.
    for f in
        select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'features_v1' and c.relkind = 'r' and c.relname ~ '_g[0-9]+$'
    loop
        execute 'drop table ' || f.name;
        commit;
    end loop;
end
$$;
-- +goose StatementEnd
call generations.adopt();
drop procedure generations.adopt();

-- +goose Down
-- What has moved stays where 0004 takes it down.
