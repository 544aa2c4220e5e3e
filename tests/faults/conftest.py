import time

import pytest

# seconds of CPU time, a dozen of which the compilation of the longest may take: a busy machine fails nothing
_LIMIT = 30


@pytest.fixture(autouse=True)
def ends_soon():
    start = time.process_time()
    yield
    assert time.process_time() - start < _LIMIT
