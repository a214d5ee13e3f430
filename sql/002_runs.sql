-- Every query that moves a job on: claim, settle, finish, rescue. They are
-- functions of several statements where each must see what was committed before
-- it began, and so that the plans are fixed: a fresh table has no statistics
-- yet, and the planner would read all of it. (A scan that is switched off seems
-- so dear to it that it would compile the plan, for longer than the query takes:
-- hence jit = off. And it would make a plan for each call anew, for arrays of just
-- that length, which now and then reads all of the table: hence plan_cache_mode.)
-- 002_blocking.sql has those of blocking queues, 002_due.sql when the next claim is
-- worth it.

-- Starts an attempt of up to n due jobs, oldest first; of those that come after
-- the one with this run_at, since, and this id (NULL: of all). That spares a claim
-- the index entries of the jobs that were claimed before it, which stay there until
-- a vacuum. Where jobs have priorities, claim_by_priority chooses, and where the
-- limits of the queue are of keys, claim_by_key; since counts for nothing then.
--
-- SKIP LOCKED lets any number of runs claim side by side without waiting for
-- each other or taking the same job: a row that two runs look at is locked by
-- one, and has another status for whoever locks it afterwards. The lease is
-- locked against its rescue until the claim has committed (see rescue), and
-- nothing is claimed under a lease that has run out. The lock of the queue is
-- what await_claims waits for; it is refused only while that waits, so when the
-- queue is paused. Whether it is paused is read after that.
CREATE FUNCTION {{schema}}.claim(
    queue text, pending boolean, failed boolean, names text[], lease uuid, n integer, since timestamptz, since_id uuid, overdue interval)
RETURNS TABLE (id uuid, name {{schema}}.job_name, payload jsonb, run_at {{schema}}.job_time, created_at {{schema}}.job_time,
    started_at timestamptz, attempt {{schema}}.job_attempt, max_attempts {{schema}}.job_attempts, errors {{schema}}.job_errors, timeout_ms {{schema}}.job_timeout, claims integer, attributes jsonb, priority smallint, key {{schema}}.job_key)
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_paused      boolean;
    v_prioritized boolean;
    v_limited     boolean;
    v_limits      {{schema}}.queue_limits%ROWTYPE;
    v_n           integer := claim.n;
    v_at          timestamptz := now();
    v_counted     boolean; -- NULL: they don't count
    v_rows        bigint;  -- in which ends are noted,
    v_ended       bigint;  -- and how many ends
    v_by_key      boolean;
    v_claimed     integer;
    v_since       timestamptz := coalesce(claim.since, '-infinity');
    v_since_id    uuid := coalesce(claim.since_id, '00000000-0000-0000-0000-000000000000');
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(hashtextextended('{{schema_name}}.' || claim.queue, 7041974)) THEN
        RETURN;
    END IF;
    SELECT coalesce(q.paused, a.paused), q.prioritized, q.limited INTO v_paused, v_prioritized, v_limited
    FROM {{schema}}.leases l CROSS JOIN {{schema}}.all_queues a LEFT JOIN {{schema}}.queues q ON q.name = claim.queue
    WHERE l.id = claim.lease AND l.expires_at > clock_timestamp() FOR KEY SHARE OF l;
    IF NOT FOUND OR v_paused THEN
        RETURN;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- An error if it was paused after the snapshot. While somebody changes it, nothing is claimed.
        PERFORM FROM {{schema}}.queues q WHERE q.name = claim.queue FOR SHARE SKIP LOCKED;
        IF NOT FOUND THEN
            PERFORM FROM {{schema}}.all_queues a WHERE NOT EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = claim.queue) FOR SHARE SKIP LOCKED;
        END IF;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF v_limited THEN
        -- Locked until the transaction ends: so one claim after another is made of
        -- such a queue. Each statement after this sees what was committed before it
        -- began, and so what the claims before have started.
        IF current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'a claim from queue %, which has limits, needs the isolation level READ COMMITTED: this is %',
                quote_literal(claim.queue), upper(current_setting('transaction_isolation')) USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        SELECT * INTO v_limits FROM {{schema}}.queue_limits l WHERE l.queue = claim.queue FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the limits of queue % are gone: expected a row of queue_limits, which Migrate makes', quote_literal(claim.queue)
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        v_at := clock_timestamp(); -- not now(), which may be older than that of the claim before
        IF coalesce(v_limits.max_running, v_limits.max_running_per_key) IS NOT NULL THEN
            v_counted := true;
            SELECT count(*), coalesce(sum(e.n), 0) INTO v_rows, v_ended FROM {{schema}}.ends e WHERE e.queue = claim.queue;
            IF v_rows > 20 THEN
                WITH ended AS (DELETE FROM {{schema}}.ends e WHERE e.queue = claim.queue RETURNING e.n)
                SELECT v_limits.running - coalesce(sum(e.n), 0), 0 INTO v_limits.running, v_ended FROM ended e;
            END IF;
        END IF;
        v_n := greatest(0, least(claim.n, v_limits.max_running - (v_limits.running - v_ended),
            CASE WHEN v_limits.rate IS NOT NULL THEN v_limits.rate - {{schema}}.started(claim.queue, '', v_at - v_limits.rate_per) END));
        v_by_key := v_prioritized OR coalesce(v_limits.max_running_per_key, v_limits.key_rate, v_limits.key_round) IS NOT NULL;
    END IF;
    IF v_by_key THEN
        RETURN QUERY
            SELECT c.id, c.name, c.payload, c.run_at, c.created_at, c.started_at,
                c.attempt, c.max_attempts, c.errors, c.timeout_ms, c.claims, c.attributes, c.priority, c.key
            FROM {{schema}}.claim_by_key(v_limits, claim.pending, claim.failed, claim.names, claim.lease, v_n, v_at, claim.overdue) AS c;
        GET DIAGNOSTICS v_claimed = ROW_COUNT;
    ELSIF v_prioritized THEN
        RETURN QUERY
            SELECT c.id, c.name, c.payload, c.run_at, c.created_at, c.started_at,
                c.attempt, c.max_attempts, c.errors, c.timeout_ms, c.claims, c.attributes, c.priority, c.key
            FROM {{schema}}.claim_by_priority(claim.queue, claim.pending, claim.failed, claim.names, claim.lease, claim.n, claim.overdue) AS c;
    ELSE
        RETURN QUERY
            WITH pending AS MATERIALIZED (
                SELECT j.ctid AS row, j.run_at, j.id FROM {{schema}}.jobs j
                WHERE j.queue = claim.queue AND j.lane = 0 AND j.status <> 'running' AND j.run_at <= now() AND j.name = ANY (claim.names)
                    AND (j.run_at, j.id) > (v_since, v_since_id) AND claim.pending
                ORDER BY j.run_at, j.id LIMIT v_n FOR UPDATE SKIP LOCKED
            ), failed AS MATERIALIZED (
                SELECT j.ctid AS row, j.run_at, j.id FROM {{schema}}.jobs j
                WHERE j.queue = claim.queue AND j.lane = 1 AND j.status <> 'running' AND j.run_at <= now() AND j.name = ANY (claim.names)
                    AND (j.run_at, j.id) > (v_since, v_since_id) AND claim.failed
                ORDER BY j.run_at, j.id LIMIT v_n FOR UPDATE SKIP LOCKED
            )
            UPDATE {{schema}}.jobs j
            SET status = 'running', lease_id = claim.lease, started_at = v_at, attempt = j.attempt + 1, claims = j.claims + 1,
                counted = v_counted
            WHERE j.ctid = ANY (ARRAY(
                SELECT due.row FROM (SELECT * FROM pending UNION ALL SELECT * FROM failed) AS due
                ORDER BY due.run_at, due.id LIMIT v_n))
            RETURNING j.id, j.name, j.payload, j.run_at, j.created_at, j.started_at,
                j.attempt, j.max_attempts, j.errors, j.timeout_ms, j.claims, j.attributes, j.priority, j.key;
        -- At once: an IF between is a query too, of one row, in a session in which it was cancelled when it was first come to.
        GET DIAGNOSTICS v_claimed = ROW_COUNT;
    END IF;
    IF v_limited THEN
        IF v_counted THEN
            UPDATE {{schema}}.queue_limits q SET running = v_limits.running + v_claimed
            WHERE q.queue = claim.queue AND q.running IS DISTINCT FROM v_limits.running + v_claimed;
        END IF;
        IF v_limits.rate IS NOT NULL AND NOT v_by_key THEN
            PERFORM {{schema}}.note_starts(claim.queue, '', v_limits.rate_per, v_at, v_claimed);
        END IF;
    END IF;
END
$$;

-- Moves jobs that have been running for a while out of the way of claims. One
-- that is locked is about to be finished, maybe in a transaction of its handler
-- that lasts (see complete).
CREATE FUNCTION {{schema}}.settle(lease uuid, ids uuid[]) RETURNS void
LANGUAGE sql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
    UPDATE {{schema}}.jobs j SET lane = 3 * j.priority + 2
    WHERE j.id = ANY (ARRAY(
        SELECT r.id FROM {{schema}}.jobs r
        WHERE r.id = ANY (settle.ids) AND r.status = 'running' AND r.lease_id = settle.lease AND r.lane < 3 * r.priority + 2
        ORDER BY r.id FOR NO KEY UPDATE SKIP LOCKED))
$$;

-- Records what came of attempts; the last four arrays may be NULL. Every write is
-- fenced on the claim that the attempt began with: a job that was rescued, or
-- claimed again, is left alone. A job that was called off while it ran ends
-- cancelled, unless it succeeded.
--
-- Returns the places of those left alone, but not of those that an earlier call
-- with the same values has recorded, whose answer was lost; and of those that
-- ended cancelled though they were to be something else.
--
-- A transaction that creates a job after one of these holds it for as long as it
-- lasts. It is not waited for long, so that the others can be recorded without it;
-- and for less than deadlock_timeout, so that it is this that gives way where the
-- two wait for each other, by a job that waits for one of these.
CREATE FUNCTION {{schema}}.finish(
    ids uuid[], claims integer[], statuses text[], results text[], failures text[], delays_us bigint[], refunds integer[]
) RETURNS TABLE (place bigint, cancelled boolean)
LANGUAGE plpgsql VOLATILE SET search_path = '' SET lock_timeout = '300ms' SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_recorded integer;
    v_awaited  uuid[]; -- what is finished and others run after
    v_called   uuid[]; -- and of what was called off
    v_counted  text[]; -- the queues of what counted in them
    v_others   text[];
BEGIN
    WITH recorded AS (
        UPDATE {{schema}}.jobs j
        SET status = f.status, lease_id = NULL, cancelling = NULL, result = f.result::jsonb,
            slot = CASE WHEN j.slot = -3 AND f.status IN ('pending', 'failed') THEN -1 ELSE 0 END, counted = CASE WHEN j.counted THEN false END,
            lane = CASE f.status WHEN 'pending' THEN 3 * j.priority WHEN 'failed' THEN 3 * j.priority + 1 END,
            attempt = j.attempt - coalesce(f.refund, 0),
            run_at = CASE WHEN f.delay_us IS NULL THEN j.run_at ELSE now() + f.delay_us * interval '1 microsecond' END,
            finished_at = CASE WHEN f.status IN ('succeeded', 'dead', 'cancelled') THEN now() END,
            errors = CASE WHEN f.failure IS NULL THEN j.errors ELSE {{schema}}.with_error(j.errors, j.attempt, f.failure) END
        FROM unnest(finish.ids, finish.claims, finish.statuses, finish.results, finish.failures, finish.delays_us, finish.refunds)
            AS f (id, claims, status, result, failure, delay_us, refund)
        WHERE j.id = f.id AND j.claims = f.claims AND j.status = 'running' AND (j.cancelling IS NULL OR f.status = 'succeeded')
        RETURNING CASE WHEN j.awaited AND j.finished_at IS NOT NULL THEN j.id END AS awaited, CASE WHEN NOT j.counted THEN j.queue END AS counted)
    SELECT count(*), array_agg(r.awaited) FILTER (WHERE r.awaited IS NOT NULL), array_agg(r.counted) FILTER (WHERE r.counted IS NOT NULL)
    INTO v_recorded, v_awaited, v_counted FROM recorded r;
    IF v_recorded < cardinality(finish.ids) THEN
        WITH recorded AS (
            UPDATE {{schema}}.jobs j
            SET status = 'cancelled', lease_id = NULL, cancelling = NULL, lane = NULL, slot = 0, counted = CASE WHEN j.counted THEN false END, finished_at = now(),
                errors = {{schema}}.with_error(j.errors, j.attempt, {{schema}}.cancelled_error(f.failure))
            FROM unnest(finish.ids, finish.claims, finish.statuses, finish.failures) AS f (id, claims, status, failure)
            WHERE j.id = f.id AND j.claims = f.claims AND j.status = 'running' AND j.cancelling AND f.status <> 'succeeded'
            RETURNING CASE WHEN j.awaited THEN j.id END AS awaited, CASE WHEN NOT j.counted THEN j.queue END AS counted)
        SELECT array_agg(r.awaited) FILTER (WHERE r.awaited IS NOT NULL), array_agg(r.counted) FILTER (WHERE r.counted IS NOT NULL)
        INTO v_called, v_others FROM recorded r;
        RETURN QUERY
            SELECT f.place, coalesce(j.status = 'cancelled' AND f.status <> 'succeeded', false)
            FROM unnest(finish.ids, finish.claims, finish.statuses) WITH ORDINALITY AS f (id, claims, status, place)
            LEFT JOIN {{schema}}.jobs j ON j.id = f.id AND j.claims = f.claims
            WHERE j.status IS DISTINCT FROM f.status
                -- What an earlier call has recorded may have been cancelled while it waited: then it has no error of that moment.
                AND NOT coalesce(j.status = 'cancelled' AND f.status <> 'succeeded'
                    AND (j.errors -> -1 ->> 'at')::timestamptz IS DISTINCT FROM j.finished_at, false);
    END IF;
    v_counted := v_counted || v_others;
    IF v_counted[1] = ALL (v_counted) THEN
        INSERT INTO {{schema}}.ends (queue, n) VALUES (v_counted[1], cardinality(v_counted));
    ELSIF v_counted IS NOT NULL THEN
        INSERT INTO {{schema}}.ends (queue, n) SELECT q.name, count(*) FROM unnest(v_counted) AS q (name) GROUP BY q.name;
    END IF;
    IF coalesce(v_awaited, v_called) IS NOT NULL THEN
        PERFORM {{schema}}.release_dependants(v_awaited || v_called);
    END IF;
    IF 'dead' = ANY (finish.statuses) THEN
        -- Those that an earlier call has recorded, whose answer was lost, died then.
        PERFORM {{schema}}.tell_dead(ARRAY(
            SELECT f.id FROM unnest(finish.ids, finish.claims, finish.statuses) AS f (id, claims, status)
            JOIN {{schema}}.jobs j ON j.id = f.id AND j.claims = f.claims
            WHERE f.status = 'dead' AND j.status = 'dead' AND j.finished_at = now()))
        WHERE EXISTS (SELECT FROM {{schema}}.queues q WHERE q.on_dead <> '');
    END IF;
END
$$;

-- errors with one more, of which the newest 20 are kept.
CREATE FUNCTION {{schema}}.with_error(errors jsonb, attempt integer, error text) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT CASE WHEN jsonb_array_length(errors) >= 20 THEN errors - 0 ELSE coalesce(errors, '[]') END
        || jsonb_build_object('attempt', attempt, 'at', now(), 'error', error)
$$;

-- Takes back what processes with a lost lease were running: each such attempt
-- has failed, its job is due again, or dead if it was the last one, or cancelled
-- if it was called off. Returns the jobs as they are then.
--
-- A lease that has run out can't be renewed, but a renewal or a claim that
-- began in time may still be on its way to commit. Both hold a lock on the
-- lease's row until then, so such a lease is skipped here; and whoever comes
-- after finds the row gone. Only with that lock held are the jobs read, in a
-- statement of its own, so that a claim which committed just before is seen.
--
-- With statistics, the planner would rather walk through all ids, which are in
-- order, than sort the few jobs that the index of what is live has: hence no
-- index scans, but bitmaps.
CREATE FUNCTION {{schema}}.rescue() RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_indexscan = off SET enable_bitmapscan = on AS $$
DECLARE
    v_lost uuid[];
    v_jobs uuid[];
BEGIN
    v_lost := ARRAY(
        SELECT l.id FROM {{schema}}.leases l WHERE l.expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED);
    IF cardinality(v_lost) = 0 THEN
        RETURN;
    END IF;
    v_jobs := ARRAY(
        SELECT r.id FROM {{schema}}.jobs r
        WHERE r.lane IS NOT NULL AND r.status = 'running' AND r.lease_id = ANY (v_lost)
        ORDER BY r.id::text FOR UPDATE SKIP LOCKED); -- the order of ids, in which no index could be walked through
    -- What runs after these is found by index scans, and the session keeps the plans
    -- for the other callers that those functions have.
    PERFORM set_config('enable_indexscan', 'on', true);
    v_jobs := {{schema}}.lock_dependants(v_jobs, ARRAY(
        SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_jobs) AND (j.cancelling OR j.attempt >= j.max_attempts)));
    RETURN QUERY
        UPDATE {{schema}}.jobs j
        SET status = CASE WHEN j.cancelling THEN 'cancelled' WHEN j.attempt < j.max_attempts THEN 'pending' ELSE 'dead' END,
            lane = CASE WHEN j.cancelling IS NULL AND j.attempt < j.max_attempts THEN 3 * j.priority END,
            finished_at = CASE WHEN j.cancelling IS NULL AND j.attempt < j.max_attempts THEN NULL ELSE now() END,
            slot = CASE WHEN j.slot = -3 AND j.cancelling IS NULL AND j.attempt < j.max_attempts THEN -1 ELSE 0 END, counted = CASE WHEN j.counted THEN false END,
            claims = j.claims + 1, -- or finish would take this for an end that the lost process has recorded
            lease_id = NULL, cancelling = NULL,
            errors = {{schema}}.with_error(j.errors, j.attempt, CASE WHEN j.cancelling THEN 'job cancelled: ' ELSE '' END
                || 'lease lost: the process that ran this attempt ended or could not renew its lease')
        WHERE j.id = ANY (v_jobs)
        RETURNING j.*;
    PERFORM {{schema}}.note_ends_of(v_jobs) WHERE EXISTS (SELECT FROM {{schema}}.queue_limits);
    PERFORM {{schema}}.release_dependants(ARRAY(
        SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_jobs) AND j.awaited AND j.finished_at IS NOT NULL));
    PERFORM {{schema}}.tell_dead(v_jobs) WHERE EXISTS (SELECT FROM {{schema}}.queues q WHERE q.on_dead <> '');
    PERFORM set_config('enable_indexscan', 'off', true);
    -- The lease of a job that is locked just now stays for the next time. So does each
    -- where all this sees what was committed before it began (REPEATABLE READ), so maybe
    -- not the last claim: a rescue that sees the mark has begun after that.
    DELETE FROM {{schema}}.leases l
    WHERE l.id = ANY (v_lost) AND (current_setting('transaction_isolation') = 'read committed' OR l.expires_at = 'epoch') AND NOT EXISTS (
        SELECT FROM {{schema}}.jobs j WHERE j.lane IS NOT NULL AND j.status = 'running' AND j.lease_id = l.id);
    UPDATE {{schema}}.leases l SET expires_at = 'epoch'
    WHERE l.id = ANY (v_lost) AND l.expires_at > 'epoch' AND current_setting('transaction_isolation') <> 'read committed';
END
$$;

-- Hands back what runs under a lease without its holder's knowing, who held
-- these ids at this time: a claim took it whose answer was lost. Returns the jobs
-- as they are then: those that were called off are cancelled. (This may be done
-- late, after its caller has given up and claimed others.)
CREATE FUNCTION {{schema}}.hand_back(lease uuid, held uuid[], at timestamptz) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
DECLARE
    v_jobs uuid[] := ARRAY(
        SELECT r.id FROM {{schema}}.jobs r
        WHERE r.lane IS NOT NULL AND r.status = 'running' AND r.lease_id = hand_back.lease AND NOT r.id = ANY (hand_back.held)
            AND (r.started_at < hand_back.at) IS NOT FALSE
        ORDER BY r.id::text FOR NO KEY UPDATE); -- as in rescue
BEGIN
    IF v_jobs = '{}' THEN
        RETURN;
    END IF;
    RETURN QUERY
        UPDATE {{schema}}.jobs j
        SET status = CASE WHEN j.cancelling THEN 'cancelled' ELSE 'pending' END,
            lane = CASE WHEN j.cancelling IS NULL THEN 3 * j.priority END,
            finished_at = CASE WHEN j.cancelling THEN now() END,
            slot = CASE WHEN j.slot = -3 AND j.cancelling IS NULL THEN -1 ELSE 0 END, counted = CASE WHEN j.counted THEN false END,
            lease_id = NULL, cancelling = NULL, attempt = CASE WHEN j.cancelling THEN j.attempt ELSE greatest(j.attempt - 1, 0) END,
            errors = CASE WHEN j.cancelling THEN {{schema}}.with_error(j.errors, j.attempt, 'job cancelled') ELSE j.errors END
        WHERE j.id = ANY (v_jobs)
        RETURNING j.*;
    PERFORM {{schema}}.note_ends_of(v_jobs) WHERE EXISTS (SELECT FROM {{schema}}.queue_limits);
    PERFORM {{schema}}.release_dependants(ARRAY(
        SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_jobs) AND j.awaited AND j.finished_at IS NOT NULL));
END
$$;

-- Deletes a lease at the end of its process. One that has jobs all the same, by
-- a claim whose answer was lost, has to run out, so that they are rescued.
CREATE FUNCTION {{schema}}.end_lease(lease uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
BEGIN
    -- Such a claim may still be under way: its jobs are seen by what begins after its commit.
    PERFORM FROM {{schema}}.leases l WHERE l.id = end_lease.lease FOR UPDATE;
    DELETE FROM {{schema}}.leases l
    WHERE l.id = end_lease.lease AND current_setting('transaction_isolation') = 'read committed' AND NOT EXISTS (
        SELECT FROM {{schema}}.jobs j WHERE j.lane IS NOT NULL AND j.status = 'running' AND j.lease_id = l.id);
END
$$;
