-- Applied after every migration: nothing here is for anybody but the owner. Row
-- level security without policies, and no rights, keep it out of Supabase's data
-- API, also where default privileges gave its roles everything.
--
-- That the rights of functions are written anew, though they are what they were,
-- also has the sessions of older processes forget their plans of the calls of them:
-- those that return rows of a table would fail once it has one column more.
DO $$
DECLARE
    v_table  regclass;
    v_view   regclass;
    v_others text;
BEGIN
    FOR v_table IN SELECT c.oid FROM pg_catalog.pg_class c
        WHERE c.relnamespace = '{{schema}}'::regnamespace AND c.relkind = 'r' AND NOT c.relrowsecurity LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', v_table);
    END LOOP;
    -- The rows of a view are what its reader may see, not what its owner may. Older
    -- versions have no such setting; there the rights alone keep others out.
    IF current_setting('server_version_num')::integer >= 150000 THEN
        FOR v_view IN SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relnamespace = '{{schema}}'::regnamespace AND c.relkind = 'v' LOOP
            EXECUTE format('ALTER VIEW %s SET (security_invoker = true)', v_view);
        END LOOP;
    END IF;
    SELECT string_agg(quote_ident(r.rolname), ', ') INTO v_others FROM pg_catalog.pg_roles r
    WHERE r.rolname IN ('anon', 'authenticated', 'service_role') AND r.rolname <> current_user;
    v_others := concat_ws(', ', 'PUBLIC', v_others);
    EXECUTE format('REVOKE ALL ON SCHEMA {{schema}} FROM %s', v_others);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA {{schema}} FROM %s', v_others);
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {{schema}} FROM %s', v_others);
END
$$;
