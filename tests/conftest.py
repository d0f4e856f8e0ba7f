"""Settings of every test: no network, one device, strict arithmetic, quick compilation, two workers."""

import os
from importlib.metadata import version

# Set before JAX and the hub's client are first imported. `JAX_PLATFORMS=cuda,cpu pytest -m gpu` overrides.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # there JAX leaves memory for torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several tests compile the same programs. JAX locks its cache against the other worker only if its size is limited.
_CACHE = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "programs")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

ON_CPU = os.environ["JAX_PLATFORMS"] == "cpu"
if ON_CPU:
    # Most of the time goes to compiling programs that run once or twice: they are hardly optimised, which takes a third
    # of the time. Each worker computes in one thread.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if version("jaxlib").startswith("0.10."):  # XLA aborts at a flag that a later version has dropped
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from tiny_zoo import save_tiny_zoo  # noqa: E402

from auditdm_jax import collect  # noqa: E402

# Compilation inside an example makes its first run slow, not wrong; the same examples on every machine.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")


def pytest_xdist_auto_num_workers() -> int:
    """Two workers, each of which needs up to 3 GB; on an accelerator none, for its memory is one process's."""
    return min(2, os.cpu_count() or 1) if ON_CPU else 0


@pytest.fixture(scope="module", autouse=True)
def _no_programs_of_other_files():
    """Compiled programs would otherwise stay in memory, gigabytes of them."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Directories of tiny random models by role: auditor, target, a, b."""
    return save_tiny_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def paying(monkeypatch):
    """Random models hardly ever agree and earn nothing: here a question earns by its words, so that updates learn."""
    real = collect.diversified

    def paid(outcome, ids, mask, *rest):
        return jnp.where(mask, ids, 0).sum(-1) % 5 / 4, real(outcome, ids, mask, *rest)[1]

    monkeypatch.setattr(collect, "diversified", paid)
