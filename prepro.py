"""Documents -> features: token ids with ATLOP's entity markers."""

from collections import Counter
from functools import lru_cache

import numpy as np

from inputs.documents import read_documents, without_collector
from inputs.files import InputError, relation_ids


@without_collector()
def docred_features(documents, tokenizer, max_seq_length=1024, rel2id=None):
    """Features of validated documents, a list of dicts:

    title            str
    input_ids        [L] int, L <= max_seq_length: [CLS] tokens [SEP], each mention between two "*"
    entity_pos       for each entity the (start, end) of its mentions, start at the opening "*",
                     counted in tokens without [CLS] and before the cut to max_seq_length - 2
    sentence_bounds  [S + 1], where the sentences start and where the last one ends, counted so, too
    triples          [K, 3] int32, the distinct (head, tail, class id) that hold, sorted; without
                     those that are no candidates
    evidence         sorted list of (head, tail, sentence), one for each sentence that the label of
                     a distinct triple names
    pairs            [P, 2], the candidate pairs (head, tail), if the document has candidates

    As in ATLOP, each word is tokenized by itself without a leading space, also for RoBERTa, and
    mentions that start (end) on the same word have one common marker. In a document with
    own_markers each distinct (start, end, type) has its own, as in ATLOP's reader of CDR and GDA.
    Raises InputError for a tokenizer without the tokens that this takes.
    """
    rel2id = relation_ids() if rel2id is None else rel2id
    pieces = _word_pieces(documents, tokenizer)
    marker = _marker_id(tokenizer)
    features = []
    for document in documents:
        tokens, entity_pos, sentence_bounds = _mark_entities(document, pieces, marker)
        labels = document.get("labels", [])
        # An entity and itself are no pair.
        triples = {(x["h"], x["t"], rel2id[x["r"]]) for x in labels if x["h"] != x["t"]}
        pairs = {}
        if "candidates" in document:
            pairs = {"pairs": candidate_pairs(document)}
            chosen = set(map(tuple, document["candidates"]))
            triples = {triple for triple in triples if triple[:2] in chosen}
        named = {
            (x["h"], x["t"], rel2id[x["r"]], sentence)
            for x in labels
            for sentence in x.get("evidence") or ()
        }
        evidence = sorted((h, t, sentence) for h, t, r, sentence in named if (h, t, r) in triples)
        tokens = tokens[: max_seq_length - 2]
        features.append(
            {
                "title": document["title"],
                "input_ids": [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id],
                "entity_pos": entity_pos,
                "sentence_bounds": sentence_bounds,
                "triples": np.array(sorted(triples), dtype=np.int32).reshape(-1, 3),
                "evidence": evidence,
                **pairs,
            }
        )
    return features


def read_docred(path, tokenizer, max_seq_length=1024, rel2id=None):
    """Features of a DocRED-format file: `read_documents`, then `docred_features`."""
    documents = read_documents(path, rel2id)
    return docred_features(documents, tokenizer, max_seq_length, rel2id)


def _word_pieces(documents, tokenizer):
    """word -> token ids, for every distinct word of the documents."""
    words = list({word for x in documents for sentence in x["sents"] for word in sentence})
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not words:
        ids = tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
    else:  # the fast tokenizer itself: transformers' wrapper would take most of the time
        backend.no_padding()
        backend.no_truncation()
        ids = [x.ids for x in backend.encode_batch(words, add_special_tokens=False)]
    return dict(zip(words, ids, strict=True))


def _marker_id(tokenizer):
    for name in ("cls_token", "sep_token", "pad_token"):
        if getattr(tokenizer, f"{name}_id", None) is None:
            raise InputError(f"the tokenizer has no {name}")
    marker = tokenizer.convert_tokens_to_ids("*")
    if marker is None or marker == tokenizer.unk_token_id:
        raise InputError('the tokenizer has no token "*", which marks the mentions')
    return marker


def _mark_entities(document, pieces, marker):
    """Token ids with markers, but without special tokens; entity_pos; sentence_bounds."""
    mentions = [mention for entity in document["vertexSet"] for mention in entity]
    spans = {(m["sent_id"], *m["pos"], str(m.get("type"))) for m in mentions}
    # (sentence, word) -> number of markers before, after the word
    starts = Counter((sentence, start) for sentence, start, _, _ in spans)
    ends = Counter((sentence, end - 1) for sentence, _, end, _ in spans)
    if not document.get("own_markers"):
        starts, ends = dict.fromkeys(starts, 1), dict.fromkeys(ends, 1)
    tokens = []
    offset = []  # of each sentence: the tokens at which its words start, and where it ends
    for i, sentence in enumerate(document["sents"]):
        offset.append([])
        for j, word in enumerate(sentence):
            offset[i].append(len(tokens))
            tokens += [marker] * starts.get((i, j), 0)
            tokens += pieces[word]
            tokens += [marker] * ends.get((i, j), 0)
        offset[i].append(len(tokens))
    entity_pos = [
        [(offset[m["sent_id"]][m["pos"][0]], offset[m["sent_id"]][m["pos"][1]]) for m in mentions]
        for mentions in document["vertexSet"]
    ]
    sentence_bounds = [words[0] for words in offset] + [len(tokens)]
    return tokens, entity_pos, sentence_bounds


def pairs_of(feature):
    """The pairs (head, tail) of a feature that are classified, [P, 2]: its candidates, or all."""
    return feature["pairs"] if "pairs" in feature else entity_pairs(len(feature["entity_pos"]))


def related_pairs(feature):
    """The pairs (head, tail) of a feature that have a relation, a set."""
    return {(head, tail) for head, tail, _ in feature["triples"].tolist()}


def candidate_pairs(document):
    """The pairs (head, tail) of a document that are classified, [P, 2]: its candidates, or all."""
    if "candidates" in document:
        return np.array(document["candidates"], dtype=np.int64).reshape(-1, 2)
    return entity_pairs(len(document["vertexSet"]))


@lru_cache(maxsize=256)
def entity_pairs(num_entities):
    """All pairs (head, tail), head != tail, [E (E - 1), 2], sorted."""
    grid = np.indices((num_entities, num_entities), dtype=np.int64).reshape(2, -1).T
    return grid[grid[:, 0] != grid[:, 1]]
