"""The command line: `equijax COMMAND ...`. Mistakes in the input are one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Sequence

import typer

from equijax.allocator import tune_own_process
from equijax.cli import (
    average,
    bench,
    boost,
    calibrate,
    check,
    convert,
    evaluate,
    export,
    freeze,
    ipi,
    md,
    predict,
    reference,
    relax,
    scf,
    second_derivatives,
    shard,
    train,
)
from equijax.compilation_cache import enable_compilation_cache
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.out_of_memory import TRAINING, is_out_of_memory, out_of_memory

EXIT_INPUT, EXIT_INTERNAL, EXIT_INTERRUPTED = 2, 1, 130

_NEEDS_LESS = f"for training, {TRAINING}; for one large structure, `equijax predict --parts 8`"

app = typer.Typer(
    name="equijax",
    help="Equivariant machine-learning potentials in JAX: train, evaluate, run molecular dynamics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train.train)
app.command()(shard.shard)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(predict.predict)
app.command()(md.md)
app.command()(boost.boost)
app.command()(average.average)
app.command()(scf.scf)
app.command()(relax.relax)
app.command()(second_derivatives.hessian)
app.command()(second_derivatives.phonons)
app.command()(second_derivatives.elastic)
app.command()(check.check)
app.command()(freeze.freeze)
app.command()(export.export)
app.command()(ipi.ipi)
app.command()(reference.report)
app.command()(reference.doctor)
app.command()(reference.template)
app.command()(reference.schema)
app.add_typer(convert.app, name="convert")
app.add_typer(bench.app, name="bench")

# The base of typer's usage errors; its module depends on the version of typer.
_ClickException = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; works behind any command."),
) -> None:
    if version:
        from equijax import __version__

        typer.echo(f"equijax {__version__}")
        raise typer.Exit


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    # The user's own input is worth a line; the internals of dependencies are not.
    if issubclass(category, (EquijaxWarning, RuntimeWarning)):
        print(f"warning: {message}", file=sys.stderr)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code: 0, 1 internal error, 2 wrong input, 130 and 143 stopped."""
    words = [word for word in arguments if word != "--debug"]
    debug = len(words) < len(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", EquijaxWarning)
            warnings.showwarning = _show_warning
            result = app(words, standalone_mode=False, prog_name="equijax")
        return int(result or 0) if isinstance(result, int) else 0
    except EquijaxError as error:
        if debug:
            raise
        return _fail(str(error), EXIT_INPUT)
    except (typer.Exit, typer.Abort) as stop:
        return int(getattr(stop, "exit_code", EXIT_INTERNAL))
    except _ClickException as error:  # type: ignore[misc]
        return _fail(f"{_join(error.format_message())} (see `equijax --help`)", EXIT_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return EXIT_INTERNAL
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        hint = "; free some space or choose another place" if error.errno == errno.ENOSPC else ""
        return _fail(f"{place}{error.strerror or error}{hint}", EXIT_INPUT)
    except Exception as error:
        if debug:
            raise
        if is_out_of_memory(error):
            return _fail(str(out_of_memory(error, _join(str(error))[:200], _NEEDS_LESS)), EXIT_INTERNAL)
        return _fail(
            f"internal error: {type(error).__name__}: {_join(str(error))[:300]}; --debug shows where", EXIT_INTERNAL
        )


def _join(text: str) -> str:
    return " ".join(text.split())


def _fail(message: str, code: int) -> int:
    print(f"error: {_join(message)}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the `equijax` script."""
    enable_compilation_cache()
    if sys.argv[1:2] != ["bench"]:  # where the allocator is an option, because it is what is compared
        tune_own_process()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
