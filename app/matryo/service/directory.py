"""Names that callers may use for models, and the engines behind the names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matryo.catalog.names import look_up
from matryo.core.errors import SettingsInvalid, UnknownModel
from matryo.engine import Engine

_MAX_NAME = 256  # characters; hubs allow 96


class Directory:
    """Ids, aliases, spellings and suffixes of the served models.

    A name means one model. What another model is called is no name for a served one: a caller
    that asks for that model would get vectors of this one in silence.

    Args:
        engines: what is served; the first is the default.
        aliases: further names, each for a model's id or one of its own aliases, or, if None,
            for the default. The manifests' aliases count too.
        others: names of models that are known and need not be served, and the id of each.

    Raises:
        SettingsInvalid: an alias for a name that is not served, or a name of two models.

    Attributes:
        engines: what is served, the default first.
        largest: the largest native size of their vectors.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        aliases: Mapping[str, str | None],
        others: Mapping[str, str] | None = None,
    ) -> None:
        self.engines = tuple(engines)
        self.largest = max(engine.manifest.output.dimensions.native for engine in engines)
        self._by_name: dict[str, Engine] = {}
        owners = {name.lower(): owner for name, owner in (others or {}).items()}
        for engine in engines:
            manifest = engine.manifest
            for name in (manifest.id, *manifest.aliases):
                owner = owners.setdefault(name.lower(), manifest.id)
                if owner != manifest.id:
                    raise SettingsInvalid(
                        f"'{name}' is a name of both {owner} and {manifest.id}: take it out of "
                        f"aliases in the model.toml of one of them"
                    )
                self._by_name[name.lower()] = engine
        own = dict(self._by_name)
        for alias, name in aliases.items():
            target = engines[0] if name is None else look_up(name, own)
            if target is None:
                raise SettingsInvalid(
                    f"MATRYO_ALIASES maps '{alias}' to '{name}', which is not served; "
                    f"served: {', '.join(sorted(own))}"
                )
            owner = look_up(alias, owners)
            if owner is not None and owner != target.manifest.id:
                raise SettingsInvalid(
                    f"MATRYO_ALIASES calls {target.manifest.id} '{alias}', but that is a name of "
                    f"{owner}, another model: choose an alias that no model has"
                )
            self._by_name[alias.lower()] = target

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the served models, the default first."""
        return tuple(engine.manifest.id for engine in self.engines)

    def resolve(self, name: str | None, *, param: str | None = None) -> tuple[Engine, str | None]:
        """The engine of a name, and the input type that the name's suffix asks for.

        A suffix is a hyphen and any name of an input type that the model knows. A name that is
        served as a whole has no suffix.

        Args:
            name: None for the default model.
            param: the field of the request that held the name, for the error.

        Raises:
            UnknownModel: neither the name, nor the name without its suffix, is served.
        """
        if name is None:
            return self.engines[0], None
        if len(name) > _MAX_NAME:  # a name of hyphens alone would be cut at each of them
            raise UnknownModel(name[:_MAX_NAME] + "…", served=self.ids, param=param)
        if engine := look_up(name, self._by_name):
            return engine, None
        cut = name.rfind("-")
        while cut > 0:
            engine = look_up(name[:cut], self._by_name)
            if engine and (meaning := engine.manifest.input_type_names.get(name[cut + 1 :])):
                return engine, meaning
            cut = name.rfind("-", 0, cut)
        raise UnknownModel(name, served=self.ids, param=param)

    def find(self, name: str | None) -> str | None:
        """The id of the model that a name means; None if no served model has the name."""
        try:
            return self.resolve(name)[0].manifest.id
        except UnknownModel:
            return None
