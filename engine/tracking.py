"""Logging to wandb."""

from pathlib import Path

from engine import distributed
from inputs.files import InputError, reason_of


def start_wandb(args):
    """A function (record, step) that logs to wandb, or, by default and in all processes but the
    first, does nothing. A resumed run continues wandb's run, whose id its folder keeps."""
    if args.wandb == "disabled" or not distributed.is_first():
        return lambda record, step: None
    import wandb  # noqa: PLC0415, optional

    if wandb.run:
        wandb.finish()  # of the previous seed
    settings = {"project": args.proj_name, "name": args.run_name, "mode": args.wandb}
    if args.output_dir:
        path = Path(args.output_dir) / "wandb.txt"
        if args.resume and path.exists():
            settings |= {"id": path.read_text(), "resume": "allow"}
        settings["dir"] = args.output_dir
    try:
        run = wandb.init(config=vars(args), **settings)
    except wandb.errors.Error as error:  # not logged in, or the server is out of reach
        raise InputError(f"--wandb {args.wandb}: {reason_of(error)}") from None
    if args.output_dir:
        path.write_text(run.id)
    return wandb.log


def test_scores(results):
    """The test scores of results.json under their names in wandb, such as test_tuned/f1."""
    groups = {
        "test": results,
        "test_tuned": results.get("tuned", {}),
        "test_fused": results.get("fusion", {}),
    }
    scores = {group: x["test"] for group, x in groups.items() if "test" in x}
    return {f"{group}/{name}": x for group, found in scores.items() for name, x in found.items()}
