-- What people do to one job, by its id: cancel, retry, reschedule, delete.
--
-- Each locks the job's row and decides by what it then reads, so that none of
-- them is at odds with a claim or a finish that happens just then: one waits for
-- the other (a claim passes over the row) and sees what that has come to.

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

-- Calls a job off, and returns it. One that waits is cancelled at once. One that
-- is running is marked: its process ends the handler's context within a second,
-- and the job ends cancelled, unless the handler succeeds all the same. One that
-- is finished stays as it is.
CREATE FUNCTION {{schema}}.cancel_job(id uuid) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE := {{schema}}.lock_job(cancel_job.id);
BEGIN
    IF v_job.status IN ('pending', 'failed') THEN
        UPDATE {{schema}}.jobs j SET status = 'cancelled', lane = NULL, finished_at = now()
        WHERE j.id = v_job.id RETURNING j.* INTO v_job;
        PERFORM {{schema}}.announce(v_job.queue);
    ELSIF v_job.status = 'running' AND v_job.cancelling IS NULL THEN
        UPDATE {{schema}}.jobs j SET cancelling = true WHERE j.id = v_job.id RETURNING j.* INTO v_job;
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
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN QUERY SELECT j.id, j.claims FROM {{schema}}.jobs j WHERE j.cancelling AND j.lease_id = ANY (cancelled_under.leases);
END
$$;

-- Makes a job that waits due now, also one that is dead or was cancelled, and
-- returns it. Its errors are kept. If its attempts are used up, it gets one more.
--
-- In a blocking queue a job that was finished stands behind those that are due
-- by now, and before those that are due later, as if it had not been started. A
-- failed one that holds the queue goes on holding it.
CREATE FUNCTION {{schema}}.retry_job(id uuid) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    c_most CONSTANT integer := 1000; -- attempts
    v_job  {{schema}}.jobs%ROWTYPE := {{schema}}.lock_job(retry_job.id);
BEGIN
    IF v_job.status IN ('running', 'succeeded') THEN
        PERFORM {{schema}}.refuse_status(v_job, 'pending, failed, dead or cancelled');
    END IF;
    IF v_job.attempt >= c_most THEN
        RAISE EXCEPTION 'job % has used up % attempts: expected less, as no job may have more than %', v_job.id, v_job.attempt, c_most
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF v_job.status <> 'pending' OR v_job.run_at > now() THEN
        UPDATE {{schema}}.jobs j
        SET status = 'pending', lane = 3 * j.priority, finished_at = NULL,
            run_at = CASE WHEN j.finished_at IS NULL THEN least(j.run_at, now()) ELSE now() END,
            started_at = CASE WHEN j.finished_at IS NULL THEN j.started_at END,
            max_attempts = greatest(j.max_attempts, j.attempt + 1)
        WHERE j.id = v_job.id RETURNING j.* INTO v_job;
    END IF;
    PERFORM {{schema}}.announce(v_job.queue, v_job.run_at);
    RETURN v_job;
END
$$;

-- Sets when a job that waits is due, NULL for now, and returns it.
CREATE FUNCTION {{schema}}.reschedule_job(id uuid, run_at timestamptz) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_run_at timestamptz := coalesce(reschedule_job.run_at, now());
    v_job    {{schema}}.jobs%ROWTYPE;
BEGIN
    IF NOT isfinite(v_run_at) OR v_run_at < '0001-01-01 00:00:00+00' OR v_run_at >= '10000-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'reschedule_job: run_at %: expected a time from year 1 to 9999', v_run_at USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_job := {{schema}}.lock_job(reschedule_job.id);
    IF v_job.status NOT IN ('pending', 'failed') THEN
        PERFORM {{schema}}.refuse_status(v_job, 'pending or failed');
    END IF;
    UPDATE {{schema}}.jobs j SET run_at = v_run_at WHERE j.id = v_job.id RETURNING j.* INTO v_job;
    PERFORM {{schema}}.announce(v_job.queue, v_run_at);
    RETURN v_job;
END
$$;

-- Deletes a job that is not running, and returns it as it was.
CREATE FUNCTION {{schema}}.delete_job(id uuid) RETURNS {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE := {{schema}}.lock_job(delete_job.id);
BEGIN
    IF v_job.status = 'running' THEN
        PERFORM {{schema}}.refuse_status(v_job, 'no longer running; cancel it first');
    END IF;
    DELETE FROM {{schema}}.jobs j WHERE j.id = v_job.id;
    IF v_job.lane IS NOT NULL THEN
        PERFORM {{schema}}.announce(v_job.queue);
    END IF;
    RETURN v_job;
END
$$;

-- Tells those who run jobs of a queue when one is due, at commit, as a creation
-- does: resident processes, and workers with wake if that is now. In a blocking
-- queue that is its head, whatever was done to whichever job.
CREATE FUNCTION {{schema}}.announce(queue text, run_at timestamptz DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_due timestamptz := announce.run_at;
BEGIN
    IF EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = announce.queue AND q.base = 'blocking') THEN
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
