-- What handlers report of their jobs while they run: how far they are, and the
-- checkpoint from which the next attempt goes on.

-- A table of its own, so that jobs without progress pay nothing. There is no
-- foreign key, which would cost each deletion of a job a look in here, and each
-- report a lock on the job: delete_job and clean_up_progress delete what is left
-- over.
CREATE TABLE {{schema}}.job_progress (
    job_id      uuid        CONSTRAINT job_progress_pkey PRIMARY KEY,
    claims      integer     NOT NULL, -- the claim of the attempt that reported last: an older one changes nothing
    percent     smallint    CONSTRAINT job_progress_percent_in_range CHECK (percent BETWEEN 0 AND 100), -- NULL: never reported
    note        text,                 -- likewise
    checkpoint  jsonb,                -- NULL or JSON's null: none
    reported_at timestamptz NOT NULL
) WITH (
    fillfactor = 50, -- a report changes no column of the index
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000
);

-- Writes what attempts have reported, ages_us microseconds ago. NULL leaves what
-- was reported before, by whichever attempt. Returns the places of those that
-- changed nothing, because the job is not that attempt's any more.
--
-- The job's row is read and not locked: its handler's own transaction may hold
-- it (see complete), which is why an attempt that has succeeded by then counts
-- too. So the job may be rescued and claimed while this statement runs; what a
-- later claim has written is left alone, as seen by the lock of the row here.
-- The order of the ids keeps two such statements from waiting for each other.
CREATE FUNCTION {{schema}}.report_progress(
    ids uuid[], claims integer[], percents integer[], notes text[], checkpoints text[], ages_us bigint[]
) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '2s' SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
        WITH written AS (
            INSERT INTO {{schema}}.job_progress AS p (job_id, claims, percent, note, checkpoint, reported_at)
            SELECT j.id, j.claims, r.percent, r.note, r.checkpoint::jsonb, now() - r.age_us * interval '1 microsecond'
            FROM unnest(report_progress.ids, report_progress.claims, report_progress.percents, report_progress.notes,
                report_progress.checkpoints, report_progress.ages_us) AS r (id, claims, percent, note, checkpoint, age_us)
            JOIN {{schema}}.jobs j ON j.id = r.id AND j.claims = r.claims AND j.status IN ('running', 'succeeded')
            ORDER BY j.id
            ON CONFLICT ON CONSTRAINT job_progress_pkey DO UPDATE
            SET claims = excluded.claims, percent = coalesce(excluded.percent, p.percent), note = coalesce(excluded.note, p.note),
                checkpoint = coalesce(excluded.checkpoint, p.checkpoint), reported_at = excluded.reported_at
            WHERE p.claims <= excluded.claims
            RETURNING p.job_id, p.claims)
        SELECT r.place FROM unnest(report_progress.ids, report_progress.claims) WITH ORDINALITY AS r (id, claims, place)
        WHERE (r.id, r.claims) NOT IN (SELECT w.job_id, w.claims FROM written w);
END
$$;

-- Deletes the progress of jobs that are gone. A call of clean_up looks at so many
-- rows, and the next one goes on behind those.
CREATE FUNCTION {{schema}}.clean_up_progress(look integer) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_after uuid;
    v_last  uuid;
BEGIN
    SELECT s.last_progress INTO v_after FROM {{schema}}.clean_up_state s;
    SELECT p.job_id INTO v_last FROM {{schema}}.job_progress p WHERE p.job_id > v_after
    ORDER BY p.job_id OFFSET clean_up_progress.look - 1 LIMIT 1;
    DELETE FROM {{schema}}.job_progress p
    WHERE p.job_id > v_after AND (v_last IS NULL OR p.job_id <= v_last)
        AND NOT EXISTS (SELECT FROM {{schema}}.jobs j WHERE j.id = p.job_id);
    UPDATE {{schema}}.clean_up_state AS s SET last_progress = coalesce(v_last, '00000000-0000-0000-0000-000000000000')
    WHERE s.last_progress IS DISTINCT FROM coalesce(v_last, '00000000-0000-0000-0000-000000000000');
END
$$;
