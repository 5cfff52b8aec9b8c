"""Settings that must be in place before JAX, torch or matplotlib load, and the data that some tests need.

They are environment variables, so that the processes that tests start have them too.
"""

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda runs the tests on a GPU
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each worker of pytest-xdist

# Compiling is most of the time. XLA's costlier passes are a fourth of that, and its newer emitters of fused loops,
# which go through MLIR, more than half of the rest; `make test-slow` runs with both.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
PLAIN_LOOPS = "--xla_cpu_use_fusion_emitters=false"
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and PLAIN_LOOPS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {PLAIN_LOOPS}".strip()

# Compiled code is kept between runs and, however little it is, between files, which forget it (see below). A size limit
# of JAX's would lock the folder and read the age of every entry for each one written, half a second with a few
# thousand of them: the oldest go when a run begins instead.
COMPILED = REPOSITORY / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Data sets that are not downloaded: $PPL_MODELS_DATA, or a folder shared by the checkouts beside this one.
if "PPL_MODELS_DATA" not in os.environ and (REPOSITORY.parent / "shared" / "data").is_dir():
    os.environ["PPL_MODELS_DATA"] = str(REPOSITORY.parent / "shared" / "data")


def pytest_sessionstart(session):
    """Drop the oldest compiled code until a gibibyte is left, once for all workers."""
    if hasattr(session.config, "workerinput"):
        return
    entries = sorted(((e.stat().st_mtime, e) for e in COMPILED.glob("*") if e.is_file()), reverse=True)
    kept = 0
    for _, entry in entries:
        kept += entry.stat().st_size
        if kept > 2**30:
            entry.unlink()


def data_folder(name: str) -> Path | None:
    """The folder of a data set, where there is one."""
    root = os.environ.get("PPL_MODELS_DATA")
    return Path(root, name) if root and Path(root, name).is_dir() else None


def pytest_runtest_setup(item):
    """Skip a test marked ``data("mnist")`` where that data set is absent."""
    for marker in item.iter_markers("data"):
        for name in marker.args:
            if data_folder(name) is None:
                pytest.skip(f"needs the folder {name!r} in $PPL_MODELS_DATA")


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The folder with MNIST's four gzipped files, where ``datasets.load("mnist")`` also finds them."""
    folder = data_folder("mnist")
    if folder is None:
        pytest.skip("needs the folder 'mnist' in $PPL_MODELS_DATA")
    return folder


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_code():
    """Compiled functions are memory maps, of which a Linux process may have 65,530: hundreds of tests need more."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
