"""Writes the documents of a list of titles, in its order, to a file.

    python scripts/select_documents.py --input dataset/redocred/train_revised.json \
        --titles meta/titles_992.txt --output dataset/redocred-992/train_revised.json

The list has one title on each line. docs/data.md describes the lists in meta/ and says when
--compact gives the same bytes as the original.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from inputs.documents import read_documents
from inputs.files import (
    InputError,
    OneLineParser,
    read_text,
    reason_of,
    run_main,
    write_atomically,
)


def main(argv=None):
    parser = OneLineParser(description="The documents of a list of titles, in its order.")
    parser.add_argument("--input", required=True, help="documents in DocRED format")
    parser.add_argument("--titles", required=True, help="text file, one title a line")
    parser.add_argument("--output", required=True, help="JSON file; its folder is made")
    parser.add_argument("--compact", action="store_true", help='no blanks after "," and ":"')
    args = parser.parse_args(argv)
    titles = read_text(args.titles).splitlines()
    documents = {document["title"]: document for document in read_documents(args.input)}
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
