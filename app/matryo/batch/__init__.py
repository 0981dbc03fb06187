"""OpenAI's Batch API without a transport: files, batches, and the work on them."""
