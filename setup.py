"""What setuptools cannot be told in pyproject.toml: a wheel carries compiled kernels, and is for one interpreter."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildWithKernels(build_py):
    """Compiles the sources that go into the wheel. An editable install has none: its sources change."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib).absolute()
            environment = os.environ | {"PYTHONPATH": str(folder), "NUMBA_DISABLE_JIT": "1"}
            made = [sys.executable, "-m", "nbloop.kernels.build.wheel", str(folder / "nbloop" / "kernels" / "packs")]
            subprocess.run(made, cwd=folder, env=environment, check=True)


class PlatformWheel(bdist_wheel):
    """For this interpreter and platform; for any Linux, because kernels need no library of the system."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return python, abi, platform.replace("linux_", "manylinux_2_17_", 1) if platform[:6] == "linux_" else platform


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
