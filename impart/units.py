"""Units that announce themselves: every class of a kind in the modules of a package, found by walking its folder."""

import functools
import importlib
import pkgutil
from typing import TypeVar

Unit = TypeVar("Unit")


def units(package: str, kind: type[Unit]) -> dict[str, type[Unit]]:
    """The subclasses of `kind` with a `name` that modules of `package` define, by that name, in the order of the files.

    A new file in the package's folder is a new unit; nothing else has to know of it.
    """
    found: dict[str, type[Unit]] = {}
    for module in _modules(package):
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, kind) and "name" in vars(value):
                found[value.name] = value
    return found


@functools.cache
def _modules(package: str) -> list:
    folder = importlib.import_module(package).__path__
    return [importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(folder)]
