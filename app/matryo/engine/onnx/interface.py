"""Names of a graph's inputs and output: of the graphs that Matryo builds, and of ready exports."""

from __future__ import annotations

from collections.abc import Collection, Sequence

INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"
TOKEN_TYPE_IDS, APPLY_MASK = "token_type_ids", "apply_mask"
LAST_HIDDEN_STATE = "last_hidden_state"

REQUIRED_INPUTS = (INPUT_IDS, ATTENTION_MASK)
OPTIONAL_INPUTS = (TOKEN_TYPE_IDS, APPLY_MASK)
"""Inputs that are fed to graphs which declare them: token types, all of them 0, and a boolean
that says whether attention uses the mask."""

SOLO_TOKENS = 512
"""Texts over this many tokens run alone and unmasked; shorter texts always run masked.

Masked attention holds a (T, T) score matrix for each head: 12 x 8192² floats are 3.2 GB.
The rule depends on a text's own length only, because a text's vector may not depend on the
other texts of a batch. Graphs may rely on the rule.
"""

# Optimum and transformers.js export the first name, sentence-transformers the second.
_HIDDEN_STATES = (LAST_HIDDEN_STATE, "token_embeddings")


def hidden_states_output(inputs: Collection[str], outputs: Sequence[str]) -> str:
    """Name of the output that holds the hidden states of every token, `(B, T, H)`.

    Args:
        inputs: names of the graph's inputs.
        outputs: names of its outputs.

    Raises:
        ValueError: a required input is missing, an input is unknown, or no output fits.
    """
    known = (*REQUIRED_INPUTS, *OPTIONAL_INPUTS)
    if missing := [name for name in REQUIRED_INPUTS if name not in inputs]:
        raise ValueError(f"the graph has no input {missing}, only {sorted(inputs)}")
    if strange := sorted(set(inputs) - set(known)):
        raise ValueError(f"the graph wants the inputs {strange}; only {list(known)} can be fed")
    for name in _HIDDEN_STATES:
        if name in outputs:
            return name
    raise ValueError(f"none of its outputs {list(outputs)} is one of {list(_HIDDEN_STATES)}")
