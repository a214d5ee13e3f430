-- How many jobs of queues with a rate have started when, and of which key.

-- upto counts on, so that two rows tell how many starts were between them.
CREATE TABLE {{schema}}.starts (
    queue      text        NOT NULL,
    key        text        COLLATE "C" NOT NULL, -- '': of the queue as a whole
    started_at timestamptz NOT NULL,
    n          integer     NOT NULL,
    upto       bigint      NOT NULL, -- the sum of n of all until this one

    CONSTRAINT starts_pkey PRIMARY KEY (queue, key, started_at)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- How many jobs have started since then.
CREATE FUNCTION {{schema}}.started(queue text, key text, since timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_before bigint := (
        SELECT s.upto - s.n FROM {{schema}}.starts s
        WHERE s.queue = started.queue AND s.key = started.key AND s.started_at > started.since ORDER BY s.started_at LIMIT 1);
BEGIN
    IF v_before IS NULL THEN
        RETURN 0;
    END IF;
    RETURN (SELECT s.upto FROM {{schema}}.starts s
        WHERE s.queue = started.queue AND s.key = started.key ORDER BY s.started_at DESC LIMIT 1) - v_before;
END
$$;

-- When a rate lets the next job start, if none may now: NULL if one may.
CREATE FUNCTION {{schema}}.opens_at(queue text, key text, rate integer, per interval) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_upto bigint := (
        SELECT s.upto FROM {{schema}}.starts s WHERE s.queue = opens_at.queue AND s.key = opens_at.key ORDER BY s.started_at DESC LIMIT 1);
BEGIN
    IF (opens_at.rate > {{schema}}.started(opens_at.queue, opens_at.key, now() - opens_at.per)) IS NOT FALSE THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT s.started_at + opens_at.per FROM {{schema}}.starts s
        WHERE s.queue = opens_at.queue AND s.key = opens_at.key AND s.started_at > now() - opens_at.per AND s.upto > v_upto - opens_at.rate
        ORDER BY s.started_at LIMIT 1);
END
$$;

-- Counts jobs of a queue ('') or of a key that a claim has just started, and
-- deletes what their rate does not ask for any more. A clock that was set back
-- must not bring starts out of their order.
CREATE FUNCTION {{schema}}.note_starts(queue text, key text, per interval, at timestamptz, n bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_last {{schema}}.starts%ROWTYPE;
BEGIN
    IF note_starts.n = 0 THEN
        RETURN;
    END IF;
    SELECT * INTO v_last FROM {{schema}}.starts s WHERE s.queue = note_starts.queue AND s.key = note_starts.key ORDER BY s.started_at DESC LIMIT 1;
    DELETE FROM {{schema}}.starts s
    WHERE s.queue = note_starts.queue AND s.key = note_starts.key AND s.started_at <= note_starts.at - note_starts.per;
    INSERT INTO {{schema}}.starts (queue, key, started_at, n, upto)
    VALUES (note_starts.queue, note_starts.key, greatest(note_starts.at, v_last.started_at + interval '1 microsecond'),
        note_starts.n, coalesce(v_last.upto, 0) + note_starts.n);
END
$$;

-- Deletes what no rate asks for any more, also of keys that have no jobs now.
CREATE FUNCTION {{schema}}.clean_up_starts() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    l {{schema}}.queue_limits%ROWTYPE;
BEGIN
    FOR l IN SELECT * FROM {{schema}}.queue_limits q WHERE coalesce(q.rate, q.key_rate) IS NOT NULL LOOP
        DELETE FROM {{schema}}.starts s WHERE s.queue = l.queue
            AND (s.started_at <= now() - CASE s.key WHEN '' THEN l.rate_per ELSE l.key_rate_per END) IS NOT FALSE;
    END LOOP;
    DELETE FROM {{schema}}.starts s WHERE NOT EXISTS (
        SELECT FROM {{schema}}.queue_limits q WHERE q.queue = s.queue AND coalesce(q.rate, q.key_rate) IS NOT NULL);
END
$$;
