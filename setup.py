"""The compiled CPU kernel; everything else is in setup.cfg. Where no compiler is found the package does without."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "ssamba_upstream.ops.cpu._kernel",
            ["ssamba_upstream/ops/cpu/kernel.c"],
            extra_compile_args=["-O3", "-pthread", "-ffp-contract=fast"],  # the last is GCC's default, and not clang's
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
