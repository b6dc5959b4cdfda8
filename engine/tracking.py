"""Runs at wandb, without an account by default."""

from pathlib import Path

from engine import distributed


def start_wandb(args):
    """A function (record, step) that logs to wandb, or to nowhere; needs no account by default. A
    run that goes on, goes on there, too: its folder keeps wandb's name of it."""
    if args.wandb == "disabled" or not distributed.is_first():
        return lambda record, step: None
    import wandb

    if wandb.run:
        wandb.finish()  # the run of the seed before
    settings = {"project": args.proj_name, "name": args.run_name, "mode": args.wandb}
    if args.output_dir:
        path = Path(args.output_dir) / "wandb.txt"
        if args.resume and path.exists():
            settings |= {"id": path.read_text(), "resume": "allow"}
        settings["dir"] = args.output_dir
    run = wandb.init(config=vars(args), **settings)
    if args.output_dir:
        path.write_text(run.id)
    return wandb.log


def test_scores(results):
    """The scores on test of results.json, by the names that wandb shows them under."""
    kinds = {
        "test": results,
        "test_tuned": results.get("tuned"),
        "test_fused": results.get("fusion"),
    }
    scores = {kind: x["test"] for kind, x in kinds.items() if x and "test" in x}
    return {f"{kind}/{name}": x for kind, of_kind in scores.items() for name, x in of_kind.items()}
