"""The file of a run's highest margins, against plain, slow code."""

import lzma

import numpy as np
import pytest

from engine.margins import KEPT, read_margins, write_margins
from evaluation import ranked_right
from inputs.files import InputError


def scores_of(pairs, relations=96):
    """Random margins with many ties, some beyond float16, and labels."""
    rng = np.random.default_rng(5)
    margins = (rng.normal(size=(pairs, relations + 1)) * 8).round().astype(np.float32)
    margins[: pairs // 50, 1:3] *= 1e5
    labels = rng.random(margins.shape) < 0.02
    labels[:, 0] = ~labels[:, 1:].any(1)
    return margins, labels, rng.random(pairs) < 0.5


@pytest.mark.parametrize("pairs", [3000, 40])  # more entries than are kept, fewer
def test_margins_come_back(tmp_path, pairs):
    margins, labels, right = scores_of(pairs)
    write_margins(tmp_path / "a.xz", margins, labels, right)
    write_margins(tmp_path / "b.xz", margins, labels, right)
    assert (tmp_path / "a.xz").read_bytes() == (tmp_path / "b.xz").read_bytes()

    entries = [(-margins[p, r], p, r) for p in range(pairs) for r in range(1, 97)]
    kept = sorted((p, r) for _, p, r in sorted(entries)[:60_000])
    found = read_margins(tmp_path / "a.xz")
    assert list(zip(found["pair"], found["relation"], strict=True)) == kept
    expected = [np.float16(min(max(margins[x], -65504), 65504)) for x in kept]
    assert found["margin"].tolist() == expected
    of_related = [right[p] for p in range(pairs) if labels[p, 1:].any()]
    assert found["ranked_right"].tolist() == of_related
    assert (found["num_pairs"], found["num_relations"]) == (pairs, 96)


def test_far_apart_entries_come_back(tmp_path):
    """Differences at the ends of one, two and three bytes, and one of four."""
    kept = np.cumsum([0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
    kept = np.append(kept, kept[-1] + 1 + np.arange(KEPT - len(kept)))
    margins = np.zeros((50_000, 97), np.float32)
    margins[np.divmod(kept, 96)[0], kept % 96 + 1] = 1
    write_margins(tmp_path / "a.xz", margins, margins > 0, np.ones(50_000, bool))
    found = read_margins(tmp_path / "a.xz")
    assert (found["pair"] * 96 + found["relation"] - 1).tolist() == kept.tolist()


def test_a_run_keeps_its_margins(finished):
    for split in ("dev", "test"):
        found = read_margins(finished / f"{split}_margins.xz")
        with np.load(finished / f"{split}_logits.npz") as file:
            logits, labels, threshold = (file[x] for x in ("logits", "labels", "threshold"))
        assert (found["num_pairs"], found["num_relations"]) == (len(logits), 96)
        above = (logits - threshold).astype(np.float16)
        assert (found["margin"] == above[found["pair"], found["relation"]]).all()
        lowest = np.sort(above[:, 1:].ravel())[-len(found["margin"])]
        assert len(found["margin"]) == min(KEPT, above[:, 1:].size)
        assert found["margin"].min() == lowest
        related = labels[:, 1:].any(1)
        assert (found["ranked_right"] == ranked_right(logits, labels)[related]).all()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.xz"
    write_margins(path, *scores_of(40))
    sound = path.read_bytes()
    content = lzma.decompress(sound)
    faults = {
        "not a file of margins: Compressed data ended": sound[:-9],
        "not a file of margins: Input format not supported": b"{}",
        "it begins otherwise": lzma.compress(b"margins2" + content[8:]),
        "unpack_from requires": lzma.compress(content[:20]),
        "its parts do not fit together": lzma.compress(content[:-1]),
    }
    for reason, data in faults.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=reason):
            read_margins(path)
    with pytest.raises(InputError, match="no such file"):
        read_margins(tmp_path / "b.xz")
