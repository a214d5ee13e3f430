-- A stand-in for the extension supabase_vault, which Debian does not package.
-- It encrypts nothing, but what it stores is not the text of the secret either,
-- so that whoever reads the wrong column notices.

CREATE TABLE vault.secrets (
    id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    name        text,
    description text        NOT NULL DEFAULT '',
    secret      text        NOT NULL,
    key_id      uuid,
    nonce       bytea       DEFAULT decode(md5(random()::text), 'hex'),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX ON vault.secrets (name) WHERE name IS NOT NULL;

CREATE VIEW vault.decrypted_secrets AS
SELECT s.id, s.name, s.description, s.secret, convert_from(decode(s.secret, 'base64'), 'UTF8') AS decrypted_secret,
    s.key_id, s.nonce, s.created_at, s.updated_at
FROM vault.secrets s;

CREATE FUNCTION vault.create_secret(
    new_secret text, new_name text DEFAULT NULL, new_description text DEFAULT '', new_key_id uuid DEFAULT NULL
) RETURNS uuid LANGUAGE sql SET search_path = '' AS $$
    INSERT INTO vault.secrets (secret, name, description, key_id)
    VALUES (encode(convert_to(new_secret, 'UTF8'), 'base64'), new_name, new_description, new_key_id)
    RETURNING id
$$;

CREATE FUNCTION vault.update_secret(
    secret_id uuid, new_secret text DEFAULT NULL, new_name text DEFAULT NULL, new_description text DEFAULT NULL,
    new_key_id uuid DEFAULT NULL
) RETURNS void LANGUAGE sql SET search_path = '' AS $$
    UPDATE vault.secrets s
    SET secret = coalesce(encode(convert_to(new_secret, 'UTF8'), 'base64'), s.secret), name = coalesce(new_name, s.name),
        description = coalesce(new_description, s.description), key_id = coalesce(new_key_id, s.key_id), updated_at = now()
    WHERE s.id = secret_id
$$;

ALTER EXTENSION supabase_vault ADD TABLE vault.secrets;
ALTER EXTENSION supabase_vault ADD VIEW vault.decrypted_secrets;
ALTER EXTENSION supabase_vault ADD FUNCTION vault.create_secret(text, text, text, uuid);
ALTER EXTENSION supabase_vault ADD FUNCTION vault.update_secret(uuid, text, text, text, uuid);
