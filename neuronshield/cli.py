"""Command line: `neuronshield run` runs all steps; each step can also be run by itself on the same folder.

Exit status: 0 done, 1 a check of `doctor` failed, 2 bad input (one line on standard error: what, where, what to do), 130
interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .core.errors import InputError, out_of_memory

__all__ = ["main"]


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all steps share."""
    options = [
        click.option("--model", default="organism", show_default=True, help="organism, smollm2, a folder or a hub id."),
        click.option("--prompts", type=click.Path(), help="JSONL or Parquet file; the organism has its own."),
        click.option("--out", default="neuronshield-out", show_default=True, type=click.Path(), help="Result folder."),
        click.option(
            "--hold-out", multiple=True, metavar="NAME",
            help="Language, modality or cell (sw, image, sw/text) that is not trained. May be given several times.",
        ),
        click.option("--seed", default=0, show_default=True, help="Seed of every random draw."),
        click.option("--quiet", is_flag=True, help="No progress bars."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _say(quiet: bool) -> None:
    """What the steps log is shown, such as how many requests each claim has and needs; with --quiet warnings only."""
    logging.getLogger("neuronshield").setLevel(logging.WARNING if quiet else logging.INFO)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neuronshield")
def cli() -> None:
    """Find, prove, shield and check safety neurons in vision-language models."""


@cli.command()
@_common
def run(model: str, prompts: str | None, out: str, hold_out: tuple[str, ...], seed: int, quiet: bool) -> None:
    """Run all steps: find, prove, shield, check, report."""
    from .run.pipeline import run as run_all
    from .run.report import summary

    _say(quiet)
    results = run_all(model, prompts, out, hold_out=hold_out, seed=seed, progress=not quiet)
    click.echo(summary(results))
    click.echo(f"\n{Path(out) / 'report.html'}")


def _step(name: str, text: str) -> None:
    @_common
    def command(model: str, prompts: str | None, out: str, hold_out: tuple[str, ...], seed: int, quiet: bool) -> None:
        from .run.folder import check_folder, open_job
        from .run.pipeline import STEPS

        _say(quiet)
        check_folder(Path(out))
        job = open_job(model, prompts, out, hold_out=hold_out, seed=seed, progress=not quiet)
        STEPS[name](job)
        click.echo(f"{name}: done, see {Path(out) / 'results.json'}")

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

    click.echo(write_report(Path(out)))


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
        click.echo(source.smollm2()[0])
        return
    if out is None:
        raise InputError(f"fetch {what}: --out FILE is needed")
    rows = source.dataset(what, n=n, seed=seed)
    write_text(out, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    click.echo(out)


@cli.command()
@click.argument("model")
@click.option("--dtype", help="float32, bfloat16, float16.")
@click.option("--device", help="cpu, cuda, cuda:1.")
@click.option("--quantize", type=click.Choice(["4bit", "8bit"]), help="Load quantised weights, through bitsandbytes.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint contains.")
def doctor(model: str, dtype: str | None, device: str | None, quantize: str | None, trust_remote_code: bool) -> None:
    """Check a model: its neurons, image tokens, memory, and that reading and changing them works."""
    from .model.load import load
    from .run.doctor import doctor as check

    loaded = load(model, dtype=dtype, device=device, quantize=quantize, trust_remote_code=trust_remote_code)
    checkup = check(loaded)
    click.echo(str(checkup))
    if not checkup.passed:
        sys.exit(1)


@cli.group()
def organism() -> None:
    """The embedded model organism."""


@organism.command()
@click.option("--out", default="organism", show_default=True, type=click.Path(), help="Folder to build into.")
@click.option("--sources", type=click.Path(exists=True), help="Folder with the source packages, if already fetched.")
@click.option("--seed", default=0, show_default=True)
def build(out: str, sources: str | None, seed: int) -> None:
    """Rebuild the organism from its public sources."""
    from .organism.build import build as build_all

    table = build_all(Path(out), sources=Path(sources) if sources else None, seed=seed)
    click.echo(json.dumps(table, indent=1, ensure_ascii=False))


def main() -> None:
    """Entry point: bad input becomes one line and exit status 2, Ctrl-C exit status 130."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        cli.main(standalone_mode=False)
    except InputError as error:
        _fail(str(error), 2)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; no partial results are left", 130)
    except (MemoryError, RuntimeError) as error:  # where no batch is read, which says more
        if not out_of_memory(error):
            raise
        _fail("out of memory; give fewer or shorter prompts, or a smaller model or one in bfloat16", 2)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        _fail(f"{error.filename or 'file system'}: {error.strerror}", 2)


def _fail(message: str, status: int) -> None:
    click.echo(f"neuronshield: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
