"""Strict settings for every test: promotion, rank, keys, warnings (pyproject.toml), float64 unless a test says not."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_legacy_prng_key", "error")


@pytest.fixture(autouse=True)
def doctests_run_as_users_do(request: pytest.FixtureRequest):
    """Examples in docstrings and in the README show what a user sees: float32, the standard promotion rules."""
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            yield
    else:
        yield
