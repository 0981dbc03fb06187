"""The storage of the Batch API on PostgreSQL and S3."""
