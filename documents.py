"""New documents, one at a time: from JSON of any size, in DocRED format or as text with spans.

A file is a list of documents (in one line or in many), JSON lines, or one document. Text with spans

    {"text": "...", "entities": [[{"start": 0, "end": 12, "type": "PER"}, ...], ...], "title": ""}

gives every entity's mentions in characters (Unicode code points, end excluded); type and title may
be missing. It becomes a document in DocRED format so:

- A word is a run of letters, digits, underscores and combining accents, or any other single
  character that is not white space. A span's border inside a word splits it.
- A sentence ends after . ! ? or an ellipsis, with the closing quotes and brackets that follow,
  where white space and then no small letter comes; not after a single letter (J. K. Rowling) or
  one of a few abbreviations (Dr.); also after a full stop of Chinese and Japanese, and at an empty
  line. No sentence ends inside a mention. (Sentences do not change the relations that are found,
  only the sentences that are shown with them.)
- Mentions may nest and overlap, within an entity and between entities, as in DocRED.

Refused, with one line: a span that is empty, outside the text or only white space.
"""

import io
import json
import re
import sys
import tempfile
from bisect import bisect_left, bisect_right
from itertools import pairwise

from prepro import InputError, check_document, check_text_document, document_name

CHUNK = 1 << 20  # characters
SPACE = re.compile(r"[ \t\n\r]*")

FIELDS = "title", "sents", "vertexSet", "labels"

WORD = re.compile(r"[\w\u0300-\u036f]+|\S")
ABBREVIATIONS = "Mr Mrs Ms Dr St Jr Sr Prof Gen Col Lt Sgt Rev Hon No vs".split()
NOT_AFTER = r"(?<!\b[^\W\d_])" + "".join(rf"(?<!\b{word})" for word in ABBREVIATIONS)
STOP = re.compile(
    rf"(?<![.!?…])(?:[!?…]|{NOT_AFTER}\.)[.!?…]*[\"'”’»)\]]*(?=\s+[\"'“‘«(\[]*(\S))"
    r"|[。！？]+[”’」』）]*"
    r"|\n\s*?\n"
)


def open_input(path):
    """A binary file that can be read twice; what cannot, a pipe, is copied to a temporary file.
    "-" is standard input. Raises InputError."""
    try:
        file = sys.stdin.buffer if path == "-" else open(path, "rb")
        if file.seekable():
            return file
        spool = tempfile.TemporaryFile()
        while block := file.read(CHUNK):
            spool.write(block)
        return spool
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def read_new_documents(file, name, rel2id, unique_titles=False):
    """The documents of a file of `open_input`, validated and in DocRED format, one at a time.

    name: the file's in messages. unique_titles: two documents with one title are a fault. Raises
    InputError, naming the document and the field, where the fault is met.
    """
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    try:
        yield from new_documents(_json_values(text.read), rel2id, unique_titles)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from None
    finally:
        text.detach()  # the file stays open


def new_documents(documents, rel2id, unique_titles=False):
    """Documents in either format -> validated documents in DocRED format, one at a time."""
    first_with = {}
    for index, given in enumerate(documents):
        try:
            document = as_docred(given, index, rel2id)
            title = document["title"]
            if unique_titles and first_with.setdefault(title, index) != index:
                raise InputError(f"title: document {first_with[title]} has the same title")
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
        raise InputError(f"expected an object, found {type(given).__name__}")
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
    return document | ({"labels": given["labels"]} if "labels" in given else {})


def sentence_text(document, number):
    """A sentence as one string: a text's own characters, or words with blanks between."""
    if "offsets" not in document:
        return " ".join(document["sents"][number])
    words = document["offsets"][number]
    return document["text"][words[0][0] : words[-1][1]]


def _json_values(read):
    """The items of a JSON list, or JSON values one after another, decoded as the text comes in.

    read(n): the next n characters, fewer only at the end. Holds one chunk and one document of text.
    """
    decode = json.JSONDecoder().raw_decode
    text, place, line, number = "", 0, 1, 0

    def more():
        nonlocal text, place, line
        fresh = read(max(CHUNK, len(text) - place))  # doubled, so that a long document is cheap
        line += text.count("\n", 0, place)
        text, place = text[place:] + fresh, 0
        return fresh

    def upcoming():  # the next character that is not white space; "" at the end
        nonlocal place
        while True:
            place = SPACE.match(text, place).end()
            if place < len(text) or not more():
                return text[place : place + 1]

    def fault(reason, where):
        here = line + text.count("\n", 0, where)
        return InputError(f"document {number}: not valid JSON: line {here}: {reason}")

    def value():
        nonlocal place
        while True:
            try:
                item, place = decode(text, place)
                return item
            except json.JSONDecodeError as error:
                at_end = error.pos >= len(text.rstrip()) - 16  # of the longest literal and escape
                if not (at_end or error.msg.startswith("Unterminated string")) or not more():
                    raise fault(error.msg, error.pos) from None
            except RecursionError:
                raise fault("nested too deeply", place) from None
            except ValueError as error:  # a number of thousands of digits
                raise fault(str(error).split(";")[0], place) from None

    if not upcoming():
        raise InputError("the file is empty")
    is_list = upcoming() == "["
    place += is_list
    while (character := upcoming()) not in ("", "]" if is_list else ""):
        if number and is_list:
            if character != ",":
                raise fault("expected a comma or the end of the list", place)
            place += 1
            character = upcoming()
        if character != "{":  # also because a number would not show where it ends
            raise InputError(f"document {number}: expected an object, found {character!r}")
        yield value()
        number += 1
    if is_list:
        if not character:
            raise fault("the list does not end", place)
        place += 1
        if upcoming():
            raise fault("text after the end of the list", place)
    if not number:
        raise InputError("the list of documents is empty")
