"""Run the kernels' tests under AddressSanitizer: `python tests/ops/asan.py [pytest arguments]`.

Needs Linux, GCC and `pip install nanobind cmake`.

Builds the extension with SSAMBA_SANITIZE=address into a copy of the package in a temporary folder. In such a build
workspaces are also filled with NaN before every call, so that a kernel which reads what it has not written fails.
The installed ssamba is not changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_RUN = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
sys.path.insert(0, sys.argv[1])
import ssamba, pytest
assert ssamba.__file__.startswith(sys.argv[1]), ssamba.__file__
raise SystemExit(pytest.main(sys.argv[2:]))
"""


def main() -> int:
    """Build, run, and return pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        build, package = Path(folder) / "build", Path(folder) / "package"
        shutil.copytree(ROOT / "src", package, ignore=shutil.ignore_patterns("_cpu*", "__pycache__"))
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
        subprocess.run([*configure, "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DSSAMBA_SANITIZE=address"], check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", "--target", "_cpu"], check=True)
        for built in build.glob("_cpu*.so"):
            shutil.copy(built, package / "ssamba" / "ops" / "cpp")
        libraries = [
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so")
        ]
        # Leaks are Python's and PyTorch's own, and fork() with a threaded parent is what one of the tests is about.
        environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0,halt_on_error=1,abort_on_error=0",
            "SSAMBA_SANITIZED": "1",
        }
        files = [str(ROOT / "tests" / "ops" / name) for name in ("test_cpp_kernels.py", "test_mixer.py")]
        tests = sys.argv[1:] or ["-q", *files]
        return subprocess.run([sys.executable, "-c", _RUN, str(package), *tests], env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
