"""A run folder's model as an ONNX file, for onnxruntime; checked against the model.

    pip install -r requirements-onnx.txt
    python scripts/export_onnx.py --model runs/demo --output model.onnx

The graph takes what prepro.docred_features and utils.collate (with sentences) make of one document,
short or of several encoder windows, under the names that they have there:

    input_ids [W, T]   mention_pos [1, R]   entity_mentions [1, E, R]   pairs [P, 3]
    sentences [1, L, S]   -> logits [P, classes], shares [P, S]

W windows of T tokens, L tokens in all, R mentions, E entities, S sentences and P pairs are free.
Every backbone is covered; several documents at once, fusion, and models of 2 GB or more are not.
The check runs onnxruntime on made-up documents of several lengths and numbers of entities.
"""

import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from encoders.loading import transformer_type, window_size
from engine.run_folder import fetch, load_model
from inputs.files import InputError, OneLineParser, reason_of, run_main, write_atomically
from model import shared_attention
from utils import collate, set_seed

INPUTS = ("input_ids", "mention_pos", "entity_mentions", "pairs", "sentences")
OUTPUTS = {"logits": 1e-4, "shares": 1e-5}  # how far a number may lie from the model's
LARGEST = 2**31 - 2**24  # bytes of weights; a file of 2 GiB or more cannot be read


class OneDocument(torch.nn.Module):
    """The model's own forward pass on one document, whose windows its shapes tell. Within
    `as_graph` it has only operations that a graph can hold."""

    def __init__(self, model):
        super().__init__()
        self.whole = model
        self.closing = closing_tokens(model)

    def forward(self, input_ids, mention_pos, entity_mentions, pairs, sentences):
        (count, width), length = input_ids.shape, sentences.shape[1]
        window, place = torch.arange(count)[:, None], torch.arange(width)
        # as utils.window_starts and utils.collate have them
        start = window[:, 0] * (length - width) // torch.sym_max(count - 1, 1)
        is_own = (window == 0) | (place >= 1)
        is_own &= (window == count - 1) | (place < width - self.closing)
        return self.whole(
            input_ids,
            torch.ones_like(input_ids),
            mention_pos,
            entity_mentions,
            torch.full((1,), entity_mentions.shape[1]),
            pairs,
            sentences,
            window_doc=torch.zeros_like(start),
            window_start=start,
            window_valid=is_own,
            doc_mask=torch.ones_like(sentences[:, :, 0], dtype=torch.bool),
        )


def closing_tokens(model):
    """How many special tokens close a window, see `utils.special_tokens`."""
    return 2 if transformer_type(model.model.config) == "roberta" else 1


@contextmanager
def as_graph(model):
    """Replaces what cannot be in a graph of any number of tokens, mentions, entities and pairs."""
    replaced = {
        "encoders.relative.contract": torch.einsum,  # opt_einsum looks at the sizes
        "model._chunks": lambda z_head: [slice(None)],  # all pairs at once
        "backbones.docunet.DocuNet.heights": one_height,
    }
    for module in ("model", "backbones.kd_docre"):
        replaced[f"{module}.localized_contexts"] = contexts_of_grid
        replaced[f"{module}.unordered_pair"] = place_in_grid
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch(name, function))
        stack.enter_context(mock.patch.object(model, "cpu_kernels", False))
        yield


def contexts_of_grid(tokens, attention, eps=1e-5, diagonal=True):
    """`model.localized_contexts` of every head with every tail, [1, E E, d]."""
    q = shared_attention(attention).flatten(2)
    return (q / (q.sum(1, keepdim=True) + eps)).transpose(1, 2) @ tokens


def place_in_grid(pairs, num_entities, diagonal=True):
    """`model.unordered_pair` among them."""
    doc, head, tail = pairs.T
    return doc, head * num_entities + tail


def one_height(docunet, num_entities, most):
    """`DocuNet.heights` of one document."""
    return [(torch.zeros(1, dtype=torch.int64), torch.sym_max(most, docunet.config.max_height))]


def made_up_batch(model, num_tokens, num_entities, size=None):
    """A random document as utils.collate has it: one to three mentions an entity, but the first
    entity only at the end of the first window, which two windows may both miss, and the last, of
    more than two, without any. size: of a window, None: the model's."""
    config = model.model.config
    size = size or window_size(config)
    lowest = min(10, config.vocab_size - 1)
    places = [torch.randint(num_tokens - 2, (e % 3 + 1,)).tolist() for e in range(num_entities)]
    places[0] = [min(size, num_tokens) - 2]
    if num_entities > 2:
        places[-1] = [num_tokens]
    feature = {
        "input_ids": torch.randint(lowest, config.vocab_size, (num_tokens,)).tolist(),
        "entity_pos": [[(start, start + 1) for start in of_entity] for of_entity in places],
        "sentence_bounds": [*range(0, num_tokens - 2, 25), num_tokens - 2],
        "triples": np.zeros((0, 3), dtype=np.int32),
    }
    tokens = [lowest], [lowest] * closing_tokens(model), lowest
    batch = collate([feature], tokens, model.config.num_labels, size, sentences=True)
    del batch["labels"]
    return batch


def export(model, path):
    """Writes the graph, if it gives what the model does, and returns the largest difference of each
    output. Raises InputError for a graph that differs, and for a model of which none is made."""
    size = sum(x.numel() * x.element_size() for x in model.parameters())
    if size > LARGEST:
        raise InputError(f"--model: {size / 2**30:.1f} GiB of weights; an ONNX file holds 2")
    program = graph_of(model)
    differences = None

    def write(temporary):
        nonlocal differences
        program.save(temporary, external_data=False)
        differences = largest_differences(model, temporary)
        for name, most in OUTPUTS.items():
            if not differences[name] <= most:
                number = f"{differences[name]:.2e}"
                raise InputError(f"{path}: not written: its {name} differ by {number}")

    write_atomically(path, write)
    return differences


def graph_of(model):
    """The model as torch's ONNXProgram. Raises InputError."""
    import onnxscript.optimizer

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = made_up_batch(model, 90, 5, size=20)
    shapes = {
        name: {i: torch.export.Dim.DYNAMIC for i in free}
        for name, free in zip(INPUTS, ((0, 1), (1,), (1, 2), (0,), (1, 2)), strict=True)
    }
    try:
        with warnings.catch_warnings(), as_graph(model):
            warnings.simplefilter("ignore")  # the exporter's advice to its own developers
            program = torch.onnx.export(
                OneDocument(model).eval(), (), kwargs={name: batch[name] for name in INPUTS},
                dynamic_shapes=shapes, input_names=list(INPUTS), output_names=list(OUTPUTS),
                dynamo=True, optimize=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises all kinds
        what = f"{model.config.backbone} over {model.model.config.model_type}"
        reason = reason_of(error.__cause__ or error)
        raise InputError(f"--model: no graph can be made of {what}: {reason}") from None
    # Only these two: all that optimize=True does takes + 1e-10 for + 0, and so divides by 0.
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    return program


@torch.no_grad()
def largest_differences(model, path):
    """Output -> its largest difference between the model's own forward pass and onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    size = window_size(model.model.config)
    differences = dict.fromkeys(OUTPUTS, 0.0)
    lengths = 7, size // 2, size, size + 1, 2 * size, 5 * size // 2
    for num_tokens, num_entities in zip(lengths, (2, 1, 30, 12, 60, 5), strict=True):
        batch = made_up_batch(model, num_tokens, num_entities)
        outputs = session.run(None, {name: batch[name].numpy() for name in INPUTS})
        for name, ours, expected in zip(OUTPUTS, outputs, model(**batch), strict=True):
            if ours.size:  # one entity: no pair
                difference = np.abs(ours - expected.numpy()).max()
                # which, unlike max, keeps what is no number
                differences[name] = float(np.maximum(differences[name], difference))
    return differences


def main(argv=None):
    parser = OneLineParser(description="Export a model to ONNX, and check it.")
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
    parts = (f"{name} to {x:.1e}" for name, x in export(model, Path(args.output)).items())
    print(f"{args.output}: as the model's, {', '.join(parts)}")


if __name__ == "__main__":
    run_main(main)
