"""The verbs: the only argument parser in danlu.

In:  a command line.
Out: exit code 0; 2 and one sentence for a mistake of the user's; 1 for a fault of ours.
Left out: work of its own; a verb calls rooms and prints what they return. Rooms are imported inside the verbs, so that
``danlu --help`` does not wait for torch.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from danlu import __version__, accounts_cli, feedback_cli, flywheel_cli, lab_cli, serve_cli
from danlu.console import Console
from danlu.errors import UserError
from danlu.serve_cli import Shots, Where

app = typer.Typer(
    name="danlu",
    help="Raw text in, your own ChatGPT out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(feedback_cli.feedback, name="feedback")
app.add_typer(feedback_cli.reviews, name="reviews")
app.add_typer(accounts_cli.keys, name="keys")
app.add_typer(accounts_cli.users, name="users")
app.add_typer(lab_cli.lab, name="lab")
app.command()(serve_cli.serve)
app.command()(flywheel_cli.flywheel)

# What a full or protected disk and a path of the wrong kind say: no fault of ours, and no traceback.
_OF_THE_MACHINE = frozenset((
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EEXIST, errno.EISDIR, errno.ENOTDIR,
))  # fmt: skip

_INTERRUPTED = 130  # as a shell says of a program that was stopped by Ctrl-C

Recipe = Annotated[str, typer.Argument(help="A bundled recipe (tang, tiny, ...) or the path of a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as many as you like.")]
Out = Annotated[Path | None, typer.Option("--out", help="The run directory; runs/RECIPE if not given.")]
StageName = Annotated[str | None, typer.Option("--stage", help="Which model of a run, by its stage: sft, ppo, ...")]


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"danlu {__version__}")
        raise typer.Exit


@app.callback()
def danlu(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Raw text in, your own ChatGPT out."""


@app.command("run")
def run_verb(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
) -> None:
    """Make everything a recipe describes; what is already made is skipped."""
    from danlu.pipeline import execute, read_recipe
    from danlu.places import place_of
    from danlu.report import figures, summary, write_report
    from danlu.train import parallel

    resolved, place = place_of(read_recipe(recipe, overrides or []), recipe, out)
    run = execute(resolved, place, Console(quiet=quiet), until)
    if not parallel.join().main:
        return
    report = write_report(run)
    if not quiet:
        typer.echo(summary(figures(run)))
        typer.echo(f"report: {report}")


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="Price of this machine per hour, for the cost.")] = None,
) -> None:
    """Say what a recipe would do: stages, sizes, FLOPs, memory, time and cost. Nothing is run."""
    from danlu.pipeline import read_recipe
    from danlu.plan import describe

    typer.echo(describe(read_recipe(recipe, overrides or []), price))


@app.command()
def chat(
    where: Where,
    text: Annotated[str | None, typer.Argument(help="Say this and exit; without it, a conversation starts.")] = None,
    stage: StageName = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed of the answer.")] = 0,
    shots: Shots = None,
) -> None:
    """Talk to a model in the terminal."""
    from danlu.infer import read_shots
    from danlu.places import find_model
    from danlu.talk import Chat

    model = find_model(where, stage)
    talk = Chat(model, temperature=temperature, seed=seed, shots=read_shots(shots) if shots else ())
    if text is not None:
        typer.echo(talk.say(text))
        return
    typer.echo(f"talking to {model}; an empty line ends", err=True)
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if not said.strip():
            return
        try:
            for piece in talk.stream(said):
                typer.echo(piece, nl=False)
        except UserError as error:  # too long for the context, say: the conversation is still there
            typer.echo(f"danlu: {error}", err=True)
        except KeyboardInterrupt:
            typer.echo(" …", nl=False)
        typer.echo()


@app.command()
def report(
    where: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Key figures as one JSON object.")] = False,
) -> None:
    """Write report.html again, or print the key figures."""
    from danlu.report import figures, open_run, summary, write_report

    run = open_run(where)
    if as_json:
        typer.echo(json.dumps(figures(run), ensure_ascii=False, indent=2))
        return
    path = write_report(run)
    typer.echo(summary(figures(run)))
    typer.echo(f"report: {path}")


@app.command("eval")
def eval_verb(
    where: Where,
    text: Annotated[Path, typer.Option("--text", help="A text file to measure bits per byte on.")],
    stage: StageName = None,
) -> None:
    """Measure a model on a text of yours: bits per byte, which models of any vocabulary share."""
    from danlu.device import choose
    from danlu.evals.perplexity import text_bits_per_byte
    from danlu.hub import load_pretrained
    from danlu.places import find_model

    path = find_model(where, stage)
    model, tokenizer = load_pretrained(path)
    machine = choose()
    model.to(machine.kind).compute_in(machine.compute_dtype)
    figures = {"model": str(path), **text_bits_per_byte(model, tokenizer, _read_text(text))}
    typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))


@app.command("import")
def import_verb(
    source: Annotated[Path, typer.Argument(help="A Hugging Face directory, a GGUF file, hf:ORG/NAME or smollm2.")],
    out: Annotated[Path, typer.Argument(help="A model directory to make.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; as stored if not given, float16 for blocks.")
    ] = None,
) -> None:
    """Make a model directory of a model from elsewhere; nothing in it is ever run."""
    from danlu.hub import import_model, source_of

    import_model(source_of(source, Console()), out, dtype)
    typer.echo(str(out))


@app.command()
def export(
    where: Where,
    out: Annotated[Path, typer.Argument(help="A directory to make, or with --to gguf a file.")],
    stage: StageName = None,
    to: Annotated[
        str, typer.Option(help="hf: a directory that transformers loads; gguf: a file for llama.cpp.")
    ] = "hf",
    kind: Annotated[
        str | None,
        typer.Option("--type", help="Of the matrices, with --to gguf: F16 (default), BF16, F32, Q8_0, Q4_0."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA or DoRA adapter in peft's format, merged into the model first.")
    ] = None,
) -> None:
    """Copy a model out of a run for other programs."""
    from danlu.errors import unknown
    from danlu.hub import export_directory, export_gguf, export_merged
    from danlu.places import find_model

    if to not in ("hf", "gguf"):
        raise unknown("form", to, ("hf", "gguf"), "--to")
    if kind is not None and to != "gguf":
        raise UserError("--type goes with --to gguf; a directory keeps the weights as they are")
    model = find_model(where, stage)
    if to == "gguf":
        export_gguf(model, out, kind or "F16", adapter)
    elif adapter is not None:
        export_merged(model, adapter, out)
    else:
        export_directory(model, out)
    typer.echo(str(out))


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Spell this one out, part by part.")] = None,
) -> None:
    """List the model shapes with names, from GPT-1 to DeepSeek-V3, or show where one's parameters are."""
    from danlu.anatomy import explain, table

    typer.echo(explain(name) if name else table())


@app.command()
def inspect(
    where: Where,
    stage: StageName = None,
    cost: Annotated[bool, typer.Option("--cost", help="Also the memory for serving and for training.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Rows, for --cost.")] = 1,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens a row, for --cost; all if not given.")] = None,
) -> None:
    """Show a model's parts: shapes, counts, size, cache."""
    from danlu.anatomy import inspect as describe_directory
    from danlu.hub import read_config
    from danlu.places import find_model

    model = find_model(where, stage)
    load = (batch, context or read_config(model)[0].max_seq_len) if cost else None
    typer.echo(describe_directory(model, load))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from danlu.pipeline import SECTIONS, SHORTCUTS
    from danlu.recipe import json_schema

    typer.echo(json.dumps(json_schema(SECTIONS, SHORTCUTS), indent=2))


@app.command()
def doctor() -> None:
    """Say what this machine can do, and what is missing."""
    from danlu.doctor import examine

    typer.echo(examine())


def main() -> None:
    """Entry point: one clear sentence for what goes wrong."""
    try:
        code: Any = app(standalone_mode=False)
    except typer.Exit as leave:
        code = _stopped() if leave.exit_code == _INTERRUPTED else leave.exit_code
    except UserError as error:
        code = _complain(str(error), 2)
    except KeyboardInterrupt:
        code = _stopped()
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        code = _complain(f"{error.strerror}: {error.filename or 'the run directory'}; nothing finished was lost", 2)
    except ModuleNotFoundError as error:
        code = _complain(f"the package '{error.name}' is missing; install danlu again (make demo does)", 2)
    except Exception as error:
        code = _usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> int:
    """Typer's own complaints about the command line; anything else is our fault and keeps its traceback (exit 1)."""
    message = getattr(error, "format_message", None)
    if message is None:
        raise error
    return _complain(message(), 2) if message() else 2  # nothing to say beside the help that was shown


def _stopped() -> int:
    """What Ctrl-C says, whether it reached us or typer first."""
    return _complain("interrupted; run the same command again to go on", _INTERRUPTED)


def _complain(sentence: str, code: int) -> int:
    typer.echo(f"danlu: {sentence}", err=True)
    return code


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no text file at {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a file with some text") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    if not text.strip():
        raise UserError(f"{path} is empty; give a file with some text")
    return text


if __name__ == "__main__":
    main()
