"""Strict settings for every test: promotion, rank, keys, warnings (pyproject.toml), float64 unless a test says not."""

import json
import os
from pathlib import Path

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


# ------------------------------------------------------------------------------------- figures that the tests measured


def pytest_addoption(parser: pytest.Parser):
    """Adds --figures."""
    parser.addoption(
        "--figures", type=Path, help="a JSON file for the worst figure of each cause that the tests measured"
    )


@pytest.fixture
def record_figure(request: pytest.FixtureRequest):
    """`record_figure(cause, function, value)`: beside the verdict, how far a test was from it."""
    record = lambda cause, function, value: request.node.user_properties.append(
        ("figure", [cause, function, float(value)])
    )
    return record


class _Figures:
    """For each cause: the test, the functions it covered and the worst figure, of all workers."""

    def __init__(self, path: Path):
        self.path, self.found = path, {}

    def pytest_runtest_logreport(self, report: pytest.TestReport):
        for name, figure in report.user_properties if report.when == "call" and report.passed else ():
            if name == "figure":
                cause, function, value = figure
                self.found.setdefault((cause, report.nodeid.partition("[")[0]), {}).setdefault(function, []).append(
                    value
                )

    def pytest_sessionfinish(self):
        rows = []
        for (cause, test), functions in sorted(self.found.items()):
            worst = max(functions, key=lambda name: max(functions[name]))
            row = {
                "cause": cause,
                "test": test,
                "functions": len(functions),
                "worst": max(functions[worst]),
                "of": worst,
            }
            rows.append(row)
        self.path.write_text(json.dumps(rows, indent=1) + "\n")


def pytest_configure(config: pytest.Config):
    """Collects figures where they are asked for, from all workers."""
    path = config.getoption("--figures")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Figures(path))
