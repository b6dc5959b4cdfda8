"""DREEAM's fusion at inference (Ma et al., EACL 2023, Section 3.4; after Xie et al., 2022): the
predictions for a document are combined with those for pseudo documents, which consist of a pair's
evidence sentences only.

A triple is a candidate if its relation is among the TOP highest classes of its pair. Its score is
s_r - s_TH, or, if TH is not among these, s_r - (the lowest of them - 1).
"""

from collections import namedtuple

import numpy as np
import torch

from losses import ZERO_THRESHOLD, threshold_of
from prepro import candidate_pairs

TOP = 4  # classes of a pair
ALONE = -10.0  # added to the score of a triple of the document or its pseudo documents alone

Fused = namedtuple("Fused", "certain uncertain")  # triples; triple -> score


def pseudo_documents(document, pairs, sentence_attention, threshold):
    """The pseudo documents of a document: a list of (pseudo document, indices of its entities in
    `document`), one for each distinct set of evidence sentences of a pair.

    pairs [P, 2]; sentence_attention [P, S]: a sentence above the threshold is evidence. If no
    mention of the head (tail) is in the evidence, the first sentence with one is added. A pair
    without evidence has no pseudo document.
    """
    sentences_of = [sorted({m["sent_id"] for m in mentions}) for mentions in document["vertexSet"]]
    chosen = {}
    for pair, above in zip(pairs.tolist(), np.asarray(sentence_attention) > threshold, strict=True):
        sentences = set(np.flatnonzero(above).tolist())
        if sentences:
            sentences |= {sentences_of[e][0] for e in pair if sentences.isdisjoint(sentences_of[e])}
            chosen[tuple(sorted(sentences))] = None
    return [pseudo_document(document, sentences) for sentences in chosen]


def pseudo_document(document, sentences):
    """The document of these sentences (sorted indices) and the entities mentioned in them; and the
    indices of these entities."""
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
    """(head, tail, class) -> score of the candidates. logits [P, classes]; pairs [P, 2]."""
    top = logits.topk(min(TOP, logits.shape[1]), dim=1)
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
    """The Fused triples of a document, from its own scores and those of its pseudo documents
    (`triple_scores` and a list of them, with the document's entities). A triple is certain if both
    scores are positive; of several pseudo documents the highest counts. Otherwise its score is the
    sum of the two, or the only one plus ALONE."""
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
    """The predicted triples of a document, sorted."""
    return sorted(
        [*fused.certain, *(x for x, score in fused.uncertain.items() if score > threshold)]
    )


def fuse_documents(documents, outputs, loss_type, evidence_threshold, logits_of):
    """A list of one Fused per document, and the number of pseudo documents.

    outputs: one engine.inference.Output per document; logits_of: documents -> a list of their
    logits, [pairs, classes].
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
    """The labels of a document, a set of (head, tail, class)."""
    return {(x["h"], x["t"], rel2id[x["r"]]) for x in document["labels"]}


def fused_predictions(fused, documents, num_class, threshold):
    """The predictions for the pairs of all documents, multi-hot [P, num_class] bool. fused: one
    Fused per document; threshold: for the scores of uncertain triples."""
    parts = []
    for of_document, document in zip(fused, documents, strict=True):
        index = {pair: i for i, pair in enumerate(map(tuple, candidate_pairs(document).tolist()))}
        predicted = torch.zeros(len(index), num_class, dtype=torch.bool)
        for head, tail, number in select(of_document, threshold):
            predicted[index[head, tail], number] = True
        parts.append(predicted)
    return torch.cat(parts)
