"""OpenAI's contract over HTTP: routes, wire types, errors, authentication, operations."""
