package extractions

// setup makes the tables of version 2: version 1 knew no batches. check_single_source proves what the aggregate enforces.
//
// feature_folds belongs to the features projection; until that is there, an empty view stands in for it.
const setup = `
create table extraction_jobs (
    id                   text             not null primary key,
    training_id          text,
    external_sae_id      text,
    source_key           text             not null,
    sae_path             text,             -- for a training: the SAE's folder in the checkpoint
    model_id             text             not null,
    dataset_id           text             not null,
    hook                 text             not null,
    layer_index          integer          not null,
    latents              integer          not null,
    mask                 json             not null, -- what the SAE's own config leaves out
    status               text             not null check (status in ('queued', 'extracting', 'completed', 'failed', 'cancelled', 'deleted')),
    config               json             not null,
    evaluation_samples   integer          not null, -- as extended
    needs_plan           boolean          not null,
    self_test            json,
    self_test_forced     boolean          not null default false,
    corpus_id            text,
    batch_size           integer,
    compute_profile      json,
    plan                 json             not null default '[]', -- the parts
    segments_planned     integer          not null default 0,
    sequences_planned    integer          not null default 0,
    tokens_planned       bigint           not null default 0,
    segments_recorded    integer          not null default 0,
    sequences_recorded   integer          not null default 0,
    tokens               bigint           not null default 0,
    postings             bigint           not null default 0,
    artifact_bytes       bigint           not null default 0,
    compute_seconds      double precision not null default 0,
    mismatches           integer          not null default 0,
    error_code           text,
    error_message        text,
    error_segment        integer,
    error_resumable      boolean,
    cancel_reason        text,
    batch_id             text,             -- of extractions that were asked for together
    batch_position       integer,
    batch_total          integer,
    terminal_version     bigint,           -- stream version of the event that ended it; null while it runs
    stream_version       bigint           not null,
    created_at           timestamptz      not null,
    updated_at           timestamptz      not null,
    started_at           timestamptz,      -- of the first plan
    completed_at         timestamptz,      -- of the event that ended it
    deleted_at           timestamptz,
    constraint check_single_source check (
        (training_id is not null and external_sae_id is null) or
        (training_id is null and external_sae_id is not null))
) with (fillfactor = 70);
create index extraction_jobs_created on extraction_jobs (created_at desc, id desc);
create index extraction_jobs_source on extraction_jobs (source_key, created_at desc);

create table extraction_segments (
    extraction_id  text             not null,
    index          integer          not null,
    first_sequence integer          not null,
    sequences      integer          not null,
    tokens         bigint           not null,
    content_sha256 text             not null,
    file_sha256    text             not null,
    bytes          bigint           not null,
    postings       bigint           not null,
    seconds        double precision not null,
    device         text             not null,
    worker         text             not null,
    attempt        integer          not null,
    recorded_at    timestamptz      not null,
    primary key (extraction_id, index)
);

-- Two computations of one segment inside one compute profile that differ. The first result stands.
create table extraction_alarms (
    extraction_id           text        not null,
    stream_version          bigint      not null,
    index                   integer     not null,
    recorded_content_sha256 text        not null,
    offered_content_sha256  text        not null,
    worker                  text        not null,
    raised_at               timestamptz not null,
    primary key (extraction_id, stream_version)
);

do $$
begin
    if to_regclass('public.feature_folds') is null then
        create view public.feature_folds as
        select null::text as extraction_id, null::bigint as folded_version, null::bigint as generation, null::bigint as features,
               null::text as fold_error, null::json as statistics, null::timestamptz as folded_at
        where false;
    end if;
end
$$;
`

var views = []string{"extraction_jobs", "extraction_segments", "extraction_alarms"}
