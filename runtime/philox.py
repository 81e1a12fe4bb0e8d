"""Random numbers by counter: Philox 4x64-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

The numbers are those of numpy.random.Philox, without numpy.
"""

_MASK = (1 << 64) - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10

RoundKeys = tuple[tuple[int, int], ...]


def round_keys(key: int) -> RoundKeys:
    """What the rounds mix in, for a key of 64 bits."""
    return tuple(((key + i * _WEYL[0]) & _MASK, i * _WEYL[1] & _MASK) for i in range(_ROUNDS))


def philox(counter: int, keys: RoundKeys) -> int:
    """The first 64 bits of the block that belongs to a counter of 64 bits."""
    a, b, c, d = counter & _MASK, 0, 0, 0
    for low, high in keys:
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (second >> 64) ^ b ^ low, second & _MASK, (first >> 64) ^ d ^ high, first & _MASK
    return a
