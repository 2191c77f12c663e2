-- The store of folds: tables that are made from artifacts, and outlive every version of a read model.

-- +goose Up
create schema generations;
create sequence generations.number;

-- What one fold made. Its tables are partitions with its number in their names; until it is ready they stand alone.
create table generations.generations (
    generation    bigint      not null primary key,
    extraction_id text        not null,
    key           text        not null, -- what it is made of: a digest of artifacts, options and the fold's version
    state         text        not null check (state in ('loading', 'ready', 'old')), -- old: its tables are being dropped
    made_at       timestamptz not null default now(),
    retired_at    timestamptz -- since when no extraction shows it
);
create index generations_of on generations.generations (extraction_id, key);

-- What an extraction shows.
create table generations.current (
    extraction_id  text             not null primary key,
    folded_version bigint           not null, -- of the extraction's stream
    terminal       boolean          not null, -- it was folded as the run had ended, with all examples
    fold_version   integer          not null,
    generation     bigint,                    -- null: nothing was recorded
    features       integer          not null, -- latents with a firing
    statistics     json,
    folded_at      timestamptz      not null,
    since          timestamptz      not null, -- when the run began or went on
    fold_seconds   double precision not null  -- spent since then
);
create index current_generation on generations.current (generation);

create table generations.features (
    generation            bigint           not null,
    latent                integer          not null,
    training_id           text,
    external_sae_id       text,
    firings               bigint           not null,
    density               double precision not null,
    density_low           double precision,
    density_high          double precision,
    activation_frequency  double precision not null,
    firing_documents      bigint           not null,
    max_activation        real             not null,
    mean_activation       double precision not null,
    std_activation        double precision not null,
    sink_share            double precision not null,
    interpretability_score double precision not null,
    top_token             integer,
    top_token_share       double precision not null,
    distinct_tokens       integer          not null,
    constraint check_single_source check ((training_id is null) <> (external_sae_id is null))
) partition by list (generation);

create table generations.feature_distributions (
    generation       bigint    not null,
    latent           integer   not null,
    quantiles        real[]    not null, -- at 1 5 10 25 50 75 90 95 99 %
    log_bins         integer[] not null, -- float32 bits >> 21
    log_counts       bigint[]  not null,
    linear_counts    bigint[]  not null, -- 50 bins on (0, max]
    interval_shares  double precision[] not null
) partition by list (generation);

create table generations.feature_tokens (
    generation bigint           not null,
    latent     integer          not null,
    rank       integer          not null,
    token      integer          not null,
    count      bigint           not null,
    share      double precision not null,
    rate       double precision not null,
    mean       double precision not null
) partition by list (generation);

-- What a search by text reads: the latents that have a token among the ten that they fire on most.
create table generations.token_features (
    generation bigint    not null,
    token      integer   not null,
    latents    integer[] not null
) partition by list (generation);

create table generations.feature_activations (
    generation      bigint   not null,
    latent          integer  not null,
    kind            smallint not null, -- 0 top, 1 interval, 2 non-firing
    rank            smallint not null,
    interval_index  smallint not null, -- 0 … 4, or -1
    max_activation  real     not null, -- of the prime token
    sample_index    bigint   not null, -- row of the dataset
    sequence        integer  not null,
    prime_offset    integer  not null,
    window_start    integer  not null,
    window_end      integer  not null,
    collapsed       integer  not null,
    activations     real[]   not null  -- of the window's tokens; null = silent
) partition by list (generation);

-- The sequences that kept examples point to: no token is stored a hundred times.
create table generations.corpus_sequences (
    corpus_id text      not null,
    sequence  integer   not null,
    token_ids integer[] not null,
    primary key (corpus_id, sequence)
);

create table generations.vocabulary (
    vocabulary_sha256 text    not null,
    id                integer not null,
    piece             text    not null,
    special           boolean not null,
    primary key (vocabulary_sha256, id)
);

-- An installation of the time when a projection held the tables has them moved by the next migration.
-- +goose StatementBegin
do $$
begin
    if to_regclass('features_v1.folds') is null then
        return;
    end if;
    perform setval('generations.number', greatest((select max(generation) from features_v1.generations), 1));
    insert into generations.vocabulary select * from features_v1.vocabulary;
    insert into generations.corpus_sequences select * from features_v1.corpus_sequences;
    truncate features_v1.vocabulary, features_v1.corpus_sequences;
end
$$;
-- +goose StatementEnd

-- What SQL users see: of each extraction what it shows.
create or replace view public.features as
    select f.* from generations.features f where exists (select from generations.current c where c.generation = f.generation);
create or replace view public.feature_distributions as
    select f.* from generations.feature_distributions f where exists (select from generations.current c where c.generation = f.generation);
create or replace view public.feature_tokens as
    select f.* from generations.feature_tokens f where exists (select from generations.current c where c.generation = f.generation);
create or replace view public.token_features as
    select f.* from generations.token_features f where exists (select from generations.current c where c.generation = f.generation);
create or replace view public.feature_activations as
    select f.* from generations.feature_activations f where exists (select from generations.current c where c.generation = f.generation);
create or replace view public.corpus_sequences as select * from generations.corpus_sequences;
create or replace view public.vocabulary as select * from generations.vocabulary;

-- +goose Down
drop view public.features, public.feature_distributions, public.feature_tokens, public.token_features, public.feature_activations, public.corpus_sequences, public.vocabulary;
drop schema generations cascade;
