"""OpenAI's door: its routes, wire types and document."""
