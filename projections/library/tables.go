package library

// setup makes the tables of version 2. Unknown values are null. json columns hold facts as the
// events have them; what is searched, sorted or joined has a column.
const setup = `
create table models (
    id               text        not null primary key,
    name             text        not null,
    status           text        not null check (status in ('pending', 'ready', 'failed', 'deleted')),
    source           text        not null, -- local | huggingface
    hf_repo_id       text,
    hf_revision      text,
    local_path       text,                 -- where it was imported from
    family           text,
    format           text,
    dtype            text,
    layers           integer,
    d_model          integer,
    vocab            integer,
    context_length   integer,
    params_count     bigint,
    file_size_bytes  bigint,
    files_sha256     text,                 -- digest of the set of files
    tokenizer_sha256 text,
    facts            json,
    error_code       text,
    error_message    text,
    stream_version   bigint      not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    ready_at         timestamptz,
    deleted_at       timestamptz
);
create index models_created on models (created_at, id);
create index models_name on models (lower(name));

create table external_saes (
    id               text        not null primary key,
    name             text        not null,
    description      text,
    source           text        not null, -- huggingface | local | trained
    status           text        not null check (status in ('pending', 'ready', 'failed', 'deleted')),
    hf_repo_id       text,
    hf_filepath      text,
    hf_revision      text,
    training_id      text,                 -- of the training it was imported from
    training_path    text,                 -- its folder in that training's checkpoint
    model_name       text,                 -- as its own config says
    model_id         text,                 -- the model of ours that it is linked to
    layer            integer,
    hook             text,
    hook_out         text,
    hook_type        text,                 -- residual | mlp | attention, or the hook's own last part
    n_features       integer,
    d_model          integer,
    d_out            integer,
    k                integer,
    architecture     text,
    format           text,
    format_version   text,
    normalization    text,
    dtype            text,
    context_length   integer,
    prepend_bos      boolean,
    signed           boolean,
    published_l0     double precision,
    local_path       text,                 -- where it was imported from
    file_size_bytes  bigint,
    files_sha256     text,
    sae_metadata     json,                 -- every fact of its files
    self_test        json,                 -- the last one at its model, as its event has it
    self_test_status text check (self_test_status in ('pending', 'done', 'failed')), -- null: none was asked for
    error_code       text,
    error_message    text,
    stream_version   bigint      not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    downloaded_at    timestamptz,          -- when its files were there and checked
    deleted_at       timestamptz
);
create index external_saes_created on external_saes (created_at, id);
create index external_saes_training on external_saes (training_id, training_path) where training_id is not null;

create table datasets (
    id               text        not null primary key,
    name             text        not null,
    status           text        not null check (status in ('pending', 'ready', 'failed', 'deleted')),
    source           text        not null,
    hf_repo_id       text,
    hf_revision      text,
    local_path       text,
    format           text,
    text_column      text,                 -- null where rows are token ids
    tokenised        boolean,
    columns          text[],
    num_rows         bigint,
    file_size_bytes  bigint,
    files_sha256     text,
    facts            json,
    error_code       text,
    error_message    text,
    stream_version   bigint      not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    ready_at         timestamptz,
    deleted_at       timestamptz
);
create index datasets_created on datasets (created_at, id);

create table corpora (
    id                text        not null primary key,
    dataset_id        text        not null,
    dataset_sha256    text        not null,
    tokenizer_sha256  text        not null,
    model_id          text        not null, -- whose files held the tokenizer
    options           json        not null,
    status            text        not null check (status in ('building', 'ready', 'failed')),
    wanted            integer     not null, -- sequences
    sequences         integer     not null default 0,
    tokens            bigint      not null default 0,
    num_rows          bigint      not null default 0,
    chunks            integer     not null default 0,
    bytes             bigint      not null default 0,
    exhausted         boolean     not null default false, -- the dataset has no more rows
    vocabulary_sha256 text,
    error_code        text,
    error_message     text,
    stream_version    bigint      not null,
    created_at        timestamptz not null,
    updated_at        timestamptz not null
);
create index corpora_dataset on corpora (dataset_id);

create table corpus_chunks (
    corpus_id      text    not null,
    chunk          integer not null,
    first_sequence integer not null,
    sequences      integer not null,
    tokens         bigint  not null,
    num_rows       bigint  not null,
    sha256         text    not null,
    bytes          bigint  not null,
    primary key (corpus_id, chunk)
);

create table trainings (
    id              text        not null primary key,
    name            text        not null,
    status          text        not null check (status in ('completed', 'deleted')),
    model_id        text        not null,
    source          text        not null,
    checkpoint_dir  text,
    hf_repo_id      text,
    saes            integer     not null, -- how many its checkpoint holds
    file_size_bytes bigint      not null,
    stream_version  bigint      not null,
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    completed_at    timestamptz not null,
    deleted_at      timestamptz
);
create index trainings_created on trainings (created_at, id);

create table training_saes (
    training_id     text    not null,
    path            text    not null, -- its folder in the checkpoint
    layer           integer not null,
    hook            text    not null,
    hook_type       text    not null,
    n_features      integer not null,
    d_model         integer not null,
    architecture    text    not null,
    file_size_bytes bigint  not null,
    files_sha256    text    not null,
    facts           json    not null,
    primary key (training_id, path)
);
`

var views = []string{"models", "external_saes", "datasets", "corpora", "corpus_chunks", "trainings", "training_saes"}
