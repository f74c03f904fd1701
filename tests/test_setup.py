"""The wheel's tag and the kernel's file name in ``setup.py``, without building either."""

import configparser
import importlib.machinery
import re
import runpy
import sysconfig

import pytest
import setuptools

from helpers.paths import CHECKOUT
from ssamba_upstream.extras import EXTRAS, extras_with
from ssamba_upstream.ops.cpu import library


@pytest.fixture
def command(monkeypatch):
    """Return a function that returns a command of ``setup.py`` by name."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(CHECKOUT / "setup.py"))
    distribution = setuptools.Distribution({"name": "ssamba-upstream", "version": "1", **given})

    def get(name):
        found = distribution.get_command_obj(name)
        found.ensure_finalized()
        return found

    return get


@pytest.mark.parametrize("built", [True, False])
def test_only_a_wheel_with_the_kernel_is_of_a_platform(command, tmp_path, built):
    wheel = command("bdist_wheel")
    wheel.bdist_dir = str(tmp_path)
    if built:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "_kernel.so").touch()
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.get_tag() == ("py3", "none", platform if built else "any")


def test_any_python_3_finds_the_kernel(command):
    name = command("build_ext").get_ext_filename(f"{library.__package__}._kernel")
    assert name == "ssamba_upstream/ops/cpu/_kernel.so"
    assert ".so" in importlib.machinery.EXTENSION_SUFFIXES  # only, without a version


def test_a_new_kernel_takes_the_place_of_one_named_after_a_python(command, tmp_path, monkeypatch):
    """importlib would load the old one first."""
    folder = tmp_path / "ssamba_upstream" / "ops" / "cpu"
    folder.mkdir(parents=True)
    (folder / "_kernel.cpython-310-x86_64-linux-gnu.so").touch()
    monkeypatch.chdir(tmp_path)
    build = command("build_ext")
    build.extensions = []
    build.copy_extensions_to_source()
    assert not [*folder.iterdir()]


def test_the_extras_install_what_they_are_said_to():
    extras = configparser.ConfigParser(interpolation=None)
    extras.read(CHECKOUT / "setup.cfg")
    imported = {"dtw-python": "dtw", "more-itertools": "more_itertools", "scikit-learn": "sklearn",
                "setuptools": "pkg_resources", "pyopen-wakeword": "pyopen_wakeword"}
    for extra, names in EXTRAS.items():
        packages = [re.split("[=<>]", line)[0] for line in extras["options.extras_require"][extra].split()]
        assert {imported.get(package, package) for package in packages if not package.startswith("%")} == names


def test_extras_with_a_module():
    assert extras_with("onnxruntime.quantization") == ["onnx"] and extras_with("numpy") == []


def test_every_package_is_installed():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(CHECKOUT / "setup.cfg")
    listed = {package for package in settings["options"]["packages"].split() if not package.endswith("_configs")}
    assert listed == {".".join(file.relative_to(CHECKOUT).parts[:-1])
                      for file in (CHECKOUT / "ssamba_upstream").rglob("__init__.py")}
