-- The outbox of {table}, as Tidemark's relay reads it; version {schema}.
--
-- Run it in one transaction. It may be run again: it brings every part to what is
-- written here, and the relay then tells once that everything may have changed. It
-- waits for the transactions that write to {table}, and who begins to write
-- meanwhile waits behind it: set lock_timeout where that matters.

DO $tidemark$
DECLARE
	found text := obj_description(to_regclass('{outbox}'), 'pg_class');
BEGIN
	IF to_regclass('{outbox}') IS NOT NULL AND found IS DISTINCT FROM '{mark}' THEN
		RAISE EXCEPTION '{outbox} exists and is not "{mark}" but "%"', found;
	END IF;
	PERFORM {read} FROM {table} LIMIT 0; -- what fails here would fail everybody who writes
END
$tidemark$;

-- What has not been told yet. A relay tells rows in the order of id, and deletes
-- what the log has acknowledged.
CREATE TABLE IF NOT EXISTS {outbox} (
	xid     xid8        NOT NULL DEFAULT pg_current_xact_id(), -- first: a row has this before it has an id
	id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at      timestamptz NOT NULL DEFAULT clock_timestamp(),
	key     text,   -- NULL, unless it is a probe: everything may have changed
	version bigint, -- NULL: not known
	origin  bigint, -- of a probe
	nonce   bigint
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
COMMENT ON TABLE {outbox} IS '{mark}';

-- Which triggers were in place when the relay last told that everything may have
-- changed: if others are now, there may have been none in between. And the cache that
-- it is told to: what is told is gone, so another cache would miss it.
CREATE TABLE IF NOT EXISTS {state} (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	watched  text    NOT NULL DEFAULT '',
	cache    text    NOT NULL DEFAULT '' -- to which all of it is told; '' until then
);
INSERT INTO {state} DEFAULT VALUES ON CONFLICT DO NOTHING;

-- What one statement has changed, however many rows: at most {bulk} keys, or else
-- one row that says that everything may have changed. It runs with its owner's
-- rights, so it names the schema, and nobody's tables or operators can stand in for
-- what it means. And whatever the writer's session says, the same key is the same text.
DO $tidemark$
DECLARE
	outbox text := (SELECT format('%I.%I', n.nspname, c.relname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = '{outbox}'::regclass);
BEGIN
	EXECUTE replace($function$
CREATE OR REPLACE FUNCTION {tell}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
{settings} AS $body$
#variable_conflict use_column
DECLARE
	changed bigint := 1;
BEGIN
	IF TG_OP = 'DELETE' THEN
		SELECT count(*) INTO changed FROM (SELECT FROM before_rows LIMIT {bulk} + 1) r;
	ELSIF TG_OP <> 'TRUNCATE' THEN
		SELECT count(*) INTO changed FROM (SELECT FROM after_rows LIMIT {bulk} + 1) r;
	END IF;
	IF changed = 0 THEN
		RETURN NULL;
	ELSIF TG_OP = 'TRUNCATE' OR changed > {bulk} THEN
		INSERT INTO @outbox (key) VALUES (NULL);
	ELSIF TG_OP = 'INSERT' THEN
		INSERT INTO @outbox (key, version) {inserted};
	ELSIF TG_OP = 'DELETE' THEN
		INSERT INTO @outbox (key) {deleted};
	ELSE
		INSERT INTO @outbox (key, version) {updated};
	END IF;
	{notify}
	RETURN NULL;
END
$body$
$function$, '@outbox', outbox);
END
$tidemark$;
REVOKE ALL ON FUNCTION {tell}() FROM PUBLIC;

-- A statement fires the triggers of the table that it names only, so each
-- partition has its own. ALWAYS: whatever session_replication_role is.
DO $tidemark$
DECLARE
	part regclass;
BEGIN
	FOR part IN
		WITH RECURSIVE tree AS (
			SELECT '{table}'::regclass::oid AS oid
			UNION
			SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
		)
		SELECT oid FROM tree ORDER BY oid
	LOOP
		EXECUTE format('CREATE OR REPLACE TRIGGER "{trigger}_insert" AFTER INSERT ON %s'
			' REFERENCING NEW TABLE AS after_rows FOR EACH STATEMENT EXECUTE FUNCTION {tell}()', part);
		EXECUTE format('CREATE OR REPLACE TRIGGER "{trigger}_update" AFTER UPDATE ON %s'
			' REFERENCING OLD TABLE AS before_rows NEW TABLE AS after_rows FOR EACH STATEMENT EXECUTE FUNCTION {tell}()', part);
		EXECUTE format('CREATE OR REPLACE TRIGGER "{trigger}_delete" AFTER DELETE ON %s'
			' REFERENCING OLD TABLE AS before_rows FOR EACH STATEMENT EXECUTE FUNCTION {tell}()', part);
		EXECUTE format('CREATE OR REPLACE TRIGGER "{trigger}_truncate" AFTER TRUNCATE ON %s'
			' FOR EACH STATEMENT EXECUTE FUNCTION {tell}()', part);
		EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER "{trigger}_insert", ENABLE ALWAYS TRIGGER "{trigger}_update",'
			' ENABLE ALWAYS TRIGGER "{trigger}_delete", ENABLE ALWAYS TRIGGER "{trigger}_truncate"', part);
	END LOOP;
END
$tidemark$;

-- The floor and the probes need that ids are drawn in order: a session that keeps
-- some for later, or a sequence that goes back, would break that.
DO $tidemark$
BEGIN
	IF NOT {ordered} THEN
		ALTER TABLE {outbox} ALTER id {inorder};
	END IF;
END
$tidemark$;
