-- Jobs and the queries that need more than one statement to be right.
-- {{schema}} is replaced by the quoted schema, {{schema_name}} by its plain name.
--
-- A job's path:  pending -> running -> succeeded | dead | cancelled
--                   ^         |
--                   |         +-> failed (backoff passes) -> running
--                   +-- snoozed, handed back at shutdown, or rescued from a lost lease

CREATE TABLE {{schema}}.jobs (
    id           uuid        CONSTRAINT jobs_pkey PRIMARY KEY,
    run_at       timestamptz NOT NULL DEFAULT now(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz,
    timeout_ms   bigint,                       -- NULL: what the queue says
    lease_id     uuid,                         -- the process that runs it; a row of leases
    claims       integer     NOT NULL DEFAULT 0, -- how often it was ever claimed; never goes back: the fence
    attempt      integer     NOT NULL DEFAULT 0, -- counted at claim; a snooze or a shutdown gives it back
    max_attempts integer     NOT NULL DEFAULT 10,
    queue        text        NOT NULL DEFAULT 'default',
    name         text        NOT NULL,
    status       text        NOT NULL DEFAULT 'pending',
    payload      jsonb       NOT NULL DEFAULT 'null',
    result       jsonb,
    errors       jsonb,                        -- [{attempt, at, error}], newest last, NULL when none

    CONSTRAINT jobs_status_known CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'dead', 'cancelled')),
    CONSTRAINT jobs_running_has_lease CHECK ((status = 'running') = (lease_id IS NOT NULL)),
    CONSTRAINT jobs_finished_has_time CHECK ((status IN ('succeeded', 'dead', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_attempt_in_range CHECK (attempt >= 0 AND attempt <= max_attempts AND max_attempts > 0 AND claims >= attempt),
    CONSTRAINT jobs_timeout_positive CHECK (timeout_ms > 0),
    CONSTRAINT jobs_queue_is_a_place CHECK (queue <> 'failed' AND queue <> ''),
    CONSTRAINT jobs_name_length CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT jobs_errors_is_array CHECK (jsonb_typeof(errors) = 'array')
) WITH (
    -- Every job dies twice as a row version (claim, finish); waiting for a
    -- fifth of a large table to be dead would let the live index bloat.
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05
);

-- Only what waits is in here, so finished rows cost a claim nothing.
CREATE INDEX jobs_due ON {{schema}}.jobs (queue, status, run_at, id) WHERE status IN ('pending', 'failed');
-- What runs, by who runs it: for the rescue of a process that is gone.
CREATE INDEX jobs_leased ON {{schema}}.jobs (lease_id) WHERE status = 'running';

-- One row for each process that holds or may claim jobs. Renewing it renews
-- everything the process runs in one write.
CREATE TABLE {{schema}}.leases (
    id         uuid        CONSTRAINT leases_pkey PRIMARY KEY,
    holder     text        NOT NULL,           -- host and process, for people
    expires_at timestamptz NOT NULL,
    listening  boolean     NOT NULL DEFAULT false -- a creation notifies only when somebody listens
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200);

CREATE TABLE {{schema}}.queues (
    name         text    CONSTRAINT queues_pkey PRIMARY KEY,
    base         text    NOT NULL DEFAULT 'default',
    skip_failed  boolean NOT NULL DEFAULT false,
    max_attempts integer NOT NULL DEFAULT 10,
    head         uuid,   -- blocking queues: the job that was started last and holds the queue until it is finished

    CONSTRAINT queues_base_known CHECK (base IN ('default', 'blocking')),
    CONSTRAINT queues_name_is_a_place CHECK (name <> 'failed'),
    CONSTRAINT queues_max_attempts_positive CHECK (max_attempts > 0)
);
INSERT INTO {{schema}}.queues (name, base) VALUES ('default', 'default'), ('blocking', 'blocking');

-- Where the clean-up stopped, so that rows it may not delete are not tried over and over.
CREATE TABLE {{schema}}.clean_up_state (
    only_row boolean CONSTRAINT clean_up_state_pkey PRIMARY KEY DEFAULT true CONSTRAINT clean_up_state_is_one_row CHECK (only_row),
    last_id  uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
INSERT INTO {{schema}}.clean_up_state DEFAULT VALUES;

-- The id of a job created in SQL: a UUIDv7 whose 12 bits after the version
-- are the fraction of the millisecond, so that ids made one after another sort
-- in that order.
CREATE FUNCTION {{schema}}.new_job_id() RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT encode(
        set_byte(set_byte(
            overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(us / 1000) FROM 3) FROM 1 FOR 6),
            6, 112 | ((us % 1000) * 4096 / 1000 / 256)::integer),
            7, ((us % 1000) * 4096 / 1000 % 256)::integer),
        'hex')::uuid
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS t
$$;

-- Creates a job as CreateJob does in Go, and returns its id.
CREATE FUNCTION {{schema}}.create_job(
    name text, run_at timestamptz DEFAULT now(), payload jsonb DEFAULT 'null', queue text DEFAULT 'default'
) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_id       uuid := {{schema}}.new_job_id();
    v_run_at   timestamptz := coalesce(create_job.run_at, now());
    v_queue    text := coalesce(nullif(create_job.queue, ''), 'default');
    v_attempts integer;
BEGIN
    IF create_job.name IS NULL OR create_job.name !~ '^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$' THEN
        RAISE EXCEPTION 'create_job: name %: expected 1 to 128 letters, digits or _ . : / -, beginning with a letter or digit',
            coalesce(quote_literal(left(create_job.name, 64)), 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_queue = 'failed' THEN
        RAISE EXCEPTION 'create_job: queue ''failed'' is a view of the failed jobs of ''default'', not a place: create the job in ''default'''
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT q.max_attempts INTO v_attempts FROM {{schema}}.queues q WHERE q.name = v_queue;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'create_job: queue %: nobody declared it; known are %', quote_literal(left(v_queue, 64)),
            (SELECT string_agg(q.name, ', ' ORDER BY q.name) FROM {{schema}}.queues q)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Declare it in Config.Queues and call Migrate.';
    END IF;
    IF NOT isfinite(v_run_at) OR v_run_at < '0001-01-01 00:00:00+00' OR v_run_at >= '10000-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'create_job: run_at %: expected a time from year 1 to 9999', v_run_at USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(coalesce(create_job.payload, 'null')::text) > 1048576 THEN
        RAISE EXCEPTION 'create_job: payload has % bytes: expected at most 1048576', octet_length(create_job.payload::text)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts)
    VALUES (v_id, create_job.name, v_queue, coalesce(create_job.payload, 'null'), v_run_at, v_attempts);
    PERFORM {{schema}}.notify_created(v_queue, v_run_at);
    RETURN v_id;
END
$$;

-- Tells resident processes at commit that a job is due now (in which queue) or
-- very soon (the empty string). A notification takes a lock that all committing
-- transactions share, so it is sent only when somebody listens.
CREATE FUNCTION {{schema}}.notify_created(queue text, run_at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    IF notify_created.run_at <= now() + interval '5 seconds'
        AND EXISTS (SELECT FROM {{schema}}.leases l WHERE l.listening AND l.expires_at > now())
    THEN
        PERFORM pg_catalog.pg_notify('{{schema_name}}_jobs',
            CASE WHEN notify_created.run_at <= now() THEN notify_created.queue ELSE '' END);
    END IF;
END
$$;

-- When the next job becomes due that a run with this filter would pick: NULL
-- if there is none, a time not after now() if there is one already. A running
-- job counts from the moment its lease runs out. names: only jobs of these
-- names; NULL: of any.
CREATE FUNCTION {{schema}}.next_due(queue text, status text DEFAULT 'any', names text[] DEFAULT NULL) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_queue   {{schema}}.queues%ROWTYPE;
    v_head    {{schema}}.jobs%ROWTYPE;
    v_pending timestamptz;
    v_failed  timestamptz;
    v_lost    timestamptz;
BEGIN
    SELECT * INTO v_queue FROM {{schema}}.queues q WHERE q.name = next_due.queue;
    IF v_queue.base = 'blocking' THEN
        v_head := {{schema}}.blocking_head(v_queue);
        IF v_head.id IS NULL OR NOT (next_due.names IS NULL OR v_head.name = ANY (next_due.names)) THEN
            RETURN NULL;
        END IF;
        IF v_head.status = 'running' THEN
            RETURN coalesce((SELECT l.expires_at FROM {{schema}}.leases l WHERE l.id = v_head.lease_id), now());
        END IF;
        RETURN v_head.run_at;
    END IF;

    IF next_due.status <> 'failed' THEN
        SELECT j.run_at INTO v_pending FROM {{schema}}.jobs j
        WHERE j.queue = next_due.queue AND j.status = 'pending'
            AND (next_due.names IS NULL OR j.name = ANY (next_due.names))
        ORDER BY j.run_at LIMIT 1;
    END IF;
    IF next_due.status <> 'pending' THEN
        SELECT j.run_at INTO v_failed FROM {{schema}}.jobs j
        WHERE j.queue = next_due.queue AND j.status = 'failed'
            AND (next_due.names IS NULL OR j.name = ANY (next_due.names))
        ORDER BY j.run_at LIMIT 1;
    END IF;
    -- A job that is taken back from a lost lease is pending then.
    IF next_due.status <> 'failed' THEN
        SELECT min(l.expires_at) INTO v_lost FROM {{schema}}.leases l
        WHERE l.expires_at <= now() AND EXISTS (
            SELECT FROM {{schema}}.jobs j
            WHERE j.status = 'running' AND j.lease_id = l.id AND j.queue = next_due.queue
                AND (next_due.names IS NULL OR j.name = ANY (next_due.names)));
    END IF;
    RETURN least(v_pending, v_failed, v_lost);
END
$$;

-- The job of a blocking queue that comes next, due or not: the one that holds
-- the queue (it was started and is not finished), else the first in order.
CREATE FUNCTION {{schema}}.blocking_head(q {{schema}}.queues) RETURNS {{schema}}.jobs
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_job {{schema}}.jobs%ROWTYPE;
BEGIN
    IF q.head IS NOT NULL THEN
        SELECT * INTO v_job FROM {{schema}}.jobs j
        WHERE j.id = q.head AND j.status IN ('pending', 'failed', 'running');
        IF FOUND AND NOT (q.skip_failed AND v_job.status = 'failed') THEN
            RETURN v_job;
        END IF;
    END IF;
    SELECT * INTO v_job FROM (
        (SELECT * FROM {{schema}}.jobs j WHERE j.queue = q.name AND j.status = 'pending' ORDER BY j.run_at, j.id LIMIT 1)
        UNION ALL
        (SELECT * FROM {{schema}}.jobs j WHERE j.queue = q.name AND j.status = 'failed' ORDER BY j.run_at, j.id LIMIT 1)
    ) AS firsts ORDER BY firsts.run_at, firsts.id LIMIT 1;
    RETURN v_job;
END
$$;

-- Claims the head of a blocking queue if it is due and nothing holds the queue.
--
-- Two runs that start in the same millisecond are kept apart by the queue's
-- row: both ask for its lock, one gets it, and the other waits here until the
-- first has committed. It is a function of several statements because each of
-- them then sees what was committed before it began: the second run reads the
-- head only after it holds the lock, so it sees the job that the first one
-- started. In one statement, both would look at the state before the lock, and
-- the second would take the next job beside the first. The lock lasts for this
-- short transaction; while the job runs, it is the job's own row (its status
-- and lease) that holds the queue, and that survives every crash.
CREATE FUNCTION {{schema}}.claim_blocking(queue text, skip_failed boolean, lease uuid, names text[]) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_queue {{schema}}.queues%ROWTYPE;
    v_job   {{schema}}.jobs%ROWTYPE;
BEGIN
    SELECT * INTO v_queue FROM {{schema}}.queues q WHERE q.name = claim_blocking.queue FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO {{schema}}.queues (name, base, skip_failed)
        VALUES (claim_blocking.queue, 'blocking', claim_blocking.skip_failed) ON CONFLICT DO NOTHING;
        SELECT * INTO v_queue FROM {{schema}}.queues q WHERE q.name = claim_blocking.queue FOR UPDATE;
    END IF;
    v_queue.skip_failed := claim_blocking.skip_failed;

    v_job := {{schema}}.blocking_head(v_queue);
    IF v_job.id IS NULL OR v_job.status = 'running' OR v_job.run_at > clock_timestamp()
        OR NOT v_job.name = ANY (claim_blocking.names)
    THEN
        RETURN;
    END IF;
    -- The lease is held against rescue until this commits, see rescue().
    PERFORM FROM {{schema}}.leases l WHERE l.id = claim_blocking.lease AND l.expires_at > clock_timestamp() FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE {{schema}}.jobs j
    SET status = 'running', lease_id = claim_blocking.lease, started_at = clock_timestamp(),
        attempt = j.attempt + 1, claims = j.claims + 1
    WHERE j.id = v_job.id AND j.claims = v_job.claims AND j.status IN ('pending', 'failed')
    RETURNING * INTO v_job;
    IF FOUND THEN
        UPDATE {{schema}}.queues q SET head = v_job.id WHERE q.name = claim_blocking.queue;
        RETURN NEXT v_job;
    END IF;
END
$$;

-- Takes back what processes with a lost lease were running: each such attempt
-- has failed, its job is due again, or dead if it was the last one. Returns
-- the jobs as they are then.
--
-- A lease that has run out can't be renewed, but a renewal or a claim that
-- began in time may still be on its way to commit. Both hold a lock on the
-- lease's row until then, so such a lease is skipped here; and whoever comes
-- after finds the row gone. Only with that lock held are the jobs read, in a
-- statement of its own, so that a claim which committed just before is seen.
CREATE FUNCTION {{schema}}.rescue() RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_lost uuid[];
BEGIN
    v_lost := ARRAY(
        SELECT l.id FROM {{schema}}.leases l WHERE l.expires_at <= now() FOR UPDATE SKIP LOCKED);
    IF cardinality(v_lost) = 0 THEN
        RETURN;
    END IF;
    RETURN QUERY
        UPDATE {{schema}}.jobs j
        SET status = CASE WHEN j.attempt < j.max_attempts THEN 'pending' ELSE 'dead' END,
            finished_at = CASE WHEN j.attempt < j.max_attempts THEN NULL ELSE now() END,
            lease_id = NULL,
            errors = {{schema}}.with_error(j.errors, j.attempt,
                'lease lost: the process that ran this attempt ended or could not renew its lease')
        WHERE j.id IN (
            SELECT r.id FROM {{schema}}.jobs r
            WHERE r.status = 'running' AND r.lease_id = ANY (v_lost)
            ORDER BY r.id FOR UPDATE)
        RETURNING j.*;
    DELETE FROM {{schema}}.leases l WHERE l.id = ANY (v_lost);
END
$$;

-- errors with one more, of which the newest 20 are kept.
CREATE FUNCTION {{schema}}.with_error(errors jsonb, attempt integer, error text) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT CASE WHEN jsonb_array_length(errors) >= 20 THEN errors - 0 ELSE coalesce(errors, '[]') END
        || jsonb_build_object('attempt', attempt, 'at', now(), 'error', error)
$$;
