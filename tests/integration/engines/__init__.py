"""`matryo.Embedder` in Ray, Spark, Daft and Dask; `make .venv/.engines` installs them."""
