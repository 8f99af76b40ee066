"""``Rows`` in one PostgreSQL database, a namespace for each replica (docs/adr/0015-postgresql.md)."""
