"""DREEAM's fusion at inference (Ma et al., EACL 2023, Section 3.4; after Xie et al., 2022): what a
model says of a document, and of the pseudo documents that hold a pair's evidence alone, together.

A triple is a candidate where its relation is among the MOST highest classes of its pair. Its score
is s_r - s_TH, or s_r - (the lowest of the MOST - 1) where TH is not among them.
"""

from collections import namedtuple

import numpy as np
import torch

from losses import ZERO_THRESHOLD, threshold_of
from prepro import candidate_pairs

MOST = 4  # classes of a pair
ALONE = -10.0  # added to the score of what only the document, or only its pseudo documents say

Fused = namedtuple("Fused", "certain uncertain")  # triples; triple -> score


def pseudo_documents(document, pairs, sentence_attention, threshold):
    """The parts of a document that are its pairs' evidence: a list of (pseudo document, entities of
    `document` that are its own), each distinct set of sentences once.

    pairs [P, 2]; sentence_attention [P, S]: a sentence above the threshold is evidence. Where no
    mention of the head (tail) is in it, the first sentence that has one is added. A pair without
    evidence has no pseudo document.
    """
    where = [sorted({m["sent_id"] for m in mentions}) for mentions in document["vertexSet"]]
    chosen = {}
    for pair, above in zip(pairs.tolist(), np.asarray(sentence_attention) > threshold, strict=True):
        sentences = set(np.flatnonzero(above).tolist())
        if sentences:
            sentences |= {where[e][0] for e in pair if sentences.isdisjoint(where[e])}
            chosen[tuple(sorted(sentences))] = None
    return [pseudo_document(document, sentences) for sentences in chosen]


def pseudo_document(document, sentences):
    """The document's sentences of these numbers, and its entities that they mention."""
    index = {number: i for i, number in enumerate(sentences)}
    entities, mentions = [], []
    for e, of_entity in enumerate(document["vertexSet"]):
        kept = [m | {"sent_id": index[m["sent_id"]]} for m in of_entity if m["sent_id"] in index]
        if kept:
            entities.append(e)
            mentions.append(kept)
    part = {name: document[name] for name in ("title", "own_markers") if name in document}
    part |= {"sents": [document["sents"][i] for i in sentences], "vertexSet": mentions}
    if "candidates" in document:
        own = {e: i for i, e in enumerate(entities)}
        inside = [pair for pair in document["candidates"] if own.keys() >= set(pair)]
        part["candidates"] = [[own[h], own[t]] for h, t in inside]
    return part, entities


def triple_scores(logits, pairs, loss_type):
    """(head, tail, class) -> score, of the candidates among the logits [P, classes]."""
    top = logits.topk(min(MOST, logits.shape[1]), dim=1)
    threshold = threshold_of(logits, loss_type)
    if loss_type not in ZERO_THRESHOLD:
        has_threshold = (top.indices == 0).any(1, keepdim=True)
        threshold = torch.where(has_threshold, threshold, top.values[:, -1:] - 1)
    scores = (top.values - threshold).tolist()
    return {
        (head, tail, number): score
        for (head, tail), numbers, values in zip(
            pairs.tolist(), top.indices.tolist(), scores, strict=True
        )
        for number, score in zip(numbers, values, strict=True)
        if number != 0
    }


def fuse(whole, parts):
    """A document's triples from its own scores and those of its pseudo documents (a list of
    `triple_scores`, in the document's entities): what both find positive is certain; else the sum
    of the two scores, or the only one and ALONE, decides."""
    best = {}
    for scores in parts:
        for triple, score in scores.items():
            best[triple] = max(score, best.get(triple, -np.inf))
    certain, uncertain = [], {}
    for triple in whole.keys() | best.keys():
        given = [scores[triple] for scores in (whole, best) if triple in scores]
        if len(given) == 2 and min(given) > 0:
            certain.append(triple)
        else:
            uncertain[triple] = sum(given) + (ALONE if len(given) == 1 else 0)
    return Fused(sorted(certain), uncertain)


def select(fused, threshold):
    """The triples of a document that are predicted, sorted."""
    return sorted(
        [*fused.certain, *(x for x, score in fused.uncertain.items() if score > threshold)]
    )


def fuse_documents(documents, outputs, loss_type, evidence_threshold, logits_of):
    """One Fused a document, and the number of pseudo documents.

    outputs: an engine.inference.Output a document; logits_of: documents -> their logits, a list of
    [pairs, classes].
    """
    parts, owners = [], []
    for i, (document, output) in enumerate(zip(documents, outputs, strict=True)):
        pairs = candidate_pairs(document)
        found = pseudo_documents(document, pairs, output.sentence_attention, evidence_threshold)
        parts += found
        owners += [i] * len(found)
    of_parts = [[] for _ in documents]
    logits = logits_of([part for part, _ in parts])
    for owner, (part, entities), of_part in zip(owners, parts, logits, strict=True):
        ends = np.array(entities)[candidate_pairs(part)]
        of_parts[owner].append(triple_scores(of_part, ends, loss_type))
    fused = [
        fuse(triple_scores(output.logits, candidate_pairs(document), loss_type), scores)
        for document, output, scores in zip(documents, outputs, of_parts, strict=True)
    ]
    return fused, len(parts)


def facts_of(document, rel2id):
    """(head, tail, class) of its labels: a set."""
    return {(x["h"], x["t"], rel2id[x["r"]]) for x in document["labels"]}


def fused_predictions(fused, documents, num_class, threshold):
    """Multi-hot predictions of all pairs, [P, classes] bool, document by document."""
    parts = []
    for of_document, document in zip(fused, documents, strict=True):
        index = {pair: i for i, pair in enumerate(map(tuple, candidate_pairs(document).tolist()))}
        predicted = torch.zeros(len(index), num_class, dtype=torch.bool)
        for head, tail, number in select(of_document, threshold):
            predicted[index[head, tail], number] = True
        parts.append(predicted)
    return torch.cat(parts)
