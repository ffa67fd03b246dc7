-- Takes away the outbox of {table}, with what it has not told, and its triggers.
DROP FUNCTION IF EXISTS {tell}() CASCADE;
DROP FUNCTION IF EXISTS {raise}() CASCADE;
DROP TABLE IF EXISTS {state};
DROP TABLE IF EXISTS {outbox};
