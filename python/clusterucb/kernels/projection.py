"""Specify the random projection that sketches gradients.

The matrix is a pure function of `VERSION` and the fields below. It is the same on every machine, whatever its CPU,
its GPU or the number of its threads, and it is never stored. `clusterucb.kernels.reference` defines it. The keys
have a module of their own, without numpy, because the command line checks options before it imports anything heavy.

Decisions:
    - The default is a sparse Johnson-Lindenstrauss transform with s = 2 nonzeros in each column (Kane & Nelson
      2014). It has s blocks of d / s buckets. Its hash moves whole octets of neighbouring coordinates, so that
      vector loads stay whole and neighbours never share a bucket. Contiguous blocks and ``i mod d`` were rejected:
      on gradients with outlier columns their error is 2 to 19 times what theory says.
    - s = 2 is the safe default. s = 4 is for raw gradients (``sgd``), which are heavy-tailed. s = 1 is the fastest.
    - ``rademacher``, a dense matrix of random signs, is what LESS (TRAK) projects with. It serves as a reference: it
      takes d / s times the work, and its error is the same where a gradient's energy is spread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clusterucb.errors import OptionError, check_choice

VERSION = 1  # raise it whenever the matrix changes: sketches of two versions cannot be compared
SKETCHES = ("sjlt", "rademacher")
_NONZEROS = (1, 2, 4)
_SMALLEST, _LARGEST = 256, 1 << 22
_MASK = 2**64 - 1
_APART = 0x51ED270B9F4A7C15  # the distance between the seeds of two checkpoints


@dataclass(frozen=True)
class Sketch:
    """A random projection R to d dimensions with E ⟨Rx, Ry⟩ = ⟨x, y⟩.

    Attributes:
        dimension: d; for ``sjlt`` a power of two from 256.
        nonzeros: s, the nonzeros in each column of ``sjlt``; ``rademacher`` ignores it.
        seed: selects the matrix; two seeds give independent matrices.
        kind: one of `SKETCHES`.

    Raises:
        OptionError: a field is out of range.
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
            raise OptionError(f"seed is {self.seed}; expected a whole number of at least 0 and below 2^63")

    @property
    def blocks(self) -> int:
        """The number of sparse blocks, s; 0 for a dense matrix."""
        return self.nonzeros if self.kind == "sjlt" else 0

    @property
    def scale(self) -> float:
        """The factor that makes E ⟨Rx, Ry⟩ = ⟨x, y⟩; kernels add up unscaled updates, `finish_sketches` applies it."""
        return float((self.blocks or self.dimension) ** -0.5)

    def of_checkpoint(self, number: int) -> Sketch:
        """Return an independent projection for checkpoint ``number``, counted from 0; number 0 gives this one.

        The sketches of several checkpoints are added up.
        """
        return replace(self, seed=(self.seed + number * _APART) % 2**63)

    def keys(self) -> list[int]:
        """Return six 32-bit words for each block (a dense matrix has one): two each for sign, row and lane."""
        words = []
        for number in range(3 * max(self.blocks, 1)):
            # The seed is mixed first, so that the keys of neighbouring seeds are not shifted copies of each other.
            key = _mix(_mix(self.seed + 0x9E3779B97F4A7C15) + number + 1)
            words += [key & 0xFFFFFFFF, key >> 32]
        return words


def check_dimension(name: str, dimension: int, kind: str = "sjlt") -> None:
    """Refuse a dimension that a sketch cannot have, and name the nearest valid ones.

    Args:
        name: the option's name, for the message.
        dimension: d.
        kind: one of `SKETCHES`.

    Raises:
        OptionError: a sketch of this kind cannot have this dimension.
    """
    if kind != "sjlt":
        if dimension < 1:
            raise OptionError(f"{name} is {dimension}; expected at least 1")
    elif dimension < _SMALLEST:
        raise OptionError(f"{name} is {dimension}; expected a power of two of at least {_SMALLEST}")
    elif dimension & (dimension - 1):
        below = 1 << (dimension.bit_length() - 1)
        raise OptionError(f"{name} is {dimension}; expected a power of two, such as {below} or {2 * below}")
    if dimension > _LARGEST:
        raise OptionError(
            f"{name} is {dimension}; expected at most {_LARGEST}: a LoRA has fewer parameters than that"
        )


def _mix(word: int) -> int:
    """Mix the bits of a 64-bit word with the finaliser of SplitMix64 (Steele et al. 2014), a bijection."""
    word &= _MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)
