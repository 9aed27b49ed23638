"""Command line: `neuronshield run` runs all steps; each step can also be run by itself on the same folder.

Exit status, with one line on standard error unless it is 0:

    0          done
    1          a check of `doctor` failed, or standard output is full (results are complete)
    2          bad input, a disk that is full, or too little memory: what, where, what to do
    129, 130, 143   stopped by SIGHUP, Ctrl-C or SIGTERM; what is finished is kept, and the same command goes on from there
    141        standard output was closed (results are complete; no line)
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from .core.errors import InputError, out_of_memory
from .core.threads import leave_busy_cores
from .run.options import engine_of_command, run_options, settings_of_command

__all__ = ["main"]


def _show(*, verbose: bool) -> None:
    """Warnings are shown, with --verbose everything that is logged; run.log has it in any case."""
    logging.getLogger("neuronshield").setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.DEBUG if verbose else logging.WARNING)


def _say(text: str) -> None:
    """Print a line; standard output that is closed or full is an error of its own, because results are complete then."""
    try:
        click.echo(text)
        sys.stdout.flush() if sys.stdout is not None else None
    except OSError as error:
        raise _Unprinted(error) from None


@contextmanager
def _said_later() -> Iterator[Callable[[str], None]]:
    """A function that prints a line; where it cannot, the block goes on, and the error is raised at its end."""
    errors: list[_Unprinted] = []

    def say(text: str) -> None:
        try:
            _say(text)
        except _Unprinted as error:
            errors.append(error)

    yield say
    if errors:
        raise errors[0]


class _Unprinted(Exception):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.closed = isinstance(error, BrokenPipeError)


class _Stopped(BaseException):
    """A signal that ends the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neuronshield")
def cli() -> None:
    """Find, prove, shield and check safety neurons in vision-language models."""


@cli.command()
@click.option("--plan", is_flag=True, help="Print what would run and how long it would take; write nothing.")
@run_options
def run(plan: bool, out: str, config: str | None, overwrite: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Run all steps: find, prove, shield, check, report. A run that was stopped goes on where it was."""
    _show(verbose=verbose)
    leave_busy_cores()
    where = engine_of_command(given)
    asked = settings_of_command(given, config)
    if plan:
        from .run.estimate import estimate
        from .run.folder import check_folder
        from .run.job import open_job

        check_folder(Path(out))
        _say(str(estimate(open_job(asked.model, asked.prompts, asked))))
        return
    from .run.pipeline import run as run_all

    options: dict[str, Any] = {"settings": asked, "overwrite": overwrite, "progress": not quiet}
    with where as engine, _said_later() as say:
        run_all(asked.model, asked.prompts, out, engine=engine, tell=say, **options)
    _say(f"\n{Path(out) / 'report.html'}")


def _step(name: str, text: str) -> None:
    @run_options
    def command(out: str, config: str | None, overwrite: bool, quiet: bool, verbose: bool, **given: Any) -> None:
        from .run.settings import run_file

        _show(verbose=verbose)
        leave_busy_cores()
        where = engine_of_command(given)
        kept = run_file(out)  # what is not given is as it was in the steps before
        asked = settings_of_command(given, config or (None if kept is None else str(kept)))
        from .run.pipeline import step

        options: dict[str, Any] = {"settings": asked, "overwrite": overwrite, "progress": not quiet}
        with where as engine, _said_later() as say:
            step(name, asked.model, asked.prompts, out=out, engine=engine, tell=say, **options)

    cli.command(name, help=text)(command)


_step("find", "Find candidate neurons: capture, contrast, overlap of cells.")


_step("prove", "Verify the candidates: ablation and patching against matched controls.")


_step("shield", "Train the verified neurons only, and the baselines.")


_step("check", "Measure refusal, over-refusal and utility per language and modality.")


@cli.command()
@click.option("--out", default="neuronshield-out", show_default=True, type=click.Path(), help="Result folder.")
def report(out: str) -> None:
    """Write report.html from results.json."""
    from .run.report import write_report

    _say(str(write_report(Path(out))))


@cli.command()
@click.argument("out", type=click.Path())
@click.option("--save", type=click.Path(), help="File to write it to; explorer.html in the run folder without it.")
def explore(out: str, save: str | None) -> None:
    """Write a page that shows the neurons of a run: what each reads, writes and does."""
    from .run.exploring import write_explorer

    _say(str(write_explorer(Path(out), None if save is None else Path(save))))


@cli.command()
@click.argument("out", type=click.Path())
@click.option("--judge", required=True, help="A name of ns.judges, such as wildguard; 'words' for the words alone.")
def regrade(out: str, judge: str) -> None:
    """Grade the answers of a run again, by another judge, without generating them again."""
    from .run.checking import regrade as grade_again
    from .run.folder import read_results
    from .run.headlines import summary

    grade_again(Path(out), None if judge == "words" else judge)
    _say(summary(read_results(Path(out))))


@cli.command()
@click.argument("out", type=click.Path())
@click.option("--cell", help="Language and modality, such as sw/text.")
@click.option("--condition", help="Condition, such as shield.")
@click.option("--label", type=click.Choice(["harmful", "benign"]), help="Label of the prompt.")
@click.option("--export", type=click.Path(), help="File to write them to: .csv, .jsonl or .parquet.")
def answers(out: str, cell: str | None, condition: str | None, label: str | None, export: str | None) -> None:
    """Print the answers of a run, or write them to a file."""
    from pandas import NA

    from .run.answer_files import export_answers, read_answers

    table = read_answers(Path(out), cell=cell, condition=condition, label=label)
    if export is not None:
        _say(str(export_answers(table, Path(export))))
        return
    for row in table.itertuples():
        steps = "" if row.steps is NA else f", {row.steps} steps"
        _say(f"{row.condition}{steps} | {row.language}/{row.modality} | {row.label} | {row.outcome}")
        _say(f"  {_plain(row.prompt)}\n  -> {_plain(row.response)}")


def _plain(text: Any) -> str:
    """A text on one line, without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--figure", type=click.Path(), help="HTML file to draw every measure into.")
def compare(runs: tuple[str, ...], figure: str | None) -> None:
    """Compare two or more runs: overlaps of their sets, differences of their effects."""
    from .core.files import write_text
    from .run.differences import compare_runs

    found = compare_runs(*runs)
    _say(str(found))
    if figure is not None:
        _say(str(write_text(figure, found.figure().to_html(include_plotlyjs=True))))


@cli.command()
@click.argument("what", type=click.Choice(["smollm2", "advbench", "harmbench"]))
@click.option("--out", type=click.Path(), help="File to write a data set to (JSONL).")
@click.option("-n", "n", default=64, show_default=True, help="Prompts of each label.")
@click.option("--seed", default=0, show_default=True)
def fetch(what: str, out: str | None, n: int, seed: int) -> None:
    """Fetch SmolLM2 into the cache, or a public prompt set into a file."""
    from .core.files import write_text
    from .data import fetch as source

    if what == "smollm2":
        _say(str(source.smollm2()[0]))
        return
    if out is None:
        raise InputError(f"fetch {what}: --out FILE is needed")
    rows = source.dataset(what, n=n, seed=seed)
    write_text(out, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    _say(out)


@cli.command()
@click.argument("model")
@click.option("--dtype", help="float32, bfloat16, float16.")
@click.option("--device", help="cpu, cuda, cuda:1.")
@click.option("--quantize", type=click.Choice(["4bit", "8bit"]), help="Load quantised weights, through bitsandbytes.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint contains.")
def doctor(model: str, dtype: str | None, device: str | None, quantize: str | None, trust_remote_code: bool) -> None:
    """Check a model: its neurons, image tokens, memory, and that reading and changing them works."""
    from .model.hub import found, is_hub_id

    if is_hub_id(model):
        found(model)
    from .model.load import load
    from .run.doctor import doctor as check

    loaded = load(model, dtype=dtype, device=device, quantize=quantize, trust_remote_code=trust_remote_code)
    checkup = check(loaded)
    _say(str(checkup))
    if not checkup.passed:
        sys.exit(1)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a shell.

    For bash: neuronshield completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is not None:
        _say(made(cli, {}, "neuronshield", "_NEURONSHIELD_COMPLETE").source())


@cli.group()
def protocol() -> None:
    """Published protocols beside each other on one model."""


@protocol.command("modality")
@click.option("--model", default="organism", show_default=True, help="organism, smollm2, a folder or a hub id.")
@click.option("--prompts", type=click.Path(), help="JSONL or Parquet file; the organism has its own.")
@click.option("--cells", multiple=True, metavar="NAME", help="Language, modality or cell (en/image) that is compared.")
@click.option("--out", default="neuronshield-protocol", show_default=True, type=click.Path(), help="Result folder.")
@click.option("--rho", type=click.FLOAT, help="Part of a layer's neurons that the published rules rank first.")
@click.option(
    "--site", "sites", multiple=True, help="Where the behavioural protocol reads: neuron, gate, up, attention."
)
@click.option("--queries", type=click.INT, help="Prompts of a label, modality and split, at most.")
@click.option("--controls", type=click.INT, help="Control neurons of a round.")
@click.option("--rounds", type=click.INT, help="Rounds of the behavioural protocol.")
@click.option("--draws", type=click.INT, help="Control sets of each kind.")
@click.option("--judge", help="A name of ns.judges, such as wildguard.")
@click.option("--dtype", help="float32, bfloat16, float16.")
@click.option("--device", help="cpu, cuda, cuda:1.")
@click.option("--batch-size", type=click.INT, help="Prompts a forward.")
@click.option("--seed", default=0, show_default=True)
@click.option("--quiet", is_flag=True, help="Print the verdicts only; no progress.")
def compare_modalities(out: str, quiet: bool, **given: Any) -> None:
    """Which neurons each protocol finds in text and in pictures, and what they do."""
    from .run.protocol import compare_protocols

    leave_busy_cores()
    options = {name: value for name, value in given.items() if value not in (None, ())}
    _say(str(compare_protocols(Path(out), progress=not quiet, **options)))
    _say(f"\n{Path(out) / 'protocol.html'}")


@cli.group()
def organism() -> None:
    """The embedded model organism."""


@organism.command()
@click.option(
    "--kind",
    default="organism",
    show_default=True,
    type=click.Choice(["organism", "shared", "separate", "wording", "tower", "smollm2-vision"]),
    help="What to build: the organism, a control organism, the vision tower that others share, or SmolLM2 with eyes.",
)
@click.option("--out", type=click.Path(), help="Folder to build into; without it, one that is called like the kind.")
@click.option("--sources", type=click.Path(exists=True), help="Folder with the source packages, if already fetched.")
@click.option("--seed", default=0, show_default=True)
def build(kind: str, out: str | None, sources: str | None, seed: int) -> None:
    """Rebuild the organism from its public sources, or another model of this package."""
    where = Path(kind if out is None else out)
    if kind == "organism":
        from .organism.build import build as build_all

        scores: Any = build_all(where, sources=Path(sources) if sources else None, seed=seed)
    elif kind in ("shared", "separate", "wording"):
        from .organism.control_build import build_control

        scores = build_control(kind, Path(f"organism-{kind}" if out is None else out), seed=seed)
    elif kind == "tower":
        from .graft.build.eyes import build_tower

        scores = build_tower(where, seed=seed)
    else:
        from .core.results import to_json
        from .graft.build.construction import build_graft

        scores = to_json(build_graft(where, seed=seed))
    _say(json.dumps(scores, indent=1, ensure_ascii=False))


def main() -> None:
    """Entry point: what goes wrong becomes one line and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, _stop)
    try:
        cli.main(standalone_mode=False)
    except InputError as error:
        _fail(str(error), 2)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail(f"interrupted; {GOES_ON}", 130)
    except _Stopped as stopped:
        _fail(f"stopped by {signal.Signals(stopped.number).name}; {GOES_ON}", 128 + stopped.number)
    except _Unprinted as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what Python flushes at its end goes nowhere
        if error.closed:
            sys.exit(141)
        _fail(f"standard output: {error}; results are complete", 1)
    except (MemoryError, RuntimeError) as error:  # where no batch is read, which says more
        if not out_of_memory(error):
            raise
        _fail("out of memory; give fewer or shorter prompts, or a smaller model or one in bfloat16", 2)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        _fail(f"{error.filename or 'file system'}: {error.strerror}", 2)


GOES_ON = "what is finished is kept, and the same command goes on from there"


def _stop(number: int, _frame: Any) -> None:
    raise _Stopped(number)


def _fail(message: str, status: int) -> None:
    with suppress(OSError):  # where standard error is full, the status says it
        click.echo(f"neuronshield: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
