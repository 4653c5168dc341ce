"""Configuration of a service, as text."""

from pathlib import Path


def a_list(path: Path, name: str = "mine") -> str:
    return f'[[source]]\nname = "{name}"\ntype = "list"\npath = "{path}"\n'
