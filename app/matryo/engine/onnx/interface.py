"""What a graph takes and gives, by name: ours, and those of ready exports."""

from __future__ import annotations

from collections.abc import Collection, Sequence

INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"
TOKEN_TYPE_IDS, APPLY_MASK = "token_type_ids", "apply_mask"
LAST_HIDDEN_STATE = "last_hidden_state"

REQUIRED_INPUTS = (INPUT_IDS, ATTENTION_MASK)
OPTIONAL_INPUTS = (TOKEN_TYPE_IDS, APPLY_MASK)
"""Fed where a graph declares them: token types are all 0, and attention may skip the mask."""

SOLO_TOKENS = 512
"""Texts over this many tokens run alone and unmasked, shorter ones always masked.

Masked attention holds a (T, T) score matrix for each head: 12 x 8192² floats are 3.2 GB.
The rule looks at a text's own length only, so that its vector never depends on company; a
graph may rely on it.
"""

# Optimum and transformers.js export the first name, sentence-transformers the second.
_HIDDEN_STATES = (LAST_HIDDEN_STATE, "token_embeddings")


def hidden_states_output(inputs: Collection[str], outputs: Sequence[str]) -> str:
    """The output that holds the hidden states of every token, `(B, T, H)`.

    Args:
        inputs: names of the graph's inputs.
        outputs: names of its outputs.

    Raises:
        ValueError: an input is missing or one we know nothing of, or no output fits.
    """
    known = (*REQUIRED_INPUTS, *OPTIONAL_INPUTS)
    if missing := [name for name in REQUIRED_INPUTS if name not in inputs]:
        raise ValueError(f"it has no input {missing}, only {sorted(inputs)}")
    if strange := sorted(set(inputs) - set(known)):
        raise ValueError(f"it wants the inputs {strange}; we can feed {list(known)}")
    for name in _HIDDEN_STATES:
        if name in outputs:
            return name
    raise ValueError(f"none of its outputs {list(outputs)} is one of {list(_HIDDEN_STATES)}")
