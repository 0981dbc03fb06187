"""What the commands of `matryo` do, one module each; `app.cli` has their arguments."""
