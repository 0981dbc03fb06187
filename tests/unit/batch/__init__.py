"""The Batch API without a server."""
