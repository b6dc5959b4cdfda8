"""The model: batches, padding, order of entities, long documents, encoders, checkpoints."""

import random
import re
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from conftest import eager_copy, make_document, small_encoder, small_model
from safetensors.torch import save_file
from transformers import AutoConfig

from backbones import BACKBONES
from encoders.loading import build_encoder, check_precision, window_size
from engine.checkpoint import load_state, load_weights
from inputs.files import InputError
from model import entity_embeddings, grouped_bilinear
from prepro import docred_features
from utils import collate, window_starts

TOKENS = ([2], [3], 0)


class FakeTokenizer:
    """Ids 10 and up by the word's first use; enough of a tokenizer for docred_features."""

    cls_token_id, sep_token_id, pad_token_id, unk_token_id = 2, 3, 0, 1

    def __init__(self):
        self.ids = {"*": 4}

    def __call__(self, words, add_special_tokens):
        assert not add_special_tokens
        ids = [[self.ids.setdefault(w, len(self.ids) + 10)] for w in sorted(words)]
        return {"input_ids": [dict(zip(sorted(words), ids, strict=True))[w] for w in words]}

    def convert_tokens_to_ids(self, token):
        return self.ids[token]


def features_of(*sizes, seed=0):
    """Features of made-up documents; a size is (entities, sentences)."""
    rng = random.Random(seed)
    documents = [
        make_document(rng, entities, sentences, title=f"Doc {i}")
        for i, (entities, sentences) in enumerate(sizes)
    ]
    return docred_features(documents, FakeTokenizer(), max_seq_length=100_000)


@torch.no_grad()
def logits_of(model, features, tokens=TOKENS, size=512):
    """Logits [E, E, 97] of every document of one batch; the diagonal is 0."""
    batch = collate(features, tokens, size=size)
    del batch["labels"]
    logits, (doc, head, tail) = model(**batch), batch["pairs"].T
    grids = []
    for i, feature in enumerate(features):
        num_entities = len(feature["entity_pos"])
        grid = logits.new_zeros(num_entities, num_entities, logits.shape[1])
        grid[head[doc == i], tail[doc == i]] = logits[doc == i]
        grids.append(grid)
    return grids


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_batch_equals_documents_one_by_one(backbone, model_type):
    """Also with documents of one or no entity, with long documents among short ones, and with more
    entities than DocuNet's images have rows (12 here)."""
    model = small_model(backbone=backbone, model_type=model_type, max_position_embeddings=130)
    model.double()  # where rounding can neither hide a difference nor be taken for one
    features = features_of((6, 5), (1, 3), (9, 12), (2, 1), (0, 2), (4, 30), (15, 8), (13, 9))
    assert max(len(f["input_ids"]) for f in features) > 2 * 128
    together = logits_of(model, features, size=128)
    spread = torch.cat([x.flatten() for x in together]).std()
    assert spread > 0.1
    for feature, logits in zip(features, together, strict=True):
        alone = logits_of(model, [feature], size=128)[0]
        assert alone.shape == logits.shape
        assert torch.allclose(alone, logits, atol=1e-9)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_changes_nothing(backbone):
    model = small_model(backbone=backbone).double()
    batch = collate(features_of((6, 5)), TOKENS)
    del batch["labels"]
    padded = dict(batch)
    for name in ("input_ids", "attention_mask", "mention_pos"):
        padded[name] = torch.nn.functional.pad(batch[name], (0, 7))
    padded["entity_mentions"] = torch.nn.functional.pad(batch["entity_mentions"], (0, 7, 0, 3))
    with torch.no_grad():
        assert torch.allclose(model(**batch), model(**padded), atol=1e-9)


def test_lengths_are_rounded_up_within_the_window():
    model = small_model(max_position_embeddings=130).double()
    features = features_of((6, 5), (3, 9))  # of 122 tokens at most
    for size, length in (512, 128), (125, 125):
        kept, rounded = (
            collate(features, TOKENS, size=size, sentences=True, multiple=x) for x in (1, 16)
        )
        assert (kept["input_ids"].shape[1], rounded["input_ids"].shape[1]) == (122, length)
        del kept["labels"], rounded["labels"]
        with torch.no_grad():
            for a, b in zip(model(**kept), model(**rounded), strict=True):
                assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("backbone", ["atlop", "kd_docre"])  # a U-Net sees an order
def test_permuting_entities_permutes_logits(backbone):
    model = small_model(backbone=backbone).double()
    feature = features_of((7, 6))[0]
    order = [3, 0, 6, 1, 5, 2, 4]
    moved = feature | {"entity_pos": [feature["entity_pos"][i] for i in order]}
    logits, after = logits_of(model, [feature])[0], logits_of(model, [moved])[0]
    assert not torch.allclose(logits, after, atol=1e-2)
    assert torch.allclose(logits[order][:, order], after, atol=1e-9)


def test_entity_whose_mentions_are_cut_off_is_a_zero_vector():
    model = small_model().double()
    feature = features_of((5, 6))[0]
    feature["entity_pos"][2] = [(10_000, 10_003)]
    feature["entity_pos"][4] = [(10_000, 10_003)]
    logits = logits_of(model, [feature])[0]
    assert logits.isfinite().all()
    assert torch.allclose(logits[2, 0], logits[4, 0]) and torch.allclose(logits[2, 4], logits[4, 2])
    # two zero entities: no context, no embedding, only the biases are left
    z = [torch.tanh(x.bias)[None] for x in (model.head_extractor, model.tail_extractor)]
    expected = grouped_bilinear(*z, model.bilinear, 64)[0]
    assert torch.allclose(logits[2, 4], expected, atol=1e-9)


def test_forward_against_slow_version():
    """Pooling and classifier in loops over mentions, pairs and blocks, from the formulas."""
    model = small_model().double()
    encoder = eager_copy(model.model).double()
    feature = features_of((6, 5), seed=3)[0]
    ids = torch.tensor([feature["input_ids"]])
    with torch.no_grad():
        output = encoder(ids, torch.ones_like(ids), output_attentions=True)
        hidden, attention = output.last_hidden_state[0], output.attentions[-1][0]
        embeddings, weights = [], []
        for spans in feature["entity_pos"]:
            places = [start + 1 for start, _ in spans]
            embeddings.append(torch.logsumexp(hidden[places], 0))
            weights.append(attention[:, places].mean(1))
        expected = torch.zeros(6, 6, 97, dtype=torch.float64)
        for h in range(6):
            for t in range(6):
                if h == t:
                    continue
                q = (weights[h] * weights[t]).mean(0)
                context = (q / (q.sum() + 1e-5)) @ hidden
                z_h = torch.tanh(model.head_extractor(torch.cat([embeddings[h], context])))
                z_t = torch.tanh(model.tail_extractor(torch.cat([embeddings[t], context])))
                outer = torch.outer(z_h, z_t)  # one block: emb_size 64
                expected[h, t] = model.bilinear(outer.flatten())
    assert torch.allclose(logits_of(model, [feature])[0], expected, atol=1e-9)


@pytest.mark.parametrize("num_special", [2, 3])
def test_windows_cover_long_documents(num_special):
    for length in [*range(1, 140), 1000, 5001]:
        starts = window_starts(length, 32, num_special)
        assert starts[0] == 0 and starts[-1] == max(0, length - 32)
        covered = set()
        for k, start in enumerate(starts):
            first = start + (k > 0)
            last = min(start + 32, length) - (num_special - 1 if k < len(starts) - 1 else 0)
            covered |= set(range(first, last))
        missed = length - len(covered)
        assert missed == 0 or (length <= 64 and len(starts) == 2 and missed <= num_special)
        assert len(starts) == (1 if length <= 32 else 2) or length > 64


def test_windows_of_a_long_document_against_a_slow_version():
    """Window by window: which tokens are its own, and what they attend to."""
    model = small_model(max_position_embeddings=32).double()
    batch = collate(features_of((8, 9), (3, 1)), TOKENS, size=32)
    length, short = batch["doc_mask"].sum(1).tolist()
    every = torch.arange(length).expand(2, -1).clamp(max=batch["doc_mask"].shape[1] - 1)
    windows = {k: v for k, v in batch.items() if k.startswith("window") or k == "doc_mask"}
    encoder = eager_copy(model.model).double()
    with torch.no_grad():
        tokens, rows = model.encode(batch["input_ids"], batch["attention_mask"], every, windows)
        whole = encoder(batch["input_ids"], batch["attention_mask"], output_attentions=True)
    hidden = torch.zeros(length, 32, dtype=torch.float64)
    attention, count = torch.zeros(length, 4, length, dtype=torch.float64), torch.zeros(length, 1)
    for k, start in enumerate(batch["window_start"].tolist()):
        if batch["window_doc"][k]:
            continue
        own = batch["window_valid"][k].nonzero()[:, 0]
        place = own + start
        hidden[place] += whole.last_hidden_state[k, own]
        count[place] += 1
        among = whole.attentions[-1][k][:, own][:, :, own].transpose(0, 1)
        attention[place[:, None], :, place] += among.transpose(1, 2)
    assert count.min() == 1 < count.max()
    attention /= attention.sum(-1, keepdim=True)
    assert torch.allclose(tokens[0, :length], hidden / count)
    assert torch.allclose(rows[0, :, :, :length], attention, atol=1e-8)


def test_entity_embeddings_of_large_numbers():
    """logsumexp over the mentions, of numbers whose exp no float holds."""
    tokens = 300 * torch.randn(2, 9, 4, generator=torch.manual_seed(0))
    mention_pos = torch.tensor([[1, 4, 8, 5], [2, 0, 0, 0]])
    owners = torch.zeros(2, 3, 4, dtype=torch.bool)
    owners[0, 0, :2] = owners[0, 2, 2:] = owners[1, 1, 0] = True
    found = entity_embeddings(tokens, mention_pos, owners)
    for doc, entity in product(range(2), range(3)):
        mentions = tokens[doc, mention_pos[doc, owners[doc, entity]]]
        expected = mentions.logsumexp(0) if len(mentions) else torch.zeros(4)
        assert torch.allclose(found[doc, entity], expected)


@pytest.mark.parametrize("by_block", [False, True])
def test_grouped_bilinear_gradients(by_block):
    torch.manual_seed(0)
    linear = torch.nn.Linear(8 * 4, 5).double()
    z = [torch.randn(7, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def function(u, v, weight, bias):
        linear = SimpleNamespace(weight=weight, bias=bias)
        return grouped_bilinear(u, v, linear, 4, by_block)

    assert torch.autograd.gradcheck(function, (*z, linear.weight, linear.bias))
    outer = z[0].view(7, 2, 4, 1) * z[1].view(7, 2, 1, 4)
    expected = linear(outer.flatten(1))
    assert torch.allclose(grouped_bilinear(*z, linear, 4, by_block), expected)


@pytest.mark.parametrize("dtype,error", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_grouped_bilinear_of_a_gpu_and_of_a_cpu(dtype, error):
    """All blocks at once or one by one, 2,048 or 512 pairs at a time: scores and gradients."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(16 * 4, 5)
    draw = [torch.randn(2500, 16) for _ in range(2)]
    results = []
    for by_block in (False, True):
        z = [x.to(dtype).requires_grad_() for x in draw]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            scores = grouped_bilinear(*z, linear, 4, by_block)
        assert scores.dtype == torch.float32
        grads = torch.autograd.grad((scores**2).mean(), (*z, linear.weight))
        results.append((scores, *grads))
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() / b.norm() < error


def test_encoders_without_attention_and_decoders_are_refused():
    """Of the last the configuration does not say that it is a decoder."""
    small = {"model_type": "fnet", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 50}
    with pytest.raises(InputError, match="a fnet model does not return"):
        build_encoder("", small | {"intermediate_size": 32}, weights=False)
    with pytest.raises(InputError, match="a decoder"):
        small_encoder(is_decoder=True)
    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 2, "model_type": "llama"}
    with pytest.raises(InputError, match="a llama model is a decoder"):
        build_encoder("", small, weights=False)


def test_the_first_deberta_computes_in_fp32():
    config = AutoConfig.for_model("deberta")
    check_precision(config, "fp32")
    check_precision(AutoConfig.for_model("deberta-v2"), "bf16")
    with pytest.raises(InputError, match="--precision bf16: the first DeBERTa"):
        check_precision(config, "bf16")


def test_encoder_without_all_its_weights_is_refused(tmp_path):
    encoder = small_encoder()
    encoder.save_pretrained(tmp_path)
    assert build_encoder(str(tmp_path)).config.hidden_size == 32
    state = encoder.state_dict()
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="its weights lack 1, first encoder.layer.1.output"):
        build_encoder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be loaded"):
        build_encoder(str(tmp_path))


def test_encoder_whose_weights_hold_a_part_that_the_model_lacks_is_refused(tmp_path):
    """Such as BERT's relative positions, which transformers 5 no longer has. Heads are of no use,
    and so of no account."""
    encoder = small_encoder()
    encoder.save_pretrained(tmp_path)
    state = {f"bert.{name}": tensor for name, tensor in encoder.state_dict().items()}
    heads = {"cls.predictions.bias": torch.ones(3), "bert.pooler.dense.bias": torch.ones(32)}
    save_file(state | heads, tmp_path / "model.safetensors", {"format": "pt"})
    build_encoder(str(tmp_path))
    distances = {"bert.encoder.layer.0.attention.self.distances.weight": torch.ones(3)}
    save_file(state | heads | distances, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="does not know, first .*layer.0.attention.self.distances"):
        build_encoder(str(tmp_path))


def test_window_size():
    assert window_size(small_encoder(max_position_embeddings=512).config) == 512
    # These count positions from the padding's id.
    for kind in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        config = AutoConfig.for_model(kind, max_position_embeddings=514, pad_token_id=1)
        assert window_size(config) == 512


def test_checkpoints_load_or_are_refused(tmp_path):
    model = small_model()
    state = model.state_dict()
    more = {
        "model.pooler.dense.bias": torch.zeros(3),
        "model.embeddings.position_ids": torch.ones(1),
    }
    torch.save({f"module.{k}": v for k, v in (state | more).items()}, tmp_path / "good.pt")
    other = small_model(seed=1)
    load_weights(other, tmp_path / "good.pt")
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())

    save_file({k: v for k, v in state.items() if "bilinear" not in k}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="bilinear.weight is missing; bilinear.bias is missing"):
        load_weights(other, tmp_path / "a.safetensors")
    torch.save(state | {"bilinear.bias": torch.zeros(3)}, tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"bilinear.bias is \[3\], not \[97\]"):
        load_weights(other, tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="c.pt: not a checkpoint"):
        load_weights(other, tmp_path / "c.pt")


def test_docunet_checkpoint_under_the_released_names(tmp_path):
    """A dict with the weights under "checkpoint", the encoder called bert_model."""
    model = small_model(backbone="docunet")
    state = {re.sub("^model", "bert_model", k): v for k, v in model.state_dict().items()}
    torch.save({"checkpoint": state, "best_f1": 0.5}, tmp_path / "docunet.pt")
    other = small_model(seed=1, backbone="docunet")
    load_weights(other, tmp_path / "docunet.pt")
    own = model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize("backbone,sizes", [
    ("atlop", {"emb_size": 64, "block_size": 64}),
    ("docunet", {"emb_size": 64, "block_size": 64, "unet_in_dim": 3, "unet_out_dim": 16,
                 "down_dim": 8}),
    ("kd_docre", {"emb_size": 64, "block_size": 64}),
])  # fmt: skip
def test_sizes_are_read_from_a_checkpoint(tmp_path, backbone, sizes):
    torch.save(small_model(backbone=backbone).state_dict(), tmp_path / "some.pt")
    assert BACKBONES[backbone].sizes_of(load_state(tmp_path / "some.pt")) == sizes
