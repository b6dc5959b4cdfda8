"""Converts labelled text with entity spans to DocRED format, for training and scoring.

    python scripts/convert_text.py --rel2id my/rel2id.json my/train.jsonl my/train.json

The input is what predict.py reads (a list, JSON lines or one document; docs/prediction.md), with
"labels": [{"h": 0, "t": 1, "r": "a relation of rel2id.json"}, ...]; h and t index the entities.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from inputs.documents import document_name
from inputs.files import InputError, OneLineParser, read_bytes, relation_ids, run_main, write_json
from inputs.span_documents import FIELDS, read_new_documents


def main(argv=None):
    parser = OneLineParser(description="Labelled text with entity spans -> DocRED format.")
    parser.add_argument("--rel2id", type=Path, required=True, help="relation -> class id")
    parser.add_argument("input", help="documents; -: standard input")
    parser.add_argument("output", help="JSON file")
    args = parser.parse_args(argv)
    rel2id, documents = relation_ids(args.rel2id), []
    name = "standard input" if args.input == "-" else args.input
    found = read_new_documents(read_bytes(args.input), name, rel2id, unique_titles=True)
    for index, document in enumerate(found):
        if "labels" not in document:
            raise InputError(f"{name}: {document_name(document, index)}: labels: missing")
        documents.append({field: document[field] for field in FIELDS if field in document})
    write_json(args.output, documents, indent=0)
    facts = sum(len(document["labels"]) for document in documents)
    print(f"{args.output}: {len(documents)} documents, {facts} facts")


if __name__ == "__main__":
    run_main(main)
