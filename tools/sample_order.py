"""The order in which `switchyard train` reads a stream of one domain: src/data/sampler.h and src/core/rng.h in Python."""

MASK_32, MASK_64 = 2**32 - 1, 2**64 - 1
SHUFFLE = 3  # RngPurpose::shuffle


def philox4x32(counter, key):
    """Philox4x32-10: four words and two -> four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK_32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK_32
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


class Rng:
    def __init__(self, seed, purpose, stream):
        self.key = philox4x32((purpose, 0, 0, 0), (seed & MASK_32, seed >> 32))[:2]
        self.stream = stream

    def bits(self, index):
        """64 of them."""
        low, high, _, _ = philox4x32((index & MASK_32, index >> 32, self.stream & MASK_32, self.stream >> 32), self.key)
        return high << 32 | low


def shuffled_index(index, n, rng):
    """A bijection of [0, n): a Feistel network over the next power of four, walked until it lands inside."""
    half_bits = 1
    while 1 << 2 * half_bits < n:
        half_bits += 1
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for turn in range(4):
            left, right = right, left ^ rng.bits(turn << 32 | right) & mask
        index = left << half_bits | right
        if index < n:
            return index


def window_of(sample, n_windows, seed):
    """Which window of seq_len tokens the n-th training sample is, of a stream that has n_windows."""
    return shuffled_index(sample % n_windows, n_windows, Rng(seed, SHUFFLE, sample // n_windows))
