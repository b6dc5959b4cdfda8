"""Prints how far many runs of one recipe are, until it is stopped: a line a minute, on a terminal
one line that is kept up to date. run_many.sh starts it:

    python scripts/progress.py FLAGS FAILED RUN...

FLAGS     the recipe's and then those given to the script, in one string
FAILED    a file with the names of the runs that failed, one a line
RUN...    the run folders; the log of each lies beside it
"""

import re
import sys
import time
from math import prod
from pathlib import Path


def main():
    flags, failed, *runs = sys.argv[1:]
    failed, runs = Path(failed), [Path(run) for run in runs]
    on_terminal, printed = sys.stdout.isatty(), time.monotonic()
    first = last = None  # (time, documents) of the first and the last news of the logs
    while True:
        now = time.monotonic()
        names = failed.read_text().splitlines() if failed.exists() else []
        done, total = (x * documents_per_step(flags) for x in steps_of_all(runs, names))
        if total and (not last or done != last[1]):
            last = now, done
            first = first or last
        if total and (on_terminal or now - printed >= 60):
            printed, text = now, line(done, total, done - first[1], last[0] - first[0])
            print(f"\r\x1b[K{text}" if on_terminal else text, end="" if on_terminal else "\n")
            sys.stdout.flush()
        time.sleep(2)


def documents_per_step(flags):
    found = re.findall(r"--(train_batch_size|gradient_accumulation_steps)[ =]+(\d+)", flags)
    return prod(int(number) for number in dict(found).values())  # the last of each counts


def steps_of_all(runs, failed):
    """(steps done, steps in all) of all runs; 0 in all until a log says how many a run has, which
    is the same for all. failed: names of runs whose other steps are not waited for."""
    steps = {run: steps_of(run) for run in runs}
    each = max(total for _, total in steps.values())
    done = {run: each if (run / "results.json").exists() else x for run, (x, _) in steps.items()}
    left = sum(each - x for run, x in done.items() if run.name not in failed)
    return sum(done.values()), sum(done.values()) + left if each else 0


def steps_of(run):
    """(steps done, steps in all) by the last bar in the run's log. Where there is none yet, the
    steps done are those of the saved state, and those in all 0."""
    log = run.parent / f"{run.name}.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    bars = re.findall(r"train: [^|]*\|[^|]*\| (\d+)/(\d+) \[", text)
    if bars:
        return tuple(map(int, bars[-1]))
    return max((int(x.stem.removeprefix("state-")) for x in run.glob("state-*.pt")), default=0), 0


def line(done, total, done_here, seconds):
    """done, total: documents; done_here: those of the last `seconds`, which tell the time left."""
    text = f"{done:,} of {total:,} documents"
    if done_here <= 0 or done == total:
        return text
    left = seconds * (total - done) / done_here
    if left < 120:
        return f"{text}, about {left:.0f} s left"
    hours, minutes = divmod(round(left / 60), 60)
    return f"{text}, about {f'{hours} h ' if hours else ''}{minutes} min left"


if __name__ == "__main__":
    main()
