"""Names of the inputs and outputs of a graph, built by Matryo or exported by another tool."""

from __future__ import annotations

from collections.abc import Collection, Sequence

INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"
TOKEN_TYPE_IDS, APPLY_MASK = "token_type_ids", "apply_mask"
LAST_HIDDEN_STATE = "last_hidden_state"

REQUIRED_INPUTS = (INPUT_IDS, ATTENTION_MASK)
OPTIONAL_INPUTS = (TOKEN_TYPE_IDS, APPLY_MASK)
"""Inputs that a graph may declare: token types, which are always 0, and a boolean that says whether
attention uses the mask."""

SOLO_TOKENS = 512
"""A text with more tokens than this runs alone and without a mask. Any other text has a mask.

Attention with a mask holds a score matrix (T, T) for each head: 12 x 8192² float32 are 3.2 GB.
The rule depends on a text's own length only, because a text's vector may not depend on the other
texts of its batch. A graph may rely on the rule.
"""

# Optimum and transformers.js write the first name, sentence-transformers the second.
_HIDDEN_STATES = (LAST_HIDDEN_STATE, "token_embeddings")


def hidden_states_output(inputs: Collection[str], outputs: Sequence[str]) -> str:
    """The name of the output with the hidden state of every token, `(B, T, H)`.

    Args:
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.

    Raises:
        ValueError: a required input is missing, an input is unknown, or no output has a known
            name.
    """
    known = (*REQUIRED_INPUTS, *OPTIONAL_INPUTS)
    if missing := [name for name in REQUIRED_INPUTS if name not in inputs]:
        raise ValueError(f"the graph has no input {missing}, only {sorted(inputs)}")
    if unknown := sorted(set(inputs) - set(known)):
        raise ValueError(f"the graph has the inputs {unknown}; only {list(known)} can be fed")
    for name in _HIDDEN_STATES:
        if name in outputs:
            return name
    raise ValueError(f"the graph has the outputs {list(outputs)}, none of {list(_HIDDEN_STATES)}")
