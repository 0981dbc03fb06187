"""What the commands of `matryo` do, one module each; `matryo.cli` has their arguments."""
