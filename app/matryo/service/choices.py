"""From what a caller asked for to what shapes the vectors: model, input type, size."""

from __future__ import annotations

from dataclasses import dataclass

from matryo.catalog.manifest import Manifest
from matryo.core.errors import BadDimensions, InvalidRequest, UnknownModel
from matryo.engine import Engine
from matryo.service.directory import Directory
from matryo.service.request import EmbeddingType, Options


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the operator chose for requests that leave a choice open.

    Attributes:
        input_type: of texts that come without one.
        dimensions: output size; None for the model's own.
        strict_dimensions: refuse sizes that a model was not trained for.
        locked: names of the attributes above that no request may choose otherwise.
    """

    input_type: str = "document"
    dimensions: int | None = None
    strict_dimensions: bool = False
    locked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Choices:
    """What shapes the vectors of one request.

    Attributes:
        warnings: sentences for the caller.
    """

    engine: Engine
    input_type: str
    dimensions: int
    embedding_type: EmbeddingType
    warnings: tuple[str, ...]
    normalize: bool = True

    @property
    def fingerprint(self) -> str:
        """Names everything that shapes a vector: model, precision, weights, and these choices."""
        # A model without prompts makes the same vector of every input type.
        input_type = self.input_type if self.engine.manifest.has_prompts else "none"
        kind: str = self.embedding_type
        if kind == "float" and not self.normalize:  # signs are those of the unit vector
            kind += "+unnormalized"
        parts = (self.engine.fingerprint, input_type, str(self.dimensions), kind)
        return "/".join(parts)


def choose(options: Options, directory: Directory, defaults: Defaults) -> Choices:
    """Settle model, input type and size of a request.

    Raises:
        UnknownModel: the model is not served.
        InvalidRequest: the model does not know the input type.
        BadDimensions: the model cannot, or may not, give this size.
    """
    engine, suffix_type = directory.resolve(options.model)
    manifest = engine.manifest
    input_type = suffix_type
    default_type = default_type_of(manifest, defaults)
    if options.input_type is not None:
        input_type = _input_type(options.input_type, manifest)
    if input_type is None:
        input_type = default_type
    if "input_type" in defaults.locked and input_type != default_type:
        raise InvalidRequest(
            f"Invalid value for 'input_type': {input_type!r}. This server embeds {default_type!r} "
            "only; leave input_type out.",
            param="input_type",
            code="invalid_value",
        )
    dimensions, warnings = choose_dimensions(options.dimensions, manifest, defaults)
    return Choices(
        engine,
        input_type,
        dimensions,
        options.embedding_type,
        warnings,
        normalize=options.normalize,
    )


def describe(options: Options, directory: Directory, defaults: Defaults) -> tuple[str, str]:
    """The model and the input type that a request means, for labels of metrics.

    Returns:
        The id and the input type; an empty text in place of each that no served model has.
    """
    try:
        engine, suffix_type = directory.resolve(options.model)
    except UnknownModel:
        return "", ""
    manifest = engine.manifest
    if options.input_type is not None:
        return manifest.id, manifest.input_type_names.get(options.input_type, "")
    return manifest.id, suffix_type or default_type_of(manifest, defaults)


def default_type_of(manifest: Manifest, defaults: Defaults) -> str:
    """The input type of a text that comes without one."""
    # The operator's default may be meant for another model served beside this one.
    names = manifest.input_type_names
    own = manifest.default_input_type
    wanted = own if own and defaults.input_type == "document" else defaults.input_type
    return names.get(wanted) or names.get("document") or "none"


def _input_type(name: str, manifest: Manifest) -> str:
    meaning = manifest.input_type_names.get(name)
    if meaning is None:
        shown = name if len(name) <= 64 else name[:64] + "…"  # noqa: PLR2004 - enough to know it
        raise InvalidRequest(
            f"Invalid value for 'input_type': {shown!r}. {manifest.id} knows: "
            f"{', '.join(manifest.input_type_names)}.",
            param="input_type",
            code="invalid_value",
        )
    return meaning


def choose_dimensions(
    asked: int | None, manifest: Manifest, defaults: Defaults
) -> tuple[int, tuple[str, ...]]:
    """Settle the size of a request's vectors, and warn of a size that was not trained.

    Raises:
        BadDimensions: the model cannot, or may not, give this size.
    """
    sizes = manifest.output.dimensions
    if "dimensions" in defaults.locked and asked not in (None, defaults.dimensions):
        raise BadDimensions(
            f"Invalid value for 'dimensions': {asked}. This server gives {defaults.dimensions} "
            "only; leave dimensions out."
        )
    wanted = asked or defaults.dimensions or sizes.default or sizes.native
    if wanted == sizes.native:
        return wanted, ()
    if not sizes.cut:
        raise BadDimensions("This model does not support specifying dimensions.")
    if wanted > sizes.native:
        raise BadDimensions(
            f"Invalid value for 'dimensions': {wanted}. {manifest.id} gives 1 to {sizes.native}."
        )
    if wanted in sizes.trained:
        return wanted, ()
    trained = ", ".join(map(str, sizes.trained))
    if defaults.strict_dimensions:
        raise BadDimensions(
            f"Invalid value for 'dimensions': {wanted}. {manifest.id} was trained for: {trained}."
        )
    warning = f"{manifest.id} was not trained for {wanted} dimensions, but for: {trained}"
    return wanted, (warning,)
