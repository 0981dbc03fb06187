"""The doors over HTTP: OpenAI's, and the operators'. FastAPI lives here and in `matryo.main`."""
