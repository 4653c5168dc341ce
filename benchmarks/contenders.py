"""Load a list into memory and look addresses up in it, in a process that does nothing else.

``python -m benchmarks.contenders NAME LIST QUESTIONS FOLDER`` prints its figures as JSON.
"""

import gc
import json
import sys
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_pton
from types import ModuleType
from typing import Any, Protocol, TypeAlias, cast

from benchmarks.blocklist import Address
from benchmarks.measure import peak_rss, proportional_set_size

Figures: TypeAlias = dict[str, float]
# What looks a question up; each contender gets its questions in the form it takes.
Lookup: TypeAlias = Callable[[Any], object]

WARM = 1_000  # addresses, which stay in the processor's caches


class Contender(Protocol):
    """Somebody who looks addresses up."""

    def load(self, path: Path) -> Lookup:
        """Load a list of prefixes."""
        ...

    def question(self, address: Address) -> object:
        """Return an address in the form that `load`'s lookup takes."""
        ...


class OwnTable:
    """spoakit's table as a worker has it: built before in another process, here only mapped."""

    def __init__(self, folder: Path) -> None:
        # Here, before memory is measured: a worker has the modules however many tables there are.
        from spoakit.apps.iprep.snapshot.manifest import read_snapshot
        from spoakit.apps.iprep.table._table_cy import Table

        self._folder = folder
        self._read_snapshot = read_snapshot
        self._open = Table.open

    def load(self, path: Path) -> Lookup:
        snapshot = self._read_snapshot(self._folder)
        assert snapshot is not None
        return self._open(self._folder / snapshot.table).lookup

    def question(self, address: Address) -> object:
        return address


class PlainBisect:
    """Python's own bisect on where ranges begin and end: arrays for IPv4, lists for IPv6."""

    def load(self, path: Path) -> Lookup:
        ranges = {4: _disjoint(4, 32, path), 6: _disjoint(6, 128, path)}

        def look_up(address: Address) -> bool:
            firsts, lasts = ranges[address.version]
            number = int(address)
            place = bisect_right(firsts, number) - 1
            return place >= 0 and number <= lasts[place]

        return look_up

    def question(self, address: Address) -> object:
        return address


class Tree(Protocol):
    """A PyTricia."""

    def insert(self, prefix: str, value: object) -> None: ...
    def freeze(self) -> None: ...
    def get(self, address: bytes) -> object: ...


class PyTricia:
    """A tree for each family, frozen, which makes lookups faster; asked with packed addresses."""

    def load(self, path: Path) -> Lookup:
        make = cast("Callable[[int], Tree]", _imported("pytricia").PyTricia)
        trees = {4: make(32), 16: make(128)}
        for prefix in _prefixes(path):
            trees[16 if ":" in prefix else 4].insert(prefix, 1)
        for tree in trees.values():
            tree.freeze()

        def look_up(packed: bytes) -> object:
            return trees[len(packed)].get(packed)

        return look_up

    def question(self, address: Address) -> object:
        return address.packed


class RadixTree(Protocol):
    """A radix.Radix."""

    def add(self, network: str) -> object: ...
    def search_best(self, *, packed: bytes) -> object: ...


class PyRadix:
    """One tree for both families, asked with packed addresses."""

    def load(self, path: Path) -> Lookup:
        tree = cast("Callable[[], RadixTree]", _imported("radix").Radix)()
        for prefix in _prefixes(path):
            tree.add(prefix)

        def look_up(packed: bytes) -> object:
            return tree.search_best(packed=packed)

        return look_up

    def question(self, address: Address) -> object:
        return address.packed


def measured(contender: Contender, path: Path, questions: Path) -> Figures:
    """Load a list and look up, memory compared before the one and after the other."""
    asked = [contender.question(address) for address in _addresses(questions)]
    warm = asked[:WARM] * -(-len(asked) // (4 * WARM))
    gc.collect()
    resting = proportional_set_size()
    start = time.perf_counter()
    look_up = contender.load(path)
    loaded = time.perf_counter() - start
    peak = peak_rss()
    cold = time_of(look_up, asked)
    gc.collect()
    return {
        "memory MB": proportional_set_size() - resting,
        "peak MB": peak,
        "load s": loaded,
        "lookup us": cold,
        "warm lookup us": time_of(look_up, warm),
        "lookups/s": 1e6 / cold,
    }


def time_of(look_up: Lookup, asked: Sequence[object]) -> float:
    """Return the microseconds of a lookup, without those of the loop around it."""
    start = time.perf_counter()
    for _ in asked:
        pass
    looping = time.perf_counter()
    for address in asked:
        look_up(address)
    end = time.perf_counter()
    return (end - looping - (looping - start)) / len(asked) * 1e6


def build(path: Path, folder: Path) -> Figures:
    """Build a snapshot with spoakit's table from a list, as the service does in a process."""
    from spoakit.apps.iprep.config.loader import settings_of
    from spoakit.apps.iprep.snapshot.builder import build_snapshot

    source = {"name": "blocklist", "type": "list", "path": str(path)}
    settings = settings_of({"source": [source]}, folder)
    start = time.perf_counter()
    build_snapshot(folder, settings, None)
    return {"load s": time.perf_counter() - start, "peak MB": peak_rss()}


class _SourcesOnly:
    """Finds the hot modules' sources, although their compiled forms stand beside them."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or not name.endswith("_cy"):
            return None
        return FileFinder(path[0], (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)


def use_uncompiled_form() -> None:
    """Make what is imported from now on be as where neither it is compiled nor Cython installed."""
    sys.meta_path.insert(0, _SourcesOnly)
    sys.modules["cython"] = cast(ModuleType, None)


def _imported(name: str) -> Any:
    return import_module(name)


def _prefixes(path: Path) -> Iterator[str]:
    with path.open(encoding="ascii") as file:
        for line in file:
            if not line.startswith("#"):
                yield line.rstrip()


def _addresses(path: Path) -> Iterator[Address]:
    with path.open(encoding="ascii") as file:
        for line in file:
            yield ip_address(line.rstrip())


def _disjoint(version: int, bits: int, path: Path) -> tuple[Sequence[int], Sequence[int]]:
    """Return where the ranges of a family begin and end, without those that lie within others."""
    family = AF_INET if version == 4 else AF_INET6
    ranges = []
    for prefix in _prefixes(path):
        if (":" in prefix) == (version == 6):
            address, _, length = prefix.partition("/")
            first = int.from_bytes(inet_pton(family, address), "big")
            ranges.append((first, first | (1 << bits - int(length or bits)) - 1))
    ranges.sort()
    firsts: Any = array("I") if version == 4 else []
    lasts: Any = array("I") if version == 4 else []
    end = -1
    for first, last in ranges:
        if last > end:
            firsts.append(first)
            lasts.append(last)
            end = last
    return firsts, lasts


def main(arguments: Iterable[str]) -> int:
    name, *paths = arguments
    path, questions, folder = map(Path, paths)
    if name.endswith("uncompiled"):
        use_uncompiled_form()
    contenders: dict[str, Callable[[], Contender]] = {
        "bisect": PlainBisect,
        "pytricia": PyTricia,
        "py-radix": PyRadix,
        "lookup": lambda: OwnTable(folder),
        "lookup-uncompiled": lambda: OwnTable(folder),
    }
    figures = (
        build(path, folder)
        if name.startswith("build")
        else measured(contenders[name](), path, questions)
    )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
