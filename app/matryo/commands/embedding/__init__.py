"""`matryo embed`: the service on the texts of files, without a server."""
