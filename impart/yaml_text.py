"""YAML of a user, within bounds: whatever cannot be a setting is one error line, whichever part of PyYAML meets it."""

from itertools import chain
from typing import Any

import yaml

from impart.errors import InputError, reason_of

MOST_NODES, DEEPEST = 100_000, 50  # anchors written out: some lines of them may stand for terabytes
LARGEST = 2**63


class _Loader(yaml.SafeLoader):
    """YAML's safe types, without its silent choice of the last of two equal keys."""

    def __init__(self, text: str):
        super().__init__(text)
        self._sizes: dict[int, int] = {}  # of every finished node
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The node, counted with all that its aliases stand for."""
        is_alias, self._depth = self.check_event(yaml.AliasEvent), self._depth + 1
        if self._depth > DEEPEST:
            raise _error(f"more than {DEEPEST} levels of lists and mappings", self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or id(node) in self._sizes:
            return node
        if is_alias:
            raise _error("a list or mapping holds itself", node)
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        size = 1 + sum(self._sizes[id(part)] for part in parts) if isinstance(node, yaml.CollectionNode) else 1
        if size > MOST_NODES:
            raise _error(f"more than {MOST_NODES} values, anchors counted where they are used", node)
        self._sizes[id(node)] = size
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _error(f"{key.value!r} stands twice", key)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) >= LARGEST:
            raise _error("a whole number beyond 64 bits", node)
        return value

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        value = super().construct_yaml_str(node)
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _error("a text with a NUL or half a character, which no name can have", node)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)


def _error(message: str, place: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, place.start_mark)


def parse_yaml(text: str, where: str) -> Any:
    """The one value that a YAML text stands for; InputError, which says `where` it stands, for all that is none."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {error}") from error
    except Exception as error:  # of dates, numbers and tags PyYAML lets every error through
        raise InputError(f"{where} holds a value that YAML cannot read ({reason_of(error)})") from error
