-- Retention: what is finished and old goes, a bounded number of rows a call.

-- Where the clean-up stopped, so that rows it may not delete are not tried over and over.
CREATE TABLE {{schema}}.clean_up_state (
    only_row boolean CONSTRAINT clean_up_state_pkey PRIMARY KEY DEFAULT true CONSTRAINT clean_up_state_is_one_row CHECK (only_row),
    last_id  uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    last_runid bigint NOT NULL DEFAULT 0, -- of cron.job_run_details
    last_name text   NOT NULL DEFAULT '', -- of unique_keys,
    last_key  text   NOT NULL DEFAULT '', -- and of the same row
    last_progress uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000', -- of job_progress
    last_child uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000', -- of job_dependencies,
    last_parent uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000' -- and of the same row
);
INSERT INTO {{schema}}.clean_up_state DEFAULT VALUES;

-- Deletes up to batch finished jobs: succeeded and cancelled ones that finished
-- longer ago than keep, dead ones longer ago than keep_dead. NULL: keep for
-- ever. Jobs that a foreign key of another table protects stay, and so do those
-- whose results a job that is not finished may read (see is_read). It also deletes
-- what pg_cron recorded of our entries longer ago than keep, what it never recorded
-- an end of, workers whose cron entry was removed, the keys of unique jobs that
-- hold nobody up any more, and the progress and dependencies of jobs that are gone.
--
-- Returns the number of deleted jobs; as long as that is batch, there are more.
-- A call looks at 100,000 old jobs at most and the next one goes on behind
-- them, so it takes little time whatever has to be kept.
--
-- There is no index on finished_at: every job would pay for it at its finish.
-- Ids begin with the time of creation, so the primary key finds what is old.
CREATE FUNCTION {{schema}}.clean_up(
    keep interval DEFAULT '7 days', keep_dead interval DEFAULT '30 days', batch integer DEFAULT 10000
) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    c_look    CONSTANT integer := 100000;
    v_state   {{schema}}.clean_up_state%ROWTYPE;
    v_before  uuid := {{schema}}.first_id_after(now() - least(keep, keep_dead));
    v_ids     uuid[];
    v_last    uuid;
    v_deleted integer;
BEGIN
    IF keep < '0' OR keep_dead < '0' OR batch IS NULL OR batch NOT BETWEEN 1 AND c_look THEN
        RAISE EXCEPTION 'clean_up: keep %, keep_dead %, batch %: expected times not below zero, and a batch of 1 to %', keep, keep_dead, batch, c_look
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO v_state FROM {{schema}}.clean_up_state FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0; -- another one is at it
    END IF;

    EXECUTE format($q$
        SELECT ARRAY(
            SELECT j.id FROM (SELECT * FROM {{schema}}.jobs WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3) AS j
            WHERE (j.status IN ('succeeded', 'cancelled') AND j.finished_at <= now() - $4
                OR j.status = 'dead' AND j.finished_at <= now() - $5)
                AND (j.awaited IS NULL OR NOT {{schema}}.is_read(j.id)) %s
            ORDER BY j.id LIMIT $6) $q$, {{schema}}.unreferenced())
        INTO v_ids USING v_state.last_id, v_before, c_look, keep, keep_dead, batch;
    IF cardinality(v_ids) = batch THEN
        v_last := v_ids[batch];
    ELSE
        SELECT j.id INTO v_last FROM {{schema}}.jobs j WHERE j.id > v_state.last_id AND j.id < v_before
        ORDER BY j.id OFFSET c_look - 1 LIMIT 1;
    END IF;
    -- Rows that somebody has locked are about to be referenced, or to go. One that
    -- was retried since then is another matter: it is looked at once more.
    v_ids := ARRAY(
        SELECT j.id FROM {{schema}}.jobs j
        WHERE j.id = ANY (v_ids) AND j.finished_at <= now() - CASE j.status WHEN 'dead' THEN keep_dead ELSE keep END
        ORDER BY j.id FOR UPDATE SKIP LOCKED);
    -- Only with that lock is it seen whether a job has been created after one since.
    IF v_ids <> '{}' THEN
        v_ids := ARRAY(
            SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids) AND (j.awaited IS NULL OR NOT {{schema}}.is_read(j.id)));
    END IF;
    v_deleted := cardinality({{schema}}.delete_jobs(v_ids));
    -- As jobs go, their keys, progress and dependencies are come to in time.
    PERFORM {{schema}}.clean_up_keys(least(10 * batch, c_look));
    PERFORM {{schema}}.clean_up_progress(least(10 * batch, c_look));
    PERFORM {{schema}}.clean_up_dependencies(least(10 * batch, c_look));

    -- A running job whose lease was deleted by hand would never be rescued: give
    -- it one that has run out. Once in a pass over the old jobs.
    IF v_last IS NULL THEN
        PERFORM {{schema}}.clean_up_starts();
        PERFORM {{schema}}.clean_up_counts();
        INSERT INTO {{schema}}.leases (id, holder, expires_at)
            SELECT DISTINCT j.lease_id, 'deleted', now() FROM {{schema}}.jobs j
            WHERE j.lane IS NOT NULL AND j.status = 'running' AND NOT EXISTS (SELECT FROM {{schema}}.leases l WHERE l.id = j.lease_id)
            ON CONFLICT DO NOTHING;
    END IF;

    UPDATE {{schema}}.clean_up_state
    SET last_id = coalesce(v_last, '00000000-0000-0000-0000-000000000000'), -- from the beginning after the last
        last_runid = {{schema}}.clean_up_cron(v_state.last_runid, keep);
    RETURN v_deleted;
END
$$;

-- The lowest id that a job created at this time can have.
CREATE FUNCTION {{schema}}.first_id_after(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT (lpad(to_hex(greatest(0, extract(epoch FROM at) * 1000 + 1)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- The condition that no foreign key forbids to delete the job j: that way those
-- cost a look-up and not a deletion taken back. A table this role may not read
-- is left to delete_jobs.
CREATE FUNCTION {{schema}}.unreferenced() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(string_agg(format('AND NOT EXISTS (SELECT FROM %s AS r WHERE r.%I = j.id)', t.oid::regclass, a.attname), ' '), '')
    FROM pg_catalog.pg_constraint c
    JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
    JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = c.conkey[1]
    WHERE c.contype = 'f' AND c.confrelid = '{{schema}}.jobs'::regclass AND c.conparentid = 0
        AND c.confdeltype IN ('a', 'r') AND cardinality(c.conkey) = 1
        AND has_schema_privilege(t.relnamespace, 'USAGE') AND has_column_privilege(t.oid, a.attnum, 'SELECT')
$$;

-- Deletes jobs that the caller has locked, past those that a constraint or a
-- trigger of another table keeps: where one is among them, each half is tried
-- alone. Returns the ids of those it has deleted.
CREATE FUNCTION {{schema}}.delete_jobs(ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_deleted uuid[];
    v_half    integer := cardinality(ids) / 2;
BEGIN
    IF cardinality(ids) = 0 THEN
        RETURN '{}';
    END IF;
    BEGIN
        SET CONSTRAINTS ALL IMMEDIATE; -- what is checked at commit would undo everything then
        WITH deleted AS (DELETE FROM {{schema}}.jobs j WHERE j.id = ANY (ids) RETURNING j.id)
        SELECT coalesce(array_agg(d.id), '{}') INTO v_deleted FROM deleted AS d;
        RETURN v_deleted;
    EXCEPTION WHEN integrity_constraint_violation OR raise_exception THEN
        IF v_half = 0 THEN
            RETURN '{}';
        END IF;
    END;
    RETURN {{schema}}.delete_jobs(ids[:v_half]) || {{schema}}.delete_jobs(ids[v_half + 1:]);
END
$$;

-- Deletes what pg_cron recorded, in the 100,000 runs after this one, and returns
-- where to go on; and workers whose entry was removed with cron.unschedule.
-- Rows that never got an end are of pg_cron's restarts; some have no start
-- either: they are as old as the rows after them.
CREATE FUNCTION {{schema}}.clean_up_cron(last_runid bigint, keep interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    c_removed CONSTANT text := 'w.scheduled_by = current_user AND NOT EXISTS (SELECT FROM cron.job j
        WHERE j.jobname = w.name AND j.username = current_user AND j.command = {{schema}}.worker_command(w.name))';
    v_worker  text;
    v_first   bigint;
    v_last    bigint;
    v_arrived boolean;
BEGIN
    IF {{schema}}.extension_schema('pg_cron') IS NULL OR NOT has_schema_privilege('cron', 'USAGE') THEN
        RETURN 0;
    END IF;
    -- Other roles' entries can't be seen: they look as if they had been removed.
    -- Looked at once more with the row locked: it may just be made anew.
    FOR v_worker IN EXECUTE 'SELECT w.name FROM {{schema}}.queue_workers w WHERE ' || c_removed || ' FOR UPDATE SKIP LOCKED' LOOP
        EXECUTE 'SELECT {{schema}}.remove_queue_worker(w.name) FROM {{schema}}.queue_workers w WHERE w.name = $1 AND ' || c_removed USING v_worker;
    END LOOP;

    IF keep IS NULL OR NOT has_table_privilege('cron.job_run_details', 'SELECT') OR NOT has_table_privilege('cron.job_run_details', 'DELETE') THEN
        RETURN 0;
    END IF;
    EXECUTE 'SELECT d.runid FROM cron.job_run_details d WHERE d.runid > $1 ORDER BY d.runid LIMIT 1' INTO v_first USING last_runid;
    v_last := v_first + 99999;
    EXECUTE $q$
        DELETE FROM cron.job_run_details d
        WHERE d.runid BETWEEN $1 AND $2
            AND ((starts_with(d.command, $3) OR d.command = $5) AND d.end_time IS NOT NULL
                OR d.end_time IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.pid = d.job_pid))
            AND coalesce(d.end_time, d.start_time, (
                SELECT later.start_time FROM cron.job_run_details later
                WHERE later.runid > d.runid AND later.start_time IS NOT NULL ORDER BY later.runid LIMIT 1)) < now() - $4 $q$
        USING v_first, v_last, left({{schema}}.worker_command(''), -3), keep, {{schema}}.firing_command();
    -- From the beginning once it has come to what is young.
    EXECUTE 'SELECT EXISTS (SELECT FROM cron.job_run_details d WHERE d.runid BETWEEN $1 AND $2 AND d.start_time >= now() - $3)
            OR NOT EXISTS (SELECT FROM cron.job_run_details d WHERE d.runid > $2)'
        INTO v_arrived USING v_first, v_last, keep;
    RETURN CASE WHEN v_arrived OR v_first IS NULL THEN 0 ELSE v_last END;
END
$$;
