-- Workers: pg_cron entries that call the Run endpoint of a service. How they are made and removed.

CREATE TABLE {{schema}}.queue_workers (
    name            text        CONSTRAINT queue_workers_pkey PRIMARY KEY,
    endpoint        text        NOT NULL,
    queue           text        NOT NULL,
    status          text        NOT NULL,
    http_extension  text        NOT NULL,
    timeout_seconds integer     NOT NULL,
    wake            boolean     NOT NULL DEFAULT false, -- the creation of a due job calls it too, see wake_workers
    wake_asked_at   timestamptz, -- of a wake that is under way; NULL: none is
    scheduled_by    name        NOT NULL DEFAULT current_user, -- pg_cron shows its entry to this role only
    secret_id       uuid,        -- of its token in Supabase Vault; NULL: the token is in worker_tokens
    created_at      timestamptz NOT NULL DEFAULT now(),
    called_at       timestamptz, -- its last request that was answered well; with pg_net, that was queued
    request_id      bigint,      -- of that request, with pg_net

    CONSTRAINT queue_workers_status_known CHECK (status IN ('pending', 'failed', 'any')),
    CONSTRAINT queue_workers_http_extension_known CHECK (http_extension IN ('http', 'pg_net')),
    CONSTRAINT queue_workers_timeout_in_range CHECK (timeout_seconds BETWEEN 1 AND 300),
    CONSTRAINT queue_workers_wake_takes_pending CHECK (NOT wake OR status <> 'failed')
);

-- Tokens that Supabase Vault does not keep. A table of their own: whoever looks
-- at the workers, or breaks a constraint of theirs, is not shown them.
CREATE TABLE {{schema}}.worker_tokens (
    worker text CONSTRAINT worker_tokens_pkey PRIMARY KEY,
    token  text NOT NULL
);

-- The schema of an installed extension, NULL if it is not installed.
CREATE FUNCTION {{schema}}.extension_schema(extension text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT n.nspname::text FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = extension
$$;

-- A value as error messages show it.
CREATE FUNCTION {{schema}}.shown(value text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT coalesce(quote_literal(left(regexp_replace(value, '[[:cntrl:]]', '?', 'g'), 64)), 'NULL')
$$;

-- What pg_cron runs for a worker: nothing but a call by name.
CREATE FUNCTION {{schema}}.worker_command(worker text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT format('SELECT %I.run_worker(%L)', '{{schema_name}}', worker)
$$;

-- Creates a worker, or replaces the one of this name, and switches it on.
--   endpoint         the URL of the Run endpoint. Its parameters queue and
--                    status say what the worker is for.
--   token            one that the service accepts. It goes into Supabase Vault
--                    where that is installed, else into a table that only its
--                    owner can read; it is in no command, log or view. What
--                    you type is another matter: a server that logs statements
--                    logs this one (log_statement, log_min_duration_statement,
--                    or, unless a superuser calls, when it ends in an error).
--   timeout_seconds  how long one call may take in all; above the service's
--                    RunWait, so that it is answered
--   http_extension   'http' (pgsql-http) or 'pg_net'; NULL: the first of them
--                    that is installed. pg_net lets every role of the database
--                    read what it has queued, with the token.
--   wake             also call the endpoint right after a job was created that
--                    is due at once, always by pg_net. That comes before the
--                    tick, never instead of it.
-- Returns the id of its entry in cron.job.
CREATE FUNCTION {{schema}}.create_queue_worker(
    name text, endpoint text, token text, schedule text,
    timeout_seconds integer DEFAULT 10, http_extension text DEFAULT NULL, wake boolean DEFAULT false
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_statements text := {{schema}}.keep_statement_out_of_log();
    v_queue      text;
    v_status     text;
    v_extension  text;
    v_owner      text;
    v_foreign    boolean;
    v_job_id     bigint;
BEGIN
    IF name IS NULL OR name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' THEN
        RAISE EXCEPTION 'create_queue_worker: name %: expected 1 to 63 letters, digits or _ . -, beginning with a letter or digit',
            {{schema}}.shown(name) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT f.queue, f.status INTO v_queue, v_status FROM {{schema}}.endpoint_filter(endpoint) AS f;
    IF token IS NULL OR token !~ '^[!-~]+$' OR length(token) > 4096 THEN
        RAISE EXCEPTION 'create_queue_worker: token: expected 1 to 4096 visible ASCII characters without spaces' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF timeout_seconds IS NULL OR timeout_seconds NOT BETWEEN 1 AND 300 THEN
        RAISE EXCEPTION 'create_queue_worker: timeout_seconds %: expected 1 to 300', coalesce(timeout_seconds::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF wake AND v_status = 'failed' THEN
        RAISE EXCEPTION 'create_queue_worker: wake with status=failed: expected pending or any, as a job that is created is pending'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM {{schema}}.require_cron();
    v_extension := {{schema}}.choose_http_extension(http_extension);
    PERFORM {{schema}}.check_schedule(schedule);

    -- Replacing would take the entry from whoever made it.
    EXECUTE 'SELECT EXISTS (SELECT FROM cron.job j WHERE j.jobname = $1 AND j.username = current_user AND j.command <> $2)' INTO v_foreign
        USING name, {{schema}}.worker_command(name);
    IF v_foreign THEN
        RAISE EXCEPTION 'create_queue_worker: name %: pg_cron has an entry of this name that is something else', {{schema}}.shown(name)
            USING ERRCODE = 'duplicate_object', HINT = 'Choose another name, or remove that entry with cron.unschedule.';
    END IF;

    -- The row first: its lock keeps two calls with one name apart.
    INSERT INTO {{schema}}.queue_workers AS w (name, endpoint, queue, status, http_extension, timeout_seconds, wake)
    VALUES (name, endpoint, v_queue, v_status, v_extension, timeout_seconds, coalesce(wake, false))
    ON CONFLICT ON CONSTRAINT queue_workers_pkey DO UPDATE
    SET endpoint = excluded.endpoint, queue = excluded.queue, status = excluded.status, http_extension = excluded.http_extension,
        timeout_seconds = excluded.timeout_seconds, wake = excluded.wake, wake_asked_at = NULL, called_at = NULL, request_id = NULL
    RETURNING w.scheduled_by INTO v_owner;
    IF v_owner <> current_user THEN
        RAISE EXCEPTION 'create_queue_worker: name %: the role % has a worker of this name', {{schema}}.shown(name), quote_literal(v_owner)
            USING ERRCODE = 'duplicate_object', HINT = 'Choose another name, or let that role or a superuser call remove_queue_worker first.';
    END IF;
    PERFORM {{schema}}.keep_token(name, token);

    -- cron.schedule leaves an entry switched off that was off, and the functions
    -- that switch it on are not granted to everybody: make such an entry anew.
    EXECUTE 'SELECT cron.unschedule(j.jobid) FROM cron.job j WHERE j.jobname = $1 AND j.username = current_user AND NOT j.active' USING name;
    EXECUTE 'SELECT cron.schedule($1, $2, $3)' INTO v_job_id USING name, trim(schedule), {{schema}}.worker_command(name);

    IF NOT EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = v_queue) THEN
        RAISE WARNING 'queue % is not declared yet: declare it in Config.Queues and call Migrate', quote_literal(v_queue);
    END IF;
    IF wake AND {{schema}}.wake_obstacle() IS NOT NULL THEN
        RAISE WARNING 'worker %: it can''t be woken, its schedule alone calls: %', {{schema}}.shown(name), {{schema}}.wake_obstacle();
    END IF;
    IF v_statements IS NOT NULL THEN
        PERFORM set_config('log_min_error_statement', v_statements, true);
    END IF;
    RETURN v_job_id;
END
$$;

-- A statement that ends in an error is logged as it was typed, and this one has
-- a token in it. Only a superuser can prevent that. Returns the setting as it
-- was, NULL if it was not changed.
CREATE FUNCTION {{schema}}.keep_statement_out_of_log() RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_before text := current_setting('log_min_error_statement');
BEGIN
    PERFORM set_config('log_min_error_statement', 'panic', true);
    RETURN v_before;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN NULL;
END
$$;

-- The queue and status that a run of this endpoint has for its filter, or an
-- error that says what is wrong with the URL. What it does not understand in the
-- same way as the service does is refused, or the worker would look for other
-- jobs than its runs pick.
CREATE FUNCTION {{schema}}.endpoint_filter(endpoint text, OUT queue text, OUT status text)
LANGUAGE plpgsql IMMUTABLE SET search_path = '' AS $$
DECLARE
    v_parts  text[] := regexp_match(endpoint, '^https?://(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:/[^?]*)?(?:\?(.*))?$', 'i');
    v_values jsonb;
    v_twice  text;
    v_limit  text;
BEGIN
    IF v_parts IS NULL OR endpoint ~ '[^!-~]|[#"<>\\]' OR length(endpoint) > 2000 OR v_parts[1]::integer NOT BETWEEN 1 AND 65535 THEN
        -- Not shown if it may have a password in it, or be the token in the wrong place.
        RAISE EXCEPTION 'create_queue_worker: endpoint %: expected an http or https URL without user, password and fragment, such as https://app.example.com/api/jobs/run',
            CASE WHEN endpoint LIKE '%@%' OR endpoint NOT LIKE '%://%' THEN '(not shown)' ELSE {{schema}}.shown(endpoint) END
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT jsonb_object_agg(p.key, p.value), min(p.key) FILTER (WHERE p.times > 1 OR p.key !~ '^[A-Za-z0-9_.~-]+$')
    INTO v_values, v_twice
    FROM (
        SELECT split_part(q, '=', 1) AS key, substring(q FROM '=(.*)') AS value, count(*) OVER (PARTITION BY split_part(q, '=', 1)) AS times
        FROM unnest(string_to_array(v_parts[2], '&')) AS q WHERE q <> ''
    ) AS p;
    IF v_twice IS NOT NULL THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint has the parameter %: expected each once, its name of letters, digits or _ . ~ -', {{schema}}.shown(v_twice)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    queue := coalesce(nullif(v_values ->> 'queue', ''), 'default');
    status := coalesce(nullif(v_values ->> 'status', ''), CASE queue WHEN 'failed' THEN 'failed' ELSE 'pending' END);
    v_limit := coalesce(nullif(v_values ->> 'limit', ''), '1');
    IF queue !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint has queue=%: expected the name of a queue', {{schema}}.shown(queue) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF status NOT IN ('pending', 'failed', 'any') OR queue = 'failed' AND status <> 'failed' THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint has status=%: expected pending, failed or any (queue=failed takes only failed)', {{schema}}.shown(status)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_limit !~ '^[0-9]{1,5}$' OR v_limit::integer NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint has limit=%: expected 1 to 10000', {{schema}}.shown(v_limit) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF queue = 'failed' THEN
        queue := 'default';
    END IF;
END
$$;

-- Refuses, with what to do, where pg_cron can't schedule into this database.
CREATE FUNCTION {{schema}}.require_cron() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_database text;
BEGIN
    BEGIN
        v_database := current_setting('cron.database_name', true);
    EXCEPTION WHEN insufficient_privilege THEN
        v_database := NULL; -- pg_cron shows it to few; where its extension is, its database is almost always
    END;
    IF v_database <> current_database() THEN
        RAISE EXCEPTION 'pg_cron schedules into the database %, this one is %', quote_literal(v_database), quote_literal(current_database())
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('Keep the jobs in the database %I, or set cron.database_name to %L and restart Postgres.', v_database, current_database());
    END IF;
    IF {{schema}}.extension_schema('pg_cron') IS NULL THEN
        IF EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'pg_cron') THEN
            RAISE EXCEPTION 'the extension pg_cron is missing in the database %', quote_literal(current_database())
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Run CREATE EXTENSION pg_cron; (it needs shared_preload_libraries = ''pg_cron'' and works in the database named by cron.database_name only).';
        END IF;
        RAISE EXCEPTION 'the extension pg_cron is not installed on this server'
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Install it, or do without workers: let the service call Work, or let any outside cron POST to the Run endpoint.';
    END IF;
    IF NOT has_schema_privilege('cron', 'USAGE') THEN
        RAISE EXCEPTION 'the role % may not use pg_cron', quote_literal(current_user) USING ERRCODE = 'insufficient_privilege',
            HINT = format('Let a superuser run GRANT USAGE ON SCHEMA cron TO %I;', current_user);
    END IF;
END
$$;

CREATE FUNCTION {{schema}}.choose_http_extension(wanted text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    IF wanted IS NOT NULL AND wanted NOT IN ('http', 'pg_net') THEN
        RAISE EXCEPTION 'create_queue_worker: http_extension %: expected ''http'' or ''pg_net''', {{schema}}.shown(wanted)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF coalesce(wanted, 'http') = 'http' AND {{schema}}.extension_schema('http') IS NOT NULL THEN
        RETURN 'http';
    END IF;
    IF coalesce(wanted, 'pg_net') = 'pg_net' AND {{schema}}.extension_schema('pg_net') IS NOT NULL THEN
        RETURN 'pg_net';
    END IF;
    RAISE EXCEPTION 'the extension % is missing in the database %', coalesce(wanted, 'http (pgsql-http)'), quote_literal(current_database())
        USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'Run CREATE EXTENSION http; (or pg_net), or do without: let the service call Work, or let any outside cron POST to the Run endpoint.';
END
$$;

-- Why no worker can be woken, and what to do; NULL if nothing is known to be in
-- the way.
CREATE FUNCTION {{schema}}.wake_obstacle() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT CASE
        WHEN {{schema}}.extension_schema('pg_net') IS NULL THEN
            format('the extension pg_net is missing in the database %L; run CREATE EXTENSION pg_net;', current_database())
        WHEN NOT EXISTS (
            SELECT FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = to_regnamespace('net') AND p.proname = 'http_post'
                AND has_schema_privilege(p.pronamespace, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE'))
        THEN format('the role %1$L may not call net.http_post; let a superuser run GRANT USAGE ON SCHEMA net TO %1$I; GRANT EXECUTE ON FUNCTION net.http_post TO %1$I;', current_user)
    END
$$;

-- Refuses what pg_cron would refuse less clearly. What passes here is checked
-- again by cron.schedule.
CREATE FUNCTION {{schema}}.check_schedule(schedule text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_version text;
BEGIN
    IF schedule IS NULL OR schedule !~ '^\s*(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|([-0-9A-Za-z*,/$]+\s+){4}[-0-9A-Za-z*,/]+|([1-9]|[1-5][0-9])\s+seconds?)\s*$' THEN
        -- One word may be the token in the wrong place.
        RAISE EXCEPTION 'create_queue_worker: schedule %: expected five fields such as ''* * * * *'', or ''@hourly'', ''@daily'' and the like, or from pg_cron 1.5 on ''30 seconds''',
            CASE WHEN schedule ~ '^\S{4,}$' THEN '(not shown)' ELSE {{schema}}.shown(schedule) END USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT e.extversion INTO v_version FROM pg_catalog.pg_extension e WHERE e.extname = 'pg_cron';
    IF schedule ~ 'seconds?\s*$' AND string_to_array(substring(v_version FROM '^[0-9.]*[0-9]'), '.')::integer[] < '{1,5}' THEN
        RAISE EXCEPTION 'create_queue_worker: schedule %: pg_cron % has no schedules in seconds, version 1.5 was the first', {{schema}}.shown(schedule), v_version
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use ''* * * * *'' (every minute), or update pg_cron.';
    END IF;
END
$$;

-- Whether Supabase Vault is there, and for this role.
CREATE FUNCTION {{schema}}.has_vault() RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT {{schema}}.extension_schema('supabase_vault') IS NOT NULL AND has_schema_privilege('vault', 'USAGE')
        AND has_table_privilege('vault.decrypted_secrets', 'SELECT')
$$;

CREATE FUNCTION {{schema}}.keep_token(worker text, token text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_secret uuid;
    v_name   text := '{{schema_name}} worker ' || worker;
BEGIN
    DELETE FROM {{schema}}.worker_tokens t WHERE t.worker = keep_token.worker;
    IF {{schema}}.has_vault() THEN
        EXECUTE 'SELECT id FROM vault.decrypted_secrets WHERE name = $1' INTO v_secret USING v_name;
        IF v_secret IS NULL THEN
            EXECUTE 'SELECT vault.create_secret($1, $2)' INTO v_secret USING token, v_name;
        ELSE
            EXECUTE 'SELECT vault.update_secret($1, $2)' USING v_secret, token;
        END IF;
    ELSE
        INSERT INTO {{schema}}.worker_tokens (worker, token) VALUES (keep_token.worker, keep_token.token);
    END IF;
    UPDATE {{schema}}.queue_workers w SET secret_id = v_secret WHERE w.name = keep_token.worker;
END
$$;

-- The statement that makes a request calls this itself: as a parameter of it,
-- the token could be logged.
CREATE FUNCTION {{schema}}.worker_token(worker text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_secret uuid := (SELECT w.secret_id FROM {{schema}}.queue_workers w WHERE w.name = worker_token.worker);
    v_token  text;
BEGIN
    IF v_secret IS NULL THEN
        SELECT t.token INTO v_token FROM {{schema}}.worker_tokens t WHERE t.worker = worker_token.worker;
    ELSE
        EXECUTE 'SELECT decrypted_secret FROM vault.decrypted_secrets WHERE id = $1' INTO v_token USING v_secret;
    END IF;
    IF v_token IS NULL THEN
        RAISE EXCEPTION 'worker %: its token is gone', quote_literal(worker) USING ERRCODE = 'undefined_object', HINT = 'Call create_queue_worker again.';
    END IF;
    RETURN v_token;
END
$$;

-- Removes a worker and its token; says whether there was one.
CREATE FUNCTION {{schema}}.remove_queue_worker(name text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_worker {{schema}}.queue_workers%ROWTYPE;
BEGIN
    SELECT * INTO v_worker FROM {{schema}}.queue_workers w WHERE w.name = remove_queue_worker.name FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF v_worker.scheduled_by <> current_user AND NOT current_setting('is_superuser')::boolean THEN
        RAISE EXCEPTION 'remove_queue_worker: %: it belongs to the role %', {{schema}}.shown(name), quote_literal(v_worker.scheduled_by)
            USING ERRCODE = 'insufficient_privilege', HINT = 'Let that role or a superuser remove it: pg_cron lets nobody else.';
    END IF;
    IF {{schema}}.extension_schema('pg_cron') IS NOT NULL THEN
        EXECUTE 'SELECT cron.unschedule(j.jobid) FROM cron.job j WHERE j.jobname = $1 AND j.username = $2 AND j.command = $3'
            USING name, v_worker.scheduled_by, {{schema}}.worker_command(name);
    END IF;
    IF v_worker.secret_id IS NOT NULL AND {{schema}}.has_vault() THEN
        EXECUTE 'DELETE FROM vault.secrets WHERE id = $1' USING v_worker.secret_id;
    END IF;
    DELETE FROM {{schema}}.worker_tokens t WHERE t.worker = remove_queue_worker.name;
    DELETE FROM {{schema}}.queue_workers w WHERE w.name = remove_queue_worker.name;
    RETURN true;
END
$$;
