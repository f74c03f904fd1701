"""The YAML files that come with the package, for upstreams and for s3prl's downstreams."""

from pathlib import Path


def configs_folder(kind) -> Path:
    """The folder of the "upstream" or "downstream" configs: in an installed package, or beside it in a checkout."""
    package, name = Path(__file__).parent, f"{kind}_configs"
    return package / name if (package / name).is_dir() else package.parent / name


def find_config(name, kind) -> Path:
    """A YAML file by its path, or one of the package's by its stem; a file of that path comes first.

    Raises:
        ValueError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if name not in config_names(kind):
        raise ValueError(f"{name}: there is no such file, and it names none of the package's {kind} configs: "
                         f"{', '.join(config_names(kind))}")
    return configs_folder(kind) / f"{name}.yaml"


def config_names(kind) -> list[str]:
    """The stems of the package's "upstream" or "downstream" configs."""
    return sorted(file.stem for file in configs_folder(kind).glob("*.yaml"))
