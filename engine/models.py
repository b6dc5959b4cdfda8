"""The model that the flags of a run ask for: new, from a run folder or from a released .pt."""

from contextlib import suppress
from pathlib import Path

from backbones import BACKBONES
from encoders.loading import build_encoder, transformer_type
from engine.checkpoint import load_state, load_weights, weights_of
from engine.options import SAVED_WITH_MODEL
from engine.run_folder import load_config, load_model
from inputs.files import InputError
from model import new_model


def tokenizer_name(args):
    """The folder or hub name of the tokenizer; a run folder has its own."""
    source = args.load_path or args.init_path
    if source and Path(source).is_dir():
        return source
    return args.tokenizer_name or args.model_name_or_path


def build_model(args, rel2id):
    """The model (model.DocREModel) on the CPU. Sizes are those of the given weights, whatever the
    flags say, and are entered into args. Raises InputError."""
    source, encoder_config = args.load_path or args.init_path, args.config_name
    if source and Path(source).is_dir():
        config = load_config(source)
        if config.label2id != rel2id:
            raise InputError(
                f"--rel2id: {args.rel2id} has other relations than the run in {source}"
            )
        encoder_config = config.encoder.to_dict()
    if args.load_path and Path(args.load_path).is_dir():
        model = load_model(args.load_path)
    else:
        model = _new_model(args, rel2id, source, encoder_config)
    found = transformer_type(model.model.config)
    if args.transformer_type not in (None, found):
        raise InputError(
            f"--transformer_type {args.transformer_type}: the encoder is of type {found}"
        )
    model.cpu_kernels = args.cpu_kernels == "auto"
    return model


def _new_model(args, rel2id, source, encoder_config):
    state, sizes = None, {}
    if source:
        path = weights_of(Path(source)) if Path(source).is_dir() else Path(source)
        state = load_state(path)
        with suppress(KeyError):  # it is one of another backbone: load_weights says what differs
            sizes = BACKBONES[args.backbone].sizes_of(state)
    encoder = build_encoder(
        args.model_name_or_path, encoder_config, state is None, args.attention_dropout
    )
    settings = {own: getattr(args, name) for name, own in SAVED_WITH_MODEL.items()}
    for name in sizes.keys() & vars(args).keys():
        setattr(args, name, sizes[name])
    try:
        model = new_model(encoder, rel2id, **settings | sizes)
    except ValueError as error:
        raise InputError(f"--backbone {args.backbone}: {error}") from None
    if state is not None:
        load_weights(model, path, state)
    return model
