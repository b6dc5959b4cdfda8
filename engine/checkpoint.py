"""Weights on disk: of run folders, and the released codes' checkpoints."""

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from backbones import BACKBONES
from encoders.loading import UNUSED
from inputs.files import InputError, read_json, reason_of, write_atomically

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files, which transformers writes
PACKED = "model.int8.safetensors"  # see pack; of another name, for transformers cannot read it
SCALE = "_scale"


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
    """The sizes that a checkpoint's model of this backbone was made with; {} where it is another
    backbone's, of which `load_weights` says what does not fit."""
    try:
        return BACKBONES[backbone].sizes_of(state)
    except (KeyError, IndexError, ZeroDivisionError, TypeError):
        return {}


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
