"""`rtm generate`: text by a text model."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Annotated

import typer

from rtm_kernels.cli.options import Device, Json, Seed, output


def generate(
    prompt: Annotated[
        str, typer.Argument(help="The text to go on with; - reads standard input.", metavar="PROMPT")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder of a text model, or hub id.", metavar="FOLDER")
    ] = "runs/text-small/model",
    max_bytes: Annotated[int, typer.Option(help="Most bytes to write.", metavar="N")] = 500,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest symbol.", metavar="T")] = 0.7,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest symbols that together have this probability.", metavar="P")
    ] = 0.95,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text. Repeatable.", metavar="TEXT")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of each word, or the most; default as trained.", metavar="N")
    ] = None,
    trace: Annotated[Path | None, output(help="Also write a page that shows the rounds of each word.")] = None,
    seed: Seed = 0,
    device: Device = None,
    json_object: Json = False,
) -> None:
    """Write text with a model that `rtm train text-small` trained.

    The text appears as it is written, after the prompt.

    Examples:

      rtm generate "def parse(" --model runs/text-small/model
      rtm generate "import " --temperature 0 --stop "\\n\\n" --trace rounds.html
    """
    from rtm_kernels.cli.options import default_device
    from rtm_kernels.cli.source import standard_input
    from rtm_kernels.engine.solver import usable_device
    from rtm_kernels.text.generate import Writer
    from rtm_kernels.text.generate import generate as write
    from rtm_kernels.text.model import TextModel

    if prompt == "-":
        prompt = standard_input("a prompt").read()
    found = TextModel.from_pretrained(model).to(usable_device(device or default_device()))
    writer = Writer(found, rounds)
    pieces = write(
        found, prompt, max_bytes=max_bytes, temperature=temperature, top_p=top_p, stop=stop or (), seed=seed,
        writer=writer,
    )  # fmt: skip
    decoder, text, before = codecs.getincrementaldecoder("utf-8")("replace"), "", prompt
    for piece in pieces:
        new = decoder.decode(piece)
        text += new
        if not json_object:
            typer.echo(safe(before + new), nl=False)
        before = ""
    words = [(word.decode(errors="replace"), rounds) for word, rounds in writer.words]
    if trace is not None:
        from rtm_kernels.trace.page import write_words

        write_words(words, writer.state.rounds, trace)
    typer.echo(json.dumps({"prompt": prompt, "text": text, "words": words}) if json_object else "")


def safe(text: str) -> str:
    """The text without control characters but tabs and line ends."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
