"""Which random projection a gradient is sketched by.

The matrix is a pure function of `VERSION` and the fields below: the same on every machine, whatever
its CPU, its GPU or the number of its threads, and never stored. `clusterucb.kernels.reference` says what it is.
The keys stand apart from the matrix, without numpy, because the command line checks options before
anything heavy is imported.

Choices:
    - The default is a sparse Johnson-Lindenstrauss transform with s = 2 nonzeros a column (Kane & Nelson
      2014), in s blocks of d / s buckets, with a hash that moves whole octets of neighbouring coordinates:
      vector loads stay whole, and neighbours never share a bucket. Contiguous blocks and ``i mod d`` were
      left out: their error on gradients with outlier columns is 2 to 19 times what theory says.
    - s = 2 is the safe default; s = 4 for raw gradients (``sgd``), which are heavy-tailed; s = 1 is the
      fastest.
    - ``rademacher``, a dense matrix of random signs, is what LESS (TRAK) projects with. It is a reference:
      d / s times the work for an error that is the same where energy is spread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clusterucb.errors import OptionError, check_choice

VERSION = 1  # a change of the matrix changes it; sketches of two versions cannot be compared
SKETCHES = ("sjlt", "rademacher")
_NONZEROS = (1, 2, 4)
_SMALLEST = 256
_MASK = 2**64 - 1
_APART = 0x51ED270B9F4A7C15  # between the seeds of two checkpoints


@dataclass(frozen=True)
class Sketch:
    """A random projection R to d dimensions with E ⟨Rx, Ry⟩ = ⟨x, y⟩.

    Attributes:
        dimension: d; for ``sjlt`` a power of two from 256.
        nonzeros: s, nonzeros in a column of ``sjlt``; ``rademacher`` has no use for it.
        seed: another seed, an independent matrix.
        kind: one of `SKETCHES`.

    Raises:
        OptionError: a value cannot be used.
    """

    dimension: int = 8192
    nonzeros: int = 2
    seed: int = 0
    kind: str = "sjlt"

    def __post_init__(self) -> None:
        check_choice("kind of sketch", self.kind, SKETCHES)
        check_dimension("dimension", self.dimension, self.kind)
        if self.kind == "sjlt" and self.nonzeros not in _NONZEROS:
            raise OptionError(
                f"nonzeros is {self.nonzeros}; expected one of {', '.join(map(str, _NONZEROS))}"
            )
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed is {self.seed}; expected a whole number from 0, below 2^63")

    @property
    def blocks(self) -> int:
        """Number of sparse blocks, s; 0 for a dense matrix."""
        return self.nonzeros if self.kind == "sjlt" else 0

    @property
    def scale(self) -> float:
        """The factor that kernels leave to the end, so that their sums are of the updates themselves."""
        return float((self.blocks or self.dimension) ** -0.5)

    def of_checkpoint(self, number: int) -> Sketch:
        """Return the independent matrix for checkpoint ``number``, from 0, whose sketches are added to this one's."""
        return replace(self, seed=(self.seed + number * _APART) % 2**63)

    def keys(self) -> list[int]:
        """Return six 32-bit words for each block (one for a dense matrix): two each of sign, row, lane."""
        words = []
        for number in range(3 * max(self.blocks, 1)):
            # Seeds go through the mix first, so that those of neighbouring seeds are no shifted copies.
            key = _mix(_mix(self.seed + 0x9E3779B97F4A7C15) + number + 1)
            words += [key & 0xFFFFFFFF, key >> 32]
        return words


def check_dimension(name: str, dimension: int, kind: str = "sjlt") -> None:
    """Refuse a dimension that a sketch cannot have, naming the nearest that it can.

    Raises:
        OptionError: it is none.
    """
    if kind != "sjlt":
        if dimension < 1:
            raise OptionError(f"{name} is {dimension}; expected at least 1")
    elif dimension < _SMALLEST:
        raise OptionError(f"{name} is {dimension}; expected a power of two from {_SMALLEST}")
    elif dimension & (dimension - 1):
        below = 1 << (dimension.bit_length() - 1)
        raise OptionError(f"{name} is {dimension}; expected a power of two, such as {below} or {2 * below}")


def _mix(word: int) -> int:
    """Return the finaliser of SplitMix64 (Steele et al. 2014), a bijection of 64-bit words."""
    word &= _MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)
