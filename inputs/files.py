"""Files in and out. All that enters the project is validated here, and refused with one line that
names file, document and field (`InputError`); all that leaves is written whole or not at all."""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import ujson

CHUNK = 1 << 20  # characters read at once
SPACE = re.compile(r"[ \t\n\r]*")
META_DIR = Path(__file__).parent.parent / "meta"


LONGEST = 400  # characters of a message


class InputError(ValueError):
    """Bad input from the user; the message is one printable line that says what is wrong and where,
    whatever it quotes."""

    def __init__(self, message):
        super().__init__(printable(message, LONGEST))


def printable(text, longest=None):
    """The text on one line, with escapes (\\x1b) for what is not printable: no control characters
    reach a terminal or a file, nor marks that turn the direction of writing. longest: characters
    (more than 20); of a longer text the middle is left out."""
    text = str(text)
    if longest and len(text) > 8 * longest:  # an escape has at most 10 characters
        text = text[: 4 * longest] + text[-4 * longest :]
    text = "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)
    if longest and len(text) > longest:
        end = (longest - 5) // 3
        text = f"{text[: longest - 5 - end]} ... {text[-end:]}"
    return text


def reason_of(error):
    """The first line of what an error of any library says."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(reason).splitlines()[0]


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors: one line, no usage text."""

    def error(self, message):
        raise InputError(message)


def run_main(main):
    """Runs a script's main(); bad input ends it with one line on standard error and exit code 2.
    SIGTERM ends it as an exception does, so that temporary files are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(stop if str(stop) else "interrupted", file=sys.stderr)
        sys.exit(130)


UNFINISHED = ".unfinished-"  # begins the name of a folder that holds a file being written


def write_atomically(path, write, faults=OSError):
    """Calls write(a path in a new folder beside `path`) and moves the result into place: a reader,
    or a kill at any moment, sees the old file or the new one. After a kill `remove_unfinished`
    finds all that was left, also what a library wrote by a name of its own. A link stays a link; a
    device or a pipe is written to as it is. faults: what `write` raises of a disk that is full or
    of a path that no file can have; it becomes an InputError."""
    path = Path(path)
    try:
        if is_device(path):
            write(path)
            return
        target = Path(os.path.realpath(path))
        beside = {"dir": target.parent, "prefix": UNFINISHED, "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**beside) as folder:
            temporary = Path(folder) / target.name
            write(temporary)
            os.replace(temporary, target)
    except (OSError, faults) as error:
        hint = "" if isinstance(error, OSError) else " (is the disk full?)"
        raise InputError(f"{path}: cannot be written: {reason_of(error)}{hint}") from None


def is_device(path):
    """Whether it is a device or a pipe, such as /dev/null."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def remove_unfinished(folder):
    """Removes what a killed process was just writing into the folder."""
    for path in Path(folder).glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path, content, indent=1):
    """Writes JSON atomically."""
    text = ujson.dumps(content, indent=indent, ensure_ascii=False, escape_forward_slashes=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", "utf-8"))


def relation_ids(path=META_DIR / "rel2id.json"):
    """Property -> class id, e.g. {"Na": 0, "P17": 1, ...}, of a file that is just that, or of a run
    folder's config.json, which has it as label2id. Raises InputError."""
    rel2id = read_json(path)
    if isinstance(rel2id, dict) and "label2id" in rel2id:
        rel2id = rel2id["label2id"]
    if not isinstance(rel2id, dict) or not all(type(x) is int for x in rel2id.values()):
        raise InputError(f"{path}: expected an object, property -> class id")
    if not all(map(_is_text, rel2id)):
        raise InputError(f"{path}: a property holds half a character (a lone surrogate)")
    if sorted(rel2id.values()) != list(range(len(rel2id))):
        raise InputError(f"{path}: the class ids are not 0 to {len(rel2id) - 1}, each once")
    return rel2id


def read_json(path):
    """The content of a JSON file. Raises InputError if it is missing, empty or not JSON."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # not UTF-8, or a path that no file can have
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    try:
        return ujson.loads(text)
    except ValueError:
        pass
    try:  # the slower standard parser says where the fault lies, and settles what ujson refuses
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def sha256_of(path):
    """The SHA-256 of a file of any size, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_documents(path, rel2id=None, labelled=True):
    """The documents of a DocRED-format JSON file, validated: a list. See `iter_documents`."""
    return list(iter_documents(path, rel2id, labelled))


def iter_documents(path, rel2id=None, labelled=True, unique_titles=True):
    """The documents of a DocRED-format JSON file, validated, one at a time: a file of any size is
    read in the memory of its largest document.

    rel2id (property -> class id) decides which relations are known, None: meta/rel2id.json.
    labelled False accepts documents without "labels", unique_titles False two with one title: in a
    file that only trains nothing is told apart by it. Raises InputError at the first fault.
    """
    rel2id = relation_ids() if rel2id is None else rel2id
    first_with = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            for index, document in enumerate(json_values(file.read)):
                try:
                    check_document(document, rel2id, labelled)
                    if unique_titles:
                        check_title(document, index, first_with)
                except InputError as error:
                    raise InputError(f"{document_name(document, index)}: {error}") from None
                yield document
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # not UTF-8, or a path that no file can have
        raise InputError(f"{path}: cannot be read: {error}") from None


def check_title(document, index, first_with):
    """Raises InputError if an earlier document has this one's title; first_with: title -> place."""
    first = first_with.setdefault(document["title"], index)
    if first != index:
        raise InputError(f"title: document {first} has the same title")


def document_name(document, index):
    """What messages call a document: its place, and its title if it has one."""
    title = document.get("title") if isinstance(document, dict) else None
    if not isinstance(title, str):
        return f"document {index}"
    return f"document {index} {printable(json.dumps(title, ensure_ascii=not _is_text(title)), 80)}"


def check_document(document, rel2id, labelled=True):
    """Raises InputError, naming the field, unless `document` is in DocRED format."""
    if not isinstance(document, dict):
        raise InputError(f"expected an object, found {type(document).__name__}")
    field(document, "title", str)
    sentences = field(document, "sents", list)
    for i, sentence in enumerate(sentences):
        if not isinstance(sentence, list) or not all(isinstance(word, str) for word in sentence):
            raise InputError(f"sents[{i}]: expected a list of words")
        if not _is_text("".join(sentence)):
            raise InputError(f"sents[{i}]: holds half a character (a lone surrogate)")
    entities = field(document, "vertexSet", list)
    for i, mentions in enumerate(entities):
        if not isinstance(mentions, list) or not mentions:
            raise InputError(f"vertexSet[{i}]: expected a non-empty list of mentions")
        for j, mention in enumerate(mentions):
            _check_mention(mention, f"vertexSet[{i}][{j}]", sentences)
    if labelled or "labels" in document:
        for i, label in enumerate(field(document, "labels", list)):
            _check_label(label, f"labels[{i}]", len(entities), len(sentences), rel2id)


def _check_mention(mention, where, sentences):
    if not isinstance(mention, dict):
        raise InputError(f"{where}: expected an object, found {type(mention).__name__}")
    field(mention, "name", str, where)
    sentence = field(mention, "sent_id", int, where)
    if not 0 <= sentence < len(sentences):
        raise InputError(f"{where}.sent_id: {sentence} is not one of {len(sentences)} sentences")
    span = field(mention, "pos", list, where)
    if len(span) != 2 or not all(isinstance(x, int) and not isinstance(x, bool) for x in span):
        raise InputError(f"{where}.pos: expected [start, end), found {span!r:.80}")
    length = len(sentences[sentence])
    if not 0 <= span[0] < span[1] <= length:
        raise InputError(
            f"{where}.pos: {span} is outside its sentence, number {sentence} of {length} words"
        )


def check_text_document(document):
    """Raises InputError, naming the field, unless `document` is a text with entity spans:

    {"text": str, "entities": [[{"start": int, "end": int, "type": str}, ...], ...], "title": str}

    Spans count characters, end excluded; "type" and "title" may be missing. Spans may overlap.
    """
    if "title" in document:
        field(document, "title", str)
    text = field(document, "text", str)
    for i, mentions in enumerate(field(document, "entities", list)):
        if not isinstance(mentions, list) or not mentions:
            raise InputError(f"entities[{i}]: expected a non-empty list of mentions")
        for j, mention in enumerate(mentions):
            _check_span(mention, f"entities[{i}][{j}]", text)


def _check_span(mention, where, text):
    if not isinstance(mention, dict):
        raise InputError(f"{where}: expected an object, found {type(mention).__name__}")
    start, end = (field(mention, name, int, where) for name in ("start", "end"))
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"{where}: start {start}, end {end} is no span of a text of {len(text)} characters"
        )
    if text[start:end].isspace():
        raise InputError(f"{where}: start {start}, end {end} holds only white space")
    if "type" in mention:
        field(mention, "type", str, where)


def _check_label(label, where, num_entities, num_sentences, rel2id):
    if not isinstance(label, dict):
        raise InputError(f"{where}: expected an object, found {type(label).__name__}")
    for end in "ht":
        entity = field(label, end, int, where)
        if not 0 <= entity < num_entities:
            raise InputError(f"{where}.{end}: {entity} is not one of {num_entities} entities")
    relation = field(label, "r", str, where)
    if rel2id.get(relation, 0) == 0:
        raise InputError(f"{where}.r: unknown relation {relation!r:.80}")
    evidence = label.get("evidence")  # optional, as are all further fields
    if not isinstance(evidence, (list, type(None))):
        raise InputError(f"{where}.evidence: expected list, found {type(evidence).__name__}")
    for sentence in evidence or []:
        if type(sentence) is not int or not 0 <= sentence < num_sentences:
            raise InputError(
                f"{where}.evidence: {sentence!r:.80} is not one of {num_sentences} sentences"
            )


def field(record, name, kind, where=""):
    """record[name], checked to be there and of that type."""
    path = f"{where}.{name}" if where else name
    if name not in record:
        raise InputError(f"{path}: missing")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{path}: expected {kind.__name__}, found {type(value).__name__}")
    if kind is str and not _is_text(value):
        raise InputError(f"{path}: holds half a character (a lone surrogate)")
    return value


def is_number(value, low=-sys.float_info.max, high=sys.float_info.max):
    """True for a whole or broken number from low to high: no bool, no text, not infinite."""
    return type(value) in (int, float) and low <= value <= high


def _is_text(string):
    """False for what JSON lets in, but no tokenizer and no file: \\ud800 without its other half."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_predictions(path, truth, rel2id=None):
    """A submission, validated against the documents it is about.

    Raises InputError for anything but a list of {"title", "h_idx", "t_idx", "r"}, an entity that
    its document does not have or an unknown relation. Unknown titles are allowed: they count as
    predicted.
    """
    predictions = read_json(path)
    if not isinstance(predictions, list):
        kind = type(predictions).__name__
        raise InputError(f"{path}: expected a list of predictions, found {kind}")
    rel2id = relation_ids() if rel2id is None else rel2id
    num_entities = {document["title"]: len(document["vertexSet"]) for document in truth}
    for i, x in enumerate(predictions):
        try:
            _check_prediction(x, num_entities, rel2id)
        except InputError as error:
            raise InputError(f"{path}: prediction {i}: {error}") from None
    return predictions


def _check_prediction(x, num_entities, rel2id):
    if not isinstance(x, dict):
        raise InputError(f"expected an object, found {type(x).__name__}")
    for name, kind in {"title": str, "h_idx": int, "t_idx": int, "r": str}.items():
        if not isinstance(x.get(name), kind) or isinstance(x[name], bool):
            raise InputError(f"{name}: expected {kind.__name__}, found {x.get(name)!r:.80}")
    if rel2id.get(x["r"], 0) == 0:
        raise InputError(f"r: unknown relation {x['r']!r:.80}")
    limit = num_entities.get(x["title"])
    for name in ("h_idx", "t_idx"):
        if limit is not None and not 0 <= x[name] < limit:
            raise InputError(f"{name}: {x[name]} is not one of {limit} entities")
    evidence = x.get("evidence")
    if evidence is not None and not (
        isinstance(evidence, list) and all(type(sentence) is int for sentence in evidence)
    ):
        raise InputError("evidence: expected a list of sentence numbers")


def _finite(text):
    """A number of JSON; its readers also take NaN, Infinity and 1e999, which are none."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.20} is not a number")
    return number


def json_values(read):
    """The items of a JSON list, or JSON values one after another, decoded as the text comes in.

    read(n): the next n characters, fewer only at the end. Holds one chunk and one document of text.
    """
    decode = json.JSONDecoder(parse_float=_finite, parse_constant=_finite).raw_decode
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
