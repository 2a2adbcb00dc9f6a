from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def accumulate(
    gradient: NDArray[np.float32],
    offset: int,
    kind: int,
    constants: Sequence[float],
    m: NDArray[np.float32] | None,
    v: NDArray[np.float32] | None,
    directions: NDArray[np.float32],
    norm2: NDArray[np.float64],
    products: NDArray[np.float64],
) -> None: ...
def simd() -> str: ...
