from pathlib import Path

import spoakit


def test_everything_exported_is_there_and_sorted() -> None:
    assert spoakit.__all__ == sorted(set(spoakit.__all__))
    for name in spoakit.__all__:
        assert hasattr(spoakit, name)


def test_nothing_else_is_public_but_the_rooms() -> None:
    # pytest, which loads the package as a plugin, adds names that start with @.
    public = {name for name in vars(spoakit) if not name.startswith(("_", "@"))}
    rooms = {name for name in public if (Path(spoakit.__file__).parent / name).is_dir()}
    modules = {"exceptions", "compilation", "log_output", "logs", "service"}
    late = {"run", "serve"}
    assert public - rooms - modules - late == set(spoakit.__all__) - {"__version__"} - late
