-- Applied by every Migrate: nothing here is for anybody but the owner. Row level
-- security without policies, and no rights, keep it out of Supabase's data API.
DO $$
DECLARE
    v_table  text;
    v_others text;
BEGIN
    FOR v_table IN SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relnamespace = '{{schema_name}}'::regnamespace AND c.relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE {{schema}}.%I ENABLE ROW LEVEL SECURITY', v_table);
    END LOOP;
    SELECT string_agg(quote_ident(r.rolname), ', ') INTO v_others FROM pg_catalog.pg_roles r
    WHERE r.rolname IN ('anon', 'authenticated', 'service_role') AND r.rolname <> current_user;
    v_others := concat_ws(', ', 'PUBLIC', v_others);
    EXECUTE format('REVOKE ALL ON SCHEMA {{schema}} FROM %s', v_others);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA {{schema}} FROM %s', v_others);
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {{schema}} FROM %s', v_others);
END
$$;
