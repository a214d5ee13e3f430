-- Until when the due jobs of a queue with limits have to wait.

-- next_due for a queue with limits, some of whose jobs are due: a time not after
-- now() if one can start, else one at which that may be different. Nobody knows
-- when running jobs end: they count until a lease runs out, maybe theirs.
CREATE FUNCTION {{schema}}.next_start(queue text, pending boolean, failed boolean, names text[]) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    l      {{schema}}.queue_limits%ROWTYPE;
    v_lost timestamptz;
BEGIN
    SELECT * INTO l FROM {{schema}}.queue_limits q WHERE q.queue = next_start.queue;
    IF {{schema}}.running_in(l) > 0 THEN
        SELECT min(e.expires_at) INTO v_lost FROM {{schema}}.leases e WHERE e.expires_at > now(); -- next_due looks at the others
    END IF;
    IF least(l.max_running - {{schema}}.running_in(l), l.rate - {{schema}}.started(l.queue, '', now() - l.rate_per)) <= 0 THEN
        RETURN coalesce({{schema}}.opens_at(l.queue, '', l.rate, l.rate_per), v_lost);
    END IF;
    IF {{schema}}.can_start(l, next_start.pending, next_start.failed, next_start.names) THEN
        RETURN now();
    END IF;
    RETURN least(v_lost,
        (SELECT min(s.started_at) + l.key_rate_per FROM {{schema}}.starts s
        WHERE l.key_rate IS NOT NULL AND s.queue = l.queue AND s.key <> '' AND s.started_at > now() - l.key_rate_per),
        (SELECT min(w.run_at) FROM unnest({{schema}}.priorities_of(l.queue)) AS p (priority), generate_series(0, 1) AS i (lane), LATERAL (
            SELECT j.run_at FROM {{schema}}.jobs j
            WHERE j.queue = l.queue AND j.lane = 3 * p.priority + i.lane AND j.run_at > now() ORDER BY j.run_at LIMIT 1) AS w));
END
$$;

-- Whether a claim would find a job that the limits of keys let start.
CREATE FUNCTION {{schema}}.can_start(l {{schema}}.queue_limits, pending boolean, failed boolean, names text[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    c_look CONSTANT integer := 100;
    v_priorities integer[] := {{schema}}.priorities_of(l.queue);
    v_keys  text[];
    v_after text;
    v_over  boolean;
BEGIN
    v_keys := ARRAY(SELECT d.key FROM {{schema}}.first_due(
        l.queue, can_start.pending, can_start.failed, can_start.names, c_look, now(), NULL, v_priorities, '{}') AS d);
    IF coalesce(l.max_running_per_key, l.key_rate) IS NULL OR array_position(v_keys, NULL) IS NOT NULL THEN
        RETURN v_keys <> '{}';
    END IF;
    v_over := cardinality(v_keys) < c_look; -- none else is due
    v_keys := ARRAY(SELECT DISTINCT k.key FROM unnest(v_keys) AS k (key));
    LOOP
        IF EXISTS (SELECT FROM {{schema}}.due_of_keys(l, v_keys, 1, 1, can_start.pending, can_start.failed, can_start.names, 1, now(), NULL, v_priorities, '{}')) THEN
            RETURN true;
        END IF;
        EXIT WHEN v_over;
        SELECT r.keys, r.after, r.is_over INTO v_keys, v_after, v_over FROM {{schema}}.go_round(l.queue, NULL, 200, '', v_after, true) AS r;
    END LOOP;
    RETURN false;
END
$$;

-- Until when a queue's rates let no job start: those of the queue, or of the
-- keys of which jobs are due and which are limited; of these, the first to go on.
-- NULL: not limited.
CREATE FUNCTION {{schema}}.rate_limited_until(queue text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    l {{schema}}.queue_limits%ROWTYPE;
BEGIN
    SELECT * INTO l FROM {{schema}}.queue_limits q WHERE q.queue = rate_limited_until.queue;
    RETURN coalesce({{schema}}.opens_at(l.queue, '', l.rate, l.rate_per), (
        SELECT min({{schema}}.opens_at(l.queue, k.key, l.key_rate, l.key_rate_per))
        FROM (SELECT DISTINCT s.key FROM {{schema}}.starts s
            WHERE l.key_rate IS NOT NULL AND s.queue = l.queue AND s.key <> '' AND s.started_at > now() - l.key_rate_per) AS k
        WHERE EXISTS (
            SELECT FROM unnest({{schema}}.priorities_of(l.queue)) AS p (priority), generate_series(0, 1) AS i (lane),
                generate_series(-1, 0) AS t (slot), LATERAL (
                SELECT j.status FROM {{schema}}.jobs j WHERE j.queue = l.queue AND j.key = k.key AND j.slot = t.slot AND j.lane = 3 * p.priority + i.lane
                    AND j.run_at <= now() AND j.status <> 'running' LIMIT 1) AS w)));
END
$$;
