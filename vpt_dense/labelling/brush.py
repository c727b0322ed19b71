"""Masks as Label Studio's brush keeps them: RGBA, run-length coded in bits.

The format is rle-pack's (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): 32
bits with the number of values, 5 with their size in bits less 1, 4 times 4 with the sizes in which
lengths are counted, less 1. Then, until all values are there: a bit, 1 for a run of one value and 0
for values one by one; two bits that choose a size; in that size the number of values less 1; the
value, or the values. Bits that lack to a whole byte are 0. Label Studio counts in 3, 4, 8 or 16.
"""

from collections.abc import Sequence

import numpy as np

_SIZES = (3, 4, 8, 16)
_HEAD = 32 + 5 + 4 * 4
#: Values of a mask that is read: 2^28 are an image of 67 million pixels.
_MOST = 2**28


def encode(mask: np.ndarray) -> list[int]:
    """A mask as a brush has it.

    Args:
        mask: (H, W) bool.

    Returns:
        Bytes, each 0 to 255.
    """
    values = np.repeat(mask.reshape(-1).astype(np.uint8) * np.uint8(255), 4)
    starts = np.flatnonzero(np.diff(values, prepend=np.int64(-1)))
    lengths = np.diff(starts, append=values.size)
    # A run is at most 2^16 long: what is longer is several.
    pieces = -(-lengths // 2**16)
    value = np.repeat(values[starts], pieces).astype(np.int64)
    counts = np.full(pieces.sum(), 2**16, np.int64)
    counts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * 2**16
    kind = np.searchsorted([2**size for size in _SIZES], counts)
    size = np.array(_SIZES, np.int64)[kind]
    codes = (((0b100 | kind) << size | counts - 1) << 8) | value
    widths = 3 + size + 8
    ends = np.cumsum(widths)
    bit = np.arange(ends[-1] if ends.size else 0)
    left = np.repeat(ends, widths) - 1 - bit  # bits of the same code that follow
    bits = (np.repeat(codes, widths) >> left) & 1
    head = f'{values.size:032b}{8 - 1:05b}' + ''.join(f'{size - 1:04b}' for size in _SIZES)
    head = np.frombuffer(head.encode(), np.uint8) - ord('0')
    return np.packbits(np.concatenate([head, bits.astype(np.uint8)])).tolist()


def decode(rle: Sequence[int], height: int, width: int) -> np.ndarray:
    """What was painted with a brush.

    Args:
        rle: Bytes, each 0 to 255.
        height: Of the image in pixels.
        width: Of the image in pixels.

    Returns:
        (H, W) bool: where it is more opaque than not.

    Raises:
        ValueError: If the bytes are no mask of this size.
    """
    try:
        packed = np.array(rle, np.uint8)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError('the mask of a brush is a list of numbers from 0 to 255') from error
    bits = np.unpackbits(packed)
    text = ''.join(map('01'.__getitem__, bits.tolist()))  # int(text[a:b], 2) is quick

    def number(start: int, size: int) -> int:
        if start + size > len(text):
            raise ValueError('the mask of a brush ends too early')
        return int(text[start : start + size], 2)

    total = number(0, 32)
    if total != height * width * 4 or total > _MOST:
        raise ValueError(
            f'the mask of a brush has {total:,} values, an image of {width}x{height} has '
            f'{4 * height * width:,}')
    word = number(32, 5) + 1
    if word != 8:
        raise ValueError(f'the mask of a brush has values of {word} bits, not of 8')
    sizes = [number(37 + 4 * i, 4) + 1 for i in range(4)]
    values = np.zeros(total, np.uint8)
    at, done = _HEAD, 0
    weights = 1 << np.arange(8)[::-1]
    while done < total:
        repeated, size = number(at, 1), sizes[number(at + 1, 2)]
        end = done + number(at + 3, size) + 1
        at += 3 + size
        if end > total:
            raise ValueError('the mask of a brush has more values than it says')
        if repeated:
            values[done:end] = number(at, word)
            at += word
        else:
            there = bits[at : at + word * (end - done)]
            if there.size < word * (end - done):
                raise ValueError('the mask of a brush ends too early')
            values[done:end] = there.reshape(-1, word) @ weights
            at += word * (end - done)
        done = end
    return values.reshape(height, width, 4)[..., 3] > 127
