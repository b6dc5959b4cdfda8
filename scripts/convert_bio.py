"""Converts CDR and GDA, in the format that ATLOP reads, to DocRED format with candidate pairs.

    python scripts/convert_bio.py --corpus cdr train_filter.data train.json

Also writes rel2id.json beside the output, for --rel2id. A line of the input is an abstract: its id,
its sentences ("|" between them, a blank between words), and 17 fields for each pair of entities:
relation, direction, three that are not read, and of either side id, names, type, first words, ends
(words counted through all sentences; ":" between mentions) and one more that is not read.

Entities are numbered in the order of the candidate pairs, as in ATLOP's reader. "not_include" pairs
are no candidates, but their mentions are marked, too, so they become further entities.
"""

import sys
from bisect import bisect_right
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from inputs.files import InputError, OneLineParser, read_json, read_text, run_main, write_json

RELATION = {"cdr": "CID", "gda": "GDA"}
SIDES = (5, 11)  # index of the first field of a pair's left and right side


def read_line(line, relation):
    """A line of the input -> a document. Raises InputError that names the pair and the field."""
    title, *rest = line.rstrip().split("\t")
    if len(rest) < 18 or len(rest) % 17 != 1:
        raise InputError(f"expected 2 + 17 k fields, found {1 + len(rest)}")
    words, bounds = [], [0]  # bounds: the words at which sentences start and end
    for sentence in rest[0].split("|"):
        words += sentence.split(" ")
        bounds.append(len(words))
    pairs = []
    for i in range(1, len(rest), 17):
        try:
            pairs.append(read_pair(rest[i : i + 17], relation, len(words)))
        except InputError as error:
            raise InputError(f"pair {i // 17}: {error}") from None
    numbers, entities, candidates, related = {}, [], {}, set()
    for name, ends in pairs:
        if name == "not_include":
            continue
        for entity, mentions in ends:
            if numbers.setdefault(entity, len(entities)) == len(entities):
                entities.append(mentions)
        pair = tuple(numbers[entity] for entity, _ in ends)
        candidates[pair] = None
        if name == relation:
            related.add(pair)
    known = {mention for mentions in entities for mention in mentions}
    for _, ends in pairs:
        for _, mentions in ends:
            if unknown := [mention for mention in mentions if mention not in known]:
                entities.append(unknown)
                known.update(unknown)
    # A mention must lie in one sentence, so sentences that one reaches across are joined.
    inside = {word for start, end, _ in known for word in range(start + 1, end)}
    bounds = [bound for bound in bounds if bound not in inside]

    def as_mention(start, end, kind):
        sentence = bisect_right(bounds, start) - 1
        pos = [start - bounds[sentence], end - bounds[sentence]]
        name = " ".join(words[start:end])
        return {"name": name, "type": kind, "sent_id": sentence, "pos": pos}

    return {
        "title": title,
        "sents": [words[a:b] for a, b in zip(bounds, bounds[1:], strict=False)],
        "vertexSet": [[as_mention(*mention) for mention in mentions] for mentions in entities],
        "labels": [{"h": h, "t": t, "r": relation} for h, t in candidates if (h, t) in related],
        "candidates": [list(pair) for pair in candidates],
        "own_markers": True,
    }


def read_pair(fields, relation, num_words):
    """(relation, [(head's id, mentions), (tail's id, mentions)]); a mention: (start, end, type)."""
    name = fields[0].removeprefix("1:").removesuffix(":2")
    if name not in (relation, "NR", "not_include"):
        raise InputError(f"field 1, the relation: unknown {fields[0]!r:.80}")
    ends = []
    for side in SIDES:
        entity, kind = fields[side], fields[side + 2]
        lists = []
        for number, what in ((side + 3, "first words"), (side + 4, "ends")):
            try:
                lists.append([int(x) for x in fields[number].split(":")])
            except ValueError:
                raise InputError(
                    f"field {number + 1}, {what} of mentions: {fields[number]!r:.80}"
                ) from None
        spans = list(zip(*lists, strict=False))
        if len(lists[0]) != len(lists[1]) or not all(0 <= a < b <= num_words for a, b in spans):
            raise InputError(f"field {side + 4}, mentions: {spans} in a text of {num_words} words")
        ends.append((entity, [(start, end, kind) for start, end in spans]))
    return name, ends if fields[1] == "L2R" else ends[::-1]


def read_bio(path, corpus):
    """The documents of a file. Of lines with the same id the first counts. Raises InputError."""
    documents = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        title = line.split("\t")[0].strip()
        if title and title not in documents:
            try:
                documents[title] = read_line(line, RELATION[corpus])
            except InputError as error:
                raise InputError(f"{path}: line {number}: {error}") from None
    return list(documents.values())


def main(argv=None):
    parser = OneLineParser(description="CDR or GDA -> DocRED format with candidate pairs.")
    parser.add_argument("--corpus", required=True, choices=list(RELATION))
    parser.add_argument("input", help="such as train_filter.data")
    parser.add_argument("output", help="JSON file; rel2id.json is written beside it")
    args = parser.parse_args(argv)
    documents = read_bio(args.input, args.corpus)
    rel2id, path = {"NR": 0, RELATION[args.corpus]: 1}, Path(args.output).with_name("rel2id.json")
    if path.exists() and read_json(path) != rel2id:
        raise InputError(f"{path}: has other relations; name an output in another folder")
    write_json(args.output, documents, indent=0)
    write_json(path, rel2id)
    facts = sum(len(document["labels"]) for document in documents)
    pairs = sum(len(document["candidates"]) for document in documents)
    print(f"{args.output}: {len(documents)} documents, {pairs} pairs, {facts} facts")


if __name__ == "__main__":
    run_main(main)
