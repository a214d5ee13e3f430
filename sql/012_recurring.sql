-- Recurring jobs: a job for each slot of a schedule.

CREATE TABLE {{schema}}.recurring (
    name      text               CONSTRAINT recurring_pkey PRIMARY KEY,
    schedule  text               NOT NULL, -- as it was typed,
    fields    {{schema}}.schedule NOT NULL, -- and as it is understood
    time_zone text               NOT NULL,
    job       {{schema}}.job_name NOT NULL,
    payload   jsonb              NOT NULL,
    queue     {{schema}}.job_queue NOT NULL,
    missed    text               NOT NULL,
    next_slot timestamptz        NOT NULL, -- never goes back: no slot before it has a job to come; infinity: there is none
    last_slot timestamptz,                 -- the last one that has had a job, NULL: none,
    last_job  uuid,                        -- and that job; it may be gone

    CONSTRAINT recurring_missed_known CHECK (missed IN ('skip', 'once', 'all')),
    CONSTRAINT recurring_slots_in_order CHECK (last_slot < next_slot)
) WITH (fillfactor = 50);

-- Whether a slot has come is one look in here.
CREATE INDEX recurring_next ON {{schema}}.recurring (next_slot);

-- Creates a recurring job, or replaces the one of this name. Returns its next
-- slot.
--   schedule   five fields (minute, hour, day of the month, month, weekday), as
--              in '30 3 * * mon-fri', or @hourly, @daily, @weekly, @monthly or
--              @yearly. A day is right if it is one of the month or one of the
--              week, where both are limited.
--   job        the name of the jobs
--   time_zone  by whose clocks; a name such as Europe/Berlin
--   missed     what becomes of slots that nobody came to in two minutes: 'skip',
--              'once' (a job for the newest of them) or 'all'
-- With another schedule or time zone, the next slot is the first one from now
-- on; with the same ones it stays as it is.
CREATE FUNCTION {{schema}}.create_recurring_job(
    name text, schedule text, job text, payload jsonb DEFAULT 'null', queue text DEFAULT 'default',
    time_zone text DEFAULT 'UTC', missed text DEFAULT 'once'
) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_queue    text := coalesce(nullif(create_recurring_job.queue, ''), 'default');
    v_next     timestamptz;
    v_obstacle text;
BEGIN
    IF name IS NULL OR name !~ '^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$' THEN
        RAISE EXCEPTION 'create_recurring_job: name %: expected 1 to 128 letters, digits or _ . : / -, beginning with a letter or digit',
            {{schema}}.shown(name) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF job IS NULL OR job !~ '^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$' THEN
        RAISE EXCEPTION 'create_recurring_job: job %: expected 1 to 128 letters, digits or _ . : / -, beginning with a letter or digit',
            {{schema}}.shown(job) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_queue = 'failed' THEN
        RAISE EXCEPTION 'create_recurring_job: queue ''failed'' is a view of the failed jobs of ''default'', not a place: expected ''default'''
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = v_queue) THEN
        RAISE EXCEPTION 'create_recurring_job: queue %: nobody declared it; known are %', {{schema}}.shown(v_queue),
            (SELECT string_agg(q.name, ', ' ORDER BY q.name) FROM {{schema}}.queues q)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Declare it in Config.Queues and call Migrate.';
    END IF;
    IF octet_length(create_recurring_job.payload::text) > 1048576 THEN
        RAISE EXCEPTION 'create_recurring_job: payload has % bytes: expected at most 1048576', octet_length(create_recurring_job.payload::text)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF missed IS NULL OR missed NOT IN ('skip', 'once', 'all') THEN
        RAISE EXCEPTION 'create_recurring_job: missed %: expected skip, once or all', {{schema}}.shown(missed) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_next := {{schema}}.put_recurring_job(name, schedule, {{schema}}.parse_schedule(schedule), job, coalesce(payload, 'null'), v_queue, time_zone, missed);
    v_obstacle := {{schema}}.schedule_firing();
    IF v_obstacle IS NOT NULL THEN
        RAISE WARNING 'recurring job %: resident processes and runs alone fire it: %', {{schema}}.shown(name), v_obstacle;
    END IF;
    RETURN v_next;
END
$$;

-- What creates or replaces a recurring job, once it is checked; it checks the
-- time zone itself. One that is there and the same is not written. The lock, of
-- Migrate, is there for schedule_firing.
CREATE FUNCTION {{schema}}.put_recurring_job(
    name text, schedule text, fields {{schema}}.schedule, job text, payload jsonb, queue text, time_zone text, missed text
) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    v_next timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{{schema_name}}', 7041973));
    IF NOT EXISTS (SELECT FROM {{schema}}.recurring r WHERE r.name = put_recurring_job.name AND r.time_zone = put_recurring_job.time_zone) THEN
        PERFORM {{schema}}.check_time_zone(put_recurring_job.time_zone);
    END IF;
    -- A firing that is under way is waited for here. What it fired is not fired
    -- again, also if the clock has been moved back since.
    INSERT INTO {{schema}}.recurring AS r (name, schedule, fields, time_zone, job, payload, queue, missed, next_slot)
    VALUES (put_recurring_job.name, put_recurring_job.schedule, put_recurring_job.fields, put_recurring_job.time_zone, put_recurring_job.job,
        put_recurring_job.payload, put_recurring_job.queue, put_recurring_job.missed,
        coalesce({{schema}}.next_slot(put_recurring_job.fields, put_recurring_job.time_zone, clock_timestamp()), 'infinity'))
    ON CONFLICT ON CONSTRAINT recurring_pkey DO UPDATE
    SET schedule = excluded.schedule, fields = excluded.fields, time_zone = excluded.time_zone, job = excluded.job,
        payload = excluded.payload, queue = excluded.queue, missed = excluded.missed,
        next_slot = CASE WHEN (r.fields, r.time_zone) IS NOT DISTINCT FROM (excluded.fields, excluded.time_zone) THEN r.next_slot
            ELSE coalesce({{schema}}.next_slot(excluded.fields, excluded.time_zone, greatest(clock_timestamp(), r.last_slot)), 'infinity') END
    WHERE (r.schedule, r.fields, r.time_zone, r.job::text, r.payload, r.queue::text, r.missed) IS DISTINCT FROM
        (excluded.schedule, excluded.fields, excluded.time_zone, excluded.job::text, excluded.payload, excluded.queue::text, excluded.missed)
    RETURNING r.next_slot INTO v_next;
    IF FOUND THEN
        PERFORM {{schema}}.notify_created('', now()); -- to whoever has set its alarm
        RETURN v_next;
    END IF;
    RETURN (SELECT r.next_slot FROM {{schema}}.recurring r WHERE r.name = put_recurring_job.name);
END
$$;

-- Names alone, as Go has them: Postgres would take POSIX rules and abbreviations
-- as well.
CREATE FUNCTION {{schema}}.check_time_zone(time_zone text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    IF time_zone IS NULL OR time_zone !~ '^[A-Z][A-Za-z0-9_+/-]{0,62}$' OR time_zone IN ('Local', 'Factory')
        OR NOT EXISTS (SELECT FROM pg_catalog.pg_timezone_names z WHERE z.name = check_time_zone.time_zone)
    THEN
        RAISE EXCEPTION 'create_recurring_job: time_zone %: expected a name that Postgres knows, such as UTC or Europe/Berlin', {{schema}}.shown(time_zone)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'SELECT name FROM pg_timezone_names lists them.';
    END IF;
END
$$;

-- Removes a recurring job; says whether there was one. The jobs that it has had
-- stay.
CREATE FUNCTION {{schema}}.remove_recurring_job(name text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{{schema_name}}', 7041973));
    DELETE FROM {{schema}}.recurring r WHERE r.name = remove_recurring_job.name;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {{schema}}.schedule_firing();
    RETURN true;
END
$$;

-- What pg_cron runs each minute.
CREATE FUNCTION {{schema}}.firing_command() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT format('SELECT %I.fire_recurring_jobs()', '{{schema_name}}')
$$;

-- Sees to it that pg_cron fires recurring jobs as long as there are some. Returns
-- why it doesn't; NULL: it does, or there are none. Called with the lock of
-- Migrate, so that whoever removes the last one and whoever creates another
-- come one after the other.
CREATE FUNCTION {{schema}}.schedule_firing() RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    c_name  CONSTANT text := '{{schema_name}}-recurring-jobs';
    v_there boolean;
    v_taken boolean;
BEGIN
    IF EXISTS (SELECT FROM {{schema}}.recurring) THEN
        PERFORM {{schema}}.require_cron();
        EXECUTE 'SELECT coalesce(bool_or(j.command = $2), false), coalesce(bool_or(j.command <> $2 AND j.username = current_user), false)
            FROM cron.job j WHERE j.jobname = $1' INTO v_there, v_taken USING c_name, {{schema}}.firing_command();
        IF v_taken THEN
            RETURN format('pg_cron has an entry %L that is something else', c_name);
        END IF;
        IF NOT v_there THEN
            EXECUTE 'SELECT cron.schedule($1, ''* * * * *'', $2)' USING c_name, {{schema}}.firing_command();
        END IF;
    ELSIF {{schema}}.extension_schema('pg_cron') IS NOT NULL AND has_schema_privilege('cron', 'USAGE') THEN
        EXECUTE 'SELECT cron.unschedule(j.jobid) FROM cron.job j WHERE j.jobname = $1 AND j.command = $2' USING c_name, {{schema}}.firing_command();
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN -- whatever it is, there are others who fire
    RETURN SQLERRM;
END
$$;

-- Creates the jobs of slots that have come, 1,000 at the most, and returns how
-- many; more may be due when it is that many. What has many slots to make up for
-- comes last, lest others be missed meanwhile.
--
-- The row of a recurring job is locked, its slots get their jobs, and its next
-- slot is moved on, in one transaction: so each slot is fired once, whoever
-- fires. Who finds the row locked leaves it to the other one, and who comes
-- after that reads it anew. As next_slot never goes back, neither does a clock
-- that does fire anything twice.
CREATE FUNCTION {{schema}}.fire_recurring_jobs(at timestamptz DEFAULT now()) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    c_most   CONSTANT integer := 1000;
    v_late   timestamptz := fire_recurring_jobs.at - interval '2 minutes'; -- slots before this one are missed
    v_job    {{schema}}.recurring%ROWTYPE;
    v_slot   timestamptz;
    v_slots  timestamptz[];
    v_last   uuid;
    v_fired  integer := 0;
    v_queues text[] := '{}';
    v_queue  text;
BEGIN
    FOR v_job IN
        SELECT * FROM {{schema}}.recurring r WHERE r.next_slot <= fire_recurring_jobs.at
        ORDER BY r.missed = 'all' AND r.next_slot < v_late, r.next_slot, r.name LIMIT c_most FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN v_fired >= c_most;
        -- What is wrong with one (a time zone that Postgres does not know any more,
        -- say) must keep neither others from being fired nor a run from its rescues.
        BEGIN
            v_slot := v_job.next_slot;
            IF v_slot < v_late AND v_job.missed = 'skip' THEN
                v_slot := {{schema}}.next_slot(v_job.fields, v_job.time_zone, v_late - interval '1 microsecond');
            ELSIF v_slot < v_late AND v_job.missed = 'once' THEN
                v_slot := {{schema}}.last_slot(v_job.fields, v_job.time_zone, v_slot, v_late - interval '1 microsecond');
            END IF;
            v_slots := '{}';
            WHILE v_slot <= fire_recurring_jobs.at AND v_fired + cardinality(v_slots) < c_most LOOP
                v_slots := v_slots || v_slot;
                v_slot := {{schema}}.next_slot(v_job.fields, v_job.time_zone, v_slot);
            END LOOP;
            v_last := {{schema}}.create_jobs_of_slots(v_job, v_slots);
            UPDATE {{schema}}.recurring r
            SET next_slot = coalesce(v_slot, 'infinity'), last_slot = coalesce(v_slots[cardinality(v_slots)], r.last_slot),
                last_job = coalesce(v_last, r.last_job)
            WHERE r.name = v_job.name;
            v_fired := v_fired + cardinality(v_slots);
            IF cardinality(v_slots) > 0 AND v_job.queue::text <> ALL (v_queues) THEN
                v_queues := array_append(v_queues, v_job.queue::text);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'recurring job %: it can''t be fired: %', quote_literal(v_job.name), SQLERRM;
        END;
    END LOOP;

    FOREACH v_queue IN ARRAY v_queues LOOP
        IF pg_notification_queue_usage() < 0.9 THEN -- one that is full would be an error at commit
            PERFORM {{schema}}.notify_created(v_queue, now());
        END IF;
        IF EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = v_queue) THEN
            PERFORM {{schema}}.wake_workers(v_queue);
        END IF;
    END LOOP;
    RETURN v_fired;
END
$$;

-- Returns the id of the last one. The name and the slot are in the attributes,
-- where they stay when the job is due again later.
CREATE FUNCTION {{schema}}.create_jobs_of_slots(r {{schema}}.recurring, slots timestamptz[]) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_slot timestamptz;
    v_id   uuid;
BEGIN
    FOREACH v_slot IN ARRAY slots LOOP
        v_id := {{schema}}.new_job_id();
        INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, attributes)
        VALUES (v_id, r.job, r.queue, r.payload, v_slot, coalesce((SELECT q.max_attempts FROM {{schema}}.queues q WHERE q.name = r.queue), 10),
            jsonb_build_object('recurring', r.name, 'slot', {{schema}}.json_time(v_slot)));
    END LOOP;
    RETURN v_id;
END
$$;

-- Whether a slot of this queue has come that is not fired yet, and nothing keeps
-- its job from being started then.
CREATE FUNCTION {{schema}}.awaits_firing(queue text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {{schema}}.recurring r WHERE r.next_slot <= now() AND r.queue = awaits_firing.queue)
        AND NOT EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = awaits_firing.queue AND q.paused);
END
$$;

-- Every recurring job: when its next slot is, and its last one that has had a
-- job, with that job's id. No payloads.
CREATE VIEW {{schema}}.recurring_jobs AS
    SELECT r.name, r.schedule, r.time_zone, r.job::text AS job, r.queue::text AS queue, r.missed,
        nullif(r.next_slot, 'infinity') AS next_slot, r.last_slot, r.last_job AS last_job_id
    FROM {{schema}}.recurring r;
