"""The door of text-embeddings-inference (TEI): its routes, wire types and part of the document."""
