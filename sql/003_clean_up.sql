-- Retention: what is finished and old goes, a bounded number of rows a call.

-- Deletes up to batch finished jobs: succeeded and cancelled ones that finished
-- longer ago than keep, dead ones longer ago than keep_dead. Jobs that another
-- table still refers to stay. It also deletes what pg_cron recorded of workers
-- longer ago than keep, and what it never recorded an end of, and workers whose
-- cron entry was removed. Returns the number of deleted jobs. NULL: keep for ever.
--
-- There is no index on finished_at: every job would pay for it at its finish.
-- Ids begin with the time of creation, so the primary key finds what is old.
CREATE FUNCTION {{schema}}.clean_up(
    keep interval DEFAULT '7 days', keep_dead interval DEFAULT '30 days', batch integer DEFAULT 10000
) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_after   uuid;
    v_ids     uuid[];
    v_deleted integer := 0;
BEGIN
    IF keep < '0' OR keep_dead < '0' OR batch IS NULL OR batch NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'clean_up: keep %, keep_dead %, batch %: expected times not below zero, and a batch of 1 to 100000', keep, keep_dead, batch
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT s.last_id INTO v_after FROM {{schema}}.clean_up_state s FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0; -- another one is at it
    END IF;

    v_ids := ARRAY(
        SELECT j.id FROM {{schema}}.jobs j
        WHERE j.id > v_after AND j.id < {{schema}}.first_id_after(now() - least(keep, keep_dead))
            AND (j.status IN ('succeeded', 'cancelled') AND j.finished_at <= now() - keep
                OR j.status = 'dead' AND j.finished_at <= now() - keep_dead)
        ORDER BY j.id LIMIT batch FOR UPDATE SKIP LOCKED);
    BEGIN
        DELETE FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids);
        GET DIAGNOSTICS v_deleted = ROW_COUNT;
    EXCEPTION WHEN foreign_key_violation OR restrict_violation THEN
        v_deleted := {{schema}}.delete_unreferenced(v_ids);
    END;
    -- Go on behind these the next time, and from the beginning after the last.
    UPDATE {{schema}}.clean_up_state
    SET last_id = CASE cardinality(v_ids) WHEN batch THEN v_ids[batch] ELSE '00000000-0000-0000-0000-000000000000' END;

    PERFORM {{schema}}.clean_up_cron(keep, batch);
    RETURN v_deleted;
END
$$;

-- The lowest id that a job created at this time can have.
CREATE FUNCTION {{schema}}.first_id_after(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT (lpad(to_hex(greatest(0, extract(epoch FROM at) * 1000 + 1)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- One by one, past those that another table refers to.
CREATE FUNCTION {{schema}}.delete_unreferenced(ids uuid[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_id      uuid;
    v_deleted integer := 0;
BEGIN
    FOREACH v_id IN ARRAY ids LOOP
        BEGIN
            DELETE FROM {{schema}}.jobs j WHERE j.id = v_id;
            v_deleted := v_deleted + 1;
        EXCEPTION WHEN foreign_key_violation OR restrict_violation THEN
            NULL;
        END;
    END LOOP;
    RETURN v_deleted;
END
$$;

CREATE FUNCTION {{schema}}.clean_up_cron(keep interval, batch integer) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    IF {{schema}}.extension_schema('pg_cron') IS NULL THEN
        RETURN;
    END IF;
    -- After a restart some rows never get an end, and some not even a start:
    -- those are as old as the rows around them.
    EXECUTE $q$
        DELETE FROM cron.job_run_details WHERE runid IN (
            SELECT d.runid FROM cron.job_run_details d
            WHERE (d.end_time IS NULL OR d.command LIKE 'SELECT {{schema_name}}.run_worker(%')
                AND coalesce(d.end_time, d.start_time, (
                    SELECT later.start_time FROM cron.job_run_details later
                    WHERE later.runid > d.runid AND later.start_time IS NOT NULL ORDER BY later.runid LIMIT 1)) < now() - $1
            ORDER BY d.runid LIMIT $2) $q$ USING keep, batch;
    EXECUTE $q$
        SELECT count({{schema}}.remove_queue_worker(w.name)) FROM {{schema}}.queue_workers w
        WHERE w.created_at < now() - interval '1 minute' AND NOT EXISTS (
            SELECT FROM cron.job c WHERE c.jobname = w.name AND c.command = format('SELECT %I.run_worker(%L)', '{{schema_name}}', w.name)) $q$;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'clean_up: this role may not clean up cron.job_run_details';
END
$$;
