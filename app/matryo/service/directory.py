"""Names that callers may use for models, and the engines behind the names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matryo.core.errors import SettingsInvalid, UnknownModel
from matryo.engine import Engine


class Directory:
    """Ids, aliases and suffixes of the served models.

    Args:
        engines: what is served; the first is the default.
        aliases: further names, each for a model's id or one of its own aliases, or, if None,
            for the default. The manifests' aliases count too.

    Raises:
        SettingsInvalid: an alias for a name that is not served.
    """

    def __init__(self, engines: Sequence[Engine], aliases: Mapping[str, str | None]) -> None:
        self.engines = tuple(engines)
        self._by_name: dict[str, Engine] = {}
        for engine in engines:
            for name in (engine.manifest.id, *engine.manifest.aliases):
                self._by_name.setdefault(name, engine)
        own = dict(self._by_name)
        for alias, name in aliases.items():
            if name is not None and name not in own:
                raise SettingsInvalid(
                    f"MATRYO_ALIASES maps '{alias}' to '{name}', which is not served; "
                    f"served: {', '.join(sorted(own))}"
                )
            self._by_name.setdefault(alias, engines[0] if name is None else own[name])

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
        if engine := self._by_name.get(name):
            return engine, None
        cut = name.rfind("-")
        while cut > 0:
            engine = self._by_name.get(name[:cut])
            if engine and (meaning := engine.manifest.input_type_names.get(name[cut + 1 :])):
                return engine, meaning
            cut = name.rfind("-", 0, cut)
        raise UnknownModel(name[:256], served=self.ids, param=param)
