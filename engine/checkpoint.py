"""Weights on disk: those of run folders, and the checkpoints of released codes."""

import os
import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from encoders.loading import UNUSED
from inputs.files import InputError, reason_of, write_atomically

WEIGHTS = "model.safetensors"
PACKED = "model.int8.safetensors"  # see pack; transformers cannot read it, hence its own name
SCALE = "_scale"


def write_state(path, state):
    """Writes parameter name -> tensor. Raises InputError if it cannot be written."""

    def write(temporary):
        save_file(state, temporary, {"format": "pt"})  # the format is for transformers
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # safetensors makes the file unreadable for others

    write_atomically(path, write, SafetensorError)


def pack(state):
    """Weights in 8 bits: every matrix becomes int8 [m, n] and a scale float32 [m, 1], called
    "<name>_scale", by which its rows are multiplied again. Other tensors stay as they are."""
    packed = {}
    for name, tensor in state.items():
        if tensor.dim() == 2 and tensor.is_floating_point():
            scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            packed[name + SCALE] = scale
            tensor = (tensor / scale).round().to(torch.int8)
        packed[name] = tensor
    return packed


def unpack(state):
    """The weights that `pack` was given, rounded; a state without scales is returned unchanged."""
    scales = {name: state[name + SCALE] for name in state if name + SCALE in state}
    return {
        name: tensor * scales[name] if name in scales else tensor
        for name, tensor in state.items()
        if name.removesuffix(SCALE) not in scales or name in scales
    }


def weights_of(folder):
    """The path of a run folder's weights, whole or packed."""
    packed = folder / PACKED
    return packed if packed.exists() and not (folder / WEIGHTS).exists() else folder / WEIGHTS


def load_state(path):
    """Parameter name -> tensor of a .safetensors file or of a torch file (.pt), which is read
    without running any code in it. Raises InputError."""
    try:
        if path.suffix == ".safetensors":
            state = unpack(load_file(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # the readers raise many types
        raise InputError(f"{path}: not a checkpoint: {reason_of(error)}") from None
    if isinstance(state, dict) and isinstance(state.get("checkpoint"), dict):
        state = state["checkpoint"]  # DocuNet saves it beside its settings
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(x) for name, x in state.items()
    ):
        raise InputError(f"{path}: not a checkpoint: expected parameter names and tensors")
    # "module.": saved from torch's DataParallel; "bert_model.": DocuNet's name of the encoder
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {re.sub(r"^bert_model\.", "model.", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not UNUSED.fullmatch(name)}


def load_weights(model, path, state=None):
    """Loads a checkpoint with the parameter names of the released code. state: its content, where
    `load_state` has read it before. Raises InputError, as `check_fit`."""
    state = load_state(path) if state is None else state
    check_fit(model, path, state)
    model.load_state_dict(state)


def check_fit(model, path, state):
    """Raises InputError, with the first names that do not fit, unless a checkpoint (name -> tensor)
    has exactly the model's parameters, in their shapes, and only finite numbers."""
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in own]
    faults += [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = faults or [
        f"{name} holds what is not a finite number"
        for name, tensor in state.items()
        if not tensor.isfinite().all()
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"{path}: does not fit the model: {'; '.join(faults[:3])}{more}")
