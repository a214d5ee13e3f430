-- What people do to jobs: cancel, retry, reschedule, delete; to one by its id
-- here, and to many in 008_control_many.sql.
--
-- Each locks the rows of the jobs and decides by what it then reads, so that none
-- of them is at odds with a claim or a finish that happens just then: one waits
-- for the other (a claim passes over the row) and sees what that has come to. A
-- handler's transaction after CompleteTx may hold its job for as long as it likes:
-- nobody waits here for longer than three seconds (lock_not_available).
--
-- What is done is in the functions that end in _locked. They take jobs that the
-- caller has locked and that is_open_to has let pass.

-- The job, locked until the transaction ends.
CREATE FUNCTION {{schema}}.lock_job(id uuid) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE;
BEGIN
    SELECT * INTO v_job FROM {{schema}}.jobs j WHERE j.id = lock_job.id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no job %', coalesce(lock_job.id::text, 'NULL') USING ERRCODE = 'no_data_found';
    END IF;
    RETURN v_job;
END
$$;

-- Refuses what can't be done to a job in this status.
CREATE FUNCTION {{schema}}.refuse_status(job {{schema}}.jobs, expected text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    RAISE EXCEPTION 'job % is %: expected it to be %', job.id, job.status, refuse_status.expected
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- Whether this can be done to a job, and changes it; at is what it is rescheduled
-- to. It takes of the job what it needs: a whole row would be read with its payload.
CREATE FUNCTION {{schema}}.is_open_to(
    action text, status text, attempt integer, cancelling boolean, run_at timestamptz, at timestamptz DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    RETURN CASE is_open_to.action
        WHEN 'cancel' THEN is_open_to.status IN ('pending', 'failed') OR is_open_to.status = 'running' AND is_open_to.cancelling IS NULL
        WHEN 'retry' THEN is_open_to.attempt < 1000 AND
            (is_open_to.status IN ('failed', 'dead', 'cancelled') OR is_open_to.status = 'pending' AND is_open_to.run_at > now())
        WHEN 'reschedule' THEN is_open_to.status IN ('pending', 'failed') AND
            CASE WHEN is_open_to.at IS NULL THEN is_open_to.run_at > now() ELSE is_open_to.run_at <> is_open_to.at END
        WHEN 'delete' THEN is_open_to.status <> 'running'
    END;
END
$$;

-- Calls jobs off. Those that wait are cancelled at once. Those that are running
-- are marked: their process ends the handler's context within a second, and the
-- job ends cancelled, unless the handler succeeds all the same.
CREATE FUNCTION {{schema}}.cancel_locked(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_awaited uuid[];
BEGIN
    WITH cancelled AS (
        UPDATE {{schema}}.jobs j SET status = 'cancelled', lane = NULL, slot = 0, finished_at = now()
        WHERE j.id = ANY (cancel_locked.ids) AND j.status IN ('pending', 'failed')
        RETURNING j.id, j.awaited)
    SELECT array_agg(c.id) FILTER (WHERE c.awaited) INTO v_awaited FROM cancelled c;
    IF v_awaited IS NOT NULL THEN
        PERFORM {{schema}}.release_dependants(v_awaited);
    END IF;
    UPDATE {{schema}}.jobs j SET cancelling = true WHERE j.id = ANY (cancel_locked.ids) AND j.status = 'running';
END
$$;

-- Makes jobs that wait due now, also those that are dead or were cancelled. Their
-- errors are kept. One whose attempts are used up gets one more.
--
-- In a blocking queue a job that was finished stands behind those that are due
-- by now, and before those that are due later, as if it had not been started. A
-- failed one that holds the queue goes on holding it.
CREATE FUNCTION {{schema}}.retry_locked(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    UPDATE {{schema}}.jobs j
    SET status = 'pending', lane = CASE WHEN j.waits_for > 0 THEN 303 ELSE 3 * j.priority END, finished_at = NULL,
        run_at = CASE WHEN j.finished_at IS NULL THEN least(j.run_at, now()) ELSE now() END,
        started_at = CASE WHEN j.finished_at IS NULL THEN j.started_at END,
        max_attempts = greatest(j.max_attempts, j.attempt + 1)
    WHERE j.id = ANY (retry_locked.ids);
END
$$;

-- Sets when jobs that wait are due.
CREATE FUNCTION {{schema}}.reschedule_locked(ids uuid[], run_at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF NOT isfinite(reschedule_locked.run_at) OR reschedule_locked.run_at < '0001-01-01 00:00:00+00' OR reschedule_locked.run_at >= '10000-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'reschedule_job: run_at %: expected a time from year 1 to 9999', reschedule_locked.run_at USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE {{schema}}.jobs j SET run_at = reschedule_locked.run_at WHERE j.id = ANY (reschedule_locked.ids);
END
$$;

-- Calls a job off, and returns it. One that is finished stays as it is.
CREATE FUNCTION {{schema}}.cancel_job(id uuid) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET lock_timeout = '3s' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE := {{schema}}.lock_job(cancel_job.id);
BEGIN
    IF {{schema}}.is_open_to('cancel', v_job.status, v_job.attempt, v_job.cancelling, v_job.run_at) THEN
        PERFORM {{schema}}.cancel_locked(ARRAY[v_job.id]);
        SELECT * INTO v_job FROM {{schema}}.jobs j WHERE j.id = v_job.id;
        IF v_job.status = 'cancelled' THEN
            PERFORM {{schema}}.announce(v_job.queue);
        END IF;
    END IF;
    RETURN v_job;
END
$$;

-- What is recorded of the attempt of a job that was called off, whose handler
-- returned an error, or did not say anything. It is cut so that it stays below
-- the 8 KiB of an error.
CREATE FUNCTION {{schema}}.cancelled_error(failure text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT CASE WHEN failure IS NULL THEN 'job cancelled' WHEN strpos(failure, 'job cancelled') > 0 THEN failure
        ELSE 'job cancelled: ' || left(failure, 2000) END
$$;

-- The jobs that were called off and run under these leases, and the claims that
-- they run by.
CREATE FUNCTION {{schema}}.cancelled_under(leases uuid[]) RETURNS TABLE (id uuid, claims integer)
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN QUERY SELECT j.id, j.claims FROM {{schema}}.jobs j WHERE j.cancelling AND j.lease_id = ANY (cancelled_under.leases);
END
$$;

-- Makes a job due now, and returns it. A finished one with a unique key has to take
-- that again. The key is locked before the job, as create_unique does.
CREATE FUNCTION {{schema}}.retry_job(id uuid) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET lock_timeout = '3s' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE;
BEGIN
    PERFORM {{schema}}.lock_keys_of(ARRAY[retry_job.id]);
    v_job := {{schema}}.lock_job(retry_job.id);
    IF v_job.status IN ('running', 'succeeded') THEN
        PERFORM {{schema}}.refuse_status(v_job, 'pending, failed, dead or cancelled');
    END IF;
    IF v_job.attempt >= 1000 THEN
        RAISE EXCEPTION 'job % has used up % attempts: expected less, as no job may have more than 1000', v_job.id, v_job.attempt
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF {{schema}}.is_open_to('retry', v_job.status, v_job.attempt, v_job.cancelling, v_job.run_at) THEN
        IF v_job.waits_for > 0 AND {{schema}}.wait_again(ARRAY[v_job.id], false) = '{}' THEN
            RAISE EXCEPTION 'job % is to run after job %, which has not succeeded: expected that to be retried first', v_job.id,
                (SELECT b.parent FROM {{schema}}.broken_off(ARRAY[v_job.id]) AS b ORDER BY b.parent LIMIT 1)
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        IF {{schema}}.take_keys(ARRAY[v_job.id]) = '{}' THEN
            RAISE EXCEPTION 'job % has the unique key of job %, which is not finished: expected that to be finished first', v_job.id,
                (SELECT h.id FROM {{schema}}.unique_keys k JOIN {{schema}}.jobs h ON h.id = ANY (ARRAY[k.job_id, k.retried_id]) AND h.finished_at IS NULL
                    WHERE k.name = v_job.name AND k.key = v_job.attributes ->> 'unique_key')
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        PERFORM {{schema}}.retry_locked(ARRAY[v_job.id]);
        SELECT * INTO v_job FROM {{schema}}.jobs j WHERE j.id = v_job.id;
    END IF;
    PERFORM {{schema}}.announce(v_job.queue, v_job.run_at);
    RETURN v_job;
END
$$;

-- Locks the unique keys of jobs, before the jobs are locked, as create_unique does.
CREATE FUNCTION {{schema}}.lock_keys_of(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_names text[];
    v_keys  text[];
BEGIN
    SELECT array_agg(j.name::text), array_agg(j.attributes ->> 'unique_key') INTO v_names, v_keys
    FROM {{schema}}.jobs j WHERE j.id = ANY (lock_keys_of.ids) AND j.attributes ? 'unique_key';
    IF v_names IS NOT NULL THEN
        PERFORM {{schema}}.lock_keys(v_names, v_keys);
    END IF;
END
$$;

-- Gives finished jobs, which are locked as their unique keys are, those keys again.
-- Returns the jobs without those whose key an unfinished one has by now. Of several
-- with one key, the newest gets it. A job that was created later goes on counting
-- for how long the key is taken: see unique_keys.
CREATE FUNCTION {{schema}}.take_keys(ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_keyed uuid[] := ARRAY(
        SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (take_keys.ids) AND j.finished_at IS NOT NULL AND j.attributes ? 'unique_key');
    v_taken uuid[];
BEGIN
    IF v_keyed = '{}' THEN
        RETURN take_keys.ids;
    END IF;
    WITH newest AS (
        SELECT DISTINCT ON (j.name, j.attributes ->> 'unique_key') j.id, j.name, j.attributes ->> 'unique_key' AS key
        FROM {{schema}}.jobs j WHERE j.id = ANY (v_keyed) ORDER BY j.name, j.attributes ->> 'unique_key', j.id DESC
    ), taken AS (
        UPDATE {{schema}}.unique_keys k
        SET job_id = CASE WHEN EXISTS (SELECT FROM {{schema}}.jobs l WHERE l.id = k.job_id) THEN k.job_id ELSE n.id END,
            retried_id = CASE WHEN EXISTS (SELECT FROM {{schema}}.jobs l WHERE l.id = k.job_id AND l.id <> n.id) THEN n.id END
        FROM newest AS n
        WHERE k.name = n.name AND k.key = n.key AND NOT EXISTS (
            SELECT FROM {{schema}}.jobs h WHERE h.id = ANY (ARRAY[k.job_id, k.retried_id]) AND h.id <> n.id AND h.finished_at IS NULL)
        RETURNING n.id
    )
    SELECT coalesce(array_agg(t.id), '{}') INTO v_taken FROM taken AS t;
    RETURN ARRAY(SELECT a.id FROM unnest(take_keys.ids) AS a (id) WHERE a.id <> ALL (v_keyed) OR a.id = ANY (v_taken));
END
$$;

-- Sets when a job that waits is due, NULL for now, and returns it.
CREATE FUNCTION {{schema}}.reschedule_job(id uuid, run_at timestamptz) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET lock_timeout = '3s' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE := {{schema}}.lock_job(reschedule_job.id);
BEGIN
    IF v_job.status NOT IN ('pending', 'failed') THEN
        PERFORM {{schema}}.refuse_status(v_job, 'pending or failed');
    END IF;
    PERFORM {{schema}}.reschedule_locked(ARRAY[v_job.id], coalesce(reschedule_job.run_at, now()));
    SELECT * INTO v_job FROM {{schema}}.jobs j WHERE j.id = v_job.id;
    PERFORM {{schema}}.announce(v_job.queue, v_job.run_at);
    RETURN v_job;
END
$$;

-- Deletes a job that is not running, and returns it as it was.
CREATE FUNCTION {{schema}}.delete_job(id uuid) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET lock_timeout = '3s' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE := {{schema}}.lock_job(delete_job.id);
BEGIN
    IF v_job.status = 'running' THEN
        PERFORM {{schema}}.refuse_status(v_job, 'no longer running; cancel it first');
    END IF;
    DELETE FROM {{schema}}.jobs j WHERE j.id = v_job.id;
    DELETE FROM {{schema}}.job_progress p WHERE p.job_id = v_job.id;
    IF v_job.awaited AND v_job.lane IS NOT NULL THEN
        PERFORM {{schema}}.release_dependants(ARRAY[v_job.id]);
    END IF;
    IF v_job.waits_for IS NOT NULL THEN
        DELETE FROM {{schema}}.job_dependencies d WHERE d.child = v_job.id;
    END IF;
    IF v_job.lane IS NOT NULL THEN
        PERFORM {{schema}}.announce(v_job.queue);
    END IF;
    RETURN v_job;
END
$$;

-- Tells those who run jobs of a queue when one is due, at commit, as a creation
-- does: resident processes, and workers with wake if that is now. In a blocking
-- queue that is its head, whatever was done to whichever job. Where the queue has
-- limits, one that is gone (run_at is NULL) may have kept others from starting.
CREATE FUNCTION {{schema}}.announce(queue text, run_at timestamptz DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_due timestamptz := announce.run_at;
BEGIN
    IF EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = announce.queue AND (q.base = 'blocking' OR q.limited AND announce.run_at IS NULL)) THEN
        v_due := {{schema}}.next_due(announce.queue);
    END IF;
    IF v_due IS NULL THEN
        RETURN;
    END IF;
    PERFORM {{schema}}.notify_created(announce.queue, v_due);
    IF v_due <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = announce.queue) THEN
        PERFORM {{schema}}.wake_workers(announce.queue);
    END IF;
END
$$;
