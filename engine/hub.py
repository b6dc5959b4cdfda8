"""Sharing models: from_pretrained, save_pretrained and push_to_hub of every backbone.

The one format is the run folder that train.py leaves (checkpoint.py writes and reads it): from a
disk or from the hub, `DocREModel.from_pretrained(name)` loads it, and what is saved is one again.
"""

import os
from pathlib import Path

from huggingface_hub import ModelHubMixin, snapshot_download

from inputs.files import InputError, reason_of, relation_ids, write_json

FILES = ["config.json", "model.safetensors", "rel2id.json", "tokenizer/*"]

CARD = """---
{{ card_data }}
---
Document-level relation extraction, {{ backbone }} over {{ encoder }}{{ trained }}. With the code of
the HingeABL reproduction:

    from predict import RelationExtractor

    RelationExtractor.from_pretrained("the name of this model")(document)
"""


class SharedModel(
    ModelHubMixin,
    model_card_template=CARD,
    tags=["document-level-relation-extraction"],
):
    """The hub's side of a model. `run` (the settings it was trained with, of config.json),
    `tokenizer` and `rel2id` go with it where they are known."""

    run, tokenizer, rel2id = None, None, None

    def _save_pretrained(self, save_directory):
        from engine.checkpoint import save_config, save_weights

        save_config(self, save_directory, **({"run": self.run} if self.run else {}))
        save_weights(self, save_directory)
        if self.rel2id is not None:
            write_json(save_directory / "rel2id.json", self.rel2id)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory / "tokenizer")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id,
        revision=None,
        cache_dir=None,
        force_download=False,
        local_files_only=False,
        token=None,
        **_,
    ):
        # what is left over, _, is config.json once more: load_shared reads it itself
        folder = fetch(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        model = load_shared(folder)
        if not isinstance(model, cls):
            raise InputError(f"{model_id}: a {type(model).__name__}, not a {cls.__name__}")
        return model

    def generate_model_card(self, **more):
        loss = (self.run or {}).get("loss_type")
        facts = {
            "backbone": type(self).__name__,
            "encoder": self.model.config.model_type,
            "trained": f", trained with the loss {loss}" if loss else "",
        }
        return super().generate_model_card(**facts, **more)


def fetch(name, **options):
    """The run folder that `name` means: a folder, or a model of the hub, downloaded or from its
    cache; options go to snapshot_download. Raises InputError."""
    folder = Path(name)
    if not os.path.isdir(folder):  # False of a path that no folder can have
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=FILES, **options))
        except Exception as error:  # no network, no such model, no name of a model, ...
            raise InputError(
                f"model {name}: no run folder, nor to be had: {reason_of(error)}"
            ) from None
    if not (folder / "config.json").is_file():
        raise InputError(f"model {name}: not a run folder, it has no config.json")
    return folder


def load_shared(folder):
    """The model of a run folder in eval mode, with its `rel2id` and, None where the folder lacks
    them, `run` and `tokenizer`. Raises InputError."""
    from encoders.loading import load_tokenizer
    from engine.checkpoint import load_model
    from engine.options import saved_settings

    run = saved_settings(folder / "config.json")
    model = load_model(folder)[0]
    model.run = run or None
    model.rel2id = rel2id_of(folder)
    if (folder / "tokenizer").is_dir():
        model.tokenizer = load_tokenizer(folder / "tokenizer")
    return model.eval()


def rel2id_of(folder):
    """Property -> class id of a run folder, of meta/rel2id.json where it says nothing."""
    path = folder / "rel2id.json"
    return relation_ids(path) if path.is_file() else relation_ids()
