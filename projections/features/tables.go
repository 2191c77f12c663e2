package features

// setup makes the tables of version 2, which are a function of the log alone. What folds make is in the store of generations.
const setup = `
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
    running_since   timestamptz not null,
    wanted_version  bigint      not null default 0, -- of the stream: what is recorded through it can be folded
    terminal        boolean     not null default false, -- the run has ended: fold everything, with all examples
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

-- A fold that cannot be done as things stand: through that version of the extraction's stream.
create table fold_failures (
    extraction_id text   not null primary key,
    through       bigint not null,
    code          text   not null,
    detail        text   not null
);

create view feature_extractions as select * from extractions;
create view feature_corpora as select * from corpora;
create view feature_folds as
    select e.extraction_id, coalesce(c.folded_version, 0) as folded_version, c.generation, coalesce(c.features, 0) as features,
        f.detail as fold_error, c.statistics, c.folded_at
    from extractions e
    left join generations.current c on c.extraction_id = e.extraction_id
    left join fold_failures f on f.extraction_id = e.extraction_id and f.through >= e.wanted_version;
`
