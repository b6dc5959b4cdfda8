"""Encoders and checkpoints: what is loaded from, and saved to, disk."""

import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from backbones import BACKBONES
from encoders.loading import UNUSED, build_encoder
from inputs.files import InputError, read_json, reason_of, write_atomically, write_json


def save_config(model, folder, **more):
    """Writes config.json: what `load_model` needs besides model.safetensors, and `more`."""
    encoder = {k: v for k, v in model.model.config.to_dict().items() if k[0] != "_"}
    backbone = next(name for name, kind in BACKBONES.items() if type(model) is kind)
    config = {"backbone": backbone, "sizes": model.sizes, "encoder": encoder}
    write_json(folder / "config.json", config | more)


def save_weights(model, folder):
    """Writes model.safetensors, under the released code's parameter names."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = folder / "model.safetensors"
    write_atomically(path, lambda temporary: save_file(state, temporary), SafetensorError)


def load_model(folder):
    """The model of a run folder, and its config.json as a dict. Raises InputError."""
    path, weights = folder / "config.json", folder / "model.safetensors"
    config, state = read_json(path), load_state(weights)
    try:
        encoder, sizes, backbone = config["encoder"], config["sizes"], BACKBONES[config["backbone"]]
        if not isinstance(encoder, dict):  # a name would be another model's
            raise TypeError(f"encoder: expected an object, found {type(encoder).__name__}")
        if any(
            "layers" in name and x > len(state) for name, x in encoder.items() if type(x) is int
        ):
            raise InputError(f"{path}: encoder: more layers than {weights} has parameters")
        # without memory at first: a line of the configuration can ask for more than there is
        with torch.device("meta"):
            config_alone = AutoConfig.for_model(**encoder)
            shapes = AutoModel.from_config(config_alone, trust_remote_code=False)
            shapes.pooler = None
            check_fit(backbone(shapes, **sizes), weights, state)
        model = backbone(build_encoder("", encoder, weights=False), **sizes)
        model.load_state_dict(state)  # it fits, as was just seen
        _check_runs(model)
    except InputError as error:
        raise InputError(f"{folder}: {error}" if str(folder) not in str(error) else error) from None
    except Exception as error:  # whatever a model raises of a configuration that is none
        raise InputError(f"{path}: not a run's configuration: {error!r}") from None
    return model, config


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
    """Parameter name -> tensor, of a .safetensors file or a torch file (.pt; read without running
    any code it may hold). Raises InputError."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
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
        # of another backbone: load_weights says what does not fit
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
