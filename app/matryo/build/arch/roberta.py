"""`model_type = "roberta"`: another name of `xlm_roberta`, whose graph is the same."""

from __future__ import annotations

from matryo.build.arch.xlm_roberta import Config, bind, emit, forward

__all__ = ["Config", "bind", "emit", "forward"]
