-- The public entry: the functions that people type, reachable with the default
-- search_path. They run with the caller's rights and do nothing themselves.

DO $$
DECLARE
    v_taken text;
BEGIN
    SELECT min(p.oid::regprocedure::text) INTO v_taken FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.proname IN ('create_job', 'create_queue_worker', 'remove_queue_worker', 'create_recurring_job', 'remove_recurring_job')
        AND (p.prosrc NOT LIKE '%{{schema}}.%' OR p.proowner NOT IN (current_user::regrole,
            (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = '{{schema}}.jobs'::regclass)));
    IF v_taken IS NOT NULL THEN
        RAISE EXCEPTION 'the function % in the schema public is somebody else''s', v_taken USING ERRCODE = 'duplicate_function';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION public.create_job(
    name text, run_at timestamptz DEFAULT now(), payload jsonb DEFAULT 'null', queue text DEFAULT 'default',
    owner text DEFAULT NULL, tags text[] DEFAULT NULL, metadata jsonb DEFAULT NULL,
    unique_key text DEFAULT NULL, unique_for interval DEFAULT NULL, priority integer DEFAULT 0, key text DEFAULT NULL,
    after uuid[] DEFAULT NULL, after_any boolean DEFAULT false
) RETURNS uuid LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT {{schema}}.create_job(name, run_at, payload, queue, owner, tags, metadata, unique_key, unique_for, priority, key,
        after, after_any)
$$;

CREATE OR REPLACE FUNCTION public.create_queue_worker(
    name text, endpoint text, token text, schedule text,
    timeout_seconds integer DEFAULT 10, http_extension text DEFAULT NULL, wake boolean DEFAULT false
) RETURNS bigint LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT {{schema}}.create_queue_worker(name, endpoint, token, schedule, timeout_seconds, http_extension, wake)
$$;

CREATE OR REPLACE FUNCTION public.remove_queue_worker(name text) RETURNS boolean LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT {{schema}}.remove_queue_worker(name)
$$;

CREATE OR REPLACE FUNCTION public.create_recurring_job(
    name text, schedule text, job text, payload jsonb DEFAULT 'null', queue text DEFAULT 'default',
    time_zone text DEFAULT 'UTC', missed text DEFAULT 'once'
) RETURNS timestamptz LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT {{schema}}.create_recurring_job(name, schedule, job, payload, queue, time_zone, missed)
$$;

CREATE OR REPLACE FUNCTION public.remove_recurring_job(name text) RETURNS boolean LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT {{schema}}.remove_recurring_job(name)
$$;

DO $$
DECLARE
    v_others text;
BEGIN
    SELECT string_agg(quote_ident(r.rolname), ', ') INTO v_others FROM pg_catalog.pg_roles r
    WHERE r.rolname IN ('anon', 'authenticated', 'service_role') AND r.rolname <> current_user;
    EXECUTE format('REVOKE ALL ON FUNCTION public.create_job(text, timestamptz, jsonb, text, text, text[], jsonb, text, interval, integer, text, uuid[], boolean),
        public.create_queue_worker(text, text, text, text, integer, text, boolean),
        public.remove_queue_worker(text),
        public.create_recurring_job(text, text, text, jsonb, text, text, text), public.remove_recurring_job(text) FROM %s', concat_ws(', ', 'PUBLIC', v_others));
END
$$;
