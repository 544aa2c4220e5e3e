import time

import pytest

_LIMIT = 10  # seconds of CPU time, compilation without optimization included: a busy machine fails nothing


@pytest.fixture(autouse=True)
def ends_soon():
    start = time.process_time()
    yield
    assert time.process_time() - start < _LIMIT
