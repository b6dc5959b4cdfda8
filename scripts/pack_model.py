"""Saves a run folder's model with weights in 8 bits, a quarter of the size, in a new folder.

    python scripts/pack_model.py --model runs/demo --output packed
    python scripts/pack_model.py --model runs/demo --output packed --threshold_shift -0.4 \\
        --evidence_threshold 0.1

predict.py, train.py --load_path and RelationExtractor read it like a run folder; transformers alone
cannot. Measure the effect on the scores with train.py --load_path. The thresholds: what train.py
--tune_threshold found; the model then has its best ones wherever it is used.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from encoders.loading import load_tokenizer
from engine.checkpoint import PACKED, pack, write_state
from engine.extractor import check_options
from engine.run_folder import fetch, load_model, save_config
from inputs.files import InputError, OneLineParser, run_main, sha256_of
from losses import ZERO_THRESHOLD


def move_threshold(model, shift):
    """Adds shift to the model's threshold (losses.decode), by the bias of its logits."""
    bias = getattr(model, model.class_layer).bias.data
    if model.config.loss_type in ZERO_THRESHOLD:
        bias -= shift
    else:
        bias[0] += shift


def main(argv=None):
    parser = OneLineParser(description="A run folder's model with weights in 8 bits.")
    parser.add_argument("--model", required=True, help="run folder, or name on the hub")
    parser.add_argument("--output", required=True, type=Path, help="a new or empty folder")
    parser.add_argument("--threshold_shift", type=float, default=0.0, help="raises its threshold")
    parser.add_argument("--evidence_threshold", type=float, help="default: the model's")
    args = parser.parse_args(argv)
    thresholds = {x: getattr(args, x) for x in ("evidence_threshold", "threshold_shift")}
    check_options(**thresholds)
    folder = fetch(args.model)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    move_threshold(model, args.threshold_shift)
    if args.evidence_threshold is not None:
        model.config.evidence_threshold = args.evidence_threshold
    if args.threshold_shift or args.evidence_threshold is not None:
        model.config.fusion_threshold = None  # it was found with the others
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        if any(args.output.iterdir()):
            raise InputError(f"--output {args.output}: not empty")
    except OSError as error:
        raise InputError(f"--output {args.output}: {error.strerror}") from None
    state = pack(model.state_dict())
    write_state(args.output / PACKED, state)
    save_config(model, args.output)
    tokenizer.save_pretrained(args.output)
    size = (args.output / PACKED).stat().st_size
    print(f"{args.output / PACKED}: {size / 1e6:.1f} MB, SHA-256 {sha256_of(args.output / PACKED)}")


if __name__ == "__main__":
    run_main(main)
