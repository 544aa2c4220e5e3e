"""Strict settings for every test: promotion, rank, keys, warnings (pyproject.toml), float64 unless a test says not."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_legacy_prng_key", "error")


_TESTS_BETWEEN_CLEARINGS = 100
_tests = 0


@pytest.fixture(autouse=True)
def compiled_programs_are_let_go():
    """A program holds mappings of memory, of which a Linux process may have 65,530, which many tests may use up."""
    global _tests
    yield
    _tests += 1
    if _tests % _TESTS_BETWEEN_CLEARINGS == 0:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def doctests_run_as_users_do(request: pytest.FixtureRequest):
    """Examples in docstrings and in the README show what a user sees: float32, the standard promotion rules."""
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            yield
    else:
        yield
