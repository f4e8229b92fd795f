"""A process whose clock is wrong: libfaketime from its wheel, preloaded. Durations stay right, as they do on a machine
whose clock was set wrongly."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

#: What Python and Rust code of ours see of the clock, in Unix seconds; identifiers begin with it, in milliseconds.
_PROBE = "import time; from models.kit.ids import new_id; print(time.time(), int(new_id().hex[:12], 16) / 1000)"


def skewed(seconds: int) -> dict[str, str]:
    """Environment variables that set a process's clock off by so much. Skips where the library cannot be loaded."""
    # Found but not imported: only the library inside is of use, and it alone.
    package = find_spec("libfaketime")
    if sys.platform != "linux" or package is None or package.origin is None:
        pytest.skip("libfaketime is not installed, or not for this system")
    library = Path(package.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    variables = {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_NO_CACHE": "1",
        # Time-outs are by the monotonic clock, which nobody sets.
        "DONT_FAKE_MONOTONIC": "1",
    }
    trial = subprocess.run(
        [sys.executable, "-c", "import time"], env=variables, capture_output=True, text=True, check=False
    )
    if "cannot be preloaded" in trial.stderr:
        pytest.skip(f"libfaketime's library is not for this machine: {trial.stderr.strip()}")
    return variables


def clocks(environment: dict[str, str]) -> tuple[float, float]:
    """What the clock says in a process with these variables: to Python, and to compiled code."""
    printed = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, check=True
    ).stdout
    python, compiled = printed.split()
    return float(python), float(compiled)
