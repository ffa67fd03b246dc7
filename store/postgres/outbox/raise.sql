
-- Whoever changes a row without raising its version has it raised: by one, under
-- the row's lock, so that versions rise in the order of commits.
CREATE OR REPLACE FUNCTION {raise}() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $tidemark$
BEGIN
	NEW.{version} := OLD.{version} + 1;
	RETURN NEW;
END
$tidemark$;
CREATE OR REPLACE TRIGGER "{trigger}_raise" BEFORE UPDATE ON {table}
	FOR EACH ROW WHEN (NEW.{version} IS NULL OR NEW.{version} <= OLD.{version}) EXECUTE FUNCTION {raise}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER "{trigger}_raise";
