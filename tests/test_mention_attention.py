"""Attention rows of every encoder type against transformers' own attention, returned whole."""

import copy

import numpy as np
import pytest
import torch
import transformers
from conftest import eager_copy, small_encoder

from encoders import cpu_unpadded
from encoders.cpu_unpadded import Attention, keep, supports
from encoders.mention_attention import (
    at_least_float32,
    computes_attention,
    encode_windows,
    last_hidden,
    mean,
)
from utils import set_seed

DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
BUCKETS = DEBERTA | {"position_buckets": 8, "norm_rel_ebd": "layer_norm"}
CASES = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": 80},
    "electra": {"embedding_size": 32},
    "distilbert": {"hidden_dim": 64},
    "deberta-v2 base": BUCKETS,  # as version 3, too
    "deberta-v2 few distances": DEBERTA | {"max_relative_positions": 20},
    "deberta-v2 convolution": BUCKETS | {"conv_kernel_size": 3},
    "mpnet": {"pad_token_id": 1},
    "modernbert last global": {"global_attn_every_n_layers": 3, "local_attention": 16},
    "modernbert last local": {"global_attn_every_n_layers": 2, "local_attention": 16},
    "modernbert all global": {"global_attn_every_n_layers": 1},
}  # fmt: skip
LENGTHS = 40, 7, 64, 1
MENTIONS = torch.tensor([[0, 39, 3], [6, 0, 0], [63, 1, 30], [0, 0, 0]])
cases = pytest.mark.parametrize("case", CASES)


def is_unpadded(case):
    return supports(small_encoder(case.split()[0], **CASES[case]).config)


WAYS = [(x, False) for x in CASES] + [(x, True) for x in CASES if is_unpadded(x)]


def make(case, **more):
    """An encoder whose attention is far from even, padded token ids [4, 64], their mask."""
    set_seed(0)
    sizes = {"vocab_size": 100, "num_hidden_layers": 4, "max_position_embeddings": 70}
    encoder = small_encoder(case.split()[0], **sizes | CASES[case] | more).eval()
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    mask = (torch.arange(64) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(5, 100, mask.shape)
    return encoder, ids.where(mask.bool(), encoder.config.pad_token_id), mask


def eager(encoder, ids, mask, num_layers):
    """What encode_windows is to return, from whole attention matrices."""
    output = encoder(
        input_ids=ids, attention_mask=mask, output_attentions=True, output_hidden_states=True
    )
    window = torch.arange(len(ids))[:, None]
    rows = [x[window, :, MENTIONS] for x in output.attentions[-num_layers:]]
    return last_hidden(encoder, output, num_layers), at_least_float32(mean(rows))


def gradients(encoder, hidden, rows, mask):
    """Of a weighted sum of the real tokens' embeddings and of all rows."""
    encoder.zero_grad()
    real = hidden[mask.bool()]
    total = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in (real, 9 * rows))
    total.backward()
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "num_layers,dtype,near,of_gradients",
    [(1, torch.float32, 1e-5, 2e-5), (3, torch.float64, 1e-9, 1e-9)],
)
@pytest.mark.parametrize("case,cpu_kernels", WAYS)
def test_rows_embeddings_and_gradients_equal_eager_attentions(
    case, num_layers, cpu_kernels, dtype, near, of_gradients, monkeypatch
):
    if case.startswith("modernbert"):  # transformers' rotates in float32
        dtype, near, of_gradients = torch.float32, 1e-5, 2e-5
    encoder, ids, mask = make(case)
    encoder = encoder.to(dtype)
    copied = eager_copy(encoder).to(dtype)
    with torch.no_grad():  # rows that tell a wrong score from a right one
        spread = eager(copied, ids, mask, 1)[1][0].std(-1)
    assert spread.min() > 0.01
    if cpu_kernels:
        monkeypatch.setattr("encoders.mention_attention.hooked", None)  # calling it would fail
    ours = encode_windows(encoder, ids, mask, MENTIONS, cpu_kernels, num_layers)
    theirs = eager(copied, ids, mask, num_layers)
    assert ours[1].dtype == dtype and ours[1].shape == (4, 3, 4, 64)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=near)
    real = mask.bool()
    torch.testing.assert_close(ours[0][real], theirs[0][real], rtol=near, atol=near)
    a, b = gradients(encoder, *ours, mask), gradients(copied, *theirs, mask)
    assert set(a) == set(b)
    for name in b:
        assert (a[name] - b[name]).norm() <= of_gradients * (b[name].norm() + 1), name


@cases
def test_whole_attention_is_never_asked_for(case):
    encoder, ids, mask = make(case)
    assert computes_attention(encoder.config)
    kind = case.split()[0]
    fused = {"bert", "roberta", "distilbert", "modernbert"}  # all that transformers has
    fused |= set() if transformers.__version__ < "5" else {"electra"}
    assert encoder.config._attn_implementation == ("sdpa" if kind in fused else "eager")
    asked = []

    def note(module, args, kwargs):
        asked.append(kwargs.get("output_attentions"))

    hook = encoder.register_forward_pre_hook(note, with_kwargs=True)
    encode_windows(encoder, ids, mask, MENTIONS, cpu_kernels=False, num_layers=2)
    hook.remove()
    assert len(asked) == 1 and not any(asked) and not encoder.config.output_attentions
    linear = [m for m in encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert not any(module._forward_hooks for module in linear)


@pytest.mark.parametrize("case", [x for x in CASES if x[:10] != "deberta-v2"])
def test_eager_attention_sees_no_padding(case):
    """An encoder's own configuration may ask for it."""
    encoder, ids, mask = make(case)
    copied = eager_copy(encoder)
    for other in (encoder, copied):
        hidden, rows = encode_windows(other, ids, mask, MENTIONS, cpu_kernels=False)
        alone = encode_windows(other, ids[1:2, :7], mask[1:2, :7], MENTIONS[1:2], cpu_kernels=False)
        torch.testing.assert_close(hidden[1:2, :7], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rows[1:2, ..., :7], alone[1], rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encode_windows(copied, ids, mask, MENTIONS, cpu_kernels=False)


def test_the_mean_of_modernberts_layers_is_of_normalised_ones():
    """Whatever a version of transformers calls the last hidden state."""
    encoder, ids, mask = make("modernbert last global")
    outputs = []
    for layer in encoder.layers[-2:]:
        hook = layer.register_forward_hook
        hook(lambda *call: outputs.append(call[2] if torch.is_tensor(call[2]) else call[2][0]))
    hidden = encode_windows(encoder, ids, mask, MENTIONS, num_layers=2)[0]
    expected = sum(map(encoder.final_norm, outputs)) / 2
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()])


def test_an_encoder_that_orders_its_arguments_otherwise():
    """X-MOD's second is the language of each document."""
    encoder = small_encoder("xmod", languages=["en_XX"], default_language="en_XX", vocab_size=100)
    ids, mask = torch.randint(5, 100, (4, 64)), (torch.arange(64) < 30).long().expand(4, 64)
    rows = encode_windows(encoder.eval(), ids, mask, MENTIONS)[1]
    assert not rows[..., 30:].any() and rows[..., :30].all()


def test_dropout_before_the_scores_is_the_layers_own():
    """DeBERTa drops of the distances' embeddings: both ways draw the same here."""
    encoder, ids, mask = make("deberta-v2 base", hidden_dropout_prob=0.3)
    copied = eager_copy(encoder).train()
    set_seed(1)
    ours = encode_windows(encoder.train(), ids, mask, MENTIONS, cpu_kernels=False)
    set_seed(1)
    theirs = eager(copied, ids, mask, 1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)


def test_a_place_in_the_padding_has_rows_without_nan():
    """Windows of a long document ask for such places and multiply what they get by zero; in local
    attention they see no real token."""
    encoder, ids, mask = make("modernbert last local")
    hidden, rows = encode_windows(encoder, ids, mask, torch.full((4, 1), 60))
    assert hidden.isfinite().all() and rows.isfinite().all()


def test_packed_attention_with_positions_and_dropout(monkeypatch):
    """Against whole matrices; the same weights are dropped in the backward pass."""
    monkeypatch.setattr("encoders.cpu_unpadded.BLOCK", 2 * 9**2)  # two heads at a time
    heads, lengths, rate, size = 3, [5, 1, 9], 0.3, 2
    shapes = *[(15, heads * size)] * 3, (heads, 9, 9), *[(17, heads * size)] * 2
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(x, generator=generator, dtype=torch.float64) for x in shapes]
    inputs = [x.requires_grad_() for x in draw]

    def packed(*inputs):
        return Attention.apply(*inputs[:3], lengths, heads, rate, 7, *inputs[3:])

    assert torch.autograd.gradcheck(packed, inputs)
    query, key, value, bias, pos_key, pos_query = inputs
    random, start, expected = np.random.SFC64(7), 0, []
    for length in lengths:
        q, k, v = (x[start : start + length].unflatten(1, (heads, size)) for x in inputs[:3])
        start += length
        difference = torch.arange(length)[:, None] - torch.arange(length)
        to_key = pos_key.unflatten(1, (heads, size))[8 - difference]
        to_query = pos_query.unflatten(1, (heads, size))[8 + difference]
        scores = torch.einsum("ihs,jhs->hij", q, k) + torch.einsum("ihs,ijhs->hij", q, to_key)
        scores = scores + torch.einsum("jhs,ijhs->hij", k, to_query)
        weights = (scores / size**0.5 + bias[:, :length, :length]).softmax(-1)
        step = 2 if length == 9 else heads
        kept = [keep(part, rate, random) for part in weights.split(step)]
        weights = weights * torch.cat(kept) / (1 - rate)
        expected.append(torch.einsum("hij,jhs->ihs", weights, v).flatten(1))
    torch.testing.assert_close(packed(*inputs), torch.cat(expected))


@pytest.mark.parametrize("case,cpu_kernels", WAYS)
def test_rows_in_training_have_attention_dropout(case, cpu_kernels):
    rates = dict.fromkeys(("attention_dropout", "attention_probs_dropout_prob"), 0.4)
    # no difference but in the rows: the first layer's input has no dropout
    encoder, ids, mask = make(case, num_hidden_layers=1, **rates)
    before = encode_windows(encoder, ids, mask, MENTIONS, cpu_kernels)[1]
    rows = encode_windows(encoder.train(), ids, mask, MENTIONS, cpu_kernels)[1]
    kept = rows != 0
    torch.testing.assert_close(rows[kept], before[kept] / 0.6)
    real = mask.bool()[:, None, None].expand_as(rows) & (before > 0)
    assert kept[real].double().mean().item() == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize("case", [case for case, cpu_kernels in WAYS if cpu_kernels])
def test_layers_on_a_cpu_drop_as_the_configuration_says(case, monkeypatch):
    rates = dict.fromkeys(("attention_dropout", "attention_probs_dropout_prob"), 0.1)
    rates |= dict.fromkeys(("dropout", "hidden_dropout_prob"), 0.2)
    encoder, ids, mask = make(case, **rates)
    seen, attend, dropout = [], cpu_unpadded.attend, cpu_unpadded.dropout
    monkeypatch.setattr(cpu_unpadded, "attend", lambda *x: seen.append(x[5]) or attend(*x))
    monkeypatch.setattr(cpu_unpadded, "dropout", lambda *x: seen.append(x[1]) or dropout(*x))
    encode_windows(encoder.train(), ids, mask, MENTIONS)
    # of the attention weights, after the attention (DistilBERT: none) and after the wide layer
    assert seen == [0.1, 0.0 if case == "distilbert" else 0.2, 0.2] * 4
    encode_windows(encoder.eval(), ids, mask, MENTIONS)
    assert seen[12:] == [0.0] * 12


@pytest.mark.parametrize("case,cpu_kernels", WAYS)
def test_rows_under_bf16_autocast_are_float32_and_near(case, cpu_kernels):
    encoder, ids, mask = make(case)
    with torch.no_grad():
        exact = encode_windows(copy.deepcopy(encoder).double(), ids, mask, MENTIONS)[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = encode_windows(encoder, ids, mask, MENTIONS, cpu_kernels)[1]
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum(-1), torch.ones(4, 3, 4))  # of bf16: to 1e-3
    assert (rows - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("kind,more", [
    ("deberta-v2", {}),
    ("deberta-v2", DEBERTA | {"pos_att_type": ["c2p"]}),
    ("deberta-v2", DEBERTA | {"share_att_key": False}),
    ("deberta-v2", {x: DEBERTA[x] for x in ("relative_attention", "pos_att_type")}),
    ("deberta", DEBERTA),
    ("luke", {"entity_vocab_size": 10, "entity_emb_size": 32}),
])  # fmt: skip
def test_an_unknown_variant_returns_its_attention(kind, more):
    encoder = small_encoder(kind, max_position_embeddings=70, vocab_size=100, **more).eval()
    assert not computes_attention(encoder.config)
    assert encoder.config._attn_implementation == "eager"
    ids = torch.randint(5, 100, (4, 64))
    with torch.no_grad():
        ours = encode_windows(encoder, ids, torch.ones_like(ids), MENTIONS)
        theirs = eager(encoder, ids, torch.ones_like(ids), 1)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
