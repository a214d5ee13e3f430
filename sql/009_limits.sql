-- Queues with limits: how many of their jobs run at once and how many start in a
-- time, altogether and of each key, and whose turn it is.
--
-- A job that takes up the limits of its key says so in its own row, in slot, which
-- every write that ends its attempt clears: so it is freed exactly once, and a job
-- whose process is gone counts until it is rescued. -2 and -3 count while it runs.
-- Where one job of a key runs at once, it is -3, and becomes -1 when the job has
-- failed or was put off: it keeps its key, so that the others come after it. (They
-- are below 0 for such a job to be the first of its key in the index.) How many run
-- in the queue is in 009_ends.sql.

-- The first due jobs of a queue that a claim could start if there were no limits,
-- in the order of claim_by_priority. Those passed over are left out.
CREATE FUNCTION {{schema}}.first_due(
    queue text, pending boolean, failed boolean, names text[], n bigint, at timestamptz, overdue interval, priorities integer[], passed uuid[]
) RETURNS TABLE (id uuid, key text, run_at timestamptz, version tid)
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT d.id, d.key::text, d.run_at::timestamptz, d.version
        FROM unnest(first_due.priorities) AS p (priority),
            (VALUES (0, first_due.pending), (1, first_due.failed)) AS k (lane, wanted),
            LATERAL (
                SELECT j.id, j.ctid AS version, j.key, j.run_at, j.run_at < first_due.at - first_due.overdue AS overdue FROM {{schema}}.jobs j
                WHERE j.queue = first_due.queue AND j.lane = 3 * p.priority + k.lane AND j.status <> 'running' AND j.run_at <= first_due.at
                    AND (first_due.names IS NULL OR j.name = ANY (first_due.names)) AND j.id <> ALL (first_due.passed)
                ORDER BY j.run_at, j.id LIMIT first_due.n) AS d
        WHERE k.wanted
        ORDER BY d.overdue DESC NULLS LAST, CASE WHEN d.overdue THEN 0 ELSE p.priority END, d.run_at, d.id LIMIT first_due.n;
END
$$;

-- Up to n of the due jobs of these keys that may start as far as the limits of
-- keys go, in the order of the keys: up to first of the first one, and most of
-- each other. '' is no key: its jobs are not limited, whatever the others are.
CREATE FUNCTION {{schema}}.due_of_keys(
    l {{schema}}.queue_limits, keys text[], first bigint, most bigint, pending boolean, failed boolean, names text[], n bigint,
    at timestamptz, overdue interval, priorities integer[], passed uuid[]
) RETURNS TABLE (id uuid, key text, run_at timestamptz, version tid)
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_place integer := coalesce(array_position(keys, ''), cardinality(keys) + 1);
    v_found bigint;
BEGIN
    IF l.max_running_per_key IS DISTINCT FROM 1 OR l.skip_failed THEN
        RETURN QUERY SELECT * FROM {{schema}}.some_of_keys(l, keys, first, most, pending, failed, names, n, at, overdue, priorities, passed);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM {{schema}}.first_of_keys(l, keys[:v_place - 1], names, n, at, priorities, passed);
    GET DIAGNOSTICS v_found = ROW_COUNT;
    IF v_place > cardinality(keys) THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM {{schema}}.some_of_keys(l, '{""}', CASE v_place WHEN 1 THEN first ELSE most END, 0,
        pending, failed, names, n - v_found, at, overdue, priorities, passed);
    GET DIAGNOSTICS v_place = ROW_COUNT;
    RETURN QUERY SELECT * FROM {{schema}}.first_of_keys(l, keys[array_position(keys, '') + 1:], names, n - v_found - v_place, at, priorities, passed);
END
$$;

-- The part of due_of_keys for queues in which one job of a key runs at once: that
-- is the one which keeps the key, or the first in order, whatever its status or
-- name is. If it can't start now, none of the key can.
CREATE FUNCTION {{schema}}.first_of_keys(
    l {{schema}}.queue_limits, keys text[], names text[], n bigint, at timestamptz, priorities integer[], passed uuid[]
) RETURNS TABLE (id uuid, key text, run_at timestamptz, version tid)
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    -- Those that are not empty: mostly one.
    v_lanes integer[] := ARRAY(
        SELECT w.lane FROM unnest(first_of_keys.priorities) AS p (priority), generate_series(0, 1) AS i (lane), LATERAL (
            SELECT j.lane FROM {{schema}}.jobs j WHERE j.queue = l.queue AND j.lane = 3 * p.priority + i.lane LIMIT 1) AS w ORDER BY w.lane);
BEGIN
    RETURN QUERY
        SELECT f.id, k.key, f.run_at::timestamptz, f.version
        FROM unnest(first_of_keys.keys) AS k (key), LATERAL (
            SELECT * FROM (
                -- The one that keeps the key, or the first of its first lane,
                (SELECT j.id, j.ctid AS version, j.run_at, j.status, j.name, j.slot, j.lane FROM {{schema}}.jobs j
                WHERE j.queue = l.queue AND j.key = k.key AND j.lane IS NOT NULL ORDER BY j.slot, j.lane, j.run_at, j.id LIMIT 1)
                UNION ALL -- and those of the others
                SELECT w.* FROM unnest(v_lanes[2:]) AS i (lane), LATERAL (
                    SELECT j.id, j.ctid AS version, j.run_at, j.status, j.name, j.slot, j.lane FROM {{schema}}.jobs j
                    WHERE j.queue = l.queue AND j.key = k.key AND j.slot = 0 AND j.lane = i.lane ORDER BY j.run_at, j.id LIMIT 1) AS w
            ) AS a ORDER BY a.slot, a.run_at, a.id LIMIT 1
        ) AS f
        WHERE f.status <> 'running' AND f.lane <> 303 AND f.run_at <= first_of_keys.at
            AND (first_of_keys.names IS NULL OR f.name = ANY (first_of_keys.names)) AND f.id <> ALL (first_of_keys.passed)
            AND (l.key_rate IS NULL OR l.key_rate > {{schema}}.started(l.queue, k.key, first_of_keys.at - l.key_rate_per))
        LIMIT first_of_keys.n;
END
$$;

-- The part of due_of_keys for all others.
CREATE FUNCTION {{schema}}.some_of_keys(
    l {{schema}}.queue_limits, keys text[], first bigint, most bigint, pending boolean, failed boolean, names text[], n bigint,
    at timestamptz, overdue interval, priorities integer[], passed uuid[]
) RETURNS TABLE (id uuid, key text, run_at timestamptz, version tid)
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT s.id, k.key, s.run_at::timestamptz, s.version
        FROM unnest(some_of_keys.keys) WITH ORDINALITY AS k (key, place), LATERAL (
            SELECT greatest(0, least(CASE WHEN k.place = 1 THEN some_of_keys.first ELSE some_of_keys.most END,
                CASE WHEN k.key <> '' AND l.max_running_per_key IS NOT NULL THEN l.max_running_per_key - (
                    SELECT count(*) FROM {{schema}}.jobs r WHERE r.queue = l.queue AND r.key = k.key AND r.slot <= -2 AND r.lane IS NOT NULL) END,
                CASE WHEN k.key <> '' AND l.key_rate IS NOT NULL THEN
                    l.key_rate - {{schema}}.started(l.queue, k.key, some_of_keys.at - l.key_rate_per) END)) AS room
        ) AS a, LATERAL (
            SELECT d.* FROM unnest(some_of_keys.priorities) AS p (priority),
                (VALUES (0, some_of_keys.pending), (1, some_of_keys.failed)) AS i (lane, wanted),
                unnest('{0,-1}'::smallint[]) AS o (slot), -- -1: it has kept its key under limits that there were before
                LATERAL (
                    SELECT j.id, j.ctid AS version, j.run_at, j.run_at < some_of_keys.at - some_of_keys.overdue AS overdue, p.priority FROM {{schema}}.jobs j
                    WHERE j.queue = l.queue AND j.key = k.key AND j.slot = o.slot AND j.lane = 3 * p.priority + i.lane AND j.status <> 'running'
                        AND j.run_at <= some_of_keys.at AND (some_of_keys.names IS NULL OR j.name = ANY (some_of_keys.names)) AND j.id <> ALL (some_of_keys.passed)
                    ORDER BY j.run_at, j.id LIMIT a.room) AS d
            WHERE i.wanted
            ORDER BY d.overdue DESC NULLS LAST, CASE WHEN d.overdue THEN 0 ELSE d.priority END, d.run_at, d.id LIMIT a.room
        ) AS s LIMIT some_of_keys.n;
END
$$;

-- The next n keys of live jobs of a queue, in their order. Each costs one look
-- into the index, however many jobs have it.
CREATE FUNCTION {{schema}}.next_keys(queue text, after text, n bigint) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN ARRAY(
        WITH RECURSIVE k (key, place) AS (
            (SELECT j.key::text COLLATE "C", 1 FROM {{schema}}.jobs j
            WHERE j.queue = next_keys.queue AND j.key > next_keys.after AND j.lane IS NOT NULL ORDER BY j.key LIMIT 1)
            UNION ALL
            SELECT (SELECT j.key::text COLLATE "C" FROM {{schema}}.jobs j
                WHERE j.queue = next_keys.queue AND j.key > k.key AND j.lane IS NOT NULL ORDER BY j.key LIMIT 1), k.place + 1
            FROM k WHERE k.key IS NOT NULL AND k.place < next_keys.n)
        SELECT k.key FROM k WHERE k.key IS NOT NULL ORDER BY k.place);
END
$$;

-- The part of claim for a queue with limits whose jobs have keys or priorities.
CREATE FUNCTION {{schema}}.claim_by_key(
    l {{schema}}.queue_limits, pending boolean, failed boolean, names text[], lease uuid, n integer, at timestamptz, overdue interval
) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_keyed      boolean := coalesce(l.max_running_per_key, l.key_rate, l.key_round) IS NOT NULL;
    v_priorities integer[] := {{schema}}.priorities_of(l.queue);
    v_left       bigint := claim_by_key.n;
    v_look       bigint;
    v_claimed    bigint;
    v_ids        uuid[];
    v_run_ats    timestamptz[];
    v_versions   tid[];
    v_keys       text[];
    v_passed     uuid[] := '{}'; -- locked by somebody, so about to be changed
BEGIN
    WHILE v_left > 0 LOOP
        v_look := CASE WHEN v_keyed THEN v_left + v_left / 2 + 100 ELSE v_left END;
        SELECT array_agg(d.id), array_agg(d.run_at), array_agg(d.version), array_agg(d.key) INTO v_ids, v_run_ats, v_versions, v_keys
        FROM {{schema}}.first_due(l.queue, claim_by_key.pending, claim_by_key.failed, claim_by_key.names, v_look, claim_by_key.at,
            claim_by_key.overdue, v_priorities, v_passed) AS d;
        IF v_ids IS NULL THEN
            RETURN;
        END IF;
        IF v_keyed THEN
            v_look := v_look - cardinality(v_ids);
            v_keys := {{schema}}.keys_in_order(v_ids, v_keys);
            EXIT WHEN l.key_round IS NOT NULL;
            SELECT array_agg(d.id), array_agg(d.run_at), array_agg(d.version) INTO v_ids, v_run_ats, v_versions
            FROM {{schema}}.due_of_keys(l, v_keys, v_left, v_left, claim_by_key.pending, claim_by_key.failed, claim_by_key.names,
                v_left, claim_by_key.at, claim_by_key.overdue, v_priorities, v_passed) AS d;
        END IF;
        RETURN QUERY SELECT * FROM {{schema}}.claim_these(l, v_ids, v_run_ats, v_versions, claim_by_key.lease, claim_by_key.at);
        GET DIAGNOSTICS v_claimed = ROW_COUNT;
        v_left := v_left - v_claimed;
        EXIT WHEN v_claimed = coalesce(cardinality(v_ids), 0);
        v_passed := v_passed || v_ids;
    END LOOP;
    -- What was not looked at may have others that can start.
    IF v_keyed AND v_left > 0 AND (l.key_round IS NOT NULL OR v_look = 0) THEN
        RETURN QUERY SELECT * FROM {{schema}}.claim_in_turn(l, CASE WHEN v_look > 0 THEN v_keys END, claim_by_key.pending, claim_by_key.failed,
            claim_by_key.names, claim_by_key.lease, v_left, claim_by_key.at, claim_by_key.overdue, v_priorities);
    END IF;
END
$$;

-- The keys of jobs, each once, in their order. Jobs that were created without
-- one, by somebody who did not know of the limits, get the key that is none: so
-- they are found among those with keys from then on.
CREATE FUNCTION {{schema}}.keys_in_order(ids uuid[], keys text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF array_position(keys_in_order.keys, NULL) IS NOT NULL THEN
        UPDATE {{schema}}.jobs j SET key = '' WHERE j.id = ANY (ARRAY(
            SELECT r.id FROM {{schema}}.jobs r WHERE r.id = ANY (keys_in_order.ids) AND r.key IS NULL ORDER BY r.id FOR NO KEY UPDATE SKIP LOCKED));
    END IF;
    RETURN ARRAY(
        SELECT coalesce(k.key, '') FROM unnest(keys_in_order.keys) WITH ORDINALITY AS k (key, place)
        GROUP BY coalesce(k.key, '') ORDER BY min(k.place));
END
$$;

-- Starts those of these jobs, known by the versions of their rows, that nobody has
-- locked or changed meanwhile: those are left to the next claim. (Nor has anything else come into their place: the
-- statement that this is part of sees the old versions still.)
CREATE FUNCTION {{schema}}.claim_these(
    l {{schema}}.queue_limits, ids uuid[], run_ats timestamptz[], versions tid[], lease uuid, at timestamptz) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
        WITH due AS MATERIALIZED (
            SELECT j.ctid AS row FROM unnest(claim_these.ids, claim_these.run_ats, claim_these.versions) AS d (id, run_at, version)
            JOIN {{schema}}.jobs j ON j.ctid = d.version AND j.id = d.id AND j.run_at = d.run_at
            WHERE j.status IN ('pending', 'failed') FOR UPDATE OF j SKIP LOCKED
        )
        UPDATE {{schema}}.jobs j
        SET status = 'running', lease_id = claim_these.lease, started_at = claim_these.at, attempt = j.attempt + 1, claims = j.claims + 1,
            slot = CASE WHEN l.max_running_per_key IS NULL OR j.key = '' THEN 0 WHEN l.max_running_per_key = 1 AND NOT l.skip_failed THEN -3 ELSE -2 END,
            counted = CASE WHEN coalesce(l.max_running, l.max_running_per_key) IS NOT NULL THEN true END
        WHERE j.ctid = ANY (ARRAY(SELECT d.row FROM due AS d))
        RETURNING j.*;
    IF coalesce(l.rate, l.key_rate) IS NOT NULL THEN
        PERFORM {{schema}}.note_starts(l.queue, s.key, s.per, claim_these.at, s.n) FROM (
            SELECT k.key, k.per, count(*) AS n
            FROM {{schema}}.jobs j, LATERAL (VALUES ('', l.rate_per), (nullif(j.key, ''), l.key_rate_per)) AS k (key, per)
            WHERE j.id = ANY (claim_these.ids) AND j.status = 'running' AND j.lease_id = claim_these.lease AND j.started_at = claim_these.at
                AND k.key IS NOT NULL AND k.per IS NOT NULL
            GROUP BY k.key, k.per) AS s;
    END IF;
END
$$;

-- Starts up to n due jobs, key by key, from the one on whose turn it is: of these
-- keys, or (NULL) of all that live jobs have. With rounds, none has more than its
-- share before each has had it; what is left of n after a round is shared out
-- anew, so that few of them are needed.
CREATE FUNCTION {{schema}}.claim_in_turn(
    l {{schema}}.queue_limits, keys text[], pending boolean, failed boolean, names text[], lease uuid, n bigint,
    at timestamptz, overdue interval, priorities integer[]) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_turn    bigint := coalesce(l.key_round, claim_in_turn.n); -- jobs of a key in this round
    v_rest    bigint := greatest(l.key_round - l.last_taken, 0); -- those of the last key, whose turn is not over
    v_left    bigint := claim_in_turn.n;
    v_last    text := l.last_key;
    v_taken   bigint := 0;
    v_start   text;    -- after which key the round has begun, or with which
    v_after   text;    -- how far it has come
    v_chunk   text[];
    v_is_over boolean;
    v_ids     uuid[];
    v_run_ats timestamptz[];
    v_versions tid[];
    v_served  text[];
    v_keys    bigint; -- that had jobs in this round
    v_claimed bigint;
BEGIN
    LOOP
        v_keys := 0;
        v_start := v_last;
        v_after := NULL;
        v_is_over := false;
        WHILE v_left > 0 AND NOT v_is_over LOOP
            SELECT r.keys, r.after, r.is_over INTO v_chunk, v_after, v_is_over
            FROM {{schema}}.go_round(l.queue, claim_in_turn.keys, 2 * v_left + 10, v_start, v_after, v_rest > 0) AS r;
            SELECT array_agg(d.id), array_agg(d.run_at), array_agg(d.version), array_agg(d.key), count(DISTINCT d.key)
            INTO v_ids, v_run_ats, v_versions, v_served, v_claimed
            FROM {{schema}}.due_of_keys(l, v_chunk, coalesce(nullif(v_rest, 0), v_turn), v_turn, claim_in_turn.pending, claim_in_turn.failed,
                claim_in_turn.names, v_left, claim_in_turn.at, claim_in_turn.overdue, claim_in_turn.priorities, '{}') AS d;
            IF v_ids IS NOT NULL THEN
                v_keys := v_keys + v_claimed;
                v_taken := CASE WHEN v_rest > 0 AND v_served[cardinality(v_served)] = v_last THEN l.last_taken ELSE 0 END
                    + cardinality(array_positions(v_served, v_served[cardinality(v_served)]));
                v_last := v_served[cardinality(v_served)];
                RETURN QUERY SELECT * FROM {{schema}}.claim_these(l, v_ids, v_run_ats, v_versions, claim_in_turn.lease, claim_in_turn.at);
                GET DIAGNOSTICS v_claimed = ROW_COUNT;
                v_left := v_left - v_claimed;
            END IF;
            v_rest := 0;
        END LOOP;
        EXIT WHEN v_left = 0 OR v_keys = 0 OR l.key_round IS NULL;
        v_turn := l.key_round * greatest(v_left / (v_keys * l.key_round), 1);
    END LOOP;
    UPDATE {{schema}}.queue_limits q SET last_key = v_last, last_taken = coalesce(CASE WHEN v_left = 0 THEN least(v_taken, l.key_round) ELSE l.key_round END, 0)
    WHERE q.queue = l.queue AND v_left < claim_in_turn.n;
END
$$;

-- The next keys of a round that begins after the key start, or with it if its
-- turn is not over, and how far it has come with them. NULL for keys: those of
-- all live jobs, some at a time. The key that is none is the first of all.
CREATE FUNCTION {{schema}}.go_round(
    queue text, all_keys text[], batch bigint, start text, INOUT after text, with_start boolean, OUT keys text[], OUT is_over boolean)
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_first text[] := CASE WHEN with_start THEN ARRAY[start] ELSE '{}' END;
    v_n     bigint;
BEGIN
    IF all_keys IS NOT NULL THEN
        keys := v_first || ARRAY(
            SELECT k.key FROM unnest(all_keys) AS k (key) WHERE NOT (with_start AND k.key = start)
            ORDER BY k.key COLLATE "C" > start DESC, k.key COLLATE "C");
        is_over := true;
        RETURN;
    END IF;
    -- after begins with a letter that tells whether the round has come past the last key.
    keys := {{schema}}.next_keys(queue, coalesce(substr(after, 2), start), batch);
    v_n := cardinality(keys);
    IF left(after, 1) = 'b' THEN
        keys := ARRAY(SELECT k.key FROM unnest(keys) WITH ORDINALITY AS k (key, place) WHERE k.key COLLATE "C" <= start ORDER BY k.place);
        is_over := cardinality(keys) < batch;
        after := 'b' || keys[batch];
    ELSIF v_n < batch THEN
        keys := v_first || keys || CASE WHEN NOT (with_start AND start = '') THEN ARRAY[''] END;
        is_over := start = '';
        after := 'b';
    ELSE
        after := 'a' || keys[batch];
        keys := v_first || keys;
        is_over := false;
    END IF;
END
$$;

-- The priorities that claims have to look for in a queue.
CREATE FUNCTION {{schema}}.priorities_of(queue text) RETURNS integer[]
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    RETURN CASE WHEN EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = priorities_of.queue AND q.prioritized)
        THEN {{schema}}.priorities(priorities_of.queue) ELSE '{0}' END;
END
$$;

-- The key that a job of such a queue gets, created with this one or none. Where
-- the jobs of a key are run strictly in order, it has no priority.
CREATE FUNCTION {{schema}}.key_in(queue text, key text, priority integer) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    l {{schema}}.queue_limits%ROWTYPE;
BEGIN
    SELECT * INTO l FROM {{schema}}.queue_limits q WHERE q.queue = key_in.queue;
    IF key_in.priority <> 0 AND key_in.key IS NOT NULL AND l.max_running_per_key = 1 AND NOT l.skip_failed THEN
        RAISE EXCEPTION 'create_job: priority %: queue % runs the jobs of a key strictly in order: expected 0', key_in.priority, quote_literal(key_in.queue)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN CASE WHEN coalesce(l.max_running_per_key, l.key_rate, l.key_round) IS NOT NULL THEN coalesce(key_in.key, '') ELSE key_in.key END;
END
$$;
