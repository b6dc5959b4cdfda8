"""The highest margins s_r - s_TH of a split, which a run keeps in a small file.

All logits of Re-DocRED's dev split take 70 MB, its 60,000 highest margins 145 KB. With the
documents these give precision and recall for every threshold that predicts fewer relations.

A file is compressed by lzma (.xz) and holds, with little-endian numbers:

    header     MAGIC, then as uint64 the number of entries, relations, pairs and related pairs
    entries    the sorted indices pair * relations + r - 1: the first, and then the differences, as
               varints: seven bits in a byte, the lowest first; the eighth bit is set in all bytes
               of a number but the last
    margins    of each entry as float16
    ranking    one bit for each pair that has a true relation, the lowest bit of a byte first:
               whether its true relations outrank all false ones
"""

import lzma
import struct
from pathlib import Path

import numpy as np

from inputs.files import InputError, write_atomically

KEPT = 60_000
MAGIC = b"margins1"
HEADER = struct.Struct("<8s4Q")
SHIFTS = 7 * np.arange(10, dtype=np.uint64)  # of the groups of bits in a varint


def write_margins(path, margins, labels, ranked_right):
    """Writes the KEPT highest margins of a split; of those equal to the lowest, the first. The same
    arrays give the same bytes.

    margins: s_r - s_TH, [pairs, classes], of all relations of a pair; class 0 is left out. labels:
    multi-hot, [pairs, classes]. ranked_right: [pairs], see `evaluation.ranked_right`.
    """
    margins, related = margins[:, 1:], labels[:, 1:].any(1)
    pairs, relations = margins.shape
    margins = margins.ravel()
    if len(margins) > KEPT:
        lowest = np.partition(margins, -KEPT)[-KEPT]
        index = np.flatnonzero(margins > lowest)
        ties = np.flatnonzero(margins == lowest)[: KEPT - len(index)]
        index = np.sort(np.concatenate([index, ties]))
    else:
        index = np.arange(len(margins))
    limit = np.finfo(np.float16).max
    content = [
        HEADER.pack(MAGIC, len(index), relations, pairs, related.sum()),
        _to_varints(np.diff(index, prepend=0)),
        margins[index].clip(-limit, limit).astype("<f2").tobytes(),
        np.packbits(ranked_right[related], bitorder="little").tobytes(),
    ]
    packed = lzma.compress(b"".join(content))
    write_atomically(path, lambda temporary: temporary.write_bytes(packed))


def read_margins(path):
    """The content of a file of `write_margins`, a dict: `pair`, `relation` (class id) and `margin`
    (float16) of each entry, sorted by pair and relation; `ranked_right` of each related pair
    (bool); and the numbers `num_pairs` and `num_relations`. Raises InputError."""
    try:
        content = lzma.decompress(Path(path).read_bytes())
        magic, entries, relations, pairs, related = HEADER.unpack_from(content)
        if magic != MAGIC:
            raise ValueError("it begins otherwise")
        bits = -(-related // 8)
        middle, end = len(content) - bits - 2 * entries, len(content) - bits
        index = _from_varints(content[HEADER.size : middle]).cumsum()
        if len(index) != entries or entries and index[-1] >= pairs * relations:
            raise ValueError("its parts do not fit together")
        ranked_right = np.frombuffer(content[end:], np.uint8)
        return {
            "pair": index // relations,
            "relation": index % relations + 1,
            "margin": np.frombuffer(content[middle:end], "<f2"),
            "ranked_right": np.unpackbits(ranked_right, count=related, bitorder="little") > 0,
            "num_pairs": pairs,
            "num_relations": relations,
        }
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # lzma, struct and numpy raise many types on a foreign file
        raise InputError(f"{path}: not a file of margins: {error}") from None


def _to_varints(numbers):
    """Numbers that are not negative, [n] -> bytes."""
    groups = numbers.astype(np.uint64)[:, None] >> SHIFTS
    more = groups[:, 1:] > 0  # whether a byte follows
    groups = (groups & 127).astype(np.uint8)
    groups[:, :-1] |= more.astype(np.uint8) << 7
    used = np.concatenate([np.ones_like(more[:, :1]), more], axis=1)
    return groups[used].tobytes()


def _from_varints(data):
    """Bytes of `_to_varints` -> numbers, [n] int64."""
    data = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(np.append(True, data[:-1] < 128)[: len(data)])
    lengths = np.diff(starts, append=len(data))
    index = np.arange(len(data)) - np.repeat(starts, lengths)
    return np.add.reduceat((data & 127).astype(np.int64) << 7 * index, starts)
