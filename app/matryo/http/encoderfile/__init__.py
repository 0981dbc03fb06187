"""Encoderfile's door over HTTP: its two routes, wire types and part of the document."""
