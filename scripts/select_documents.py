"""Writes the documents of a list of titles, in its order, to a file.

    python scripts/select_documents.py --input dataset/redocred/train_revised.json \
        --titles meta/titles_992.txt --output dataset/redocred-992/train_revised.json

The list has one title on each line. The documents may have no labels. docs/data.md describes the
lists in meta/ and says when --compact gives the same bytes as the original.
"""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from inputs.documents import iter_documents
from inputs.files import (
    REL2ID_FILE,
    InputError,
    OneLineParser,
    read_text,
    reason_of,
    relation_ids,
    run_main,
    write_atomically,
)


def main(argv=None):
    parser = OneLineParser(description="The documents of a list of titles, in its order.")
    parser.add_argument("--input", required=True, help="documents in DocRED format")
    parser.add_argument("--titles", required=True, help="text file, one title a line")
    parser.add_argument("--output", required=True, help="JSON file; its folder is made")
    parser.add_argument("--compact", action="store_true", help='no blanks after "," and ":"')
    parser.add_argument("--rel2id", type=Path, default=REL2ID_FILE, help="property -> class id")
    args = parser.parse_args(argv)
    lines = read_text(args.titles).split("\n")
    titles = [title for line in lines if (title := line.removesuffix("\r"))]
    if twice := [title for title, count in Counter(titles).items() if count > 1]:
        raise InputError(f"{args.titles}: names {twice[0]!r} twice")
    rel2id = relation_ids(args.rel2id)
    documents = {x["title"]: x for x in iter_documents(args.input, rel2id, labelled=False)}
    if missing := [title for title in titles if title not in documents]:
        raise InputError(
            f"{args.input}: lacks {len(missing)} of the {len(titles)} titles of {args.titles}, "
            f"first {missing[0]!r}"
        )
    folder = Path(args.output).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {reason_of(error)}") from None
    separators = (",", ":") if args.compact else None
    chosen = [documents[title] for title in titles]
    text = json.dumps(chosen, ensure_ascii=False, separators=separators)
    write_atomically(args.output, lambda temporary: temporary.write_text(text, "utf-8"))
    print(f"{args.output}: {len(chosen)} documents")


if __name__ == "__main__":
    run_main(main)
