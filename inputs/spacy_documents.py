"""Raw text -> documents. A spaCy pipeline finds the words, the sentences and the entities.

- A mention is an entity of the pipeline (doc.ents), except ordinal numbers, which DocRED does not
  have. Its type is mapped to DocRED's.
- Mentions of one name are one entity. Names are compared without case, a leading "the" and a
  trailing "'s". The last name of a person alone is the one earlier person whose name ends in it.
- Names that a coreference component puts into one cluster are one entity, too. Pronouns are left
  out, since the mentions of DocRED are names.
- No sentence ends inside a mention.
- A text of more than LONGEST words is split between sentences into several documents, because
  models are trained on documents of that length. Relations across two of them are not found.
"""

import math
import re
from bisect import bisect_right
from itertools import accumulate, pairwise

from inputs.files import InputError, read_text, reason_of

LONGEST = 400  # words of a document; Re-DocRED's have 200 on average
DOCRED = {  # DocRED's entity types -> spaCy's
    "PER": "PERSON",
    "LOC": "GPE FAC NORP",  # "German" is a LOC of Re-DocRED
    "TIME": "DATE",
    "NUM": "CARDINAL MONEY PERCENT QUANTITY",
    "MISC": "EVENT LANGUAGE LAW PRODUCT WORK_OF_ART",
}
TYPES = {label: docred for docred, labels in DOCRED.items() for label in labels.split()}
NO_ENTITY = "ORDINAL"
THE = re.compile(r"the\s+(?=\S)", re.IGNORECASE)
INSTALL = "pip install -r requirements-spacy.txt"


def load_pipeline(name):
    """The spaCy pipeline of that name, or of a folder. Raises InputError."""
    try:
        import spacy  # noqa: PLC0415, optional
    except Exception as error:  # not installed, or built for another version of numpy
        raise InputError(f"--text needs spaCy: {INSTALL} ({reason_of(error)})") from None
    try:
        return spacy.load(name)
    except Exception as error:  # spaCy raises many types: unknown name, other version, ...
        hint = f"(python -m spacy download {name})" if isinstance(error, OSError) else ""
        raise InputError(f"--ner {name}: {reason_of(error)} {hint}".strip()) from None


def read_article(path, longest):
    """`read_text` of a file. Raises InputError, also for more than `longest` characters."""
    text = read_text(path)
    if len(text) > longest:
        raise InputError(f"{path}: longer than the pipeline's {longest:,} characters (split it)")
    return text


def text_documents(doc, title):
    """A spaCy Doc -> a list of documents in DocRED format, one for every LONGEST words.

    As from span_documents.as_docred, they have the whole text, the offsets of their words in it,
    and the start and end of every mention. Raises InputError if the pipeline found no sentences.
    """
    if len(doc) and not doc.has_annotation("SENT_START"):
        raise InputError("the pipeline finds no sentences (a parser, senter or sentencizer does)")
    text = doc.text  # spaCy builds it anew at every access
    words = [token for token in doc if not token.is_space]
    index_of = {token.i: k for k, token in enumerate(words)}
    spans, mentions = [], []
    for span in doc.ents:
        inside = _word_indices(span, index_of)
        if inside and span.label_ != NO_ENTITY:
            spans.append(span)
            mentions.append((inside[0], inside[-1] + 1))
    starts = _sentence_starts(doc, words, index_of, mentions)
    count = math.ceil(len(words) / LONGEST)
    part_of = {first: first * count // max(len(words), 1) for first in starts}
    parts = {number: ([], []) for number in part_of.values()}  # sentences and mentions of each
    for first, end in pairwise([*starts, len(words)]):
        parts[part_of[first]][0].append((first, end))
    names = _entity_names(doc, text, spans)
    for (first, end), span, name in zip(mentions, spans, names, strict=True):
        sentence = starts[bisect_right(starts, first) - 1]
        parts[part_of[sentence]][1].append((first, end, span.label_, name))
    return [
        {"title": title if len(parts) == 1 else f"{title}, part {i} of {len(parts)}"}
        | _document(text, words, *part)
        for i, part in enumerate(parts.values(), 1)
    ]


def _word_indices(span, index_of):
    return [index_of[token.i] for token in span if token.i in index_of]


def _sentence_starts(doc, words, index_of, mentions):
    """The sorted indices of the words at which sentences start, none of them inside a mention. A
    sentence of more than LONGEST words is split."""
    starts = {0, *(k for sentence in doc.sents for k in _word_indices(sentence, index_of)[:1])}
    for first, end in pairwise([*sorted(starts), len(words)]):
        starts.update(range(first, end, LONGEST))
    for first, end in mentions:
        starts -= set(range(first + 1, end))
    return sorted(starts)


def _document(text, words, sentences, mentions):
    """sentences: (first word, end) of each; mentions: (first word, end, label, entity)."""
    offsets = [[(x.idx, x.idx + len(x)) for x in words[a:b]] for a, b in sentences]
    starts, entities = [first for first, _ in sentences], {}
    for first, end, label, entity in mentions:
        number = bisect_right(starts, first) - 1
        start, last = words[first].idx, words[end - 1]
        mention = {
            "name": text[start : last.idx + len(last)],
            "type": TYPES.get(label, label),
            "sent_id": number,
            "pos": [first - starts[number], end - starts[number]],
            "start": start,
            "end": last.idx + len(last),
        }
        entities.setdefault(entity, []).append(mention)
    return {
        "sents": [[text[a:b] for a, b in sentence] for sentence in offsets if sentence],
        "vertexSet": list(entities.values()),
        "text": text,
        "offsets": [sentence for sentence in offsets if sentence],
    }


def _entity_names(doc, text, spans):
    """The name of the entity of each mention: its own, or that of the first mention of its
    cluster."""
    names, persons = [], {}  # persons: last name -> full names
    for span in spans:
        name = _name(span.text)
        if TYPES.get(span.label_, span.label_) == "PER":
            full = persons.get(name, ())
            if len(full) == 1:
                (name,) = full
            for word in accumulate(reversed(name.split()[1:]), lambda end, word: f"{word} {end}"):
                persons.setdefault(word, set()).add(name)
        names.append(name)
    known = {_key(text, x.start_char, x.end_char): y for x, y in zip(spans, names, strict=True)}
    entity = {name: name for name in names}
    for cluster in _clusters(doc):
        keys = (_key(text, start, end) for start, end in cluster)
        same = {entity[known[key]] for key in keys if key in known}
        first = next((x for x in entity.values() if x in same), None)
        entity = {name: first if x in same else x for name, x in entity.items()}
    return [entity[name] for name in names]


def _name(text):
    text = " ".join(text.casefold().split()).removeprefix("the ")
    return re.sub(r"(?<=.)['’]s$", "", text)


def _key(text, start, end):
    """The start and the name of a mention, both without a leading "the"."""
    the = THE.match(text, start, end)
    return the.end() if the else start, _name(text[start:end])


def _clusters(doc):
    """Yields the mentions, (start, end) in characters, of each cluster of a coreference component.
    spaCy's own components fill doc.spans, fastcoref doc._.coref_clusters."""
    found = [group for name, group in doc.spans.items() if name.startswith("coref_clusters")]
    if doc.has_extension("coref_clusters"):
        found += doc._.coref_clusters or []
    for cluster in found:
        yield [(x.start_char, x.end_char) if hasattr(x, "start_char") else x for x in cluster]
