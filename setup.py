"""What setuptools cannot be told in pyproject.toml: a wheel carries compiled kernels, and is for one interpreter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildWithKernels(build_py):
    """Compiles the kernels that go into the wheel, or takes those of NBLOOP_PACKS, a folder that is made if it is not
    there. What is in it is checked when it is imported. An editable install has none: its sources change.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib).absolute()
        packs = folder / "nbloop" / "kernels" / "packs"
        kept = os.environ.get("NBLOOP_PACKS")
        if kept and Path(kept).is_dir():
            shutil.copytree(kept, packs, dirs_exist_ok=True)
            return
        # Bytecode of the modules that run here would go into the wheel beside them, half of its size.
        environment = os.environ | {
            "PYTHONPATH": str(folder),
            "NUMBA_DISABLE_JIT": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        made = [sys.executable, "-m", "nbloop.kernels.build.wheel", str(packs)]
        subprocess.run(made, cwd=folder, env=environment, check=True)
        if kept:
            shutil.copytree(packs, kept)


class Compiled(Distribution):
    """Has machine code, which setuptools does not see."""

    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """For any Linux, because kernels need no library of the system."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return python, abi, platform.replace("linux_", "manylinux_2_17_", 1) if platform[:6] == "linux_" else platform


setup(distclass=Compiled, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
