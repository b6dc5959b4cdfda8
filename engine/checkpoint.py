"""Models on disk: run folders, and the released codes' checkpoints."""

import os
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from encoders.loading import UNUSED, check_encoder
from engine.options import load_config
from inputs.files import InputError, read_json, reason_of, write_atomically
from model import DocREModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files, which transformers writes
PACKED = "model.int8.safetensors"  # see pack; of another name, for transformers cannot read it
SCALE = "_scale"
# Of what the hub has of a run, the model and its tokenizer.
FILES = ["config.json", "model*.safetensors", INDEX, "*token*", "vocab*", "merges.txt", "*.model"]


def fetch(name, **options):
    """The run folder that `name` means: a folder, or a model of the hub, downloaded or from its
    cache; options go to snapshot_download. Raises InputError."""
    folder = Path(name)
    if not os.path.isdir(folder):  # False, not an error, of a name with a NUL
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=FILES, **options))
        except Exception as error:  # no network, no such model, no name of a model, ...
            raise InputError(
                f"model {name}: no run folder, nor to be had: {reason_of(error)}"
            ) from None
    if not (folder / "config.json").is_file():
        raise InputError(f"model {name}: not a run folder, it has no config.json")
    return folder


def save_config(model, folder):
    """Writes config.json, as transformers does, but whole or not at all."""
    text = model.config.to_json_string(use_diff=False)  # also what transformers has as default
    write_atomically(folder / "config.json", lambda path: path.write_text(text, "utf-8"))


def save_weights(model, folder):
    """Writes model.safetensors, under the released code's parameter names."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_state(folder / WEIGHTS, state)


def write_state(path, state):
    """Writes parameter name -> tensor, which whoever may read other files may read."""

    def write(temporary):
        save_file(state, temporary, {"format": "pt"})  # transformers asks for it
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # safetensors lets nobody else read it

    write_atomically(path, write, SafetensorError)


def pack(state):
    """Weights in 8 bits: of every matrix int8 [rows, columns] and, as "<name>_scale", float32
    [rows, 1], which it is to be multiplied by; everything else as it is."""
    packed = {}
    for name, tensor in state.items():
        if tensor.dim() == 2 and tensor.is_floating_point():
            scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            packed[name + SCALE] = scale
            tensor = (tensor / scale).round().to(torch.int8)
        packed[name] = tensor
    return packed


def unpack(state):
    """What `pack` was given, rounded; a state without scales as it is."""
    scales = {name: state[name + SCALE] for name in state if name + SCALE in state}
    return {
        name: tensor * scales[name] if name in scales else tensor
        for name, tensor in state.items()
        if name.removesuffix(SCALE) not in scales or name in scales
    }


def weights_of(folder):
    """The weights file of a run folder, whole, packed or the index of several."""
    paths = [folder / name for name in (WEIGHTS, PACKED, INDEX)]
    return next(filter(Path.exists, paths), paths[0])


def load_model(folder):
    """The model of a run folder. Raises InputError, where transformers' from_pretrained raises all
    kinds of errors, or only warns."""
    folder = Path(folder)
    config, weights = load_config(folder), weights_of(folder)
    state = load_state(weights)
    try:
        for name, value in config.encoder.to_dict().items():
            if "layers" in name and type(value) is int and value > len(state):
                raise InputError(f"encoder.{name}: {value} is more than {weights} has parameters")
        check_encoder(config.encoder)
        # Without memory at first: a wrong number in config.json can ask for more than there is.
        with torch.device("meta"):
            check_fit(DocREModel(config), weights, state)
        model = DocREModel(config)
        model.load_state_dict(state)  # it fits, as was just seen
        _check_runs(model)
    except InputError as error:
        raise InputError(f"{folder}: {error}" if str(folder) not in str(error) else error) from None
    except Exception as error:  # models raise all kinds on a wrong configuration
        raise InputError(f"{folder}/config.json: not a model's configuration: {error!r}") from None
    return model


@torch.no_grad()
def _check_runs(model):
    """Raises whatever the model does, given eight tokens and two entities: of a configuration, not
    everything is looked at before."""
    ids = torch.zeros(1, 8, dtype=torch.long)
    places, pairs = torch.tensor([[1, 4]]), torch.tensor([[0, 0, 1], [0, 1, 0]])
    belongs = torch.eye(2, dtype=torch.bool)[None]
    was_training = model.training
    logits = model.eval()(ids, torch.ones_like(ids), places, belongs, torch.tensor([2]), pairs)
    model.train(was_training)
    if not logits.isfinite().all():
        raise ValueError("the scores of a first try are not numbers")


def load_state(path):
    """Parameter name -> tensor, of a .safetensors file, the index of several, or a torch file (.pt;
    read without running any code it may hold). Raises InputError."""
    if path.name == INDEX:
        return load_parts(path)
    try:
        if path.suffix == ".safetensors":
            state = unpack(load_file(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # whatever the readers raise on a foreign file
        raise InputError(f"{path}: not a checkpoint: {reason_of(error)}") from None
    if isinstance(state, dict) and isinstance(state.get("checkpoint"), dict):
        state = state["checkpoint"]  # DocuNet's, beside its settings
    is_state = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not is_state or not all(torch.is_tensor(x) for x in state.values()):
        raise InputError(f"{path}: not a checkpoint: expected parameter names and tensors")
    # "module.": saved from torch's DataParallel; "bert_model.": DocuNet's name of the encoder
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {re.sub(r"^bert_model\.", "model.", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not UNUSED.fullmatch(name)}


def load_parts(index):
    """`load_state` of all files that an index names. Raises InputError."""
    content, state = read_json(index), {}
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(x, str) for x in files.values()):
        raise InputError(f"{index}: weight_map: expected an object, parameter name -> file")
    for name in sorted(set(files.values())):
        state |= load_state(index.parent / name)
    return state


def sizes_of(state, backbone):
    """The sizes that a checkpoint's model of this backbone was made with, as far as they show."""

    def shape(name):
        return state[name].shape

    try:
        sizes = {"emb_size": len(state["head_extractor.bias"])}
        blocks = "projection.weight" if backbone == "kd_docre" else "bilinear.weight"
        sizes["block_size"] = shape(blocks)[1] // sizes["emb_size"]
        if backbone == "docunet":
            sizes["unet_in_dim"] = shape("liner.weight")[0]
            sizes["unet_out_dim"] = shape("segmentation_net.outc.conv.weight")[0]
            sizes["down_dim"] = shape("segmentation_net.inc.conv.double_conv.0.weight")[0]
    except (KeyError, IndexError, ZeroDivisionError, TypeError):
        # Of another backbone; load_weights says what does not fit.
        return {}
    return sizes


def load_weights(model, path, state=None):
    """Loads a checkpoint with the released code's parameter names (state: where `load_state` has
    read it already). Raises InputError, with the first names that do not fit, if any parameter is
    missing, unknown or of another shape."""
    given = load_state(path) if state is None else state
    check_fit(model, path, given)
    try:
        model.load_state_dict(given)
    except Exception as error:  # tensors of another kind: sparse, quantized, ...
        raise InputError(f"{path}: does not fit the model: {reason_of(error)}") from None


def check_fit(model, path, given):
    """Raises InputError unless a checkpoint (name -> tensor) has just the model's parameters, in
    their shapes, and numbers in them."""
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in given]
    faults += [f"{name} is unknown" for name in given if name not in own]
    faults += [
        f"{name} is {list(given[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    faults = faults or [
        f"{name} holds what is not a finite number"
        for name, tensor in given.items()
        if tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_complex()
        or not tensor.isfinite().all()
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"{path}: does not fit the model: {'; '.join(faults[:3])}{more}")
