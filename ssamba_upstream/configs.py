"""YAML configs included in the package, for upstreams and for s3prl's downstreams."""

from pathlib import Path


def configs_folder(kind) -> Path:
    """Return the folder of "upstream" or "downstream" configs: in the installed package, or next to it in a clone."""
    package, name = Path(__file__).parent, f"{kind}_configs"
    return package / name if (package / name).is_dir() else package.parent / name


def find_config(name, kind) -> Path:
    """Find a YAML file by its path or, if there is no such file, one of the package's configs by its stem. If there is
    neither, raise a ValueError."""
    if Path(name).is_file():
        return Path(name)
    if name not in config_names(kind):
        raise ValueError(f"{name} is neither a file nor one of the package's {kind} configs. Give a path, or one of "
                         f"{', '.join(config_names(kind))}")
    return configs_folder(kind) / f"{name}.yaml"


def config_names(kind) -> list[str]:
    """Return the stems of the package's "upstream" or "downstream" configs."""
    return sorted(file.stem for file in configs_folder(kind).glob("*.yaml"))
