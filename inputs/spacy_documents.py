"""Raw text -> documents, by spaCy: its pipeline finds the words, the sentences and the entities.

- A mention is an entity of the pipeline (doc.ents), but no ordinal number (DocRED has none). Its
  type becomes DocRED's.
- Mentions of one name are one entity. Names are compared without case, a leading "the" and a
  trailing "'s". A person's last name alone stands for the one person before it who ends in it.
- Names that a coreference component has found to be the same are one entity, too; its pronouns are
  left out, since DocRED's mentions are names.
- No sentence ends inside a mention.
- A text of more than LONGEST words becomes several documents, cut between sentences, for the models
  are trained on documents of that length. Relations between two of them are not found.
"""

import math
import re
from bisect import bisect_right
from itertools import accumulate, pairwise

from inputs.files import InputError, reason_of

LONGEST = 400  # words of a document; Re-DocRED's have 200 on average
DOCRED = {  # DocRED's types, and spaCy's
    "PER": "PERSON",
    "LOC": "GPE FAC NORP",  # "German" is a LOC of Re-DocRED
    "TIME": "DATE",
    "NUM": "CARDINAL MONEY PERCENT QUANTITY",
    "MISC": "EVENT LANGUAGE LAW PRODUCT WORK_OF_ART",
}
TYPES = {label: kind for kind, labels in DOCRED.items() for label in labels.split()}
NO_ENTITY = "ORDINAL"
THE = re.compile(r"the\s+(?=\S)", re.IGNORECASE)
INSTALL = "pip install -r requirements-spacy.txt"


def load_pipeline(name):
    """The spaCy pipeline of that name, or of a folder. Raises InputError."""
    try:
        import spacy
    except ImportError:
        raise InputError(f"--text needs spaCy: {INSTALL}") from None
    except Exception as error:  # it does not fit numpy, Python, ...
        raise InputError(f"--text: spaCy cannot be loaded: {reason_of(error)}") from None
    try:
        return spacy.load(name)
    except Exception as error:  # no such pipeline, of another version, of a package not installed
        hint = f"(python -m spacy download {name})" if isinstance(error, OSError) else ""
        raise InputError(f"--ner {name}: {reason_of(error)} {hint}".strip()) from None


def read_text(path, longest):
    """The text of a UTF-8 file; "-" is standard input; longest: characters. Raises InputError."""
    try:
        # newline: the ends of lines stay as they are, so that characters can be counted
        with open(0 if path == "-" else path, encoding="utf-8-sig", newline="") as file:
            text = file.read(longest + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, a path that no file can have
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    if len(text) > longest:
        raise InputError(f"{path}: longer than the pipeline's {longest:,} characters (split it)")
    return text


def text_documents(doc, title):
    """A spaCy Doc -> documents in DocRED format, a list: one, or as many as its length asks for.

    As of texts.as_docred, they have the whole text, the offsets of their words in it, and start and
    end of the mentions. Raises InputError if the pipeline found no sentences.
    """
    if len(doc) and not doc.has_annotation("SENT_START"):
        raise InputError("the pipeline finds no sentences (a parser, senter or sentencizer does)")
    text = doc.text  # which spaCy puts together each time
    words = [token for token in doc if not token.is_space]
    place = {token.i: k for k, token in enumerate(words)}
    spans, mentions = [], []
    for span in doc.ents:
        inside = _places(span, place)
        if inside and span.label_ != NO_ENTITY:
            spans.append(span)
            mentions.append((inside[0], inside[-1] + 1))  # its first word, and past its last
    cuts = _sentence_starts(doc, words, place, mentions)
    count = math.ceil(len(words) / LONGEST)
    part_of = {first: first * count // max(len(words), 1) for first in cuts}
    parts = {number: ([], []) for number in part_of.values()}  # its sentences and its mentions
    for first, end in zip(cuts, [*cuts[1:], len(words)], strict=True):
        parts[part_of[first]][0].append((first, end))
    names = _entity_names(doc, text, spans)
    for (first, end), span, name in zip(mentions, spans, names, strict=True):
        sentence = cuts[bisect_right(cuts, first) - 1]
        parts[part_of[sentence]][1].append((first, end, span.label_, name))
    return [
        {"title": title if len(parts) == 1 else f"{title}, part {i} of {len(parts)}"}
        | _document(text, words, *part)
        for i, part in enumerate(parts.values(), 1)
    ]


def _places(span, place):
    return [place[token.i] for token in span if token.i in place]


def _sentence_starts(doc, words, place, mentions):
    """The words at which sentences start, rising; none inside a mention. What the pipeline takes
    for a sentence of more than LONGEST words is cut."""
    cuts = {0, *(k for sentence in doc.sents for k in _places(sentence, place)[:1])}
    ends = [*sorted(cuts), len(words)]
    for first, end in pairwise(ends):
        cuts.update(range(first, end, LONGEST))
    for first, end in mentions:
        cuts -= set(range(first + 1, end))
    return sorted(cuts)


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
    """Of each mention the name of its entity: its own, or that of its cluster's first mention."""
    names, persons = [], {}  # persons: last name -> whole names
    for span in spans:
        name = _name(span.text)
        if TYPES.get(span.label_, span.label_) == "PER":
            whole = persons.get(name, ())
            if len(whole) == 1:
                (name,) = whole
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
    """Where a mention stands and its name, both without a leading "the"."""
    the = THE.match(text, start, end)
    return the.end() if the else start, _name(text[start:end])


def _clusters(doc):
    """Of each cluster of a coreference component its mentions (start, end) in characters: spaCy's
    own components fill doc.spans, fastcoref doc._.coref_clusters."""
    found = [group for name, group in doc.spans.items() if name.startswith("coref_clusters")]
    if doc.has_extension("coref_clusters"):
        found += doc._.coref_clusters or []
    for cluster in found:
        yield [(x.start_char, x.end_char) if hasattr(x, "start_char") else x for x in cluster]
