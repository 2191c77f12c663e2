-- The tables of version 1 of the features projection, as installations have them.
create table extractions (
    extraction_id   text        not null primary key,
    source_key      text        not null,
    training_id     text,
    external_sae_id text,
    model_id        text        not null,
    dataset_id      text        not null,
    latents         integer     not null,
    mask            json        not null,
    config          json        not null,
    corpus_id       text,
    requested       bigint      not null, -- position: the newest extraction of a source is the one with the largest
    deleted         boolean     not null default false,
    constraint check_single_source check ((training_id is null) <> (external_sae_id is null))
);
create index extractions_by_source on extractions (source_key, requested desc);

create table segments (
    extraction_id  text    not null,
    index          integer not null,
    first_sequence integer not null,
    sequences      integer not null,
    file_sha256    text    not null,
    version        bigint  not null, -- of the stream
    primary key (extraction_id, index)
);

create table corpora (
    corpus_id         text not null primary key,
    vocabulary_sha256 text
);

create table corpus_chunks (
    corpus_id text    not null,
    chunk     integer not null,
    sha256    text    not null,
    sequences integer not null,
    primary key (corpus_id, chunk)
);

create table feature_labels (
    source_key         text        not null,
    latent             integer     not null,
    name               text        not null default '',
    category           text        not null default '',
    description        text        not null default '',
    notes              text        not null default '',
    starred            boolean     not null default false,
    name_source        text        not null default '',
    description_source text        not null default '',
    updated_at         timestamptz not null,
    primary key (source_key, latent)
);

-- What is to be folded, who folds it, and what is current.
create table folds (
    extraction_id  text        not null primary key,
    wanted_version bigint      not null,
    terminal       boolean     not null, -- the run has ended: fold everything, with all examples
    running_since  timestamptz not null,
    folded_version bigint      not null default 0,
    generation     bigint,
    fold_seconds   double precision not null default 0, -- spent since running_since
    folded_at      timestamptz,
    statistics     json,
    features       integer     not null default 0,
    fold_error     text,
    attempts       integer     not null default 0,
    retry_at       timestamptz,
    owner          text,
    fence          bigint      not null default 0,
    expires_at     timestamptz
);
create sequence fold_fence;
create sequence generation;

create table generations (
    generation    bigint  not null primary key,
    extraction_id text    not null,
    state         text    not null -- loading, current, old
);

create table features (
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

create table feature_distributions (
    generation       bigint    not null,
    latent           integer   not null,
    quantiles        real[]    not null, -- at 1 5 10 25 50 75 90 95 99 %
    log_bins         integer[] not null, -- float32 bits >> 21
    log_counts       bigint[]  not null,
    linear_counts    bigint[]  not null, -- 50 bins on (0, max]
    interval_shares  double precision[] not null
) partition by list (generation);

create table feature_tokens (
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
create table token_features (
    generation bigint    not null,
    token      integer   not null,
    latents    integer[] not null
) partition by list (generation);

create table feature_activations (
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
create table corpus_sequences (
    corpus_id text      not null,
    sequence  integer   not null,
    token_ids integer[] not null,
    primary key (corpus_id, sequence)
);

create table vocabulary (
    vocabulary_sha256 text    not null,
    id                integer not null,
    piece             text    not null,
    special           boolean not null,
    primary key (vocabulary_sha256, id)
);

create view feature_extractions as select * from extractions;
create view feature_corpora as select * from corpora;
create view feature_folds as
    select f.extraction_id, f.folded_version, f.generation, f.features, f.fold_error, f.statistics, f.folded_at
    from folds f;
