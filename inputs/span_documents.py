"""New documents, one at a time: from JSON, in DocRED format or as text with spans.

A file is a list of documents (in one line or in many), JSON lines, or one document. Text with spans

    {"text": "...", "entities": [[{"start": 0, "end": 12, "type": "PER"}, ...], ...], "title": ""}

gives every entity's mentions in characters (Unicode code points, end excluded); type and title may
be missing. It becomes a document in DocRED format so:

- A word is a run of letters, digits, underscores and combining accents, or any other single
  character that is not white space. A span's border inside a word splits it.
- A sentence ends after . ! ? or an ellipsis, with the closing quotes and brackets that follow,
  where white space and then no small letter comes; not after a single letter (J. K. Rowling) or
  one of a few abbreviations (Dr.); also after a full stop of Chinese and Japanese, and at an empty
  line. No sentence ends inside a mention. (Without fusion sentences do not change the relations
  that are found, only the sentences that are shown with them.)
- Mentions may nest and overlap, within an entity and between entities, as in DocRED.

Refused, with one line: a span that is empty, outside the text or only white space.
"""

import re
from bisect import bisect_left, bisect_right
from itertools import pairwise

from inputs.documents import (
    Document,
    check_document,
    check_text_document,
    check_title,
    document_name,
    json_values,
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
    """The documents in the bytes of a file, validated and in DocRED format, one at a time.

    name: the file's in messages. unique_titles: two documents with one title are a fault. Raises
    InputError, naming the document and the field, where the fault is met.
    """
    try:
        yield from new_documents(json_values(content), rel2id, unique_titles)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def new_documents(documents, rel2id, unique_titles=False):
    """Documents in either format -> validated documents in DocRED format, one at a time."""
    first_with = {}
    for index, given in enumerate(documents):
        try:
            document = as_docred(given, index, rel2id)
            if unique_titles:
                check_title(document, index, first_with)
        except InputError as error:
            raise InputError(f"{document_name(given, index)}: {error}") from None
        yield document


def as_docred(given, index, rel2id):
    """One document in either format -> in DocRED format, without further fields. Raises InputError.

    A text without a title is called "document" and its place. A document made from a text also has
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

    def first_word(place):  # the number of the first word that starts there or later
        return bisect_left(starts, place)

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
        kind = {"type": mention["type"]} if "type" in mention else {}
        place = {"sent_id": sentence, "pos": pos, "start": start, "end": end}
        return {"name": text[start:end]} | kind | place

    document = {
        "title": given["title"],
        "sents": [[text[a:b] for a, b in sentence] for sentence in offsets],
        "vertexSet": [[as_mention(mention) for mention in mentions] for mentions in entities],
        "text": text,
        "offsets": offsets,
    }
    return document | {name: given[name] for name in ("labels", "candidates") if name in given}


def sentence_text(document, number):
    """A sentence as one string: a text's own characters, or words with blanks between."""
    if "offsets" not in document:
        return " ".join(document["sents"][number])
    words = document["offsets"][number]
    return document["text"][words[0][0] : words[-1][1]]
