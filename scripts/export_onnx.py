"""A run folder's model as an ONNX file, for use without torch; checked against the model.

    pip install -r requirements-onnx.txt
    python scripts/export_onnx.py --model runs/demo --output model.onnx

The graph takes one document of one encoder window (512 tokens), made by prepro.docred_features and
utils.collate, and any number of its pairs:

    input_ids, attention_mask [1, L]   mention_pos [1, R]   entity_mentions [1, E, R]   pairs [P, 2]
    -> logits [P, classes]

with L, R, E and P free. Only ATLOP; longer documents, several at once, DocuNet and KD-DocRE are not
covered. The check runs onnxruntime on made-up documents of several lengths and numbers of entities.
"""

import copy
import logging
import sys
import warnings
from pathlib import Path

import torch
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from encoders.rows import last_hidden, mean
from engine.checkpoint import fetch, load_model
from inputs.files import InputError, OneLineParser, run_main, write_atomically
from model import ATLOP, entity_attention, entity_embeddings, extract, shared_attention
from prepro import entity_pairs
from utils import set_seed

INPUTS = ("input_ids", "attention_mask", "mention_pos", "entity_mentions", "pairs")
TOLERANCE = 1e-4  # of a logit


class OneDocument(torch.nn.Module):
    """ATLOP's forward pass on one document, in operations that a graph can hold: an encoder that
    returns its attention, the pairs' contexts one by one, and the whole outer product."""

    def __init__(self, model):
        super().__init__()
        self.atlop = model
        config = copy.deepcopy(model.model.config)
        self.encoder = AutoModel.from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )
        self.encoder.pooler = None
        self.encoder.load_state_dict(model.model.state_dict())

    def forward(self, input_ids, attention_mask, mention_pos, entity_mentions, pairs):
        model = self.atlop
        count = min(model.num_layers, self.encoder.config.num_hidden_layers)
        output = self.encoder(
            input_ids, attention_mask, output_attentions=True, output_hidden_states=count > 1
        )
        rows = mean([x[:, :, mention_pos[0]] for x in output.attentions[-count:]])
        tokens, rows = last_hidden(output, count), rows.transpose(1, 2)  # [1, R, heads, L]
        entities = entity_embeddings(tokens, mention_pos, entity_mentions)[0]  # [E, d]
        attention = entity_attention(rows, entity_mentions)
        q = shared_attention(attention)[0, :, pairs[:, 0], pairs[:, 1]]  # [L, P]
        contexts = (q / (q.sum(0) + model.eps)).T @ tokens[0]  # [P, d]
        z_head = extract(model.head_extractor, entities, pairs[:, 0], contexts, slice(None))
        z_tail = extract(model.tail_extractor, entities, pairs[:, 1], contexts, slice(None))
        size = model.config.block_size
        u, v = (z.unflatten(1, (-1, size)) for z in (z_head, z_tail))  # [P, blocks, size]
        outer = u[:, :, :, None] * v[:, :, None, :]
        return model.bilinear(outer.flatten(1))


def made_up_inputs(num_tokens, num_entities, vocab_size):
    """A random document as the graph takes it: one to three mentions an entity."""
    counts = torch.randint(1, 4, (num_entities,)).tolist()
    owner = torch.repeat_interleave(torch.arange(num_entities), torch.tensor(counts))
    ids = torch.randint(min(10, vocab_size - 1), vocab_size, (1, num_tokens))
    belongs = owner[None] == torch.arange(num_entities)[:, None]
    mentions = torch.randint(1, num_tokens - 1, (1, len(owner)))
    pairs = torch.from_numpy(entity_pairs(num_entities))
    return dict(
        zip(INPUTS, (ids, torch.ones_like(ids), mentions, belongs[None], pairs), strict=True)
    )


def export(model, path):
    """Writes the graph, if its logits are the model's, and returns their largest difference. Raises
    InputError for a model that is no ATLOP, and for a graph that differs."""
    if not isinstance(model, ATLOP):
        raise InputError(f"--model: a {type(model).__name__}; only ATLOP can be exported")
    example = made_up_inputs(60, 5, model.model.config.vocab_size)
    free = torch.export.Dim.DYNAMIC
    shapes = {
        "input_ids": {1: free},
        "attention_mask": {1: free},
        "mention_pos": {1: free},
        "entity_mentions": {1: free, 2: free},
        "pairs": {0: free},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice to its own developers
        program = torch.onnx.export(
            OneDocument(model).eval(), (), kwargs=example, dynamic_shapes=shapes, dynamo=True,
            input_names=list(INPUTS), output_names=["logits"], verbose=False,
        )  # fmt: skip
    difference = None

    def write(temporary):
        nonlocal difference
        program.save(temporary, external_data=False)
        difference = largest_difference(model, temporary)
        if not difference <= TOLERANCE:
            raise InputError(f"{path}: not written: a logit differs by {difference:.2e}")

    write_atomically(path, write)
    return difference


@torch.no_grad()
def largest_difference(model, path):
    """The largest difference of a logit between the model's own forward pass and onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for num_tokens, num_entities in ((512, 30), (60, 5), (7, 2), (100, 1), (33, 12)):
        inputs = made_up_inputs(num_tokens, num_entities, model.model.config.vocab_size)
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        (logits,) = session.run(None, given)
        doc = torch.zeros(len(inputs["pairs"]), 1, dtype=torch.int64)
        batch = inputs | {"pairs": torch.cat([doc, inputs["pairs"]], dim=1)}
        expected = model(**batch, num_entities=torch.tensor([num_entities]))
        if logits.size:  # one entity: no pair
            worst = max(worst, float((torch.from_numpy(logits) - expected).abs().max()))
    return worst


def main(argv=None):
    parser = OneLineParser(description="Export an ATLOP model to ONNX, and check it.")
    parser.add_argument("--model", required=True, help="run folder, or name on the hub")
    parser.add_argument("--output", required=True, help="the ONNX file")
    args = parser.parse_args(argv)
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install -r requirements-onnx.txt") from None
    set_seed(0)
    model = load_model(fetch(args.model)).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    difference = export(model, Path(args.output))
    print(f"{args.output}: logits as the model's, to {difference:.1e}")


if __name__ == "__main__":
    run_main(main)
