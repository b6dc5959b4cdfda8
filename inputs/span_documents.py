"""New documents from JSON, one at a time: in DocRED format, or as text with spans.

A file is a list of documents (on one line or many), JSON lines, or one document. Text with spans

    {"text": "...", "entities": [[{"start": 0, "end": 12, "type": "PER"}, ...], ...], "title": ""}

gives the mentions of every entity in characters (Unicode code points, end excluded); type and title
may be missing. It is converted to DocRED format as follows:

- A word is a run of letters, digits, underscores and combining accents, or any other single
  character that is not white space. A span that starts or ends inside a word splits it.
- A sentence ends after . ! ? or an ellipsis, with the closing quotes and brackets that follow,
  where white space and then no small letter comes; not after a single letter (J. K. Rowling) or
  one of a few abbreviations (Dr.); also after a full stop of Chinese and Japanese, and at an empty
  line. No sentence ends inside a mention. (Without fusion sentences do not change the relations
  that are found, only the sentences that are shown with them.)
- Mentions may nest and overlap, within an entity and between entities, as in DocRED.

A span that is empty, outside the text or only white space is refused with one line.
"""

import re
from bisect import bisect_left, bisect_right
from itertools import pairwise

from inputs.documents import (
    Document,
    check_document,
    check_text_document,
    json_values,
    validated,
)
from inputs.files import InputError

FIELDS = tuple(Document.__annotations__)

WORD = re.compile(r"[\w\u0300-\u036f]+|\S")
ABBREVIATIONS = "Mr Mrs Ms Dr St Jr Sr Prof Gen Col Lt Sgt Rev Hon No vs".split()
NOT_AFTER = r"(?<!\b[^\W\d_])" + "".join(rf"(?<!\b{word})" for word in ABBREVIATIONS)
STOP = re.compile(
    rf"(?<![.!?…])(?:[!?…]|{NOT_AFTER}\.)[.!?…]*[\"'”’»)\]]*(?=\s+[\"'“‘«(\[]*(\S))"
    r"|[。！？]+[”’」』）]*"
    r"|\n\s*?\n"
)


def read_new_documents(content, name, rel2id, unique_titles=False):
    """Yields the documents in the bytes of a file, validated and in DocRED format.

    name: of the file, in messages. rel2id: property -> class id. unique_titles: two documents with
    one title are an error. Raises InputError, naming the document and the field, at the first
    error.
    """
    try:
        yield from new_documents(json_values(content), rel2id, unique_titles)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def new_documents(documents, rel2id, unique_titles=False):
    """Yields documents in either format as validated documents in DocRED format."""
    return validated(documents, lambda x, index: as_docred(x, index, rel2id), unique_titles)


def as_docred(given, index, rel2id):
    """One document in either format -> in DocRED format, without further fields. Raises InputError.

    A text without a title gets the title "document <index>". A document made from a text also has
    it as "text", and in "offsets" the (start, end) of every word of every sentence; its mentions
    keep their start and end.
    """
    if not isinstance(given, dict):
        raise InputError(f"expected object, found {type(given).__name__}")
    if "sents" in given:
        document = {name: given[name] for name in FIELDS if name in given}
    elif "text" in given:
        check_text_document(given)
        document = _split_text({"title": f"document {index}"} | given)
    else:
        raise InputError("neither sents and vertexSet (DocRED format) nor text and entities")
    check_document(document, rel2id, labelled=False)
    return document


def _split_text(given):
    text, entities = given["text"], given["entities"]
    spans = sorted((m["start"], m["end"]) for mentions in entities for m in mentions)
    borders = sorted({0, len(text)}.union(*spans))
    words = [x.span() for a, b in pairwise(borders) for x in WORD.finditer(text, a, b)]
    starts = [start for start, _ in words]

    def first_word(offset):  # index of the first word that starts at or after this character
        return bisect_left(starts, offset)

    cuts = {first_word(stop.end()) for stop in STOP.finditer(text) if not (stop[1] or "").islower()}
    for start, end in spans:
        cuts -= set(range(first_word(start) + 1, first_word(end)))
    cuts = sorted({0, *cuts, len(words)})
    offsets = [words[a:b] for a, b in pairwise(cuts)]

    def as_mention(mention):
        start, end = mention["start"], mention["end"]
        first = first_word(start)
        sentence = bisect_right(cuts, first) - 1
        pos = [first - cuts[sentence], first_word(end) - cuts[sentence]]
        entity_type = {"type": mention["type"]} if "type" in mention else {}
        position = {"sent_id": sentence, "pos": pos, "start": start, "end": end}
        return {"name": text[start:end]} | entity_type | position

    document = {
        "title": given["title"],
        "sents": [[text[a:b] for a, b in sentence] for sentence in offsets],
        "vertexSet": [[as_mention(mention) for mention in mentions] for mentions in entities],
        "text": text,
        "offsets": offsets,
    }
    return document | {name: given[name] for name in ("labels", "candidates") if name in given}


def sentence_text(document, number):
    """The sentence of that index as one string: as it stands in the text, or words joined by
    blanks."""
    if "offsets" not in document:
        return " ".join(document["sents"][number])
    words = document["offsets"][number]
    return document["text"][words[0][0] : words[-1][1]]
