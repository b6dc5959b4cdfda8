"""Reading: DocRED-format JSON documents -> validated documents -> features with entity markers.

Everything that enters the project passes here, so that bad input is refused in one place, with one
line that names file, document and field (`InputError`).
"""

import argparse
import json
import os
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import ujson
from tqdm import tqdm

META_DIR = Path(__file__).parent / "meta"


class InputError(ValueError):
    """Bad input from the user; the message is one line that says what is wrong and where."""


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors: one line, no usage text."""

    def error(self, message):
        raise InputError(message)


def run_main(main):
    """Runs a script's main(); bad input ends it with one line on standard error and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(stop if str(stop) else "interrupted", file=sys.stderr)
        sys.exit(130)


def write_atomically(path, write, faults=OSError):
    """Calls write(a temporary path beside `path`) and moves the result into place: a reader, or a
    kill at any moment, sees the old file or the new one. faults: what `write` raises of a disk that
    is full or of a path that no file can have; it becomes an InputError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, faults) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(f"{path}: cannot be written: {reason}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path, content, indent=1):
    """Writes JSON atomically."""
    text = ujson.dumps(content, indent=indent, ensure_ascii=False, escape_forward_slashes=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", "utf-8"))


def relation_ids(path=META_DIR / "rel2id.json"):
    """Property -> class id, e.g. {"Na": 0, "P17": 1, ...}. Raises InputError."""
    rel2id = read_json(path)
    if not isinstance(rel2id, dict) or not all(type(x) is int for x in rel2id.values()):
        raise InputError(f"{path}: expected an object, property -> class id")
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
    except (OSError, UnicodeDecodeError) as error:
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


def read_documents(path, rel2id=None, labelled=True):
    """The documents of a DocRED-format JSON file, validated.

    `rel2id` (property -> class id) decides which relations are known, None: meta/rel2id.json.
    `labelled` False accepts documents without "labels". Raises InputError at the first fault.
    """
    documents = read_json(path)
    if not isinstance(documents, list):
        kind = type(documents).__name__
        raise InputError(f"{path}: expected a list of documents, found {kind}")
    if not documents:
        raise InputError(f"{path}: the list of documents is empty")
    rel2id = relation_ids() if rel2id is None else rel2id
    first_with = {}
    for index, document in enumerate(documents):
        try:
            check_document(document, rel2id, labelled)
            title = document["title"]
            if first_with.setdefault(title, index) != index:
                raise InputError(f"title: document {first_with[title]} has the same title")
        except InputError as error:
            raise InputError(f"{path}: {document_name(document, index)}: {error}") from None
    return documents


def document_name(document, index):
    """What messages call a document: its place, and its title if it has one."""
    title = document.get("title") if isinstance(document, dict) else None
    if not isinstance(title, str):
        return f"document {index}"
    return f"document {index} {json.dumps(title, ensure_ascii=not _is_text(title))}"


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
        if not isinstance(sentence, int) or not 0 <= sentence < num_sentences:
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


def _is_text(string):
    """False for what JSON lets in, but no tokenizer and no file: \\ud800 without its other half."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def docred_features(documents, tokenizer, max_seq_length=1024, rel2id=None, progress=True):
    """Features of validated documents: a list with one dict per document,

    title        str
    input_ids    [L] int, L <= max_seq_length: [CLS] tokens [SEP], every mention between two "*"
    entity_pos   per entity the (start, end) of every mention, in tokens before [CLS] is added and
                 before the cut to max_seq_length - 2; start is the opening "*"
    sentence_bounds  where the sentences start and the last one ends, [S + 1], in the same tokens
    triples      [K, 3] int32, the distinct (head, tail, class id) that hold, sorted

    Mentions that start (end) on the same word share the marker. Each word is tokenized on its own,
    without a leading space, as ATLOP does, also for RoBERTa; a distinct word only once. progress
    False shows no bar.
    """
    rel2id = relation_ids() if rel2id is None else rel2id
    pieces = _word_pieces(documents, tokenizer)
    marker = _marker_id(tokenizer)
    features = []
    hidden = None if progress else True  # None: hidden where nobody watches
    for document in tqdm(documents, desc="features", unit="doc", leave=False, disable=hidden):
        tokens, entity_pos, sentence_bounds = _mark_entities(document, pieces, marker)
        labels = document.get(
            "labels", []
        )  # an entity's relation to itself is no pair of the model
        triples = {(x["h"], x["t"], rel2id[x["r"]]) for x in labels if x["h"] != x["t"]}
        tokens = tokens[: max_seq_length - 2]
        features.append(
            {
                "title": document["title"],
                "input_ids": [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id],
                "entity_pos": entity_pos,
                "sentence_bounds": sentence_bounds,
                "triples": np.array(sorted(triples), dtype=np.int32).reshape(-1, 3),
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
    else:  # most of a call's time is what transformers makes of its result
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
    """Token ids with markers, without special tokens; entity_pos and sentence_bounds (see
    docred_features)."""
    starts, ends = set(), set()
    for mentions in document["vertexSet"]:
        for mention in mentions:
            starts.add((mention["sent_id"], mention["pos"][0]))
            ends.add((mention["sent_id"], mention["pos"][1] - 1))
    tokens = []
    offset = []  # per sentence, the token at which each word starts, and where the sentence ends
    for i, sentence in enumerate(document["sents"]):
        offset.append([])
        for j, word in enumerate(sentence):
            offset[i].append(len(tokens))
            if (i, j) in starts:
                tokens.append(marker)
            tokens += pieces[word]
            if (i, j) in ends:
                tokens.append(marker)
        offset[i].append(len(tokens))
    entity_pos = [
        [(offset[m["sent_id"]][m["pos"][0]], offset[m["sent_id"]][m["pos"][1]]) for m in mentions]
        for mentions in document["vertexSet"]
    ]
    sentence_bounds = [words[0] for words in offset] + [len(tokens)]
    return tokens, entity_pos, sentence_bounds


@lru_cache(maxsize=256)
def entity_pairs(num_entities):
    """All ordered pairs (head, tail), head != tail, [E (E - 1), 2], head by head."""
    grid = np.indices((num_entities, num_entities), dtype=np.int64).reshape(2, -1).T
    return grid[grid[:, 0] != grid[:, 1]]
