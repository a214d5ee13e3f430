-- What people do to many jobs: those of a filter, a bounded number a call.

-- Cancels, retries, reschedules or deletes up to n of the jobs that list_jobs
-- finds, newest first, and returns which, and whether each is cancelled by that.
-- Only those that this changes are counted, so that calling it again goes on
-- where it ended.
--
-- No job is waited for: one that somebody has locked is passed over, and so
-- is one that the filter does not find any more when it is locked. In this way
-- neither two of these nor one beside a finish or a rescue can deadlock. Unique
-- keys are waited for, three seconds at most. Jobs that a foreign key or a trigger
-- of another table protects are not deleted.
CREATE FUNCTION {{schema}}.control_jobs(
    action text, run_at timestamptz, statuses text[], queues text[], names text[], attributes jsonb,
    created_after timestamptz, created_before timestamptz, n integer
) RETURNS TABLE (id uuid, cancelled boolean)
LANGUAGE plpgsql VOLATILE SET search_path = '' SET lock_timeout = '3s' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_run_at  timestamptz := coalesce(control_jobs.run_at, now());
    v_left    integer := control_jobs.n;
    v_before  uuid;
    v_page    uuid[];
    v_ids     uuid[];
    v_awaited uuid[];
    v_last    boolean; -- no more are listed
    v_queue   text;
    v_queues  text[] := '{}';
BEGIN
    WHILE v_left > 0 AND v_last IS NOT TRUE LOOP
        v_page := {{schema}}.find_jobs(control_jobs.statuses, control_jobs.queues, control_jobs.names, control_jobs.attributes,
            control_jobs.created_after, control_jobs.created_before, v_before, control_jobs.n);
        EXIT WHEN v_page = '{}';
        SELECT array_agg(j.id ORDER BY j.id DESC) INTO v_ids FROM {{schema}}.jobs j
        WHERE j.id = ANY (v_page) AND {{schema}}.is_open_to(control_jobs.action, j.status, j.attempt, j.cancelling, j.run_at, control_jobs.run_at);
        v_last := cardinality(v_page) < control_jobs.n AND v_ids[v_left + 1] IS NULL;
        v_before := coalesce(v_ids[v_left], v_page[cardinality(v_page)]);
        CONTINUE WHEN v_ids IS NULL;
        IF control_jobs.action = 'retry' THEN
            v_ids := {{schema}}.retry_open(v_ids[:v_left], control_jobs.statuses, control_jobs.attributes);
            v_last := v_last OR v_ids <> '{}'; -- see there
        ELSE
            v_ids := {{schema}}.lock_open(control_jobs.action, v_ids[:v_left], control_jobs.run_at, control_jobs.statuses, control_jobs.attributes);
        END IF;
        CONTINUE WHEN v_ids = '{}';
        v_queues := v_queues || ARRAY(
            SELECT DISTINCT j.queue::text FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids) AND j.queue::text <> ALL (v_queues));
        CASE control_jobs.action
            WHEN 'cancel' THEN PERFORM {{schema}}.cancel_locked(v_ids);
            WHEN 'retry' THEN NULL; -- done
            WHEN 'reschedule' THEN PERFORM {{schema}}.reschedule_locked(v_ids, v_run_at);
            WHEN 'delete' THEN
                v_awaited := ARRAY(SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids) AND j.awaited AND j.finished_at IS NULL);
                v_ids := {{schema}}.delete_jobs(v_ids);
                DELETE FROM {{schema}}.job_progress p WHERE p.job_id = ANY (v_ids);
                -- A constraint may have kept some.
                PERFORM {{schema}}.release_dependants(ARRAY(SELECT unnest(v_awaited) INTERSECT SELECT unnest(v_ids)));
                DELETE FROM {{schema}}.job_dependencies d WHERE d.child = ANY (v_ids);
        END CASE;
        IF control_jobs.action = 'cancel' THEN
            RETURN QUERY SELECT j.id, j.status = 'cancelled' FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids);
        ELSE
            RETURN QUERY SELECT c.id, false FROM unnest(v_ids) AS c (id);
        END IF;
        v_left := v_left - cardinality(v_ids);
    END LOOP;

    FOREACH v_queue IN ARRAY v_queues LOOP
        PERFORM {{schema}}.announce(v_queue, CASE control_jobs.action WHEN 'retry' THEN now() WHEN 'reschedule' THEN v_run_at END);
    END LOOP;
END
$$;

-- Retries those of these jobs that it can, and returns which.
--
-- Keys are locked before jobs and in one order, so once in a transaction that keeps
-- some. Where it is none of them, which the keys have to be locked for to know, all
-- locks are let go of, by going back to before them: other keys may follow.
CREATE FUNCTION {{schema}}.retry_open(ids uuid[], statuses text[], attributes jsonb) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_ids uuid[];
BEGIN
    PERFORM {{schema}}.lock_keys_of(retry_open.ids);
    v_ids := {{schema}}.take_keys({{schema}}.wait_again(
        {{schema}}.lock_open('retry', retry_open.ids, NULL, retry_open.statuses, retry_open.attributes), true));
    IF v_ids = '{}' THEN
        RAISE SQLSTATE 'SJ001';
    END IF;
    PERFORM {{schema}}.retry_locked(v_ids);
    RETURN v_ids;
EXCEPTION WHEN SQLSTATE 'SJ001' THEN
    RETURN '{}';
END
$$;

-- Locks those of these jobs that this can still be done to, always in the same
-- order. What is to be deleted is locked against new references, too, and comes
-- without those that are referred to: to find that out by deleting would be dear.
-- With what is to be cancelled or deleted come the jobs that wait for it.
CREATE FUNCTION {{schema}}.lock_open(action text, ids uuid[], run_at timestamptz, statuses text[], attributes jsonb) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_ids uuid[] := ARRAY(
        SELECT j.id FROM {{schema}}.jobs j
        WHERE j.id = ANY (lock_open.ids) AND j.status = ANY (lock_open.statuses) AND (lock_open.attributes IS NULL OR j.attributes @> lock_open.attributes)
            AND {{schema}}.is_open_to(lock_open.action, j.status, j.attempt, j.cancelling, j.run_at, lock_open.run_at)
        ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED);
BEGIN
    IF lock_open.action = 'delete' AND v_ids <> '{}' THEN
        v_ids := ARRAY(SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids) ORDER BY j.id FOR UPDATE SKIP LOCKED);
        EXECUTE 'SELECT ARRAY(SELECT j.id FROM unnest($1) AS j (id) WHERE true ' || {{schema}}.unreferenced() || ')' INTO v_ids USING v_ids;
    END IF;
    IF lock_open.action IN ('cancel', 'delete') THEN
        v_ids := {{schema}}.lock_dependants(v_ids, ARRAY(
            SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids) AND j.finished_at IS NULL AND j.lease_id IS NULL));
    END IF;
    RETURN v_ids;
END
$$;
