"""`matryo.Embedder`, in a program and in the workers of frameworks."""
