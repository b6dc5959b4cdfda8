"""The model card of a run, README.md in its folder: the scores where the hub looks for them."""

from huggingface_hub import EvalResult, ModelCardData

from inputs.files import write_atomically

METRICS = {"f1": "F1", "ign_f1": "Ign F1", "macro_f1": "macro F1"}

TEXT = """---
{metadata}
---
# {name}

Document-level relation extraction: {backbone} over {encoder}, trained with the loss {loss}. What it
was trained and tested on, and every setting, is in results.json.

    from predict import RelationExtractor

    RelationExtractor.from_pretrained("this folder, or its name on the hub")(document)
"""


def write_card(folder, config, results):
    """config: DocREConfig; results: of results.json."""
    name, data = results["args"]["run_name"], results["data"]
    scores = [
        EvalResult(
            task_type="relation-extraction",
            dataset_type=data[split]["file"],
            dataset_name=f"{data[split]['file']} ({data[split]['documents']} documents)",
            dataset_split=split,
            metric_type=metric,
            metric_name=shown,
            metric_value=round(100 * results[split][metric], 2),
        )
        for split in ("dev", "test")
        if split in results
        for metric, shown in METRICS.items()
    ]
    card = ModelCardData(
        model_name=name,
        library_name="transformers",
        tags=["document-level-relation-extraction", config.backbone, config.loss_type],
        eval_results=scores,
    )
    text = TEXT.format(
        metadata=card.to_yaml(),
        name=name,
        backbone=config.backbone,
        encoder=config.encoder.model_type,
        loss=config.loss_type,
    )
    write_atomically(folder / "README.md", lambda path: path.write_text(text, "utf-8"))
