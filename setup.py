"""Everything that is fixed stands in pyproject.toml; here is what a wheel holds besides the package.

The configs and the scripts stand beside the package in a clone, and inside of it once it is installed:
luna_fairseq/share/{configs,scripts}, so that the scripts find the configs beside them in both. An editable install
uses those of the clone.
"""

import shutil
import sys
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

OLDEST = 77  # knows the license of pyproject.toml; pip looks at [build-system] only if it builds in isolation
if int(setuptools.__version__.split(".")[0]) < OLDEST:
    sys.exit(f"setuptools is {setuptools.__version__}: run pip install 'setuptools>={OLDEST}', then the same again")

ROOT = Path(__file__).resolve().parent
SHARED = ("configs/**/*.yaml", "scripts/**/*.sh", "scripts/**/*.py", "CHANGELOG.md")


class BuildWithShared(build_py):
    """build_py, and the files of SHARED in luna_fairseq/share."""

    def _shared(self) -> dict[str, str]:
        """Where a file goes -> where it is."""
        folder = Path(self.build_lib, "luna_fairseq", "share")
        files = [path for pattern in SHARED for path in sorted(ROOT.glob(pattern))]
        return {str(folder / path.relative_to(ROOT)): str(path) for path in files}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            # What an earlier build left there may have gone since.
            shutil.rmtree(Path(self.build_lib, "luna_fairseq", "share"), ignore_errors=True)
            for target, source in self._shared().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_output_mapping(self) -> dict[str, str]:
        found = super().get_output_mapping()
        return found if self.editable_mode else {**found, **self._shared()}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        found = super().get_outputs(include_bytecode)
        return found if self.editable_mode else [*found, *self._shared()]


setuptools.setup(cmdclass={"build_py": BuildWithShared})
