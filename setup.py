"""The compiled CPU kernel, and the tag of a wheel that has it; everything else is in setup.cfg.

Where no compiler is found the package does without the kernel.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel


class BuildKernel(build_ext):
    """Build the kernel under a name without Python's version: it is loaded through ctypes and knows no Python."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def copy_extensions_to_source(self):
        """Remove the builds of earlier versions, whose names importlib prefers, and copy the new one."""
        for old in Path("ssamba_upstream/ops/cpu").glob("_kernel.*.so"):
            old.unlink()
        super().copy_extensions_to_source()


class KernelWheel(bdist_wheel):
    """A wheel for any Python 3: of this platform if the kernel is in it, and of any platform if not."""

    def get_tag(self):
        has_kernel = any(Path(self.bdist_dir).rglob("_kernel.so"))
        return "py3", "none", super().get_tag()[-1] if has_kernel else "any"


setup(
    ext_modules=[
        Extension(
            "ssamba_upstream.ops.cpu._kernel",
            ["ssamba_upstream/ops/cpu/kernel.c"],
            extra_compile_args=["-O3", "-pthread", "-ffp-contract=fast"],  # the last is GCC's default, and not clang's
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": KernelWheel},
)
