"""The storage of the Batch API in a database: SQLite or PostgreSQL, with SQLAlchemy."""
