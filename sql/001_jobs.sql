-- The tables of jobs, leases and queues, and the creation of a job in SQL.
-- {{schema}} is replaced by the quoted schema, {{schema_name}} by its plain name.
--
-- A job's path:  pending -> running -> succeeded | dead | cancelled
--                   ^         |
--                   |         +-> failed (backoff passes) -> running
--                   +-- snoozed, handed back at shutdown, or rescued from a lost lease
--
-- A pending job may wait for others first, see 010_after.sql.
--
-- 006_control.sql has what people do to a job (cancel, retry, reschedule, delete),
-- 008_control_many.sql to many.

-- What one column may hold is a domain's matter: every statement reads and compiles
-- the constraints of a table anew, which took a third of the time of a creation,
-- and those of a domain once a session. So the table has one, which is short. It
-- keeps jobs from being lost when somebody changes a status by hand; of those that
-- are not finished, claims ask only whether they are running.
CREATE DOMAIN {{schema}}.job_time AS timestamptz CONSTRAINT job_time_is_finite CHECK (isfinite(VALUE));
CREATE DOMAIN {{schema}}.job_timeout AS bigint CONSTRAINT job_timeout_positive CHECK (VALUE > 0);
CREATE DOMAIN {{schema}}.job_attempt AS smallint CONSTRAINT job_attempt_not_negative CHECK (VALUE >= 0);
CREATE DOMAIN {{schema}}.job_attempts AS smallint CONSTRAINT job_attempts_positive CHECK (VALUE > 0);
CREATE DOMAIN {{schema}}.job_lane AS smallint CONSTRAINT job_lane_known CHECK (VALUE BETWEEN -300 AND 303);
CREATE DOMAIN {{schema}}.job_queue AS text CONSTRAINT job_queue_is_a_place CHECK (VALUE <> 'failed' AND VALUE <> '');
CREATE DOMAIN {{schema}}.job_name AS text CONSTRAINT job_name_length CHECK (length(VALUE) BETWEEN 1 AND 128);
CREATE DOMAIN {{schema}}.job_status AS text
    CONSTRAINT job_status_known CHECK (VALUE IN ('pending', 'running', 'succeeded', 'failed', 'dead', 'cancelled'));
CREATE DOMAIN {{schema}}.job_key AS text COLLATE "C" CONSTRAINT job_key_length CHECK (octet_length(VALUE) <= 256);
CREATE DOMAIN {{schema}}.limit_count AS integer CONSTRAINT limit_count_positive CHECK (VALUE > 0);
CREATE DOMAIN {{schema}}.limit_time AS interval CONSTRAINT limit_time_positive CHECK (VALUE > '0');
CREATE DOMAIN {{schema}}.job_errors AS jsonb CONSTRAINT job_errors_is_array CHECK (jsonb_typeof(VALUE) = 'array');

CREATE TABLE {{schema}}.jobs (
    id           uuid                    CONSTRAINT jobs_pkey PRIMARY KEY WITH (deduplicate_items = off),
    run_at       {{schema}}.job_time     NOT NULL DEFAULT now(),
    created_at   {{schema}}.job_time     NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz,
    timeout_ms   {{schema}}.job_timeout,                     -- NULL: what the queue says
    lease_id     uuid,                                       -- the process that runs it; a row of leases
    claims       integer                 NOT NULL DEFAULT 0, -- how often it was ever claimed and rescued; never goes back: the fence
    attempt      {{schema}}.job_attempt  NOT NULL DEFAULT 0, -- counted at claim; a snooze or a shutdown gives it back
    max_attempts {{schema}}.job_attempts NOT NULL DEFAULT 10,
    lane         {{schema}}.job_lane     DEFAULT 0,          -- its place in the index of what is live, see jobs_live
    cancelling   boolean,                                    -- of a running job: true if it was called off; NULL for all others
    waits_for    integer,                                    -- how many jobs have to finish before it; NULL: it was created after none
    awaited      boolean,                                    -- true if a job was created that is to run after it; NULL for all others
    priority     smallint                NOT NULL DEFAULT 0, -- lower goes first; -100 to 100, as far as lanes go
    queue        {{schema}}.job_queue    NOT NULL DEFAULT 'default',
    name         {{schema}}.job_name     NOT NULL,
    status       {{schema}}.job_status   NOT NULL DEFAULT 'pending',
    payload      jsonb                   NOT NULL DEFAULT 'null',
    result       jsonb,
    errors       {{schema}}.job_errors,                      -- [{attempt, at, error}], newest last, NULL when none
    attributes   jsonb,                                      -- {owner, tags, metadata, unique_key, …}, what is searched by; NULL when none
    key          {{schema}}.job_key,                         -- whose job it is to the limits of its queue; '' is nobody's, NULL too, see 009_limits.sql
    slot         smallint                NOT NULL DEFAULT 0, -- what it takes up of the limits of its key; 0: nothing, see 009_limits.sql
    counted      boolean,                                    -- true while it runs and counts in its queue; false when that is over; NULL: it did not

    -- What is not finished is failed, pending or running.
    CONSTRAINT jobs_status_is_sound CHECK ((lane IS NULL) = (finished_at IS NOT NULL) AND (lane IS NULL) <> (status COLLATE "C" BETWEEN 'f' AND 's'))
) WITH (
    -- Half of a page is left for the row versions that claims write: those then
    -- need no new index entries.
    fillfactor = 50,
    -- Waiting for a fifth of a large table to be dead would let the index of
    -- what is live bloat.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    -- Where few of the rows are dead, a vacuum leaves the indexes as they are: with
    -- many finished rows, each look for what is due would pass what was drained.
    vacuum_index_cleanup = on
);

-- Only what is not finished is in here, so finished rows cost a claim nothing.
--
-- Each priority has three lanes, from 3 * priority on: the first is of pending
-- jobs, the second of failed ones. A claim changes no column of an index, so it
-- writes one row version on the same page and no index entry (a HOT update): a
-- running job stays in the lane it was claimed from, where claims pass over it.
-- Jobs that run for longer are moved to the third lane, out of their way (see
-- settle). Lane 303, where nobody looks, has those that wait for other jobs. NULL
-- is finished.
CREATE INDEX jobs_live ON {{schema}}.jobs (queue, lane, run_at, id) WITH (deduplicate_items = off) WHERE lane IS NOT NULL;

-- Running jobs that were called off, for the processes that run them. Neither a
-- claim nor settle changes these columns, see above.
CREATE INDEX jobs_cancelling ON {{schema}}.jobs (id) WHERE cancelling;

-- By whom a job is owned, its tags and its metadata are found by containment:
-- attributes @> '{"tags": ["a"]}'. Jobs without any are not in here.
CREATE INDEX jobs_attributes ON {{schema}}.jobs USING gin (attributes jsonb_path_ops) WHERE attributes IS NOT NULL;

-- Of queues whose limits ask for them, see 009_limits.sql: what waits or runs by
-- its key, and what takes up the limits of that. Others are not in here, and a
-- claim of theirs changes neither column.
CREATE INDEX jobs_of_keys ON {{schema}}.jobs (queue, key, slot, lane, run_at, id) WITH (deduplicate_items = off) WHERE key IS NOT NULL AND lane IS NOT NULL;

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
    prioritized  boolean NOT NULL DEFAULT false, -- it has, or had, jobs of a priority other than 0, see prioritize
    paused       boolean NOT NULL DEFAULT false, -- nothing of it is claimed, see pause_queue
    limited      boolean NOT NULL DEFAULT false, -- it has limits, see queue_limits
    max_pending  integer, -- a creation beyond it is refused, see make_room; NULL: none is
    on_dead      text,   -- name of the job that is created when one dies, see tell_dead; '' is none, NULL that nobody has said

    CONSTRAINT queues_base_known CHECK (base IN ('default', 'blocking')),
    CONSTRAINT queues_name_is_a_place CHECK (name <> 'failed'),
    CONSTRAINT queues_max_attempts_positive CHECK (max_attempts > 0),
    CONSTRAINT queues_max_pending_positive CHECK (max_pending > 0),
    -- One that is no job's name would keep a death from being recorded.
    CONSTRAINT queues_on_dead_is_a_name CHECK (on_dead ~ '^([A-Za-z0-9][A-Za-z0-9_.:/-]{0,127})?$')
);

-- What limits the jobs of a queue, see 009_limits.sql. A queue without limits has
-- no row. A claim of one that has limits holds the lock of its row from before it
-- counts until it has committed; nobody else holds it for longer.
CREATE TABLE {{schema}}.queue_limits (
    queue               text     CONSTRAINT queue_limits_pkey PRIMARY KEY,
    max_running         {{schema}}.limit_count,
    max_running_per_key {{schema}}.limit_count,
    rate                {{schema}}.limit_count, -- starts
    rate_per            {{schema}}.limit_time,  -- in any such time
    key_rate            {{schema}}.limit_count,
    key_rate_per        {{schema}}.limit_time,
    key_round           {{schema}}.limit_count, -- jobs of a key before the next one's turn
    skip_failed         boolean  NOT NULL DEFAULT false, -- a job that waits does not keep its key
    running             integer  NOT NULL DEFAULT 0, -- with the first two: how many jobs were started and have not ended, but for those in ends
    last_key            text     COLLATE "C" NOT NULL DEFAULT '', -- whose turn it was last
    last_taken          integer  NOT NULL DEFAULT 0, -- how many jobs it has had of that turn

    CONSTRAINT queue_limits_rates_have_both CHECK ((rate IS NULL) = (rate_per IS NULL) AND (key_rate IS NULL) = (key_rate_per IS NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200);

-- Whether queues that are declared from now on are paused from their beginning,
-- because all are.
CREATE TABLE {{schema}}.all_queues (
    only_row boolean CONSTRAINT all_queues_pkey PRIMARY KEY DEFAULT true CONSTRAINT all_queues_is_one_row CHECK (only_row),
    paused   boolean NOT NULL DEFAULT false
);
INSERT INTO {{schema}}.all_queues DEFAULT VALUES;
INSERT INTO {{schema}}.queues (name, base) VALUES ('default', 'default'), ('blocking', 'blocking');

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

-- Creates a job as CreateJob does in Go, and returns its id; with a unique_key
-- perhaps that of the job which is there.
CREATE FUNCTION {{schema}}.create_job(
    name text, run_at timestamptz DEFAULT now(), payload jsonb DEFAULT 'null', queue text DEFAULT 'default',
    owner text DEFAULT NULL, tags text[] DEFAULT NULL, metadata jsonb DEFAULT NULL,
    unique_key text DEFAULT NULL, unique_for interval DEFAULT NULL, priority integer DEFAULT 0, key text DEFAULT NULL,
    after uuid[] DEFAULT NULL, after_any boolean DEFAULT false
) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_id       uuid := {{schema}}.new_job_id();
    v_run_at   timestamptz := coalesce(create_job.run_at, now());
    v_queue    text := coalesce(nullif(create_job.queue, ''), 'default');
    v_priority integer := coalesce(create_job.priority, 0);
    v_base     text;
    v_attempts integer;
    v_limited  boolean;
    v_bound    integer;
    v_key      text := nullif(create_job.key, '');
BEGIN
    IF create_job.name IS NULL OR create_job.name !~ '^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$' THEN
        RAISE EXCEPTION 'create_job: name %: expected 1 to 128 letters, digits or _ . : / -, beginning with a letter or digit',
            coalesce(quote_literal(left(create_job.name, 64)), 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_queue = 'failed' THEN
        RAISE EXCEPTION 'create_job: queue ''failed'' is a view of the failed jobs of ''default'', not a place: create the job in ''default'''
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT q.max_attempts, q.base, q.limited, q.max_pending INTO v_attempts, v_base, v_limited, v_bound FROM {{schema}}.queues q WHERE q.name = v_queue;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'create_job: queue %: nobody declared it; known are %', quote_literal(left(v_queue, 64)),
            (SELECT string_agg(q.name, ', ' ORDER BY q.name) FROM {{schema}}.queues q)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Declare it in Config.Queues and call Migrate.';
    END IF;
    IF v_priority NOT BETWEEN -100 AND 100 THEN
        RAISE EXCEPTION 'create_job: priority %: expected -100 to 100', v_priority USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_priority <> 0 AND v_base = 'blocking' THEN
        RAISE EXCEPTION 'create_job: priority %: queue % runs strictly in order: expected 0', v_priority, quote_literal(v_queue)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(v_key) > 256 THEN
        RAISE EXCEPTION 'create_job: key has % bytes: expected at most 256', octet_length(v_key) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_limited THEN
        v_key := {{schema}}.key_in(v_queue, v_key, v_priority);
    END IF;
    IF NOT isfinite(v_run_at) OR v_run_at < '0001-01-01 00:00:00+00' OR v_run_at >= '10000-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'create_job: run_at %: expected a time from year 1 to 9999', v_run_at USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(coalesce(create_job.payload, 'null')::text) > 1048576 THEN
        RAISE EXCEPTION 'create_job: payload has % bytes: expected at most 1048576', octet_length(create_job.payload::text)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF create_job.unique_key <> '' OR create_job.unique_for <> '0' OR v_bound IS NOT NULL OR cardinality(create_job.after) > 0 THEN
        RETURN {{schema}}.create_job_apart(v_id, create_job.name, v_run_at, coalesce(create_job.payload, 'null'), v_queue, v_attempts,
            {{schema}}.job_attributes(create_job.owner, create_job.tags, create_job.metadata), v_priority, v_key,
            nullif(create_job.unique_key, ''), create_job.unique_for, create_job.after, create_job.after_any);
    END IF;

    IF v_priority <> 0 THEN
        PERFORM {{schema}}.prioritize(ARRAY[v_queue]);
    END IF;
    INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, attributes, priority, lane, key)
    VALUES (v_id, create_job.name, v_queue, coalesce(create_job.payload, 'null'), v_run_at, v_attempts,
        {{schema}}.job_attributes(create_job.owner, create_job.tags, create_job.metadata), v_priority, 3 * v_priority, v_key);
    PERFORM {{schema}}.notify_created(v_queue, v_run_at);
    IF v_run_at <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = v_queue) THEN
        PERFORM {{schema}}.wake_workers(v_queue);
    END IF;
    RETURN v_id;
END
$$;

-- What is stored of a job's owner, tags and metadata: NULL if it has none.
CREATE FUNCTION {{schema}}.job_attributes(owner text, tags text[], metadata jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = '' AS $$
BEGIN
    IF octet_length(job_attributes.owner) > 256 THEN
        RAISE EXCEPTION 'create_job: owner has % bytes: expected at most 256', octet_length(job_attributes.owner)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cardinality(job_attributes.tags) > 32 OR EXISTS (
        SELECT FROM unnest(job_attributes.tags) AS t (tag) WHERE t.tag IS NULL OR octet_length(t.tag) NOT BETWEEN 1 AND 256)
    THEN
        RAISE EXCEPTION 'create_job: tags %: expected at most 32 of 1 to 256 bytes each', quote_literal(left(job_attributes.tags::text, 64))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF jsonb_typeof(job_attributes.metadata) NOT IN ('object', 'null') OR octet_length(job_attributes.metadata::text) > 16384 THEN
        RAISE EXCEPTION 'create_job: metadata %: expected a JSON object of at most 16384 bytes', quote_literal(left(job_attributes.metadata::text, 64))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN nullif(jsonb_strip_nulls(jsonb_build_object('owner', nullif(job_attributes.owner, ''),
            'tags', CASE WHEN cardinality(job_attributes.tags) > 0 THEN to_jsonb(job_attributes.tags) END))
        || CASE jsonb_typeof(job_attributes.metadata)
            WHEN 'object' THEN jsonb_build_object('metadata', job_attributes.metadata) ELSE '{}' END, '{}');
END
$$;

-- Tells resident processes at commit that a job is due now (in which queue) or
-- very soon (the empty string). A notification takes a lock that all committing
-- transactions share, so it is sent only when somebody listens.
CREATE FUNCTION {{schema}}.notify_created(queue text, run_at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    IF notify_created.run_at <= now() + interval '1 minute'
        AND EXISTS (SELECT FROM {{schema}}.leases l WHERE l.listening AND l.expires_at > now())
    THEN
        PERFORM pg_catalog.pg_notify('{{schema_name}}_jobs',
            CASE WHEN notify_created.run_at <= now() THEN notify_created.queue ELSE '' END);
    END IF;
END
$$;
