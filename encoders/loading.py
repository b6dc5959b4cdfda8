"""Loads the encoders and tokenizers of transformers, by hub name or from a folder."""

import re

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from encoders.mention_attention import computes_attention, dropout_name, run_encoder
from inputs.files import InputError, reason_of

# Weights that a checkpoint may lack or have: we use no pooler, and old versions saved position ids.
UNUSED = re.compile(r"(.*\.)?pooler\..*|.*position_ids")


def build_encoder(name, config_name=None, weights=True, attention_dropout=None):
    """A transformers encoder in float32 for `mention_attention.encode_windows`.

    name: hub name or folder. config_name: hub name or folder of the configuration, or a dict with
    its fields; None: name. weights False: random weights. attention_dropout None: the
    configuration's (0 lets a CPU train with fused attention). Raises InputError, naming the
    encoder, if it cannot be loaded or returns no attention.
    """
    source = config_name or name
    shown = source["model_type"] if isinstance(source, dict) else source
    try:
        if isinstance(source, dict):
            config = AutoConfig.for_model(**source)
        else:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if attention_dropout is not None:
            setattr(config, dropout_name(config), attention_dropout)
        check_encoder(config)
        missing = unknown = []
        if weights:
            encoder, info = AutoModel.from_pretrained(
                name,
                config=config,
                trust_remote_code=False,
                output_loading_info=True,
                **attention_of(config),
            )
            encoder.pooler = None
            missing = [key for key in info["missing_keys"] if not UNUSED.fullmatch(key)]
            unknown = [key for key in info["unexpected_keys"] if is_part_of(encoder, key)]
        else:
            encoder = new_encoder(config)
    except Exception as error:  # the hub, the file formats and the models raise all kinds
        raise InputError(f"encoder {shown}: cannot be loaded: {reason_of(error)}") from None
    if missing:
        raise InputError(f"encoder {shown}: its weights lack {len(missing)}, first {missing[0]}")
    if unknown:
        raise InputError(
            f"encoder {shown}: its weights hold {len(unknown)} that this version of transformers "
            f"does not know, first {unknown[0]}"
        )
    if not computes_attention(config):
        _check_returns_attention(encoder, shown)
    return encoder.float()


def is_part_of(encoder, key):
    """Whether a weight belongs to the encoder itself, not to a head, which is not needed."""
    key = key.removeprefix(f"{encoder.base_model_prefix}.")
    inside = key.split(".")[0] in dict(encoder.named_children())
    return inside and not UNUSED.fullmatch(key)


def new_encoder(config):
    """A transformers encoder of that configuration, with random weights."""
    # trust_remote_code=False: without it transformers asks the user, who might say yes.
    encoder = AutoModel.from_config(config, trust_remote_code=False, **attention_of(config))
    encoder.pooler = None
    return encoder


def attention_of(config):
    """The argument for transformers that chooses how attention is computed."""
    if not computes_attention(config):
        return {"attn_implementation": "eager"}  # no other returns its attention
    # transformers 4 would take FlashAttention, whose outputs have no padding.
    return {"attn_implementation": "sdpa"} if config.model_type == "modernbert" else {}


def check_encoder(config):
    """Raises ValueError for a decoder's configuration."""
    if getattr(config, "is_decoder", False):
        raise ValueError("a decoder (is_decoder), whose tokens do not see those after them")


def check_precision(config, precision):
    """Raises InputError for an encoder that transformers cannot compute in this precision."""
    if config.model_type == "deberta" and precision != "fp32":
        raise InputError(
            f"--precision {precision}: the first DeBERTa computes in fp32 alone; give "
            "--precision fp32, or take DeBERTa-v3"
        )


@torch.no_grad()
def _check_returns_attention(encoder, name):
    config, length = encoder.config, 8
    attention = None
    if not config.is_encoder_decoder:
        try:
            ids = torch.full((1, length), min(10, config.vocab_size - 1))
            mask = torch.ones_like(ids)
            output = run_encoder(encoder, ids, mask, num_layers=1, output_attentions=True)
            attention = (output.attentions or [None])[-1]
        except Exception:  # a model of images, of sound, ...
            pass
    if attention is None or attention.shape[2:] != (length, length):
        raise InputError(
            f"encoder {name}: a {config.model_type} model does not return the attention between "
            "its tokens that localized context pooling is made of; use BERT, RoBERTa, DistilBERT, "
            "ELECTRA, DeBERTa-v2/3, MPNet or ModernBERT"
        )
    if not attention[:, :, 0, 1:].any():
        raise InputError(
            f"encoder {name}: a {config.model_type} model is a decoder, whose tokens do not see "
            "those after them"
        )


def load_tokenizer(name):
    """The tokenizer of this hub name or folder. Raises InputError."""
    try:
        try:
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except ValueError:  # transformers 5 saves class names that 4 does not know
            return PreTrainedTokenizerFast.from_pretrained(name)
    except Exception as error:  # the hub and the file formats raise all kinds
        raise InputError(f"tokenizer {name}: cannot be loaded: {reason_of(error)}") from None


def transformer_type(config):
    """ "roberta" or "bert": how the windows of long documents are closed."""
    return "roberta" if config.model_type in ("roberta", "xlm-roberta", "camembert") else "bert"


def window_size(config):
    """Tokens of an encoder window: 512 as in the released code, fewer for smaller encoders."""
    largest = 512
    limit = getattr(config, "max_position_embeddings", None) or largest
    if transformer_type(config) == "roberta" or config.model_type == "mpnet":
        limit -= config.pad_token_id + 1  # their first position
    return min(limit, largest)
