"""What makes it fast changes no number: against the textbook ATLOP of bench/, and way by way."""

import copy
import json

import baseline
import numpy as np
import pytest
import torch
from conftest import read, shared, small_encoder

import evaluation
from encoders.cpu_unpadded import Attention, Dropout, dropout, keep
from encoders.loading import load_tokenizer
from encoders.mention_attention import attention_at_mentions, encode_windows
from engine.scoring import to_official
from inputs.documents import read_documents
from inputs.files import relation_ids
from losses import get_loss
from model import new_model
from prepro import read_docred
from utils import collate, set_seed, special_tokens


@pytest.fixture(scope="module")
def tokenizer(committed_golden):
    return load_tokenizer(committed_golden / "tokenizer")


@pytest.fixture(scope="module")
def real_features(tokenizer, tmp_path_factory):
    """The first documents of dev and the two longest: baseline's features and ours."""
    documents = read(shared("redocred/dev_revised.json"))
    longest = sorted(documents[60:], key=lambda x: sum(map(len, x["sents"])))[-2:]
    path = tmp_path_factory.mktemp("dev") / "dev.json"
    path.write_text(json.dumps(documents[:60] + longest))
    theirs = baseline.read_docred(path, tokenizer, relation_ids())
    return theirs, read_docred(path, tokenizer)


def test_features_equal_the_textbooks(real_features):
    theirs, ours = real_features
    assert len(theirs) == len(ours) == 62
    for a, b in zip(theirs, ours, strict=True):
        assert a["input_ids"] == b["input_ids"] and a["entity_pos"] == b["entity_pos"]
        triples = {
            (*pair, relation)
            for pair, row in zip(a["pairs"], a["labels"], strict=True)
            for relation in range(1, 97)
            if row[relation]
        }
        assert triples == {tuple(x) for x in b["triples"].tolist()}


@pytest.mark.parametrize("kind,loss", [("bert", "HingeABL"), ("roberta", "ATL")])
def test_logits_and_all_gradients_equal_the_textbooks(tokenizer, real_features, kind, loss):
    theirs, ours = real_features
    by_length = sorted(range(62), key=lambda i: len(ours[i]["input_ids"]))
    chosen = [by_length[-1], by_length[0], by_length[31]]
    assert len(ours[chosen[0]]["input_ids"]) > 512  # two windows
    set_seed(0)
    encoder = small_encoder(kind, max_position_embeddings=520, type_vocab_size=2)
    model = new_model(encoder, emb_size=64).double().train()
    opening, closing = special_tokens(tokenizer, kind)
    textbook = baseline.Baseline(model, opening, closing).train()

    batch = collate([ours[i] for i in chosen], (opening, closing, tokenizer.pad_token_id))
    labels = batch.pop("labels")
    logits = model(**batch)
    get_loss(loss)(logits, labels).backward()
    other = baseline.collate([theirs[i] for i in chosen], tokenizer.pad_token_id)
    other_labels = other.pop("labels")
    expected = textbook(**other)
    get_loss(loss)(expected, other_labels.bool()).backward()

    place = {tuple(pair): row for row, pair in enumerate(batch["pairs"].tolist())}
    rows = [place[i, h, t] for i, pairs in enumerate(other["pairs"]) for h, t in pairs]
    torch.testing.assert_close(logits[rows], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(labels[rows], other_labels.bool())
    gradients = dict(textbook.named_parameters())
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-8, atol=1e-10)


def test_scores_equal_the_textbooks(tokenizer, real_features):
    path = shared("redocred/dev_revised.json")
    documents, features = read_documents(path), real_features[1]
    generator = torch.Generator().manual_seed(0)
    num_pairs = sum(len(f["entity_pos"]) * (len(f["entity_pos"]) - 1) for f in features)
    predicted = torch.rand(num_pairs, 97, generator=generator) < 0.001
    submission = to_official(predicted, features, relation_ids())
    gold = [(d["title"], x) for d in documents for x in d["labels"][::3]]
    submission += [
        {"title": title, "h_idx": x["h"], "t_idx": x["t"], "r": x["r"]} for title, x in gold
    ]
    submission += submission[:50]  # submitted twice
    ours = evaluation.evaluate(submission, documents, documents[::2])
    # the textbook reads the training facts from a file: all of dev's
    all_seen = evaluation.evaluate(submission, documents, documents)
    theirs = baseline.official_scores(submission, path, path)
    assert ours["f1"] == pytest.approx(theirs["f1"], abs=1e-12) and theirs["f1"] > 0.1
    assert all_seen["ign_f1"] == pytest.approx(theirs["ign_f1"], abs=1e-12)


def inputs():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([40, 7, 64, 1])
    mask = (torch.arange(64) < lengths[:, None]).long()
    ids = torch.randint(5, 100, mask.shape, generator=generator) * mask
    mentions = torch.tensor([[0, 39, 3], [6, 0, 0], [63, 1, 2], [0, 0, 0]])
    return ids, mask, mentions


def qkv(tokens=23, width=8):
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(tokens, width, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [x.requires_grad_() for x in draw]


def test_gradients_of_attention_with_dropout():
    q, k, v = qkv()

    def attention(q, k, v):
        return Attention.apply(q, k, v, [5, 1, 17], 2, 0.3, 7)

    assert torch.autograd.gradcheck(attention, (q, k, v))
    assert torch.autograd.gradcheck(lambda x: Dropout.apply(x, 0.3, 7), (q,))


def test_attention_with_dropout_against_a_slow_version(monkeypatch):
    """Blocks of one head, of two, of all: the same weights are dropped, and of those alone."""
    q, k, v = (x.detach() for x in qkv())
    lengths, heads, rate, seed = [5, 1, 17], 4, 0.4, 3
    for block in (1, 2 * 17**2, 10**6):
        monkeypatch.setattr("encoders.cpu_unpadded.BLOCK", block)
        ours = Attention.apply(q, k, v, lengths, heads, rate, seed)
        random, start, dropped = np.random.SFC64(seed), 0, 0
        for length in lengths:
            rows = slice(start, start + length)
            start += length
            step = max(1, block // length**2)
            for first in range(0, heads, step):
                which = range(first, min(heads, first + step))
                weights = []
                for head in which:
                    columns = slice(2 * head, 2 * head + 2)
                    scores = q[rows, columns] @ k[rows, columns].T / 2**0.5
                    weights.append(scores.softmax(1))
                weights = torch.stack(weights)
                mask = keep(weights, rate, random)
                dropped += int((mask == 0).sum())
                for head, w, m in zip(which, weights, mask, strict=True):
                    columns = slice(2 * head, 2 * head + 2)
                    expected = (w * m / (1 - rate)) @ v[rows, columns]
                    torch.testing.assert_close(ours[rows, columns], expected)
        assert 0.3 < dropped / (heads * (25 + 1 + 289)) < 0.5


def test_dropout_keeps_as_many_as_it_says_and_the_mean():
    x = torch.ones(1000, 1001)
    set_seed(1)
    for rate in (0.1, 0.5, 0.003):
        y = dropout(x, rate)
        assert (y == 0).double().mean().item() == pytest.approx(
            rate, abs=4 * (rate / 1e6) ** 0.5 + 1e-5
        )
        assert y.max().item() == pytest.approx(1 / (1 - rate))
        # rows, columns and neighbours are as independent as the whole
        dropped = (y == 0).double()
        assert dropped.mean(1).std().item() == pytest.approx(
            (rate * (1 - rate) / 1001) ** 0.5, rel=0.1
        )
        both = (dropped[:, 1:] * dropped[:, :-1]).mean().item()
        assert both == pytest.approx(rate**2, abs=5 * rate / 1000)
    assert torch.equal(dropout(x, 0.0), x)


def test_dropout_near_one_keeps_next_to_nothing():
    assert (dropout(torch.ones(1000), 0.999999) != 0).sum() <= 3


def test_dropout_follows_the_seed():
    x = torch.ones(100, 100)
    draws = []
    for seed in (1, 1, 2):
        set_seed(seed)
        draws.append((dropout(x, 0.5), dropout(x, 0.5)))
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1]) and not torch.equal(draws[0][0], draws[2][0])


def test_training_drops_and_evaluation_does_not():
    ids, mask, mentions = inputs()
    encoder = small_encoder(vocab_size=100, max_position_embeddings=70, dropout=0.5)
    encoder.train()
    set_seed(0)
    first, second = (encode_windows(encoder, ids, mask, mentions) for _ in range(2))
    assert not torch.equal(first[0], second[0])
    kept = first[1].sum(-1)[mask[:, 0].bool()]  # rows after dropout no longer sum to 1
    assert (kept - 1).abs().max() > 0.05
    encoder.eval()
    first, second = (encode_windows(encoder, ids, mask, mentions) for _ in range(2))
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1].sum(-1), torch.ones(4, 3, 4))


def test_bf16_is_near_fp32():
    ids, mask, mentions = inputs()
    encoder = small_encoder(vocab_size=100, max_position_embeddings=70, dropout=0.1)
    weight = torch.randn(32, generator=torch.Generator().manual_seed(0))
    results = []
    for on in (False, True):
        set_seed(0)
        copied = copy.deepcopy(encoder).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            hidden, _ = encode_windows(copied, ids, mask, mentions)
        (hidden.float() * weight).sum().backward()
        results.append((hidden.float(), copied.encoder.layer[0].attention.self.query.weight.grad))
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() / a.norm() < 0.03


def test_attention_rows_of_bf16_come_from_scores_in_float32():
    """Scores rounded to bf16 would double the error that the queries' and keys' rounding makes."""
    generator = torch.Generator().manual_seed(0)
    encoder = small_encoder().eval()
    query, key = (2 * torch.randn(2, 40, 32, generator=generator).bfloat16() for _ in range(2))
    places = torch.randint(40, (2, 5), generator=generator)
    rest = torch.ones(2, 40), places
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = attention_at_mentions(encoder, None, {"query": [query], "key": [key]}, *rest)
    calls = {"query": [query.double()], "key": [key.double()]}
    exact = attention_at_mentions(encoder, None, calls, *rest)
    torch.testing.assert_close(rows, exact.float(), rtol=1e-5, atol=1e-6)
