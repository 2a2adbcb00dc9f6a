from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers import browsing


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield a browser, in which pages are looked at."""
    with browsing.launched() as launched:
        yield launched
