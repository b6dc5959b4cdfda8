"""Relations in new documents, with a run folder or a model of the hub.

    python predict.py --model runs/demo --input documents.json --output relations.json
    python predict.py --model runs/demo --input documents.json --html page.html
    python predict.py --model runs/demo --text article.txt --ner en_core_web_sm --html page.html

    from predict import RelationExtractor
    extractor = RelationExtractor.from_pretrained("runs/demo")
    extractor({"text": "Ada was born in Paris.", "entities": [[{"start": 0, "end": 3}], ...]})

inputs/span_documents.py describes the input, inputs/spacy_documents.py how spaCy makes documents of
a text (--text). The whole input is validated before the model is loaded. The documents of --input
are then decoded, predicted and written a few batches at a time, so only the bytes of the input stay
in memory. There is one record per document, in the order of the input, so titles need not be unique
except in the official format, which tells documents apart by title.
"""

import os
import sys
import time
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import transformers
from tqdm import tqdm

from encoders.loading import load_tokenizer
from engine.device import pick_device
from engine.extractor import RelationExtractor, check_options
from engine.run_folder import fetch, load_model
from inputs.documents import validated
from inputs.files import (
    InputError,
    OneLineParser,
    is_device,
    read_bytes,
    relation_ids,
    run_main,
    write_atomically,
)
from inputs.spacy_documents import load_pipeline, read_article, text_documents
from inputs.span_documents import read_new_documents
from viewing import page
from viewing.formats import FORMATS

if __name__ != "__main__":  # imported, so nlp.add_pipe("docre") may follow
    with suppress(Exception):  # spaCy is not installed, or cannot be loaded
        import engine.spacy_component  # noqa: F401

# A title can be the name of a file that is not UTF-8: such characters are written as escapes.
ENCODING = {"encoding": "utf-8", "errors": "backslashreplace"}
# Options of RelationExtractor, beside the device and the precision.
OPTIONS = "batch_size", "max_seq_length", "evidence_threshold", "threshold_shift", "fusion"


def write_output(records, path, form="relations"):
    """Writes records (see RelationExtractor.__call__) to a file, atomically, or to standard output,
    "-". form: one of viewing.formats.FORMATS."""
    write_records = FORMATS[form]
    if path != "-":

        def write(temporary):
            with open(temporary, "w", **ENCODING) as file:
                write_records(records, file)

        return write_atomically(path, write)
    sys.stdout.reconfigure(**ENCODING)
    write_records(records, sys.stdout)


def parse_args(argv=None):
    parser = OneLineParser(description="Relations in new documents.")
    add = parser.add_argument
    add("--model", required=True, help="run folder, or name on the hub")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="documents; -: standard input")
    source.add_argument("--text", nargs="+", metavar="FILE", help="raw texts; -: standard input")
    add("--ner", default="en_core_web_sm", help="spaCy pipeline that finds the entities of --text")
    add("--output", help="file; default: standard output, -, or none with --html")
    add("--format", default="relations", choices=list(FORMATS), help="of --output")
    add("--html", help=f"write the first {page.LIMIT} documents as a page to this file")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="auto", choices=["auto", "fp32", "fp16", "bf16"])
    add("--batch_size", type=int, default=8, help="documents")
    add("--max_seq_length", type=int, help="tokens; default: as in training")
    add(
        "--evidence_threshold",
        type=float,
        help="a sentence with more of a pair's attention is evidence; default: the model's",
    )
    add("--threshold_shift", type=float, default=0.0, help="what train.py --tune_threshold found")
    add("--fusion", action="store_true", help="also predict on pseudo documents of the evidence")
    args = parser.parse_args(argv)
    check_options(**{x: getattr(args, x) for x in OPTIONS})
    if args.output is None and not args.html:
        args.output = "-"
    if args.output not in (None, "-"):
        check_writable("--output", Path(args.output))
    if args.html:
        check_writable("--html", Path(args.html))
    pick_device(args.device, args.precision)
    return args


def check_writable(flag, path):
    """Raises InputError before the work, unless a file can be written there after it."""
    if os.path.isdir(path):
        raise InputError(f"{flag} {path}: is a folder")
    if not os.path.isdir(path.parent):
        raise InputError(f"{flag} {path}: no such folder as {path.parent}")
    where = path if is_device(path) else Path(os.path.realpath(path)).parent
    if not os.access(where, os.W_OK):
        raise InputError(f"{flag} {path}: {where} is not writable")


def read_texts(paths, ner, unique_titles):
    """The list of documents that the spaCy pipeline `ner` makes of text files. unique_titles: two
    documents with one title are an error. Raises InputError."""
    nlp, documents = load_pipeline(ner), []
    texts = [(read_article(path, nlp.max_length), path) for path in paths]
    for doc, path in tqdm(nlp.pipe(texts, as_tuples=True), ner, len(texts), disable=None):
        try:
            documents += text_documents(doc, "standard input" if path == "-" else Path(path).stem)
        except InputError as error:
            raise InputError(f"--ner {ner}: {error}") from None
    return list(validated(documents, lambda document, index: document, unique_titles))


def main(argv=None):
    args = parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = fetch(args.model)
    rel2id = relation_ids(folder / "config.json")
    unique_titles = args.format == "official" and args.output is not None
    if args.text:
        documents = partial(iter, read_texts(args.text, args.ner, unique_titles))
    else:
        content = read_bytes(args.input)
        name = "standard input" if args.input == "-" else args.input
        documents = partial(read_new_documents, content, name, rel2id, unique_titles)
    total = sum(1 for _ in documents())  # raises InputError for an invalid document
    options = {x: getattr(args, x) for x in ("device", "precision", *OPTIONS)}
    extractor = RelationExtractor(load_model(folder), load_tokenizer(folder), **options)

    expected = total if args.output else min(total, page.LIMIT)
    started, num_relations, shown = time.perf_counter(), 0, []

    def records():
        nonlocal num_relations
        stream = extractor.stream(islice(documents(), expected))
        for document, record in tqdm(stream, "predict", expected, unit="doc", disable=None):
            num_relations += len(record["relations"])
            if args.html and len(shown) < page.LIMIT:
                shown.append((document, record))
            yield record

    found, closed = records(), None
    try:
        if args.output:
            write_output(found, args.output, args.format)
    except BrokenPipeError as error:  # head or less has seen enough, but the page is wanted, too
        found, closed = islice(found, min(total, page.LIMIT) - len(shown)), error
    if args.html:
        deque(found, maxlen=0)
        page.write_page(args.html, shown, total)
    if closed:
        raise closed
    seconds = time.perf_counter() - started
    report = f"documents: {expected}, relations: {num_relations}, seconds: {seconds:.0f}"
    if args.html:
        report += f", page: {args.html}"
    if args.html and total > page.LIMIT:
        report += f"; the page shows the first {page.LIMIT} of {total} documents"
    if extractor.num_cut:
        longest = extractor.max_seq_length
        report += f"; {extractor.num_cut} were cut at {longest} tokens (--max_seq_length)"
    print(report, file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
