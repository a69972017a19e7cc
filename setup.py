"""Puts `examples/` into the wheel as `modelyard/_examples`, so that `modelyard init NAME` works where it is installed.

Everything else is in pyproject.toml. A checkout (and an editable install) reads `examples/` itself.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithExamples(build_py):
    """`build_py` that copies the examples too; `runs` folders that stand beside them stay behind."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "modelyard" / "_examples"
            shutil.rmtree(target, ignore_errors=True)
            left = shutil.ignore_patterns("runs", "exports", "__pycache__", ".*")
            shutil.copytree(Path(__file__).parent / "examples", target, ignore=left)


setup(cmdclass={"build_py": WithExamples})
