-- Blocking queues: one job at a time, strictly in order.

-- The job of a blocking queue that comes next, due or not: the one that holds
-- the queue (it was started and is not finished), else the first in order. A
-- finished one that was retried holds nothing: it counts as not started.
CREATE FUNCTION {{schema}}.blocking_head(q {{schema}}.queues) RETURNS {{schema}}.jobs
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE;
BEGIN
    IF q.head IS NOT NULL THEN
        SELECT * INTO v_job FROM {{schema}}.jobs j WHERE j.id = q.head AND j.lane IS NOT NULL AND j.started_at IS NOT NULL;
        IF FOUND AND NOT (q.skip_failed AND v_job.status = 'failed') THEN
            RETURN v_job;
        END IF;
    END IF;
    -- It may have been declared as another kind of queue before.
    IF q.prioritized THEN
        SELECT f.* INTO v_job FROM unnest({{schema}}.priorities(q.name)) AS p (priority), generate_series(0, 2) AS k (lane), LATERAL (
            SELECT * FROM {{schema}}.jobs j WHERE j.queue = q.name AND j.lane = 3 * p.priority + k.lane ORDER BY j.run_at, j.id LIMIT 1
        ) AS f ORDER BY f.status = 'running' DESC, f.run_at, f.id LIMIT 1;
        RETURN v_job;
    END IF;
    SELECT * INTO v_job FROM (
        (SELECT * FROM {{schema}}.jobs j WHERE j.queue = q.name AND j.lane = 0 ORDER BY j.run_at, j.id LIMIT 1)
        UNION ALL
        (SELECT * FROM {{schema}}.jobs j WHERE j.queue = q.name AND j.lane = 1 ORDER BY j.run_at, j.id LIMIT 1)
        UNION ALL
        (SELECT * FROM {{schema}}.jobs j WHERE j.queue = q.name AND j.lane = 2 ORDER BY j.run_at, j.id LIMIT 1)
    ) AS firsts ORDER BY firsts.status = 'running' DESC, firsts.run_at, firsts.id LIMIT 1;
    RETURN v_job;
END
$$;

-- Claims the head of a blocking queue if it is due and nothing holds the queue.
--
-- Two runs that start in the same millisecond are kept apart by the queue's
-- row: both ask for its lock, one gets it, and the other waits here until the
-- first has committed. Each statement of this function sees what was committed
-- before the statement began: the second run reads the head only after it holds
-- the lock, so it sees the job that the first one started. In one statement,
-- both would look at the state before the lock, and the second would take the
-- next job beside the first. The lock lasts for this short transaction; while
-- the job runs, it is the job's own row (its status and lease) that holds the
-- queue, and that survives every crash.
--
-- A head that somebody has locked is about to be replaced, moved or called off,
-- maybe in a transaction that lasts: nothing is claimed then, and nobody waits
-- here with the queue's lock. Neither is one that was moved just before.
CREATE FUNCTION {{schema}}.claim_blocking(queue text, skip_failed boolean, names text[], lease uuid)
RETURNS TABLE (id uuid, name {{schema}}.job_name, payload jsonb, run_at {{schema}}.job_time, created_at {{schema}}.job_time,
    started_at timestamptz, attempt {{schema}}.job_attempt, max_attempts {{schema}}.job_attempts, errors {{schema}}.job_errors, timeout_ms {{schema}}.job_timeout, claims integer, attributes jsonb, priority smallint, key {{schema}}.job_key)
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    v_queue {{schema}}.queues%ROWTYPE;
    v_job   {{schema}}.jobs%ROWTYPE;
BEGIN
    SELECT * INTO v_queue FROM {{schema}}.queues q WHERE q.name = claim_blocking.queue FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO {{schema}}.queues (name, base, skip_failed, paused)
        SELECT claim_blocking.queue, 'blocking', claim_blocking.skip_failed, a.paused FROM {{schema}}.all_queues a FOR SHARE
        ON CONFLICT DO NOTHING; -- the lock: until the commit, a pause of all queues waits for this one
        SELECT * INTO v_queue FROM {{schema}}.queues q WHERE q.name = claim_blocking.queue FOR UPDATE;
    END IF;
    IF v_queue.paused THEN
        RETURN;
    END IF;
    v_queue.skip_failed := claim_blocking.skip_failed;

    v_job := {{schema}}.blocking_head(v_queue);
    IF v_job.id IS NULL OR v_job.status = 'running' OR v_job.run_at > clock_timestamp()
        OR NOT v_job.name = ANY (claim_blocking.names)
    THEN
        RETURN;
    END IF;
    PERFORM FROM {{schema}}.leases l WHERE l.id = claim_blocking.lease AND l.expires_at > clock_timestamp() FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE {{schema}}.jobs j
    SET status = 'running', lease_id = claim_blocking.lease, started_at = clock_timestamp(),
        attempt = j.attempt + 1, claims = j.claims + 1
    WHERE j.id = (
        SELECT r.id FROM {{schema}}.jobs r
        WHERE r.id = v_job.id AND r.claims = v_job.claims AND r.status IN ('pending', 'failed') AND r.run_at = v_job.run_at
        FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING * INTO v_job;
    IF FOUND THEN
        UPDATE {{schema}}.queues q SET head = v_job.id WHERE q.name = claim_blocking.queue;
        RETURN QUERY SELECT v_job.id, v_job.name, v_job.payload, v_job.run_at, v_job.created_at, v_job.started_at,
            v_job.attempt, v_job.max_attempts, v_job.errors, v_job.timeout_ms, v_job.claims, v_job.attributes, v_job.priority, v_job.key;
    END IF;
END
$$;
