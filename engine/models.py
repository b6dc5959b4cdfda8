"""The model that the flags of a run ask for: new, from a run folder or from a released .pt."""

from pathlib import Path

from encoders.loading import build_encoder, transformer_type
from engine.checkpoint import load_state, load_weights, sizes_of, weights_of
from engine.options import SAVED_WITH_MODEL, load_config
from engine.run_folder import load_model
from inputs.files import InputError
from model import new_model


def tokenizer_name(args):
    """The run folder's, or a folder or hub name."""
    source = args.load_path or args.init_path
    if source and Path(source).is_dir():
        return source
    return args.tokenizer_name or args.model_name_or_path


def build_model(args, rel2id):
    """The model, on the CPU. The sizes of given weights count, whatever the flags say, and are
    entered into args. Raises InputError."""
    path, source = args.load_path or args.init_path, args.config_name
    if path and Path(path).is_dir():
        config = load_config(path)
        if config.label2id != rel2id:
            raise InputError(f"--rel2id: {args.rel2id} has other relations than the run in {path}")
        path, source = weights_of(Path(path)), config.encoder.to_dict()
    if args.load_path and Path(args.load_path).is_dir():
        model = load_model(args.load_path)
    else:
        state = load_state(Path(path)) if path else None
        model = _new_model(args, rel2id, source, state)
        if state is not None:
            load_weights(model, path, state)
    kind = transformer_type(model.model.config)
    if args.transformer_type not in (None, kind):
        raise InputError(
            f"--transformer_type {args.transformer_type}: the encoder is of type {kind}"
        )
    model.cpu_kernels = args.cpu_kernels == "auto"
    return model


def _new_model(args, rel2id, config_name, state):
    encoder = build_encoder(
        args.model_name_or_path, config_name, state is None, args.attention_dropout
    )
    settings = {own: getattr(args, name) for name, own in SAVED_WITH_MODEL.items()}
    sizes = sizes_of(state, args.backbone) if state is not None else {}
    for name in sizes.keys() & vars(args).keys():
        setattr(args, name, sizes[name])
    try:
        return new_model(encoder, rel2id, **settings | sizes)
    except ValueError as error:
        raise InputError(f"--backbone {args.backbone}: {error}") from None
