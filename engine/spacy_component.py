"""The spaCy component "docre": relations between the entities of a pipeline.

    import spacy, predict                    # predict registers the component

    nlp = spacy.load("en_core_web_sm")
    nlp.add_pipe("docre", config={"model": "runs/demo"})
    for x in nlp("Ada Lovelace was born in London.")._.relations:
        print(x.head[0], x.name, x.tail[0], x.evidence)

It comes after the components that find sentences, entities and, where wanted, coreference;
inputs/spacy_documents.py says how they become documents. The relations are kept in doc.user_data
as plain numbers, so that documents can be saved and sent to other processes. A part of a document
(span.as_doc()) has no relations.
"""

from dataclasses import dataclass

from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.util import minibatch

from engine.extractor import RelationExtractor
from inputs.spacy_documents import text_documents


@dataclass(frozen=True)
class Relation:
    """head, tail: the mentions of the entity; relation: property, e.g. "P17", and its name; score:
    logit minus threshold; evidence: sentences."""

    head: list[Span]
    tail: list[Span]
    relation: str
    name: str
    score: float
    evidence: list[Span]


@Language.factory("docre", assigns=["doc._.relations"], requires=["doc.ents", "doc.sents"])
def make_component(
    nlp,
    name: str,
    model: str,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 8,
    evidence_threshold: float | None = None,
    threshold_shift: float = 0.0,
    fusion: bool = False,
):
    """model: a run folder or a model of the hub; the rest: as in RelationExtractor."""
    return Component(
        RelationExtractor.from_pretrained(
            model,
            device=device,
            precision=precision,
            batch_size=batch_size,
            evidence_threshold=evidence_threshold,
            threshold_shift=threshold_shift,
            fusion=fusion,
        )
    )


class Component:
    def __init__(self, extractor):
        self.extractor = extractor

    def __call__(self, doc):
        return next(self.pipe([doc]))

    def pipe(self, docs, batch_size=64):
        """Yields the documents with their relations. batch_size: documents taken at a time."""
        for group in minibatch(docs, batch_size):
            parts = [(i, part) for i, doc in enumerate(group) for part in text_documents(doc, "")]
            records, found = self.extractor.stream(part for _, part in parts), [[] for _ in group]
            for (i, part), (_, record) in zip(parts, records, strict=True):
                found[i] += [_as_numbers(x, part) for x in record["relations"]]
            for doc, relations in zip(group, found, strict=True):
                doc.user_data["docre"] = len(doc.text), relations
            yield from group


def _as_numbers(x, part):
    """A relation of a record as a tuple; mentions and sentences are (start, end) in characters."""
    ends = [[(m["start"], m["end"]) for m in x[end]["mentions"]] for end in ("head", "tail")]
    sentences = (part["offsets"][number] for number in x["evidence"])
    evidence = [(words[0][0], words[-1][1]) for words in sentences]
    return *ends, x["relation"], x["name"], x["score"], evidence


def _relations(doc):
    def spans(ranges):  # "expand", because tokens may have been merged meanwhile
        return [doc.char_span(start, end, alignment_mode="expand") for start, end in ranges]

    length, found = doc.user_data.get("docre", (0, []))
    if length != len(doc.text):  # the relations are those of the document that this is a part of
        return []
    return [
        Relation(spans(head), spans(tail), relation, name, score, spans(evidence))
        for head, tail, relation, name, score, evidence in found
    ]


Doc.set_extension("relations", getter=_relations, force=True)
